"""The posting kernels in numpy: exact top-k and exact scores over posting lists (see _kernels_numpy.py).

A score is a sum of whole numbers, factor · part / 65536 rounded down, so that it does not depend on the order in which
it is added up: a factor for each query token, a part of 16 bits for each posting. A posting's part is its stored
weight; or, for BM25, when length norms are given, 65535 · count / (count + norm) in float32, rounded down.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_FACTORS = 2**31 - 1  # what all factors of a query add up to, at most: then a score fits 31 bits


class PostingBlock:
    """The postings of up to 65,536 documents that stand one after another.

    tokens:    uint32 [n_tokens], ascending
    starts:    uint32 [n_tokens + 1]; token i owns the postings starts[i]:starts[i + 1]
    packed_documents: uint16; for each token in turn its postings' documents, ascending, counted from the block's first;
               or, where that is shorter, a bitmap of the block's documents, the lowest bit first, `bitmap_words` long
    weights:   uint16 [n]
    counts:    uint8 [(n + 1) // 2], two a byte, the lower half first; 15 stands for a large count
    large_at, large_counts: uint32, int32 [n_large]; the postings with a count of 15 or more, ascending
    The attribute kept_bytes is the memory that is taken beside these arrays.
    Raises TypeError for an array of another type, ValueError for arrays that are not so.
    """

    def __init__(
        self,
        n_documents: int,
        tokens: np.ndarray,
        starts: np.ndarray,
        packed_documents: np.ndarray,
        weights: np.ndarray,
        counts: np.ndarray,
        large_at: np.ndarray,
        large_counts: np.ndarray,
    ) -> None:
        check_vector("tokens", tokens, np.uint32)
        check_vector("starts", starts, np.uint32)
        check_vector("packed_documents", packed_documents, np.uint16)
        check_vector("weights", weights, np.uint16)
        check_vector("counts", counts, np.uint8)
        check_vector("large_at", large_at, np.uint32)
        check_vector("large_counts", large_counts, np.int32)
        n = len(weights)
        if n_documents < 0:
            raise ValueError(f"n_documents must be at least 0, got {n_documents}")
        if n_documents > 65536:
            raise ValueError("a block must hold at most 65536 documents")
        if len(starts) != len(tokens) + 1:
            raise ValueError("starts must be one longer than tokens")
        if starts[-1] != n or len(counts) != (n + 1) // 2 or len(large_at) != len(large_counts):
            raise ValueError("starts, weights and counts must tell of the same number of postings")
        if starts[0] != 0:
            raise ValueError("starts must begin with 0")
        if (starts[1:] < starts[:-1]).any():
            raise ValueError("starts must not descend")
        if (tokens[1:] <= tokens[:-1]).any():
            raise ValueError("tokens must ascend")
        documents = unpacked_documents(n_documents, starts, packed_documents)
        if n and documents.max() >= n_documents:
            raise ValueError("documents must be less than n_documents")
        first = np.zeros(n + 1, bool)
        first[starts] = True
        if (~first[1:n] & (documents[1:] <= documents[:-1])).any():
            raise ValueError("documents must ascend within a token")
        if (large_at[1:] <= large_at[:-1]).any() or (len(large_at) and large_at[-1] >= n):
            raise ValueError("large_at must ascend within the postings")
        if (large_counts < 15).any():
            raise ValueError("large_counts must be at least 15")
        self.n_documents = n_documents
        self.tokens, self.starts = tokens, starts
        self.documents, self.weights, self.counts = documents, weights, counts
        self.large_at, self.large_counts = large_at, large_counts
        self.kept_bytes = documents.nbytes

    def postings(self, token: int) -> slice:
        """Where this token's postings stand."""
        index = int(np.searchsorted(self.tokens, token))
        if index == len(self.tokens) or self.tokens[index] != token:
            return slice(0, 0)
        return slice(int(self.starts[index]), int(self.starts[index + 1]))

    def counts_of(self, where: slice) -> np.ndarray:
        """int32, how often the token occurs in each of these postings' documents."""
        at = np.arange(where.start, where.stop)
        counts = (self.counts[at // 2] >> (at % 2 * 4).astype(np.uint8) & 15).astype(np.int32)
        large = slice(*np.searchsorted(self.large_at, (where.start, where.stop)))
        counts[self.large_at[large] - where.start] = self.large_counts[large]
        return counts


def bitmap_words(n_documents: int) -> int:
    """How many words of 16 bits a bitmap of so many documents takes: whole groups of 64 documents."""
    return (n_documents + 63) // 64 * 4


def unpacked_documents(n_documents: int, starts: np.ndarray, packed: np.ndarray) -> np.ndarray:
    """Every posting's document, uint16 [n], from a block's `packed_documents`.

    Raises ValueError where `starts` tells of others.
    """
    sizes = starts[1:].astype(np.int64) - starts[:-1]
    words = bitmap_words(n_documents)
    taken = np.minimum(sizes, words)
    if taken.sum() != len(packed):
        raise ValueError("documents must be as long as starts says")
    is_bitmap = sizes > words
    documents = np.empty(int(sizes.sum()), np.uint16)
    documents[np.repeat(~is_bitmap, sizes)] = packed[np.repeat(~is_bitmap, taken)]
    bitmaps = packed[np.repeat(is_bitmap, taken)].astype("<u2").reshape(np.count_nonzero(is_bitmap), words)
    for index, bitmap in zip(np.flatnonzero(is_bitmap), bitmaps, strict=True):
        found = np.flatnonzero(np.unpackbits(bitmap.view(np.uint8), bitorder="little"))
        if len(found) != sizes[index]:
            raise ValueError("a bitmap must tell of as many documents as starts says")
        documents[starts[index] : starts[index + 1]] = found
    return documents


def query_factors(ids: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """A query's weights as whole numbers, in a unit of which the largest score that is possible fits 31 bits.

    ids: int64 [n]; weights: float64 [n], finite
    returns the tokens of weights above 0 and their factors, uint32 [m] each, and the unit: weight ≈ factor · unit
    Raises TypeError for an array of another type or not C-contiguous, ValueError where lengths differ.
    """
    check_vector("ids", ids, np.int64)
    check_vector("weights", weights, np.float64)
    if len(ids) != len(weights):
        raise ValueError("ids and weights must be of one length")
    used = weights > 0
    weights = weights[used]
    total = float(weights.cumsum()[-1]) if len(weights) else 0.0  # added up in order, as the native one does
    unit = total / _FACTORS if len(weights) else 1.0
    return ids[used].astype(np.uint32), np.floor(weights * (1 - 1e-12) / unit).astype(np.uint32), unit


def top_postings(
    blocks: Sequence[PostingBlock],
    tokens: np.ndarray,
    factors: np.ndarray,
    norms: np.ndarray | None,
    smallest: np.ndarray | None,
    allowed: np.ndarray,
    k: int,
    n_threads: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The k best documents, best first; of equal scores the lower position first.

    blocks:   one after another; each begins where the one before it ends
    tokens, factors: uint32 [n]; factors add up to less than 2 ** 31; a token that comes twice counts twice
    norms:    float32 [n_documents], at least 0, BM25's length norms; None: score the stored weights
    smallest: float32 [n_blocks], the smallest norm of each block; None when norms is
    allowed:  bool [n_documents]; others are left out
    n_threads: at most so many threads work on it; the twin leaves that to numpy
    returns   positions int64 [m], scores int64 [m]; only scores above 0, so m may be less than k
    Raises TypeError for an array of another type or not C-contiguous, ValueError for what does not fit.
    """
    scores = _all_scores(blocks, tokens, factors, norms, smallest)
    check_vector("allowed", allowed, np.bool_)
    if len(allowed) != len(scores):
        raise ValueError(f"allowed must be {len(scores)} long, got {len(allowed)}")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if n_threads < 1:
        raise ValueError(f"n_threads must be at least 1, got {n_threads}")
    scores *= allowed
    if k < len(scores):
        # the k-th largest value bounds the candidates; ties at the bound are settled by the sort
        candidates = np.flatnonzero(scores >= max(1, np.partition(scores, len(scores) - k)[len(scores) - k]))
    else:
        candidates = np.flatnonzero(scores)
    best = candidates[np.argsort(-scores[candidates], kind="stable")[:k]]
    return best, scores[best]


def score_postings(
    blocks: Sequence[PostingBlock],
    tokens: np.ndarray,
    factors: np.ndarray,
    norms: np.ndarray | None,
    smallest: np.ndarray | None,
    positions: np.ndarray,
) -> np.ndarray:
    """The scores of given documents: int64 [n].

    positions: int64 [n], ascending; the rest as in `top_postings`
    """
    scores = _all_scores(blocks, tokens, factors, norms, smallest)
    check_vector("positions", positions, np.int64)
    if len(positions) and (positions[0] < 0 or positions[-1] >= len(scores) or (np.diff(positions) < 0).any()):
        raise ValueError(f"positions must ascend within the {len(scores)} documents")
    return scores[positions]


def count_postings(blocks: Sequence[PostingBlock], token: int, allowed: np.ndarray) -> int:
    """In how many allowed documents the token occurs. allowed: bool [n_documents]"""
    check_vector("allowed", allowed, np.bool_)
    n_documents = sum(block.n_documents for block in blocks)
    if len(allowed) != n_documents:
        raise ValueError(f"allowed must be {n_documents} long, got {len(allowed)}")
    count, first = 0, 0
    for block in blocks:
        count += int(
            np.count_nonzero(allowed[first : first + block.n_documents][block.documents[block.postings(token)]])
        )
        first += block.n_documents
    return count


def _all_scores(
    blocks: Sequence[PostingBlock],
    tokens: np.ndarray,
    factors: np.ndarray,
    norms: np.ndarray | None,
    smallest: np.ndarray | None,
) -> np.ndarray:
    check_vector("tokens", tokens, np.uint32)
    check_vector("factors", factors, np.uint32)
    if len(tokens) != len(factors):
        raise ValueError("tokens and factors must be of one length")
    if (total := int(factors.sum(dtype=np.uint64))) >= 2**31:
        raise ValueError(f"factors must add up to less than 2 ** 31, got {total}")
    n_documents = sum(block.n_documents for block in blocks)
    if (norms is None) != (smallest is None):
        raise ValueError("norms and smallest must both be given, or neither")
    if norms is not None and smallest is not None:
        check_vector("norms", norms, np.float32)
        check_vector("smallest", smallest, np.float32)
        if len(norms) != n_documents or len(smallest) != len(blocks):
            raise ValueError("norms must be one for each document, and smallest one for each block")
    scores = np.zeros(n_documents, np.int64)
    first = 0
    for block in blocks:
        for token, factor in zip(tokens.tolist(), factors.tolist(), strict=True):
            where = block.postings(token)
            documents = first + block.documents[where].astype(np.int64)
            if norms is None:
                parts = block.weights[where]
            else:
                counts = block.counts_of(where).astype(np.float32)
                parts = np.float32(65535) * counts / (counts + norms[documents])
            # += with an index is safe: a document occurs once in a token's postings
            scores[documents] += factor * parts.astype(np.int64) >> 16
        first += block.n_documents
    return scores


def check_vector(name: str, values: np.ndarray, dtype: type[np.generic]) -> None:
    if not isinstance(values, np.ndarray) or values.dtype != dtype or values.ndim != 1 or not values.flags.c_contiguous:
        raise TypeError(f"{name} must be a C-contiguous array of {np.dtype(dtype)} with one axis")
