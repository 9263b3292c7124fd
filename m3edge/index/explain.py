"""Why a document was found: the tokens it shares with the query, and the best match of each query token."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from m3edge.embeddings import Embeddings
from m3edge.tokenization import TokenizedText, Tokenizer


class SharedToken(NamedTuple):
    """A token of both texts, with the weights that its kind of lexical score gives it.

    score: query_weight · passage_weight, its part of the lexical score
    """

    token: str
    query_weight: float
    passage_weight: float
    score: float


class Match(NamedTuple):
    """A query token, the passage token nearest to it, and their inner product; MaxSim is the mean of these."""

    query_token: str
    passage_token: str
    similarity: float


class Explanation(NamedTuple):
    """shared: by falling score; matches: in the order of the query."""

    shared: tuple[SharedToken, ...]
    matches: tuple[Match, ...]


def explain(
    tokenizer: Tokenizer,
    query_text: TokenizedText,
    query: Embeddings,
    passage_text: TokenizedText,
    passage: Embeddings,
    query_weights: np.ndarray,
    passage_weights: np.ndarray,
) -> Explanation:
    """Take apart the lexical and the MaxSim score of one query and one passage (each n = 1, with all heads).

    query_weights, passage_weights: float64 [n], what the lexical score gives each token of the two sparse rows
    """
    matches = _matches(tokenizer, query_text, query, passage_text, passage)
    return Explanation(_shared(tokenizer, query, passage, query_weights, passage_weights), matches)


def _shared(
    tokenizer: Tokenizer,
    query: Embeddings,
    passage: Embeddings,
    query_weights: np.ndarray,
    passage_weights: np.ndarray,
) -> tuple[SharedToken, ...]:
    assert query.sparse is not None
    assert passage.sparse is not None
    ids, of_query, of_passage = np.intersect1d(query.sparse.ids, passage.sparse.ids, return_indices=True)
    shared = [
        SharedToken(tokenizer.token(token), float(w_query), float(w_passage), float(w_query * w_passage))
        for token, w_query, w_passage in zip(ids, query_weights[of_query], passage_weights[of_passage], strict=True)
        if w_query * w_passage > 0
    ]
    return tuple(sorted(shared, key=lambda item: -item.score))


def _matches(
    tokenizer: Tokenizer, query_text: TokenizedText, query: Embeddings, passage_text: TokenizedText, passage: Embeddings
) -> tuple[Match, ...]:
    assert query.tokens is not None
    assert passage.tokens is not None
    similarities = query.tokens.vectors @ passage.tokens.vectors.T
    best = similarities.argmax(axis=1)
    query_ids, passage_ids = query_text.ids[query_text.content], passage_text.ids[passage_text.content]
    return tuple(
        Match(tokenizer.token(query_ids[i]), tokenizer.token(passage_ids[j]), float(similarities[i, j]))
        for i, j in enumerate(best)
    )
