"""m3edge_export: from a trained PyTorch M3 model to the model folder that the m3edge runtime reads."""
