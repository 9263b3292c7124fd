"""One hybrid search over an index's state, by the paper's protocol (arXiv 2402.03216, section 4):

the candidates are the union of the dense and the sparse top lists; every candidate gets all its scores, exactly; the
weighted sum ranks. A part whose weight is 0 is not computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from m3edge.embeddings import Embeddings
from m3edge.index.filters import Condition
from m3edge.index.helper import Helper
from m3edge.index.sparse import LexicalQuery, Scored
from m3edge.index.state import SearchState
from m3edge.scoring import Weights, hybrid_scores

# MaxSim of a query's token vectors, float32 [n_tokens, dim], with the documents at int64 [n] positions, on so many
# threads: float32 [n]
TokenScorer = Callable[[np.ndarray, np.ndarray, int], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """What is asked for beside the query.

    lexical:    one of sparse.LEXICAL, how the sparse part scores
    candidates: how many documents the dense and the sparse part each put forward; at least k are taken
    condition:  what a document's metadata must fulfil; None for any
    """

    k: int
    weights: Weights
    candidates: int
    lexical: str
    condition: Condition | None


class Ranking(NamedTuple):
    """The best documents, best first.

    rows: int64 [k]; scores: float32 [k];
    dense, sparse, tokens: float32 [k], the three parts; None where the part's weight is 0
    """

    rows: np.ndarray
    scores: np.ndarray
    dense: np.ndarray | None
    sparse: np.ndarray | None
    tokens: np.ndarray | None


def needed_heads(weights: Weights) -> tuple[str, ...]:
    """The parts of a query's embeddings that a search with these weights uses."""
    heads = [head for head, weight in zip(("dense", "sparse", "tokens"), weights, strict=True) if weight > 0]
    # MaxSim only reranks: when nothing else counts, the dense vectors still name the candidates.
    return tuple(heads) if heads != ["tokens"] else ("dense", "tokens")


def distinct(numbers: np.ndarray) -> np.ndarray:
    """The numbers, int64 [n], ascending, each once; for the few hundred of a search faster than np.unique."""
    ordered = np.sort(numbers)
    first = np.ones(len(ordered), bool)
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    return ordered[first]


def rank(
    state: SearchState,
    score_tokens: TokenScorer,
    query: Embeddings,
    options: SearchOptions,
    allowed: np.ndarray | None,
    n_threads: int,
    helper: Helper | None = None,
) -> Ranking:
    """The k best live documents for one query; fewer when there are fewer, or when no part names more candidates.

    allowed:   bool [n], the documents that pass options.condition; None for all
    n_threads: CPU threads that the kernels may use
    helper:    one of them, for what two can do side by side
    """
    weights = options.weights
    positions, lexical = _candidates(state, query, options, allowed, n_threads, helper)

    def of_vectors() -> tuple[np.ndarray | None, np.ndarray | None]:
        dense = sparse = None
        if weights.dense > 0:
            assert query.dense is not None
            dense = state.dense.scores(query.dense[0], positions)
        if weights.sparse > 0:
            assert lexical is not None
            sparse = lexical.scores(state, positions)
        return dense, sparse

    def of_tokens() -> np.ndarray | None:
        if weights.tokens == 0:
            return None
        assert query.tokens is not None
        return score_tokens(query.tokens.vectors, positions, n_threads)

    if helper is not None and n_threads > 1 and weights.tokens > 0:
        (dense, sparse), multi = helper.both(of_vectors, of_tokens)
    else:
        (dense, sparse), multi = of_vectors(), of_tokens()

    zero = np.zeros(len(positions), np.float32)
    parts = [zero if part is None else part for part in (dense, sparse, multi)]
    total = hybrid_scores(parts[0], parts[1], parts[2], weights)
    best = np.argsort(-total, kind="stable")[: options.k]  # stable: of equal scores the older document comes first
    chosen = [None if part is None else part[best] for part in (dense, sparse, multi)]
    return Ranking(state.rows[positions[best]], total[best], chosen[0], chosen[1], chosen[2])


class _Lexical(NamedTuple):
    """A query's lexical part, and the documents that it put forward."""

    query: LexicalQuery
    best: Scored

    def scores(self, state: SearchState, positions: np.ndarray) -> np.ndarray:
        """Of any documents, among them those that were put forward: float32 [n]. positions: int64 [n], ascending"""
        scores = np.empty(len(positions), np.float32)
        unknown = np.ones(len(positions), bool)
        at = np.searchsorted(positions, self.best.positions)
        scores[at], unknown[at] = self.best.scores, False
        scores[unknown] = state.postings.scores(self.query, positions[unknown])
        return scores


def _candidates(
    state: SearchState,
    query: Embeddings,
    options: SearchOptions,
    allowed: np.ndarray | None,
    n_threads: int,
    helper: Helper | None,
) -> tuple[np.ndarray, _Lexical | None]:
    """The documents that the parts put forward, int64 [n], ascending, and what is known of their lexical scores."""
    heads = needed_heads(options.weights)
    n = max(options.k, options.candidates)

    def nearest() -> np.ndarray:
        assert query.dense is not None
        return state.dense.search(query.dense[0], n, allowed, n_threads)

    if "sparse" not in heads:
        return np.sort(nearest()), None
    assert query.sparse is not None
    lexical = state.postings.query(query.sparse, options.lexical)
    best = partial(state.postings.top, lexical, n, allowed)
    if "dense" not in heads:
        known = best(n_threads)
        return np.sort(known.positions), _Lexical(lexical, known)
    if helper is not None and n_threads > 1 and state.dense.has_graph:
        known, found = helper.both(partial(best, n_threads - 1), nearest)  # a graph takes one thread
    else:
        known, found = best(n_threads), nearest()
    return distinct(np.concatenate([found, known.positions])), _Lexical(lexical, known)
