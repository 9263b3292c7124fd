"""A hybrid search in numpy: what its parts put forward, and all scores of it (see _kernels_numpy.py)."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from m3edge._dense_numpy import dense_scores
from m3edge._graph_numpy import GraphLinks
from m3edge._maxsim_numpy import maxsim_records
from m3edge._postings_numpy import PostingBlock, score_postings, top_postings
from m3edge._shared_numpy import check_array


class DensePart(NamedTuple):
    """query: float32 [dim]; vectors: float32 [n, dim], of all documents"""

    query: np.ndarray
    vectors: np.ndarray


class GraphPart(NamedTuple):
    """The k documents of the best dense scores, of `effort` that a graph leads to (GraphLinks.candidates)

    codes, scales: int8 [n, dim], float32 [n], of all documents; k: at least 1; effort: at least k; most: at least 1
    """

    links: GraphLinks
    codes: np.ndarray
    scales: np.ndarray
    k: int
    effort: int
    most: int


class LexicalPart(NamedTuple):
    """The k best by postings, as top_postings takes them; their sums times scale are scores"""

    blocks: list[PostingBlock]
    tokens: np.ndarray
    factors: np.ndarray
    norms: np.ndarray | None
    smallest: np.ndarray | None
    k: int
    scale: float


class TokenPart(NamedTuple):
    """query: float32 [n_query_tokens, dim], finite; records, bits: as maxsim_records takes them;
    starts, counts: int64 [n], the records of all documents; crc32s: int64 [n], the CRC-32 of their bytes, negative for
    none; sound: bool [n], whose records were compared with it before"""

    query: np.ndarray
    records: np.ndarray
    bits: int
    starts: np.ndarray
    counts: np.ndarray
    crc32s: np.ndarray
    sound: np.ndarray


class HybridScores(NamedTuple):
    """Of the documents that were put forward; a part that took none is None.

    positions: int64 [k], ascending; dense, lexical, tokens: float32 [k]
    compared, damaged: those among them whose records were compared with their checksums now, and were the same
        or not; the latter score no number
    seconds: what all threads together spent on the dense, the lexical and the tokens' part
    """

    positions: np.ndarray
    dense: np.ndarray | None
    lexical: np.ndarray | None
    tokens: np.ndarray | None
    compared: list[int]
    damaged: list[int]
    seconds: list[float]


def hybrid_scores(
    allowed: np.ndarray,
    nearest: np.ndarray | None,
    dense: DensePart | None,
    graph: GraphPart | None,
    lexical: LexicalPart | None,
    tokens: TokenPart | None,
    n_threads: int,
) -> HybridScores | None:
    """All scores of the documents that the graph, or the caller, and the postings put forward.

    allowed: bool [n], which documents the graph and the postings may put forward
    nearest: int64 [m], what the caller puts forward; None, or with a graph always None
    dense, graph, lexical, tokens: the parts, None for one that takes no part; a graph needs the dense part
    n_threads: at most so many threads work on it; the twin leaves that to numpy
    returns HybridScores' values, or None, where the graph gave up or leads to fewer than k documents though there are
        as many
    Raises TypeError for an array of another type or not C-contiguous, ValueError for what does not fit together.
    """
    seconds = [0.0, 0.0, 0.0]

    def timed(part: int, work: Callable[..., Any], *arguments: Any) -> Any:
        started = time.perf_counter()
        result = work(*arguments)
        seconds[part] += time.perf_counter() - started
        return result

    check_array("allowed", allowed, np.bool_, 1)
    n = len(allowed)
    put_forward = [np.empty(0, np.int64)]
    if nearest is not None:
        check_array("nearest", nearest, np.int64, 1)
        if len(nearest) and not 0 <= int(nearest.min()) <= int(nearest.max()) < n:
            raise ValueError(f"nearest must be among the {n} documents, got {nearest.min()} to {nearest.max()}")
        put_forward.append(nearest)
    if graph is not None and (nearest is not None or dense is None):
        raise ValueError("graph needs dense, and leaves no place for nearest")
    if dense is not None:
        check_array("dense", dense[0], np.float32, 1)
        check_array("dense", dense[1], np.float32, 2)
        if dense[1].shape != (n, len(dense[0])):
            raise ValueError("dense must be a query and as wide a vector for each document")
        if not np.isfinite(dense[0]).all():
            raise ValueError("dense must be finite, got an infinity or a NaN")
        if graph is not None:
            found = timed(0, _by_graph, graph, dense, allowed)
            if found is None:
                return None
            put_forward.append(found)
    if lexical is not None:
        blocks, words, factors, norms, smallest, k, scale = lexical
        best = timed(1, top_postings, blocks, words, factors, norms, smallest, allowed, k, n_threads)
        put_forward.append(best[0])
    positions = np.unique(np.concatenate(put_forward))
    of_dense = of_lexical = of_tokens = None
    compared: list[int] = []
    damaged: list[int] = []
    if dense is not None:
        of_dense = timed(0, dense_scores, *dense, positions)
    if lexical is not None:
        of_lexical = (timed(1, score_postings, *lexical[:5], positions) * scale).astype(np.float32)
    if tokens is not None:
        compared, damaged = timed(2, _compared, tokens, positions, n)
        of_tokens = timed(2, _token_scores, tokens, positions, damaged, n_threads)
    return HybridScores(positions, of_dense, of_lexical, of_tokens, compared, damaged, seconds)


def _by_graph(graph: GraphPart, dense: DensePart, allowed: np.ndarray) -> np.ndarray | None:
    links, codes, scales, k, effort, most = graph
    if codes.shape != dense[1].shape or len(scales) != len(allowed) or len(links) > len(allowed):
        raise ValueError("graph must have codes and a scale for each document, and no more nodes")
    if k < 1 or effort < k or most < 1:
        raise ValueError("graph must ask for at least 1, and have no less in view")
    found = links.candidates(dense[0], codes, scales, allowed, effort, most)
    if found is None or len(found) < min(k, int(np.count_nonzero(allowed[: len(links)]))):
        return None
    return found[np.lexsort((found, -dense_scores(*dense, found)))[:k]]


def _compared(tokens: TokenPart, positions: np.ndarray, n: int) -> tuple[list[int], list[int]]:
    _, records, _, starts, counts, crc32s, sound = tokens
    check_array("tokens", records, np.uint8, 2)
    check_array("tokens", crc32s, np.int64, 1)
    check_array("tokens", sound, np.bool_, 1)
    if not len(starts) == len(counts) == len(crc32s) == len(sound) == n:
        raise ValueError("tokens must have a start, a count, a checksum and whether it was compared for each document")
    new = positions[~sound[positions]]
    is_same = np.zeros(len(new), bool)
    for i, (start, count, expected) in enumerate(zip(starts[new], counts[new], crc32s[new], strict=True)):
        if start >= 0 and count >= 0 and start <= len(records) - count:
            is_same[i] = expected < 0 or zlib.crc32(records[start : start + count].data) == expected
    return new[is_same].tolist(), new[~is_same].tolist()


def _token_scores(tokens: TokenPart, positions: np.ndarray, damaged: list[int], n_threads: int) -> np.ndarray:
    query, records, bits, starts, counts, *_ = tokens
    scores = np.full(len(positions), np.nan, np.float32)
    known = ~np.isin(positions, damaged)
    of = positions[known]
    scores[known] = maxsim_records(query, records, bits, starts[of], counts[of], n_threads)
    return scores
