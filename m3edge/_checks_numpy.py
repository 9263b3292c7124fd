"""Checks in numpy: whether arrays are what a model gives (see _kernels_numpy.py)."""

from __future__ import annotations

import numpy as np

from m3edge._shared_numpy import check_array

_LARGEST = 2**31 - 1


def row_off_length(vectors: np.ndarray, least: float, most: float) -> int:
    """The first row whose length, squared, is not from least to most; -1 where there is none.

    vectors: float32 [n, dim]; a number that is not finite makes a length that is not, either
    """
    check_array("vectors", vectors, np.float32, 2)
    with np.errstate(over="ignore"):
        squares = np.einsum("ij,ij->i", vectors, vectors)
    wrong = np.flatnonzero(~((squares >= least) & (squares <= most)))
    return int(wrong[0]) if len(wrong) else -1


def lexical_problem(ids: np.ndarray, weights: np.ndarray, counts: np.ndarray, offsets: np.ndarray) -> str:
    """What is wrong with lexical vectors, as SparseRows has them; "" where they are sound.

    ids: int64 [n_entries]; weights: float32 [n_entries]; counts: int32 [n_entries]; offsets: int64 [n + 1]
    Raises TypeError for an array of another type or not C-contiguous, ValueError where lengths differ.
    """
    check_array("ids", ids, np.int64, 1)
    check_array("weights", weights, np.float32, 1)
    check_array("counts", counts, np.int32, 1)
    check_array("offsets", offsets, np.int64, 1)
    if not len(ids) == len(weights) == len(counts) or not len(offsets):
        raise ValueError("there must be as many ids as weights and counts, and at least one offset")
    for name, values, least in (("ids", ids, 0), ("counts", counts, 1)):
        if not least <= int(values.min(initial=least)) <= int(values.max(initial=least)) <= _LARGEST:
            return f"{name} must be from {least} to {_LARGEST}"
    if offsets[0] != 0 or offsets[-1] != len(ids) or (offsets[1:] < offsets[:-1]).any():
        return f"offsets must ascend from 0 to {len(ids)}"
    descends = np.zeros(len(ids), bool)
    np.less_equal(ids[1:], ids[:-1], out=descends[1:])
    descends[offsets[:-1][offsets[:-1] < len(ids)]] = False  # a row's first id follows nothing
    if descends.any():
        return "ids must ascend within a row"
    if not (np.isfinite(weights).all() and weights.min(initial=0) >= 0):
        return "weights must be finite and at least 0"
    return ""
