"""One hybrid search over an index's state, by the paper's protocol (arXiv 2402.03216, section 4):

the candidates are the union of the dense and the sparse top lists; every candidate gets all its scores, exactly; the
weighted sum ranks. A part whose weight is 0 is not computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from m3edge import kernels
from m3edge.embeddings import Embeddings
from m3edge.index.filters import Condition
from m3edge.index.state import SearchState
from m3edge.index.tokens import TokenStore
from m3edge.scoring import Weights

# MaxSim of a query's token vectors, float32 [n_tokens, dim], with documents whose own are not kept: of positions, int64
# [n], the scores, float32 [n].
ScoresAnew = Callable[[np.ndarray, np.ndarray], np.ndarray]


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


def rank(
    state: SearchState,
    tokens: TokenStore,
    query: Embeddings,
    options: SearchOptions,
    scores_anew: ScoresAnew | None,
    allowed: np.ndarray | None,
    n_threads: int,
) -> Ranking:
    """The k best live documents for one query; fewer when there are fewer, or when no part names more candidates.

    scores_anew: for an index that keeps no token vectors; None for one that does
    allowed:     bool [n], the documents that pass options.condition; None for all
    n_threads:   CPU threads that the kernels may use
    """
    weights = options.weights
    positions, *parts = _scored_candidates(state, tokens, query, options, scores_anew, allowed, n_threads)
    dense, sparse, multi = (part if weight > 0 else None for part, weight in zip(parts, weights, strict=True))
    best, total = kernels.weighted_best(dense, sparse, multi, weights, options.k)
    chosen = [None if part is None else part[best] for part in (dense, sparse, multi)]
    return Ranking(state.rows[positions[best]], total, *chosen)


def _scored_candidates(
    state: SearchState,
    tokens: TokenStore,
    query: Embeddings,
    options: SearchOptions,
    scores_anew: ScoresAnew | None,
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
            None if query_tokens is None or scores_anew is not None else state.token_part(tokens, query_tokens),
            n_threads,
        )
        by_graph = None  # where it led to too few
    positions, dense, sparse, multi, compared, damaged, _ = found
    state.note_compared(tokens, compared, damaged)
    if query_tokens is not None and scores_anew is not None:
        multi = scores_anew(query_tokens, positions)
    return positions, dense, sparse, multi
