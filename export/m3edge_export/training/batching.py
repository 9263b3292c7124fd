"""Which pairs make up a training step (arXiv 2402.03216v4, section 3.4): of one source and of similar length."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

_POOL_BATCHES = 16  # batches whose passages are sorted together; larger pools pad less and mix less


class IndexedPair(NamedTuple):
    """A training pair by its places among the distinct queries and the distinct passages."""

    query: int
    passage: int
    source: str


def plan_epoch(
    pairs: Sequence[IndexedPair], lengths: Sequence[int], *, batch: int, batch_tokens: int, seed: str
) -> list[list[IndexedPair]]:
    """Every pair once, in batches in random order.

    A batch has passages of one source, which are each other's harder negatives, and of similar length, so that little
    is padded. Short passages come in larger batches, as in the paper. A passage comes with all its queries: encoding it
    is the larger part of a step's work, and is done once.

    lengths:      tokens of each passage
    batch:        passages in a batch, at most; a source's last batch may be short, but a passage alone, without a
        negative, is left out
    batch_tokens: passages times the longest one's tokens, at most (two passages may exceed it)
    seed:         decides the order; the same seed gives the same batches
    """
    generator = random.Random(seed)
    by_source: dict[str, dict[int, list[IndexedPair]]] = {}
    for pair in pairs:
        by_source.setdefault(pair.source, {}).setdefault(pair.passage, []).append(pair)
    batches = []
    for by_passage in by_source.values():
        passages = list(by_passage)
        generator.shuffle(passages)
        for start in range(0, len(passages), batch * _POOL_BATCHES):
            pool = sorted(passages[start : start + batch * _POOL_BATCHES], key=lambda passage: -lengths[passage])
            for members in _cut(pool, lengths, batch, batch_tokens):
                batches.append([pair for passage in members for pair in by_passage[passage]])
    generator.shuffle(batches)
    return batches


def _cut(pool: Sequence[int], lengths: Sequence[int], batch: int, batch_tokens: int) -> list[Sequence[int]]:
    """Consecutive passages of a pool that is sorted from the longest down."""
    batches = []
    start = 0
    while start < len(pool) - 1:
        size = max(2, min(batch, batch_tokens // max(1, lengths[pool[start]])))
        batches.append(pool[start : start + size])
        start += size
    return batches
