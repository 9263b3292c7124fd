"""Embeddings: what an encoder returns for a list of texts, one part for each head.

Ragged parts are one flat array plus `offsets`; text i owns the rows offsets[i]:offsets[i + 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import numpy as np


class SparseRows(NamedTuple):
    """Lexical vectors, one row for each text: its distinct tokens, ascending, and their weights.

    ids:     int64 [n_entries], vocabulary ids, ascending within a row, special and prefix tokens left out
    weights: float32 [n_entries], at least 0; an entry of weight 0 scores nothing and is there for its count
    counts:  int32 [n_entries], how often the token occurs in the text (BM25's term frequency)
    offsets: int64 [n_texts + 1]
    """

    ids: np.ndarray
    weights: np.ndarray
    counts: np.ndarray
    offsets: np.ndarray


class TokenRows(NamedTuple):
    """Multi-vectors: one unit vector for each token but the first (`<s>`) and the prefix; `</s>` is kept.

    vectors: float32 [n_tokens, token_dim]
    offsets: int64 [n_texts + 1]
    """

    vectors: np.ndarray
    offsets: np.ndarray


_Rows = TypeVar("_Rows", SparseRows, TokenRows)


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """The vectors of n texts, in the order the texts came; a head that was not asked for is None.

    dense:     float32 [n, dense_dim], unit length
    sparse:    SparseRows of n rows
    tokens:    TokenRows of n rows
    truncated: bool [n], True where the text was longer than the model reads and its end was left out
    """

    dense: np.ndarray | None
    sparse: SparseRows | None
    tokens: TokenRows | None
    truncated: np.ndarray

    def __len__(self) -> int:
        return len(self.truncated)

    def __getitem__(self, item: int | slice) -> Embeddings:
        """The embeddings of one text (as n = 1) or of a slice of the texts (step 1)."""
        if isinstance(item, slice):
            start, stop, step = item.indices(len(self))
            if step != 1:
                raise ValueError(f"slices of Embeddings must have step 1, got {step}")
            stop = max(start, stop)
        else:
            index = range(len(self))[item]  # IndexError as for a list
            start, stop = index, index + 1
        return Embeddings(
            dense=None if self.dense is None else self.dense[start:stop],
            sparse=None if self.sparse is None else SparseRows(*_slice_rows(self.sparse, start, stop)),
            tokens=None if self.tokens is None else TokenRows(*_slice_rows(self.tokens, start, stop)),
            truncated=self.truncated[start:stop],
        )

    def to_flagembedding(self) -> dict[str, Any]:
        """The dictionary that FlagEmbedding's `BGEM3FlagModel.encode` returns.

        `dense_vecs`: float32 [n, d]; `lexical_weights`: n dictionaries from the token id, as a string, to its weight;
        `colbert_vecs`: n arrays float32 [n_tokens, dt]. A head that was not asked for is None.
        """
        lexical: list[dict[str, float]] | None = None
        if self.sparse is not None:
            bounds = self.sparse.offsets.tolist()
            lexical = []
            for start, stop in pairwise(bounds):
                row = zip(self.sparse.ids[start:stop].tolist(), self.sparse.weights[start:stop].tolist(), strict=True)
                lexical.append({str(token): weight for token, weight in row if weight > 0})
        colbert = None if self.tokens is None else np.split(self.tokens.vectors, self.tokens.offsets[1:-1])
        return {
            "dense_vecs": self.dense,
            "lexical_weights": lexical,
            "colbert_vecs": colbert[: len(self)] if colbert is not None else None,
        }


def concatenate(parts: Sequence[Embeddings]) -> Embeddings:
    """Join embeddings of the same model and the same heads, one after another; at least one part."""
    if not parts:
        raise ValueError("parts must hold at least one Embeddings, got none")
    first = parts[0]
    if len(parts) == 1:
        return first
    sparse = [part.sparse for part in parts if part.sparse is not None]
    tokens = [part.tokens for part in parts if part.tokens is not None]
    return Embeddings(
        dense=None if first.dense is None else np.concatenate([part.dense for part in parts if part.dense is not None]),
        sparse=concatenate_rows(sparse) if sparse else None,
        tokens=concatenate_rows(tokens) if tokens else None,
        truncated=np.concatenate([part.truncated for part in parts]),
    )


def concatenate_rows(parts: Sequence[_Rows]) -> _Rows:
    """Join SparseRows, or TokenRows, one after another; at least one part."""
    columns: list[tuple[np.ndarray, ...]] = list(zip(*parts, strict=True))
    flat: list[np.ndarray] = [np.concatenate(column) for column in columns[:-1]]
    lengths = np.concatenate([np.diff(part.offsets) for part in parts])
    return type(parts[0])._make([*flat, offsets_of(lengths)])


def offsets_of(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    """int64 [n + 1], where each of n rows of these lengths starts and, last, where they end."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _slice_rows(rows: Sequence[np.ndarray], start: int, stop: int) -> list[np.ndarray]:
    *flat, offsets = rows
    first, last = offsets[start], offsets[stop]
    return [*(array[first:last] for array in flat), offsets[start : stop + 1] - first]
