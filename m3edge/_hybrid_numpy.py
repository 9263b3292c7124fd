"""A hybrid search in numpy: what its parts put forward, and all scores of it (see _kernels_numpy.py)."""

from __future__ import annotations

from typing import NamedTuple

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
    """The k best by postings, as top_postings takes them"""

    blocks: list[PostingBlock]
    tokens: np.ndarray
    factors: np.ndarray
    norms: np.ndarray | None
    smallest: np.ndarray | None
    k: int


class TokenPart(NamedTuple):
    """query: float32 [n_query_tokens, dim], finite; records, bits: as maxsim_records takes them;
    starts, counts: int64 [n], the records of all documents; sound: bool [n], whose records may be read"""

    query: np.ndarray
    records: np.ndarray
    bits: int
    starts: np.ndarray
    counts: np.ndarray
    sound: np.ndarray


HybridScores = tuple[np.ndarray, np.ndarray | None, np.ndarray | None, np.ndarray | None]


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
    returns the documents' positions, int64 [k], ascending, and their scores: float32 [k] of the dense part, int64 [k]
        of the lexical, float32 [k] of the tokens, NaN where these are not sound; None for parts that are None.
        None alone, where the graph gave up or leads to fewer than k documents though there are as many.
    Raises TypeError for an array of another type or not C-contiguous, ValueError for what does not fit together.
    """
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
            found = _by_graph(graph, dense, allowed)
            if found is None:
                return None
            put_forward.append(found)
    if lexical is not None:
        blocks, words, factors, norms, smallest, k = lexical
        put_forward.append(top_postings(blocks, words, factors, norms, smallest, allowed, k, n_threads)[0])
    positions = np.unique(np.concatenate(put_forward))
    return (
        positions,
        None if dense is None else dense_scores(*dense, positions),
        None if lexical is None else score_postings(*lexical[:5], positions),
        None if tokens is None else _token_scores(tokens, positions, n, n_threads),
    )


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


def _token_scores(tokens: TokenPart, positions: np.ndarray, n: int, n_threads: int) -> np.ndarray:
    query, records, bits, starts, counts, sound = tokens
    check_array("tokens", sound, np.bool_, 1)
    if not len(starts) == len(counts) == len(sound) == n:
        raise ValueError("tokens must have a start, a count and a word of their soundness for each document")
    scores = np.full(len(positions), np.nan, np.float32)
    known = sound[positions]
    of = positions[known]
    scores[known] = maxsim_records(query, records, bits, starts[of], counts[of], n_threads)
    return scores
