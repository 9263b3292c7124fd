"""A graph that hnswlib built, searched without it: along the same links, by 8-bit codes of the vectors.

A vector that is looked at lies anywhere in memory; its codes are a quarter of what hnswlib fetches. What the codes find
is for others to score exactly.
"""

from __future__ import annotations

import numpy as np

from m3edge import kernels
from m3edge._graph_numpy import NO_NODE
from m3edge.index.graph_file import StoredLinks
from m3edge.index.scan import DenseScan


class CodeGraph:
    """The graph of an index's first `len` positions; links: kernels.GraphLinks between them."""

    def __init__(self, stored: StoredLinks, rows: np.ndarray) -> None:
        """rows: int64 [n], ascending, of the index's documents; those of the graph must be the first of them, or it is
        a ValueError"""
        n = len(stored.labels)
        order = np.argsort(stored.labels)  # threads that add at once mix them up
        if not np.array_equal(stored.labels[order], rows[:n]):
            raise ValueError("the graph is not of these rows")
        positions = np.full(n + 1, NO_NODE, np.uint32)  # of elements; what is no link stays none
        positions[order] = np.arange(n)
        first = stored.level_starts.astype(np.int64)
        n_levels = (first[1:] - first[:-1])[order]
        starts = np.concatenate([[0], np.cumsum(n_levels)])
        of_levels = np.repeat(first[:-1][order] - starts[:-1], n_levels) + np.arange(starts[-1])
        self.links = kernels.GraphLinks(
            positions[np.minimum(stored.ground[order], n)],
            starts.astype(np.uint32),
            positions[np.minimum(stored.levels[of_levels], n)],
            int(positions[stored.start]) if n else 0,
            stored.top_level if n else 0,
        )
        self._n = n

    def __len__(self) -> int:
        return self._n

    def near(
        self, query: np.ndarray, scan: DenseScan, allowed: np.ndarray, effort: int, most: int
    ) -> np.ndarray | None:
        """The positions of allowed vectors near the query: int64 [at most effort], about best first.

        query: float32 [dim]; scan: has the codes; allowed: bool [n]; effort: at least 1, the more, the fewer are missed
        None where more than `most` vectors would have to be looked at
        """
        return self.links.candidates(query, scan.codes, scan.scales, allowed, effort, most)
