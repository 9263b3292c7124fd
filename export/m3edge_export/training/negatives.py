"""Hard negatives (ANCE, arXiv 2007.00808): what the model in training ranks high and should not.

Mined with the runtime's own Index over the training passages, by the integrated score. A passage that scores almost as
high as the right one is probably another right one that nobody marked, and is left out (arXiv 2407.15831).
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from m3edge.encoder import Encoder
from m3edge.index import Hit, Index
from m3edge.progress import progress_bar

_DEPTH = 100  # hits looked at for each query
_BLOCK_QUERIES = 512


def mine_negatives(
    encoder: Encoder,
    queries: Sequence[str],
    passages: Sequence[str],
    positives: Mapping[int, frozenset[int]],
    *,
    n: int,
    guard: float,
    progress: bool | None = None,
) -> dict[int, tuple[int, ...]]:
    """At most `n` hard negatives of every query in `positives`, by its place: places in `passages`, the hardest first.

    positives: query -> passages that answer it
    guard:     share of the right passage's score that a negative may reach, 0 to 1. A query whose right passages are
        not among the first 100 hits has no such score and gets no negatives.
    """
    mined = {}
    wanted = sorted(positives)
    with (
        tempfile.TemporaryDirectory(prefix="m3edge-mining-") as folder,
        Index.create(Path(folder) / "passages", encoder) as index,
        progress_bar(len(wanted), "query", "mining", progress) as bar,
    ):
        index.add([{"id": str(i), "text": text} for i, text in enumerate(passages)], progress=progress)
        for start in range(0, len(wanted), _BLOCK_QUERIES):
            block = wanted[start : start + _BLOCK_QUERIES]
            embeddings = encoder.encode_queries([queries[query] for query in block])
            found = index.search_batch(embeddings, k=_DEPTH, candidates=_DEPTH)
            for query, hits in zip(block, found, strict=True):
                mined[query] = _choose(hits, positives[query], n, guard)
            bar.update(len(block))
    return mined


def _choose(hits: Sequence[Hit], positives: frozenset[int], n: int, guard: float) -> tuple[int, ...]:
    """hits: best first"""
    right = [hit.score for hit in hits if int(hit.id) in positives]
    if not right:
        return ()
    wrong = [int(hit.id) for hit in hits if int(hit.id) not in positives and hit.score <= guard * min(right)]
    return tuple(wrong[:n])
