"""Exact dense search without a graph: codes of all vectors are scanned, the few that could be among the best scored.

A byte a dimension, and 8 a vector. Vectors are positions 0, 1, 2 … in the order they were added.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from m3edge import kernels
from m3edge.index.growing import GrowingArray


class DenseScan:
    """The codes of vectors that lie elsewhere; `top` asks for the few it needs."""

    def __init__(self, dim: int) -> None:
        self._codes = GrowingArray(np.empty((0, dim), np.int8))
        self._scales = GrowingArray(np.empty(0, np.float32))
        self._errors = GrowingArray(np.empty(0, np.float32))

    def __len__(self) -> int:
        return len(self._scales.array)

    @property
    def codes(self) -> np.ndarray:
        """int8 [n, dim]"""
        return self._codes.array

    @property
    def scales(self) -> np.ndarray:
        """float32 [n]: vectors are about codes · scales"""
        return self._scales.array

    def successor(self) -> DenseScan:
        """One that goes on from here, as GrowingArray's: this one stays as it is."""
        other = DenseScan(0)
        other._codes, other._scales = self._codes.successor(), self._scales.successor()
        other._errors = self._errors.successor()
        return other

    def add(self, vectors: np.ndarray, n_threads: int = 1) -> None:
        """vectors: float32 [n, dim], finite"""
        codes, scales, errors = kernels.dense_codes(np.ascontiguousarray(vectors, np.float32), n_threads)
        self._codes.append(codes)
        self._scales.append(scales)
        self._errors.append(errors)

    def top(
        self,
        query: np.ndarray,
        k: int,
        allowed: np.ndarray,
        scores_of: Callable[[np.ndarray], np.ndarray],
        n_threads: int = 1,
        first: int = 0,
    ) -> np.ndarray:
        """The positions of the k allowed vectors of the largest inner product, int64 [at most k], best first.

        query: float32 [dim]; k: at least 1; allowed: bool [n]; scores_of: gives positions' exact scores, float32 [m];
        first: where to begin
        """
        codes, scales, errors = (array.array[first:] for array in (self._codes, self._scales, self._errors))
        positions, bounds = kernels.dense_candidates(query, codes, scales, errors, allowed[first:], k, n_threads)
        positions += first
        scores = scores_of(positions[:k])
        if len(positions) > k:  # the k-th of these scores rules out most of the others
            rest = k + np.flatnonzero(bounds[k:] >= scores.min())
            scores = np.concatenate([scores, scores_of(positions[rest])])
            positions = np.concatenate([positions[:k], positions[rest]])
        return positions[np.lexsort((positions, -scores))[:k]]
