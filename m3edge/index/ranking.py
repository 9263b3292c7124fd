"""One hybrid search over an index's state, by the paper's protocol (arXiv 2402.03216, section 4):

the candidates are the union of the dense and the sparse top lists; every candidate gets all its scores, exactly; the
weighted sum ranks. A part whose weight is 0 is not computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from m3edge import kernels
from m3edge._hybrid_numpy import TokenPart
from m3edge.embeddings import Embeddings
from m3edge.index.filters import Condition
from m3edge.index.state import SearchState
from m3edge.scoring import Weights, hybrid_scores


class TokenScores(Protocol):
    """MaxSim of a query's token vectors, float32 [n_tokens, dim], with documents."""

    def part(self, query: np.ndarray) -> TokenPart | None:
        """What a kernel may score by itself; None for nothing."""

    def scores(self, query: np.ndarray, positions: np.ndarray, n_threads: int) -> np.ndarray:
        """Of any documents: float32 [n]. positions: int64 [n]"""


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
    tokens: TokenScores,
    query: Embeddings,
    options: SearchOptions,
    allowed: np.ndarray | None,
    n_threads: int,
) -> Ranking:
    """The k best live documents for one query; fewer when there are fewer, or when no part names more candidates.

    allowed:   bool [n], the documents that pass options.condition; None for all
    n_threads: CPU threads that the kernels may use
    """
    weights = options.weights
    positions, dense, sparse, multi = _scored_candidates(state, tokens, query, options, allowed, n_threads)
    parts = [part if weight > 0 else None for part, weight in zip((dense, sparse, multi), weights, strict=True)]
    zero = np.zeros(len(positions), np.float32)
    dense, sparse, multi = (zero if part is None else part for part in parts)
    total = hybrid_scores(dense, sparse, multi, weights)
    best = np.argsort(-total, kind="stable")[: options.k]  # stable: of equal scores the older document comes first
    chosen = [None if part is None else part[best] for part in parts]
    return Ranking(state.rows[positions[best]], total[best], *chosen)


def _scored_candidates(
    state: SearchState,
    tokens: TokenScores,
    query: Embeddings,
    options: SearchOptions,
    allowed: np.ndarray | None,
    n_threads: int,
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """The documents that the parts put forward, int64 [n], ascending, and their dense, lexical and tokens' scores,
    float32 [n] each; None for a part that was not needed."""
    heads = needed_heads(options.weights)
    n = max(options.k, options.candidates)
    vector = query.dense[0] if "dense" in heads and query.dense is not None else None
    lexical = state.postings.query(query.sparse, options.lexical) if "sparse" in heads and query.sparse else None
    query_tokens = query.tokens.vectors if "tokens" in heads and query.tokens is not None else None

    by_graph = None if vector is None else state.dense.graph_part(n, allowed)
    found = None
    while found is None:
        nearest = None
        if vector is not None and by_graph is None:
            nearest = state.dense.search(vector, n, allowed, n_threads)
        found = kernels.hybrid_scores(
            state.postings.alive if allowed is None else state.postings.alive & allowed,
            nearest,
            None if vector is None else state.dense.part(vector),
            by_graph,
            None if lexical is None else state.postings.part(lexical, n),
            None if query_tokens is None else tokens.part(query_tokens),
            n_threads,
        )
        by_graph = None  # where it led to too few
    positions, dense, sums, multi = found
    if query_tokens is not None:
        multi = np.full(len(positions), np.nan, np.float32) if multi is None else multi
        unscored = np.flatnonzero(np.isnan(multi))
        if len(unscored):
            multi[unscored] = tokens.scores(query_tokens, positions[unscored], n_threads)
    return positions, dense, None if lexical is None else (sums * lexical.scale).astype(np.float32), multi
