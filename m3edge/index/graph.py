"""An HNSW graph (hnswlib) over dense vectors, known by their row numbers.

The one place that knows hnswlib's ways: distances turned into scores (higher is better), room made before adding,
k never above what is there.
"""

from __future__ import annotations

import errno
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from m3edge.index.graph_file import problem_of_graph


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


def hnswlib_is_installed() -> bool:
    """hnswlib has no wheels: where no compiler is, m3edge is installed without it."""
    return importlib.util.find_spec("hnswlib") is not None


class HnswGraph:
    """Approximate nearest rows by inner product. Several threads may search together; changing it while they do is the
    caller's to prevent."""

    def __init__(self, dim: int, config: HnswConfig, n_threads: int, path: Path | None = None) -> None:
        """An empty graph, or the one that `save` wrote to `path`. Raises OSError, RuntimeError or ValueError when that
        cannot be read, or is none of this width and configuration; ImportError without hnswlib."""
        try:
            import hnswlib  # late: `import m3edge` stays light
        except ImportError as error:
            raise ImportError("a graph over dense vectors needs hnswlib: pip install 'm3edge[hnsw]'") from error

        if path is not None and (problem := problem_of_graph(path, dim, config.m, config.ef_construction)) is not None:
            raise ValueError(problem)

        self._config = config
        self._n_threads = n_threads
        self._n_deleted = 0
        self._graph: Any = hnswlib.Index(space="ip", dim=dim)
        if path is None:
            self._graph.init_index(max_elements=1024, M=config.m, ef_construction=config.ef_construction)
        else:
            self._graph.load_index(str(path))
        self._graph.set_num_threads(n_threads)
        self._graph.set_ef(config.ef_search)
        self.last_row = max(self._graph.get_ids_list(), default=0)  # the newest row that was added

    def __len__(self) -> int:
        """How many rows there are, deleted ones included."""
        return self._graph.get_current_count()

    def add(self, rows: np.ndarray, vectors: np.ndarray) -> None:
        """rows: int64 [n], ascending, behind all that are in the graph; vectors: float32 [n, dim]."""
        if len(rows) == 0:
            return  # hnswlib would read the first row all the same
        needed = len(self) + len(rows)
        if needed > self._graph.get_max_elements():
            self._graph.resize_index(max(needed, 2 * self._graph.get_max_elements()))
        self._graph.add_items(vectors, rows, num_threads=self._n_threads)
        self.last_row = int(rows[-1])

    def delete(self, rows: np.ndarray) -> None:
        """Hide rows from every later search; a row that is not in the graph, or is hidden, is passed over."""
        for row in rows.tolist():
            try:
                self._graph.mark_deleted(row)
            except RuntimeError:  # hnswlib's word for both
                continue
            self._n_deleted += 1

    def restore_deleted(self, rows: np.ndarray) -> None:
        """After loading: hide these rows, all that are deleted of those in the file, which has marks of those that were
        when it was written; hnswlib does not count them."""
        self.delete(rows)
        self._n_deleted = len(rows)

    def search(self, query: np.ndarray, k: int) -> np.ndarray | None:
        """The k rows nearest to query, float32 [dim]: int64 [at most k], best first.

        None when the graph does not reach k rows from where it starts, though they are there.
        """
        k = min(k, len(self) - self._n_deleted)
        if k == 0:
            return np.empty(0, np.int64)
        # hnswlib keeps max(ef, k) candidates, deleted ones not counted; setting ef here would disturb other threads.
        try:
            labels, _ = self._graph.knn_query(query, k=k, num_threads=1)
        except RuntimeError:  # hnswlib's word for: fewer than k rows are reachable from the entry point
            return None
        return labels[0].astype(np.int64)

    def save(self, path: Path) -> None:
        """Write it to a file. Raises OSError where hnswlib says nothing: when the file is shorter than it should be."""
        self._graph.save_index(str(path))
        expected = self._graph.index_file_size()
        if path.stat().st_size != expected:
            raise OSError(errno.ENOSPC, f"only {path.stat().st_size} of {expected} bytes were written", str(path))
