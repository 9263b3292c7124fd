"""Embeddings that an index is given, made by whoever: checked, and turned into the types it works with."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from m3edge import kernels
from m3edge.embeddings import Embeddings, SparseRows, TokenRows
from m3edge.errors import ModelMismatchError

_UNIT_SQUARES = 0.99**2, 1.01**2  # a length may be so far from 1: half precision and 8 bits round


def checked_embeddings(name: str, given: Embeddings, heads: Collection[str], model: Mapping[str, Any]) -> Embeddings:
    """These heads of the embeddings, in the types that Embeddings names; the others are left out.

    name:  of the argument, for messages
    model: `dense_dim` and `token_dim`, how wide the index's vectors are
    Raises ValueError for a head that is not there, for parts that do not fit together or numbers that no model gives,
    TypeError for what are no numbers, ModelMismatchError for other widths.
    """
    missing = [head for head in heads if getattr(given, head) is None]
    if missing:
        raise ValueError(f"{name} must have the parts {', '.join(heads)}, got none of {', '.join(missing)}")
    n = len(given)
    dense, sparse, tokens = (getattr(given, head) if head in heads else None for head in ("dense", "sparse", "tokens"))
    if dense is not None:
        dense = _unit_vectors(f"{name}'s dense vectors", dense, model["dense_dim"])
        if len(dense) != n:
            raise ValueError(f"{name}'s dense part must have {n} rows, got {len(dense)}")
    if sparse is not None:
        sparse = _sparse_rows(name, sparse, n)
    if tokens is not None:
        tokens = _token_rows(name, tokens, n, model["token_dim"])
    return Embeddings(dense=dense, sparse=sparse, tokens=tokens, truncated=given.truncated)


def _sparse_rows(name: str, given: SparseRows, n: int) -> SparseRows:
    ids = _integers(f"{name}'s sparse ids", given.ids, np.int64)
    weights = _float32(f"{name}'s sparse weights", given.weights)
    counts = _integers(f"{name}'s sparse counts", given.counts, np.int32)
    if not len(ids) == len(weights) == len(counts):
        raise ValueError(f"{name}'s sparse part must have as many ids as weights and counts")
    offsets = _offsets(f"{name}'s sparse offsets", given.offsets, n)
    if problem := kernels.lexical_problem(ids, weights, counts, offsets):
        raise ValueError(f"{name}'s sparse {problem}")
    return SparseRows(ids, weights, counts, offsets)


def _token_rows(name: str, given: TokenRows, n: int, dim: int) -> TokenRows:
    vectors = _unit_vectors(f"{name}'s tokens vectors", given.vectors, dim)
    offsets = _offsets(f"{name}'s tokens offsets", given.offsets, n)
    if offsets[0] != 0 or offsets[-1] != len(vectors) or (offsets[1:] < offsets[:-1]).any():
        raise ValueError(f"{name}'s tokens offsets must ascend from 0 to {len(vectors)}")
    return TokenRows(vectors, offsets)


def _unit_vectors(name: str, given: np.ndarray, dim: int) -> np.ndarray:
    """float32 [n, dim]"""
    if given.ndim != 2 or given.shape[1] != dim:
        raise ModelMismatchError(f"{name} must be {dim} wide, as the index's are, got shape {given.shape}")
    vectors = _float32(name, given)
    if (wrong := kernels.row_off_length(vectors, *_UNIT_SQUARES)) >= 0:
        raise ValueError(f"{name} must have length 1, got {np.linalg.norm(vectors[wrong]):.3g} in row {wrong}")
    return vectors


def _float32(name: str, given: np.ndarray) -> np.ndarray:
    if given.dtype.kind not in "fiu":
        raise TypeError(f"{name} must be real numbers, got {given.dtype}")
    if given.dtype == np.float32:
        return np.ascontiguousarray(given)
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(given, np.float32)


def _integers(name: str, given: np.ndarray, dtype: type) -> np.ndarray:
    if given.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, got {given.dtype}")
    if given.dtype == dtype:
        return np.ascontiguousarray(given)
    taken: np.ndarray = np.ascontiguousarray(given, dtype)
    if (taken != given).any():
        raise ValueError(f"{name} must fit {np.dtype(dtype)}, got {given.min()} to {given.max()}")
    return taken


def _offsets(name: str, given: np.ndarray, n: int) -> np.ndarray:
    """int64 [n + 1]"""
    offsets = np.asarray(given)
    if offsets.dtype.kind not in "iu" or offsets.shape != (n + 1,):
        raise ValueError(f"{name} must be {n + 1} integers, got {offsets.dtype} {offsets.shape}")
    return np.ascontiguousarray(offsets, np.int64)
