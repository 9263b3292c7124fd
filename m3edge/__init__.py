"""m3edge: run M3-Embedding models (dense, sparse and multi-vector from one encoder) on the edge, without PyTorch."""
