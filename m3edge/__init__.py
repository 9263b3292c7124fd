"""m3edge: run M3-Embedding models (dense, sparse and multi-vector from one encoder) on the edge, without PyTorch."""

from m3edge.embeddings import Embeddings
from m3edge.encoder import Encoder
from m3edge.errors import CancelledError, FormatError, IndexLockedError, M3EdgeError, ModelMismatchError, ProviderError
from m3edge.index import Document, Hit, Index

__version__ = "0.1.0"
__all__ = [
    "CancelledError",
    "Document",
    "Embeddings",
    "Encoder",
    "FormatError",
    "Hit",
    "Index",
    "IndexLockedError",
    "M3EdgeError",
    "ModelMismatchError",
    "ProviderError",
]
