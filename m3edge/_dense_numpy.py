"""The dense kernels in numpy: which vectors could be among the k of the largest inner product (see _kernels_numpy.py).

A vector is known by 8-bit codes, a scale and an error. With ‖q‖ the query's length, its score lies within error · ‖q‖
of the codes' score (Cauchy and Schwarz), plus a little for the query's own codes. So a vector whose best case is below
the k-th largest of all worst cases cannot be among the k best, and only the others need be looked at in full.
"""

from __future__ import annotations

import numpy as np

from m3edge._shared_numpy import check_array, quantize_rows

# Sums of 127 * |query codes| must stay below 2 ** 31: the query's codes have 16 bits, or as many as that allows.
_LARGEST_CODE = 32767
_LARGEST_SUM = 16_000_000


def dense_codes(vectors: np.ndarray, n_threads: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Quantize vectors for `dense_candidates`.

    vectors: float32 [n, dim], finite
    n_threads: at most so many threads work on it; the twin leaves that to numpy
    returns codes int8 [n, dim], scales float32 [n] and errors float32 [n]: at least the length of vector - codes *
        scale, and what adding up a product in float32, in whatever order, can be off by for a query of length 1
    Raises TypeError for an array of another type or not C-contiguous, ValueError for an infinity or a NaN.
    """
    check_array("vectors", vectors, np.float32, 2)
    if not np.isfinite(vectors).all():
        raise ValueError("vectors must be finite, got an infinity or a NaN")
    if n_threads < 1:
        raise ValueError(f"n_threads must be at least 1, got {n_threads}")
    codes, scales = quantize_rows(vectors, 127)
    left_out = vectors - codes * scales[:, None].astype(np.float64)
    rounding = (vectors.shape[1] + 6) * 1.2e-7 * np.sqrt(np.square(vectors, dtype=np.float64).sum(axis=1))
    errors = (np.sqrt(np.square(left_out).sum(axis=1)) + rounding) * 1.0001
    return codes, scales, errors.astype(np.float32)


def dense_candidates(
    query: np.ndarray,
    codes: np.ndarray,
    scales: np.ndarray,
    errors: np.ndarray,
    allowed: np.ndarray,
    k: int,
    n_threads: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Every allowed row that could be among the k with the largest inner product with the query.

    query:   float32 [dim], finite
    codes, scales, errors: int8 [n, dim], float32 [n], float32 [n], from `dense_codes`
    allowed: bool [n]
    k:       at least 1
    n_threads: at most so many threads work on it; the twin leaves that to numpy
    returns positions int64 [m], by falling score of the codes, at least min(k, allowed rows) of them;
        bounds float64 [m]: none of these rows' scores is above its bound
    Raises TypeError for an array of another type or not C-contiguous, ValueError for shapes that do not fit.
    """
    check_array("query", query, np.float32, 1)
    check_array("codes", codes, np.int8, 2)
    for name, array, dtype in (
        ("scales", scales, np.float32),
        ("errors", errors, np.float32),
        ("allowed", allowed, np.bool_),
    ):
        check_array(name, array, dtype, 1)
    n, dim = codes.shape
    if len(query) != dim:
        raise ValueError(f"query and codes must be of one width, got {len(query)} and {dim}")
    if not len(scales) == len(errors) == len(allowed) == n:
        raise ValueError(f"scales, errors and allowed must be one for each of the {n} rows")
    if not np.isfinite(query).all():
        raise ValueError("query must be finite, got an infinity or a NaN")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if n_threads < 1:
        raise ValueError(f"n_threads must be at least 1, got {n_threads}")

    numbers, unit = query_codes(query)
    positions = np.flatnonzero(allowed)
    scale = scales[positions].astype(np.float64)
    scores = (codes[positions].astype(np.int32) @ numbers) * scale * unit
    query_error = 0.5 * unit * np.sqrt(dim)  # the length of what the query's codes leave out, at most
    length = np.linalg.norm(query.astype(np.float64))
    slack = errors[positions] * length + query_error * (scale * (127.0 * np.sqrt(dim)))
    if k < len(positions):
        least = np.partition(scores - slack, -k)[-k]
        kept = scores + slack >= least
        positions, scores, slack = positions[kept], scores[kept], slack[kept]
    order = np.lexsort((positions, -scores))
    return positions[order].astype(np.int64), (scores + slack)[order]


def query_codes(query: np.ndarray) -> tuple[np.ndarray, float]:
    """Whole numbers, int32 [dim], and a unit: query ≈ numbers · unit. query: float32 [dim], finite"""
    exact = query.astype(np.float64)
    largest = np.abs(exact).max(initial=0)
    if largest < 1e-30:  # every product is 0, give or take the row's error
        return np.zeros(len(query), np.int32), 0.0
    unit = max(largest / _LARGEST_CODE, np.abs(exact).sum() / (_LARGEST_SUM - len(query)))
    return np.rint(exact / unit).astype(np.int32), float(unit)


def dense_scores(query: np.ndarray, vectors: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """⟨query, vector⟩ of some of many vectors: float32 [m], added up in float32 in some order, the same for all.

    query: float32 [dim]; vectors: float32 [n, dim]; positions: int64 [m], below n
    Raises TypeError for an array of another type or not C-contiguous, ValueError for what does not fit together.
    """
    check_array("query", query, np.float32, 1)
    check_array("vectors", vectors, np.float32, 2)
    check_array("positions", positions, np.int64, 1)
    if len(query) != vectors.shape[1]:
        raise ValueError(f"query and vectors must be of one width, got {len(query)} and {vectors.shape[1]}")
    wrong = positions[(positions < 0) | (positions >= len(vectors))]
    if len(wrong):
        raise ValueError(f"positions must lie within the {len(vectors)} vectors, got {wrong[0]}")
    return np.einsum("ij,j->i", vectors[positions], query)  # not @: BLAS adds up a matrix's last rows in another order
