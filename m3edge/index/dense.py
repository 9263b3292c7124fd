"""The dense part: an HNSW graph (hnswlib) over the documents' dense vectors, known by their row numbers.

The one place that knows hnswlib's ways: distances turned into scores (higher is better), room made before adding,
k never above what is there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True)
class HnswConfig:
    """How the graph is built and searched."""

    m: int = 16  # links a node; memory grows by about 8 * m bytes a vector
    ef_construction: int = 200  # candidates kept while adding
    ef_search: int = 64  # candidates kept while searching, at least; never fewer than are asked for

    def __post_init__(self) -> None:
        for name, least in (("m", 2), ("ef_construction", 1), ("ef_search", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")


class DenseIndex:
    """Approximate nearest rows by inner product. Searches may run at the same time;
    changing it while they do is the caller's to prevent."""

    def __init__(self, dim: int, config: HnswConfig, n_threads: int, path: Path | None = None) -> None:
        """An empty graph, or the one that `save` wrote to `path`."""
        import hnswlib  # late: `import m3edge` stays light

        self._config = config
        self._n_threads = n_threads
        self._graph: Any = hnswlib.Index(space="ip", dim=dim)
        self._deleted: set[int] = set()
        if path is None:
            self._graph.init_index(max_elements=1024, M=config.m, ef_construction=config.ef_construction)
        else:
            self._graph.load_index(str(path))
        self._graph.set_num_threads(n_threads)
        self._graph.set_ef(config.ef_search)
        self.last_row = max(self._graph.get_ids_list(), default=0)  # the newest row that was added

    def add(self, rows: np.ndarray, vectors: np.ndarray) -> None:
        """rows: int64 [n], ascending, behind all that are in the graph; vectors: float32 [n, dim]."""
        if len(rows) == 0:
            return  # hnswlib would read the first row all the same
        needed = self._graph.get_current_count() + len(rows)
        if needed > self._graph.get_max_elements():
            self._graph.resize_index(max(needed, 2 * self._graph.get_max_elements()))
        self._graph.add_items(vectors, rows, num_threads=self._n_threads)
        self.last_row = int(rows[-1])

    def delete(self, rows: np.ndarray) -> None:
        """Hide rows from every later search; a row that is not in the graph, or is hidden, is passed over."""
        for row in rows.tolist():
            if row not in self._deleted:
                try:
                    self._graph.mark_deleted(row)
                except RuntimeError:  # not in the graph
                    continue
                self._deleted.add(row)

    def search(self, query: np.ndarray, k: int) -> np.ndarray:
        """The k rows nearest to query, float32 [dim]: int64 [at most k], best first."""
        live = self._graph.get_current_count() - len(self._deleted)
        k = min(k, live)
        if k == 0:
            return np.empty(0, np.int64)
        # hnswlib keeps max(ef, k) candidates, deleted ones not counted; setting ef here would disturb other threads.
        try:
            labels, _ = self._graph.knn_query(query, k=k, num_threads=1)
        except RuntimeError:  # hnswlib's word for: fewer than k rows are reachable from the entry point
            return self._search_all(query, k)
        return labels[0].astype(np.int64)

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """The stored vectors of rows in the graph: float32 [n, dim]."""
        if len(rows) == 0:
            return np.empty((0, self._graph.dim), np.float32)
        return np.asarray(self._graph.get_items(rows, return_type="numpy"), np.float32)

    def save(self, path: Path) -> None:
        self._graph.save_index(str(path))

    def restore_deleted(self, alive: np.ndarray, last_row: int) -> None:
        """After loading: the file keeps the marks but hnswlib does not list them. alive: int64 [n], the rows up to
        last_row that were not deleted."""
        self._deleted = {row for row in self._graph.get_ids_list() if row <= last_row} - set(alive.tolist())

    def _search_all(self, query: np.ndarray, k: int) -> np.ndarray:
        rows = np.array(sorted(set(self._graph.get_ids_list()) - self._deleted), np.int64)
        scores = self.vectors(rows) @ query
        return rows[np.argsort(-scores, kind="stable")[:k]]
