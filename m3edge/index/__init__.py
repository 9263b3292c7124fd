"""The searchable index: documents in a folder, found by their dense, sparse and token vectors together."""

from m3edge.index.check import CheckReport, Problem
from m3edge.index.compaction import CompactReport
from m3edge.index.documents import Document
from m3edge.index.explain import Explanation
from m3edge.index.graph import HnswConfig
from m3edge.index.index import Index
from m3edge.index.searching import Hit, PartScores
from m3edge.index.writing import AddReport

__all__ = [
    "AddReport",
    "CheckReport",
    "CompactReport",
    "Document",
    "Explanation",
    "Hit",
    "HnswConfig",
    "Index",
    "PartScores",
    "Problem",
]
