"""A training batch: what every query of it scores with every passage of it, and which passage is the right one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch.nn.functional import normalize

from m3edge.scoring import Weights
from m3edge_export.model import M3Model
from m3edge_export.training.batching import IndexedPair
from m3edge_export.training.losses import (
    EXCLUDED,
    Scores,
    dense_scores,
    integrated_scores,
    lexical_scores,
    multi_vector_scores,
)
from m3edge_export.training.states import Padded


class Batch(NamedTuple):
    """The texts of one step.

    queries:  places among all queries, one for each pair
    passages: places among all passages, each once: the pairs' own, then the mined negatives
    targets:  int64 [queries], which of the passages answers the query
    excluded: bool [queries, passages], other passages that answer it too: no negatives
    """

    queries: list[int]
    passages: list[int]
    targets: torch.Tensor
    excluded: torch.Tensor


def make_batch(
    pairs: Sequence[IndexedPair],
    positives: Mapping[int, frozenset[int]],
    negatives: Mapping[int, Sequence[int]],
) -> Batch:
    """positives: query -> every passage known to answer it; negatives: query -> passages mined for it"""
    mined = [passage for pair in pairs for passage in negatives.get(pair.query, ())]
    passages = list(dict.fromkeys([*(pair.passage for pair in pairs), *mined]))
    place = {passage: column for column, passage in enumerate(passages)}
    targets = torch.tensor([place[pair.passage] for pair in pairs])
    excluded = torch.tensor([[passage in positives[pair.query] for passage in passages] for pair in pairs])
    excluded[torch.arange(len(pairs)), targets] = False
    return Batch([pair.query for pair in pairs], passages, targets, excluded)


def batch_scores(
    model: M3Model, queries: Padded, passages: Padded, excluded: torch.Tensor, dropped: torch.Tensor
) -> Scores:
    """All three scores of every query with every passage, EXCLUDED where `excluded` is True.

    dropped: int64 [n], ids that are never part of a sparse vector
    """
    scores = Scores(
        dense_scores(queries.dense, passages.dense),
        lexical_scores(
            queries.ids, token_weights(model, queries, dropped), passages.ids, token_weights(model, passages, dropped)
        ),
        multi_vector_scores(
            normalize(model.token_head(queries.hidden), dim=-1),
            queries.mask,
            normalize(model.token_head(passages.hidden), dim=-1),
            passages.mask,
        ),
    )
    return Scores(*(part.masked_fill(excluded, EXCLUDED) for part in scores))


def token_weights(model: M3Model, texts: Padded, dropped: torch.Tensor) -> torch.Tensor:
    """float32 [b, s]: the sparse head's output, 0 on padding and on tokens that are left out of sparse vectors."""
    counts = texts.mask & ~torch.isin(texts.ids, dropped)
    return torch.relu(model.sparse_head(texts.hidden)).squeeze(-1) * counts


def accuracy(scores: Scores, targets: torch.Tensor, weights: Weights) -> dict[str, float]:
    """Each part's share of queries whose own passage scores best, and that of the integrated score, "all"."""
    parts = {**scores._asdict(), "all": integrated_scores(scores, weights)}
    return {name: (part.argmax(dim=1) == targets).float().mean().item() for name, part in parts.items()}
