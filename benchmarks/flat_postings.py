"""Postings by token, as prepared by postings.py, for whoever searches them: needs numpy alone, so that it runs in every
peer's environment."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

K = 100  # results a query


class FlatQuery(NamedTuple):
    """ids: int64 [n], ascending; weights: float32 [n]"""

    ids: np.ndarray
    weights: np.ndarray


class FlatPostings:
    """For each token its documents, int32, and float32 weights. `search` is what one writes in numpy without further
    thought: weights added up for all documents, then the K best. Also the judge of what the others find."""

    def __init__(self, folder: Path) -> None:
        self.starts, self.documents, self.weights = (
            np.load(folder / f"{name}.npy") for name in ("starts", "documents", "weights")
        )
        self.n_documents = int(self.documents.max()) + 1
        self.n_tokens = len(self.starts) - 1
        arrays = np.load(folder / "queries.npz")
        rows = [slice(*arrays["offsets"][i : i + 2]) for i in range(len(arrays["offsets"]) - 1)]
        self.queries = [FlatQuery(arrays["ids"][row], arrays["weights"][row]) for row in rows]

    @property
    def size_bytes(self) -> int:
        return self.documents.nbytes + self.weights.nbytes + self.starts.nbytes

    def postings_of(self, query: FlatQuery) -> int:
        return int((self.starts[query.ids + 1] - self.starts[query.ids]).sum())

    def scores(self, query: FlatQuery) -> np.ndarray:
        """float32 [n_documents]"""
        scores = np.zeros(self.n_documents, np.float32)
        for token, weight in zip(query.ids.tolist(), query.weights, strict=True):
            where = slice(self.starts[token], self.starts[token + 1])
            scores[self.documents[where]] += weight * self.weights[where]
        return scores

    def search(self, query: FlatQuery) -> np.ndarray:
        """The K best documents, best first: int64 [K]"""
        return best(self.scores(query))

    def recall(self, search: Callable[[int], np.ndarray], n_queries: int = 20) -> float:
        """The share of the K best that a search finds, counting as right whatever scores no less than the K-th."""
        shares = []
        for i, query in enumerate(self.queries[:n_queries]):
            scores = self.scores(query)
            least = np.partition(scores, len(scores) - K)[len(scores) - K]
            found = np.asarray(search(i), np.int64)
            shares.append(np.count_nonzero(scores[found] >= least * np.float32(0.99999)) / K)
        return float(np.mean(shares))


def best(scores: np.ndarray) -> np.ndarray:
    """The positions of the K largest, best first."""
    found = np.argpartition(scores, len(scores) - K)[len(scores) - K :]
    return found[np.argsort(-scores[found])]


def query_times(search: Callable[[Any], Any], queries: Sequence[Any]) -> dict[str, float]:
    """Each query's best of three runs, so that what else the machine does counts little; then median and p99."""
    times = []
    for query in queries:
        runs = []
        for _ in range(3):
            started = time.perf_counter()
            search(query)
            runs.append(time.perf_counter() - started)
        times.append(1000 * min(runs))
    return {"median_ms": round(float(np.median(times)), 3), "p99_ms": round(float(np.percentile(times, 99)), 3)}
