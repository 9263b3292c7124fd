"""The searchable index: documents in a folder, found by their dense, sparse and token vectors together."""

from m3edge.index.explain import Explanation
from m3edge.index.graph import HnswConfig
from m3edge.index.index import AddReport, Hit, Index, PartScores
from m3edge.index.store import Document

__all__ = ["AddReport", "Document", "Explanation", "Hit", "HnswConfig", "Index", "PartScores"]
