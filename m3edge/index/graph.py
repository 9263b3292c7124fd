"""An HNSW graph (hnswlib) over dense vectors, known by their row numbers.

The one place that knows hnswlib's ways: distances turned into scores (higher is better), room made before adding,
k never above what is there.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
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


class HnswGraph:
    """Approximate nearest rows by inner product. Adding and searching at the same time is the caller's to prevent;
    several threads may search together."""

    def __init__(self, dim: int, config: HnswConfig, n_threads: int, path: Path | None = None) -> None:
        """An empty graph, or the one that `save` wrote to `path`."""
        import hnswlib  # late: `import m3edge` stays light

        self._config = config
        self._n_threads = n_threads
        self._n_deleted = 0
        self._graph: Any = hnswlib.Index(space="ip", dim=dim)
        if path is None:
            self._graph.init_index(max_elements=1024, M=config.m, ef_construction=config.ef_construction)
        else:
            self._graph.load_index(str(path))
        self._graph.set_num_threads(n_threads)
        self._breadth = _Breadth(self._graph)

    def __len__(self) -> int:
        """How many rows there are, deleted ones included."""
        return self._graph.get_current_count()

    def add(self, rows: np.ndarray, vectors: np.ndarray) -> None:
        """rows: int64 [n], not yet in the graph; vectors: float32 [n, dim]."""
        if len(rows) == 0:
            return  # hnswlib would read the first row all the same
        needed = len(self) + len(rows)
        if needed > self._graph.get_max_elements():
            self._graph.resize_index(max(needed, 2 * self._graph.get_max_elements()))
        self._graph.add_items(vectors, rows, num_threads=self._n_threads)

    def delete(self, rows: np.ndarray) -> None:
        """Hide rows, which are in the graph and not hidden yet, from every later search."""
        for row in rows.tolist():
            self._graph.mark_deleted(row)
        self._n_deleted += len(rows)

    def restore_deleted(self, n: int) -> None:
        """After loading: the file keeps the marks, but hnswlib does not count them."""
        self._n_deleted = n

    def search(self, query: np.ndarray, k: int) -> np.ndarray | None:
        """The k rows nearest to query, float32 [dim]: int64 [at most k], best first.

        None when the graph does not reach k rows from where it starts, though they are there.
        """
        k = min(k, len(self) - self._n_deleted)
        if k == 0:
            return np.empty(0, np.int64)
        # Deleted nodes take places among the ef candidates: keep as many more.
        ef = min(max(self._config.ef_search, k) + self._n_deleted, len(self))
        with self._breadth.of(ef):
            try:
                labels, _ = self._graph.knn_query(query, k=k, num_threads=1)
            except RuntimeError:  # hnswlib's word for: fewer than k rows are reachable from the entry point
                return None
        return labels[0].astype(np.int64)

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """The stored vectors of rows in the graph: float32 [n, dim]."""
        if len(rows) == 0:
            return np.empty((0, self._graph.dim), np.float32)
        return np.asarray(self._graph.get_items(rows, return_type="numpy"), np.float32)

    def save(self, path: Path) -> None:
        self._graph.save_index(str(path))


class _Breadth:
    """hnswlib keeps ef in the graph, not in the query: searches with the same ef run together, others wait."""

    def __init__(self, graph: Any) -> None:
        self._graph = graph
        self._ef = 0
        self._running = 0
        self._changed = threading.Condition()

    @contextmanager
    def of(self, ef: int) -> Iterator[None]:
        with self._changed:
            while self._running and self._ef != ef:
                self._changed.wait()
            if self._ef != ef:
                self._graph.set_ef(ef)
                self._ef = ef
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                if not self._running:
                    self._changed.notify_all()
