"""`m3edge bench`: quality, speed, size and memory of model folders on a user's own machine and data."""
