"""The fusion of a search's three scores in numpy (see _kernels_numpy.py)."""

from __future__ import annotations

import numpy as np

from m3edge._shared_numpy import check_array
from m3edge.scoring import Weights, hybrid_scores


def weighted_best(
    dense: np.ndarray | None,
    lexical: np.ndarray | None,
    tokens: np.ndarray | None,
    weights: tuple[float, float, float],
    k: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The k best of n documents by the weighted sum of their scores (`scoring.hybrid_scores`).

    dense, lexical, tokens: float32 [n], at least one of them; None for a part that is 0 everywhere
    returns their indices, int64 [min(k, n)], best first, of equal sums the earlier one first, and their sums, float32
    Raises TypeError for an array of another type or not C-contiguous, ValueError where lengths differ or k is below 1.
    """
    parts = {"dense": dense, "lexical": lexical, "tokens": tokens}
    given = {name: part for name, part in parts.items() if part is not None}
    for name, part in given.items():
        check_array(name, part, np.float32, 1)
    if len({len(part) for part in given.values()}) != 1:
        raise ValueError("dense, lexical and tokens must be of one length, and one of them must be there")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    zero = np.zeros_like(next(iter(given.values())))
    of_dense, of_lexical, of_tokens = (zero if part is None else part for part in parts.values())
    total = hybrid_scores(of_dense, of_lexical, of_tokens, Weights(*weights))
    best = np.argsort(-total, kind="stable")[:k]
    return best, total[best]
