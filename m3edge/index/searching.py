"""What Index.search and Index.search_batch do: query in, hits out. ranking.py ranks; this does what lies around.

The checks of arguments, a query's embeddings, which documents a filter lets through, fetching what was found.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np

from m3edge.arguments import checked_integer, checked_texts
from m3edge.embeddings import Embeddings
from m3edge.encoder import Encoder
from m3edge.errors import CancelledError
from m3edge.index.documents import Document
from m3edge.index.explain import Explanation, explain
from m3edge.index.filters import Condition, parse_filter
from m3edge.index.given import checked_embeddings
from m3edge.index.ranking import Ranking, ScoresAnew, SearchOptions, needed_heads, rank
from m3edge.index.snapshot import Snapshot, require_documents
from m3edge.index.sparse import LEXICAL
from m3edge.index.view import Current, View
from m3edge.model_folder import PRESETS
from m3edge.progress import progress_bar
from m3edge.scoring import Weights, maxsim, resolve_weights

_SEARCH_BLOCK = 256  # queries encoded and searched together
_MOST = 2**31 - 1  # documents: more than any index has, and still a number that the native kernels take


class PartScores(NamedTuple):
    """The three parts of a hit's score, before weighting; None where the part's weight was 0."""

    dense: float | None
    sparse: float | None
    tokens: float | None


class Hit(NamedTuple):
    """One found document; score: the weighted sum of the parts, higher is better."""

    id: str
    score: float
    text: str
    metadata: Mapping[str, Any]
    scores: PartScores
    explanation: Explanation | None = None


class Searcher:
    """Searches what a view shows. Safe to call from several threads."""

    def __init__(self, view: View, encoder: Encoder | None, n_threads: int) -> None:
        self._view = view
        self._encoder = encoder
        self._n_threads = n_threads
        self._presets = encoder.info.presets if encoder is not None else PRESETS
        with view.reading() as (snapshot, _, _):
            self._model: Mapping[str, Any] = snapshot.meta("model")
            self._token_codec: str = snapshot.meta("token_codec", "fp16")

    def options(
        self,
        k: int,
        weights: str | Sequence[float],
        filter: Mapping[str, Any] | None,
        candidates: int,
        lexical: str,
    ) -> SearchOptions:
        """What Index.search was asked for, checked. Raises TypeError or ValueError that names the argument."""
        k = min(checked_integer("k", k), _MOST)
        candidates = min(checked_integer("candidates", candidates), _MOST)
        if lexical not in LEXICAL:
            raise ValueError(f"lexical must be one of {', '.join(LEXICAL)}, got {lexical!r}")
        resolved = resolve_weights(weights, self._presets)
        if resolved.tokens > 0 and self._token_codec == "none" and self._encoder is None:
            raise ValueError(
                "this index keeps no token vectors (token_codec='none'): open it with its encoder, which makes them "
                "anew, or search with a third weight of 0"
            )
        condition = None if filter is None else parse_filter(filter)
        return SearchOptions(k=k, weights=resolved, candidates=candidates, lexical=lexical, condition=condition)

    def search(self, query: str | Embeddings, options: SearchOptions, explained: bool) -> list[Hit]:
        """The best documents for one query, as Index.search says."""
        if explained and not isinstance(query, str):
            raise ValueError("explain needs the query as a text, got Embeddings")
        embeddings = self._embed(query, options.weights, explained)
        with self._view.reading() as current:
            allowed = _allowed(current, options.condition)
            anew = self._scores_anew(current)
            ranking = rank(current.state, current.tokens, embeddings, options, anew, allowed, self._n_threads)
            (hits,) = _hits(current.snapshot, [ranking])
        if explained:
            assert isinstance(query, str)
            hits = [hit._replace(explanation=self._explain(query, embeddings, hit, options.lexical)) for hit in hits]
        return hits

    def search_batch(
        self,
        queries: Iterable[str] | Embeddings,
        options: SearchOptions,
        *,
        progress: bool | None,
        cancel: threading.Event | None,
    ) -> list[list[Hit]]:
        """The best documents for each of several queries, as Index.search_batch says."""
        if isinstance(queries, str):
            raise TypeError("queries must be several texts, got one string; put it in a list")
        if isinstance(queries, Embeddings):
            queries = checked_embeddings("queries", queries, needed_heads(options.weights), self._model)
        else:
            queries = checked_texts("queries", queries)
        hits: list[list[Hit]] = []
        with (
            progress_bar(len(queries), "query", "searching", progress) as bar,
            ThreadPoolExecutor(self._n_threads) as threads,
        ):
            for start in range(0, len(queries), _SEARCH_BLOCK):
                if cancel is not None and cancel.is_set():
                    raise CancelledError(f"searching was cancelled after {start} of {len(queries)} queries")
                embeddings = self._embed_block(queries[start : start + _SEARCH_BLOCK], options.weights, cancel)
                with self._view.reading() as current:
                    one = partial(
                        rank,
                        current.state,
                        current.tokens,
                        options=options,
                        scores_anew=self._scores_anew(current),
                        allowed=_allowed(current, options.condition),
                        n_threads=1,
                    )
                    rankings = list(threads.map(one, (embeddings[i] for i in range(len(embeddings)))))
                    hits += _hits(current.snapshot, rankings)
                bar.update(len(embeddings))
        return hits

    def _scores_anew(self, current: Current) -> ScoresAnew | None:
        """Of an index that keeps no token vectors: they are made of the texts."""
        if self._token_codec != "none":
            return None

        def scores(query: np.ndarray, positions: np.ndarray) -> np.ndarray:
            rows = current.state.rows[positions].tolist()
            documents = current.snapshot.documents(rows)
            require_documents(documents, rows, current.snapshot.path)
            texts = [documents[row].text for row in rows]
            passages = self._need_encoder("score tokens").encode_passages(texts, heads=("tokens",))
            assert passages.tokens is not None
            return maxsim(query, passages.tokens)

        return scores

    def _embed_block(
        self, queries: Sequence[str] | Embeddings, weights: Weights, cancel: threading.Event | None
    ) -> Embeddings:
        if isinstance(queries, Embeddings):
            return queries
        return self._need_encoder("search for texts").encode_queries(
            queries, heads=needed_heads(weights), cancel=cancel
        )

    def _embed(self, query: str | Embeddings, weights: Weights, explained: bool) -> Embeddings:
        heads = ("dense", "sparse", "tokens") if explained else needed_heads(weights)
        if isinstance(query, str):
            return self._need_encoder("search for a text").encode_queries(query, heads=heads)
        if not isinstance(query, Embeddings):
            raise TypeError(f"query must be a string or Embeddings, got {type(query).__name__}")
        if len(query) != 1:
            raise ValueError(f"query must be the embeddings of one text, got {len(query)}")
        return checked_embeddings("query", query, heads, self._model)

    def _explain(self, query: str, embeddings: Embeddings, hit: Hit, lexical: str) -> Explanation:
        encoder = self._need_encoder("explain a hit")
        info, tokenizer = encoder.info, encoder.tokenizer
        (query_text,) = tokenizer.tokenize([query], prefix=info.query_prefix, max_length=info.max_length)
        (passage_text,) = tokenizer.tokenize(
            [hit.text], prefix=info.passage_prefix, max_length=info.max_length, mcls_interval=encoder.mcls_interval
        )
        passage = encoder.encode_passages(hit.text, heads=("sparse", "tokens"))
        assert embeddings.sparse is not None
        assert passage.sparse is not None
        with self._view.reading() as current:
            postings = current.state.postings
            query_weights = postings.query_weights(embeddings.sparse, lexical)
            passage_weights = postings.passage_weights(passage.sparse, lexical)
        return explain(tokenizer, query_text, embeddings, passage_text, passage, query_weights, passage_weights)

    def _need_encoder(self, purpose: str) -> Encoder:
        if self._encoder is None:
            raise ValueError(f"to {purpose}, open the index with its encoder: Index.open(folder, encoder)")
        return self._encoder


def _allowed(current: Current, condition: Condition | None) -> np.ndarray | None:
    """Which documents pass: bool [n], or None for all."""
    if condition is None:
        return None
    return current.state.columns.passing(condition, current.state.rows, current.snapshot.metadata)


def _hits(snapshot: Snapshot, rankings: Sequence[Ranking]) -> list[list[Hit]]:
    rows = sorted({row for ranking in rankings for row in ranking.rows.tolist()})
    documents = snapshot.documents(rows)
    require_documents(documents, rows, snapshot.path)
    return [list(_hits_of(ranking, documents)) for ranking in rankings]


def _hits_of(ranking: Ranking, documents: Mapping[int, Document]) -> Iterator[Hit]:
    rows, scores = ranking.rows.tolist(), ranking.scores.tolist()
    parts = [repeat(None, len(rows)) if part is None else part.tolist() for part in ranking[2:]]
    for row, score, *of_parts in zip(rows, scores, *parts, strict=True):
        document = documents[row]
        yield Hit(document.id, score, document.text, document.metadata, PartScores(*of_parts))
