"""The posting index: which documents hold a token, how much it weighs there, and how often it occurs.

Three flat arrays sorted by token, and one array that says where each token's postings begin. Documents are positions
0, 1, 2 … in the order they were added. New documents wait in a short unsorted tail, searchable at once, until there are
enough of them to be worth sorting in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from m3edge.embeddings import SparseRows, concatenate_rows, offsets_of
from m3edge.scoring import lexical_scores, sum_rows

# Sorting the tail in costs time in proportion to everything; a tail of a tenth keeps that rare and its scan cheap.
_TAIL_SHARE = 0.1
_TAIL_MIN = 1000

# Robertson's usual constants, as in Lucene
_BM25_K1 = 1.2
_BM25_B = 0.75


class _Postings(NamedTuple):
    """tokens: int64 [n_tokens], ascending; starts: int64 [n_tokens + 1]; documents: int32, weights: float32,
    counts: int32, all [n_postings]: token i owns starts[i]:starts[i + 1]."""

    tokens: np.ndarray
    starts: np.ndarray
    documents: np.ndarray
    weights: np.ndarray
    counts: np.ndarray


class PostingIndex:
    """Exact lexical scores of every document, for M3's learned weights and for BM25 over the same tokens."""

    def __init__(self) -> None:
        empty = np.empty(0, np.int64)
        self._postings = _Postings(empty, np.zeros(1, np.int64), *(empty.astype(t) for t in ("i4", "f4", "i4")))
        self._n_sorted = 0
        self._tail: SparseRows | None = None
        self._lengths = np.empty(0, np.int64)  # tokens of each document, repeats counted

    def __len__(self) -> int:
        return len(self._lengths)

    def add(self, rows: SparseRows) -> None:
        """Append documents."""
        self._lengths = np.concatenate([self._lengths, sum_rows(rows.counts.astype(np.int64), rows.offsets)])
        self._tail = rows if self._tail is None else concatenate_rows([self._tail, rows])
        if len(self) - self._n_sorted > max(_TAIL_MIN, _TAIL_SHARE * len(self)):
            self._sort_tail_in()

    def scores(self, query: SparseRows) -> np.ndarray:
        """s_lex of one query (one row) with every document: float32 [n]; 0 where they share no token."""
        scores = np.zeros(len(self), np.float32)
        for token, weight in zip(query.ids.tolist(), query.weights.tolist(), strict=True):
            if weight > 0:
                where = self._slice(token)
                # += with an index is safe: a document occurs once in a token's postings
                scores[self._postings.documents[where]] += np.float32(weight) * self._postings.weights[where]
        if self._tail is not None:
            scores[self._n_sorted :] = lexical_scores(query, self._tail)
        return scores

    def bm25_scores(self, query: SparseRows, alive: np.ndarray | None = None) -> np.ndarray:
        """BM25 of one query (one row) with every document: float32 [n].

        Σ_t count_q(t) · ln(1 + (N − df + .5)/(df + .5)) · tf (k1 + 1) / (tf + k1 (1 − b + b · length / mean length))
        alive: bool [n], the documents that N, df and the mean length are counted over; by default all
        """
        if self._tail is not None:
            self._sort_tail_in()
        scores = np.zeros(len(self), np.float32)
        alive = np.ones(len(self), bool) if alive is None else alive
        n_documents = int(alive.sum())
        if n_documents == 0:
            return scores
        mean_length = max(1.0, float(self._lengths[alive].mean()))
        norms = (_BM25_K1 * (1 - _BM25_B + _BM25_B * self._lengths / mean_length)).astype(np.float32)
        for token, repeats in zip(query.ids.tolist(), query.counts.tolist(), strict=True):
            where = self._slice(token)
            documents = self._postings.documents[where]
            frequency = int(alive[documents].sum())
            idf = np.log(1 + (n_documents - frequency + 0.5) / (frequency + 0.5))
            counts = self._postings.counts[where].astype(np.float32)
            scores[documents] += np.float32(repeats * idf * (_BM25_K1 + 1)) * counts / (counts + norms[documents])
        return scores

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Everything, as arrays by name."""
        if self._tail is not None:
            self._sort_tail_in()
        return {"lengths": self._lengths, **self._postings._asdict()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> PostingIndex:
        """The index that gave these arrays."""
        index = cls()
        index._lengths = arrays["lengths"]
        index._postings = _Postings(*(arrays[name] for name in _Postings._fields))
        index._n_sorted = len(index._lengths)
        return index

    def _slice(self, token: int) -> slice:
        postings = self._postings
        position = int(np.searchsorted(postings.tokens, token))
        if position == len(postings.tokens) or postings.tokens[position] != token:
            return slice(0, 0)
        return slice(int(postings.starts[position]), int(postings.starts[position + 1]))

    def _sort_tail_in(self) -> None:
        assert self._tail is not None
        old, tail = self._postings, self._tail
        tokens = np.concatenate([np.repeat(old.tokens, np.diff(old.starts)), tail.ids])
        new_documents = np.repeat(np.arange(self._n_sorted, len(self), dtype=np.int32), np.diff(tail.offsets))
        order = np.argsort(tokens, kind="stable")  # stable: a token's documents stay in ascending order
        distinct, counts = np.unique(tokens, return_counts=True)
        self._postings = _Postings(
            distinct,
            offsets_of(counts),
            np.concatenate([old.documents, new_documents])[order],
            np.concatenate([old.weights, tail.weights])[order],
            np.concatenate([old.counts, tail.counts])[order],
        )
        self._n_sorted, self._tail = len(self), None
