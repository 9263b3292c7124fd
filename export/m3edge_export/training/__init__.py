"""Training an M3 model: losses, data, and what is trained."""
