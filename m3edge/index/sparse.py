"""The posting index: which documents hold a token, how much it weighs there, and how often it occurs.

Documents are positions 0, 1, 2 … in the order they were added; a deleted one keeps its position. Their postings lie in
blocks of up to 65,536 documents, so that a document's number within its block takes 16 bits; a weight takes 16 bits, a
count 4 (`posting_blocks.py` makes the blocks). New documents become a small block of their own, searchable at once, and
small blocks are joined as they grow in number.

Three scores can be asked of it, chosen for each search (`LEXICAL`):

m3      Σ w_q(t) · w_p(t), the paper's s_lex
m3-idf  the same with query weights times idf(t) = ln(1 + (N - df + .5) / (df + .5)), then scaled to keep their sum
bm25    Σ count_q(t) · idf(t) · tf / (tf + k1 (1 - b + b · length / mean length)), divided by Σ count_q(t) · idf(t)

N, df and the mean length are counted over the live documents. Scaling depends on the query alone, so it does not change
the order of one search's results; it keeps the three in one range, so that one weight serves in a hybrid score.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from m3edge import kernels
from m3edge._hybrid_numpy import LexicalPart
from m3edge.embeddings import SparseRows
from m3edge.index.posting_blocks import (
    BLOCK_DOCUMENTS,
    WEIGHT_BITS,
    BlockArrays,
    block_of_rows,
    blocks_from_arrays,
    blocks_to_arrays,
    coarser,
    join,
)
from m3edge.scoring import sum_rows

LEXICAL = ("m3", "m3-idf", "bm25")

# Robertson's usual constants, as in Lucene
_BM25_K1 = 1.2
_BM25_B = 0.75

_LARGEST_PART = 65535
_LARGEST_EXPONENT = 128  # float32's


class LexicalQuery(NamedTuple):
    """A query made ready for the kernels: score = scale · Σ ⌊factor · part / 65536⌋.

    tokens, factors: uint32 [n]
    norms, smallest: BM25's length norms of documents and blocks; None for stored weights
    """

    tokens: np.ndarray
    factors: np.ndarray
    scale: float
    norms: np.ndarray | None
    smallest: np.ndarray | None


class Scored(NamedTuple):
    """positions: int64 [n], best first; scores: float32 [n]"""

    positions: np.ndarray
    scores: np.ndarray


class PostingIndex:
    """Exact lexical scores over compressed postings.

    Weights are stored in steps of 2 ** (exponent - 16), rounded down, where every weight is below 2 ** exponent; 0 is
    the smallest exponent, and M3's weights rarely need more. So an "m3" or "m3-idf" score is at most
    2 ** (exponent - 16) · Σ query weights below that of float32 weights, and never above: .00002 for weights below 1
    that sum to 1. A part of BM25 is rounded down in steps of 1 / 65,535. Ranking by these scores is exact, ties
    included, and it is the same however documents were portioned when they were added.
    """

    def __init__(self) -> None:
        self.alive = np.empty(0, bool)  # bool [n]; False: deleted
        self._lengths = np.empty(0, np.int32)  # tokens of each document, repeats counted
        self._exponent = 0
        self._blocks: list[BlockArrays] = []
        self._kernel_blocks: list[Any] = []  # kernels.PostingBlock, native or not
        self._forget_statistics()

    def __len__(self) -> int:
        return len(self._lengths)

    @property
    def n_postings(self) -> int:
        return sum(len(block.weights) for block in self._blocks)

    @property
    def size_bytes(self) -> int:
        """Memory that the arrays take, and what the kernels keep beside them."""
        arrays = sum(array.nbytes for block in self._blocks for array in block[1:])
        kept = sum(block.kept_bytes for block in self._kernel_blocks)
        return arrays + kept + self._lengths.nbytes + self.alive.nbytes

    def add(self, rows: SparseRows) -> None:
        """Append documents. Raises ValueError for weights that are negative or not finite."""
        n = len(rows.offsets) - 1
        largest = float(rows.weights.max(initial=0))
        if not (np.isfinite(largest) and rows.weights.min(initial=0) >= 0):
            raise ValueError("rows: weights must be finite and at least 0")
        exponent = max(self._exponent, int(np.frexp(largest)[1]))
        if exponent > self._exponent:
            self._set_blocks([coarser(block, exponent - self._exponent) for block in self._blocks])
            self._exponent = exponent
        self._lengths = np.concatenate([self._lengths, sum_rows(rows.counts, rows.offsets).astype(np.int32)])
        self.alive = np.concatenate([self.alive, np.ones(n, bool)])
        for start in range(0, n, BLOCK_DOCUMENTS):
            self._append(block_of_rows(rows, start, min(start + BLOCK_DOCUMENTS, n), exponent))
        self._forget_statistics()

    def delete(self, positions: np.ndarray) -> None:
        """Leave these documents out of all results and statistics. positions: int64 [n]"""
        if len(positions):
            self.alive = self.alive.copy()
            self.alive[positions] = False
            self._forget_statistics()

    # Scores

    def query(self, row: SparseRows, lexical: str = "m3") -> LexicalQuery:
        """One query (one row) made ready for `top` and `scores`, until documents are added or deleted.

        Raises ValueError when `lexical` is none of LEXICAL.
        """
        tokens, factors, unit = kernels.query_factors(row.ids, self.query_weights(row, lexical))
        is_bm25 = lexical == "bm25"
        part = 1 / _LARGEST_PART if is_bm25 else 2.0 ** (self._exponent - WEIGHT_BITS)
        norms, smallest = self._length_norms() if is_bm25 else (None, None)
        return LexicalQuery(tokens, factors, 65536 * unit * part, norms, smallest)

    def top(self, query: LexicalQuery, k: int, allowed: np.ndarray | None = None, n_threads: int = 1) -> Scored:
        """The k best live documents that share a token with the query; of equal scores the lower position first.

        allowed: bool [n], the documents that may be found; by default all live ones
        """
        allowed = self.alive if allowed is None else self.alive & allowed
        positions, sums = kernels.top_postings(
            self._kernel_blocks, query.tokens, query.factors, query.norms, query.smallest, allowed, k, n_threads
        )
        return Scored(positions, (sums * query.scale).astype(np.float32))

    def part(self, query: LexicalQuery, k: int) -> LexicalPart:
        """What a hybrid search takes for `top` and `scores`."""
        return LexicalPart(
            self._kernel_blocks, query.tokens, query.factors, query.norms, query.smallest, k, query.scale
        )

    def scores(self, query: LexicalQuery, positions: np.ndarray) -> np.ndarray:
        """The scores of given documents, 0 where no token is shared: float32 [n]. positions: int64 [n], ascending"""
        sums = kernels.score_postings(
            self._kernel_blocks, query.tokens, query.factors, query.norms, query.smallest, positions
        )
        return (sums * query.scale).astype(np.float32)

    def query_weights(self, row: SparseRows, lexical: str = "m3") -> np.ndarray:
        """What each token of a query (one row) multiplies its documents' `passage_weights` with: float64 [n]."""
        if lexical not in LEXICAL:
            raise ValueError(f"lexical must be one of {', '.join(LEXICAL)}, got {lexical!r}")
        weights = row.weights.astype(np.float64)
        if lexical == "m3":
            return weights
        idf = self._idf(row.ids)
        if lexical == "bm25":
            weighted = row.counts * idf
            return weighted / max(weighted.sum(), np.finfo(np.float64).tiny)
        weighted = weights * idf
        total = weighted.sum()
        return weighted * (weights.sum() / total) if total > 0 else weighted

    def passage_weights(self, row: SparseRows, lexical: str = "m3") -> np.ndarray:
        """What each token of a passage (one row) puts into the score: float64 [n], unrounded."""
        if lexical != "bm25":
            return row.weights.astype(np.float64)
        counts = row.counts.astype(np.float64)
        return counts / (counts + _bm25_norms(counts.sum(), self._mean_length()))

    # Saving

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Everything, as arrays by name."""
        own = {"alive": self.alive, "lengths": self._lengths, "exponent": np.array([self._exponent])}
        return {**own, **blocks_to_arrays(self._blocks)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> PostingIndex:
        """The index that gave these arrays. Raises KeyError when one is missing, as in an older version's, IndexError,
        TypeError or ValueError when they do not belong together."""
        index = cls()
        index.alive, index._lengths = arrays["alive"], arrays["lengths"]
        index._exponent = int(arrays["exponent"][0])
        if not 0 <= index._exponent <= _LARGEST_EXPONENT:
            raise ValueError(f"exponent must be from 0 to {_LARGEST_EXPONENT}, got {index._exponent}")
        index._set_blocks(blocks_from_arrays(arrays))
        n = sum(block.n_documents for block in index._blocks)
        for name, array, dtype in (("alive", index.alive, np.bool_), ("lengths", index._lengths, np.int32)):
            if array.dtype != dtype or array.shape != (n,):
                raise ValueError(f"{name} must be {np.dtype(dtype)} {(n,)}, got {array.dtype} {array.shape}")
        if index.alive.view(np.uint8).max(initial=0) > 1 or index._lengths.min(initial=0) < 0:
            raise ValueError("alive must be 0 or 1, lengths at least 0")
        return index

    # Blocks

    def _append(self, block: BlockArrays) -> None:
        """Put a block at the end, and join the last two as long as the older one is neither full nor much larger: so
        each posting is joined a few times, whatever the portions, and only the last blocks are not full."""
        blocks = [*self._blocks, block]
        while len(blocks) > 1:
            older, newer = blocks[-2].n_documents, blocks[-1].n_documents
            if older == BLOCK_DOCUMENTS or older >= 2 * newer:
                break
            blocks[-2:] = join(*blocks[-2:])
        self._set_blocks(blocks)

    def _set_blocks(self, blocks: list[BlockArrays]) -> None:
        known = {id(block): kernel for block, kernel in zip(self._blocks, self._kernel_blocks, strict=True)}
        kept = [known.get(id(block)) or kernels.PostingBlock(*block) for block in blocks]
        self._blocks, self._kernel_blocks = blocks, kept

    # Statistics over the live documents, counted when first asked for

    def _forget_statistics(self) -> None:
        self._frequencies: dict[int, int] = {}
        self._mean: float | None = None
        self._norms: tuple[np.ndarray, np.ndarray] | None = None

    def _idf(self, tokens: np.ndarray) -> np.ndarray:
        n_live = int(np.count_nonzero(self.alive))
        for token in tokens.tolist():
            if token not in self._frequencies:
                self._frequencies[token] = kernels.count_postings(self._kernel_blocks, token, self.alive)
        frequencies = np.array([self._frequencies[token] for token in tokens.tolist()], np.float64)
        return np.log1p((n_live - frequencies + 0.5) / (frequencies + 0.5))

    def _mean_length(self) -> float:
        if self._mean is None:
            lengths = self._lengths[self.alive]
            self._mean = max(1.0, float(lengths.mean())) if len(lengths) else 1.0
        return self._mean

    def _length_norms(self) -> tuple[np.ndarray, np.ndarray]:
        if self._norms is None:
            norms = _bm25_norms(self._lengths, self._mean_length()).astype(np.float32)
            starts = np.cumsum([0, *(block.n_documents for block in self._blocks)])[:-1]
            smallest = np.minimum.reduceat(norms, starts) if len(starts) else norms
            self._norms = norms, smallest
        return self._norms


def _bm25_norms(lengths: np.ndarray, mean_length: float) -> np.ndarray:
    return _BM25_K1 * (1 - _BM25_B + _BM25_B * lengths / mean_length)
