"""The model's definitions in numpy (arXiv 2402.03216v4, section 3.2): from a head's raw output to a vector, from two
vectors to a score, from three scores to one.

They agree with FlagEmbedding to the letter: of a token that occurs twice the larger weight counts, special tokens are
left out of the sparse vector, the first token is left out of the multi-vector and `</s>` is not, and the MaxSim score
is a mean over the query's tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from numbers import Real
from typing import NamedTuple

import numpy as np

from m3edge.embeddings import SparseRows, TokenRows
from m3edge.model_folder import PRESETS

_LARGEST_WEIGHT = 1e6  # beside it a weight of 1 has a digit left in a float32 sum, and no sum becomes infinite
_SMALLEST_WEIGHT = float(np.finfo(np.float32).tiny)  # where nothing weighs more, scores lose their digits, or all are 0


class Weights(NamedTuple):
    """How much each part counts in the hybrid score."""

    dense: float
    sparse: float
    tokens: float


def resolve_weights(weights: str | Sequence[float], presets: Mapping[str, Sequence[float]] = PRESETS) -> Weights:
    """A preset's name, or three numbers (dense, sparse, tokens), as Weights.

    Raises TypeError for anything else; ValueError for an unknown name, another count of numbers, one that is not from 0
    to a million, or three that are 0 in float32.
    """

    def refusal(got: object) -> str:  # of use to few searches, and longer in the making than all else here
        return f"weights must be three numbers (dense, sparse, tokens) or one of {sorted(presets)}, got {got}"

    if isinstance(weights, str):
        if weights not in presets:
            raise ValueError(refusal(repr(weights)))
        weights = presets[weights]
    if isinstance(weights, (Mapping, Set)) or not isinstance(weights, Iterable):
        raise TypeError(refusal(type(weights).__name__))
    values = list(weights)
    for value in values:
        if not isinstance(value, Real):
            raise TypeError(refusal(f"{type(value).__name__} among them"))
    if len(values) != 3:
        raise ValueError(refusal(f"{len(values)} numbers"))
    if not all(0 <= value <= _LARGEST_WEIGHT for value in values) or max(values) < _SMALLEST_WEIGHT:
        raise ValueError(f"weights must be from 0 to {_LARGEST_WEIGHT:g} and not all 0, got {values}")
    return Weights(*map(float, values))


def sparse_row(
    token_ids: np.ndarray, token_weights: np.ndarray, dropped_ids: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One text's lexical vector: w_t = max over the positions of token t of ReLU(w_lex · H[i] + b).

    token_ids:     int64 [n], the text's tokens, prefix already left out
    token_weights: float32 [n], the sparse head's output, after its ReLU
    dropped_ids:   int64 [m], ids that are never part of a lexical vector: `<s>`, `</s>`, `<pad>`, `<unk>`
    returns ids int64 (ascending), weights float32, counts int32, as in SparseRows
    """
    # For one query's few tokens np.isin and np.unique would take twice as long.
    kept = (token_ids[:, None] != dropped_ids).all(axis=1)
    ids, weights = token_ids[kept], token_weights[kept]
    order = np.argsort(ids, kind="stable")
    ids = ids[order]
    first = np.ones(len(ids), bool)
    np.not_equal(ids[1:], ids[:-1], out=first[1:])
    starts = np.flatnonzero(first)
    counts = np.bincount(np.cumsum(first) - 1)
    return ids[starts], np.maximum.reduceat(weights[order], starts), counts.astype(np.int32)


def dense_scores(query: np.ndarray, passages: np.ndarray) -> np.ndarray:
    """s_dense = ⟨e_q, e_p⟩ of one query with each passage.

    query: float32 [dim]; passages: float32 [n, dim]; returns float32 [n], of equal passages equal scores
    """
    # BLAS adds up the last rows of a matrix in another order, and equal passages would no longer tie.
    return np.einsum("ij,j->i", passages, query)


def lexical_scores(query: SparseRows, passages: SparseRows) -> np.ndarray:
    """s_lex = Σ_{t ∈ q∩p} w_qt · w_pt of one query (one row) with each passage; returns float32 [n]."""
    position = np.searchsorted(query.ids, passages.ids)
    position[position == len(query.ids)] = 0
    shared = query.ids[position] == passages.ids if len(query.ids) else np.zeros(len(passages.ids), bool)
    products = np.zeros(len(passages.ids), np.float32)
    products[shared] = query.weights[position[shared]] * passages.weights[shared]
    return sum_rows(products, passages.offsets)


def maxsim(query: np.ndarray, passages: TokenRows) -> np.ndarray:
    """s_mul = mean over the query's tokens i of max_j ⟨E_q[i], E_p[j]⟩, of one query with each passage.

    query: float32 [n_query_tokens, dim], unit rows; passages: unit rows; returns float32 [n], 0 for an empty passage
    """
    lengths = np.diff(passages.offsets)
    scores = np.zeros(len(lengths), np.float32)
    filled = lengths > 0
    if len(query) and filled.any():
        similarities = query @ passages.vectors.T
        scores[filled] = np.maximum.reduceat(similarities, passages.offsets[:-1][filled], axis=1).mean(axis=0)
    return scores


def hybrid_scores(dense: np.ndarray, sparse: np.ndarray, tokens: np.ndarray, weights: Weights) -> np.ndarray:
    """s = w1 · s_dense + w2 · s_lex + w3 · s_mul, element by element; float32 arrays of one shape."""
    return np.float32(weights.dense) * dense + np.float32(weights.sparse) * sparse + np.float32(weights.tokens) * tokens


def sum_rows(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """The sum of each row's values, [n] of the values' type; 0 for an empty row. offsets: int64 [n + 1]"""
    sums = np.zeros(len(offsets) - 1, values.dtype)
    filled = np.diff(offsets) > 0
    if filled.any():
        sums[filled] = np.add.reduceat(values, offsets[:-1][filled])
    return sums
