"""Training the sparse and the token head on a frozen encoder's hidden states, by in-batch contrast.

The dense head has no weights of its own: its scores are given, and the other two learn to go with them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn.functional import normalize

from m3edge.model_folder import PRESETS
from m3edge.progress import progress_bar
from m3edge.scoring import Weights
from m3edge_export.model import M3Model
from m3edge_export.training.losses import (
    EXCLUDED,
    Scores,
    dense_scores,
    distillation,
    info_nce,
    integrated_scores,
    lexical_scores,
    multi_vector_scores,
)
from m3edge_export.training.states import Padded, States, take

_WEIGHTS = Weights(*PRESETS["general"])
_LOG_EVERY = 50  # steps
_START_TOKENS = 200_000  # hidden states that prepare_heads looks at


@dataclass(frozen=True, kw_only=True)
class HeadTraining:
    """How the heads are trained."""

    epochs: int = 1
    batch: int = 32  # queries a step; the other queries' passages are the negatives
    learning_rate: float = 1e-3
    # Share of its start in the trained token head: averaging the two keeps what other domains need (arXiv 2109.01903).
    keep: float = 0.6
    temperature: float = 0.02  # the paper's
    sparse_share: float = 0.1  # λ of the sparse loss, the paper's
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "learning_rate", "temperature"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if not 0 <= self.keep < 1:
            raise ValueError(f"keep must be at least 0 and below 1, got {self.keep}")


class IndexedPair(NamedTuple):
    """A training pair by its places in the States of the queries and of the passages."""

    query: int
    passage: int
    source: str


class Progress(NamedTuple):
    """Means over the last steps: the loss, and each part's share of queries whose own passage scores best."""

    step: int
    loss: float
    accuracy: dict[str, float]


def prepare_heads(model: M3Model, passages: States) -> None:
    """Where the training starts from.

    The token head takes the mean hidden state away, a large common part that tells no two tokens apart, and changes
    nothing else; where it is narrower than the encoder it keeps the directions of most variance. The sparse head gives
    every token the same small weight, above 0 so that its ReLU lets the gradient through.
    """
    sample = passages.hidden[:: max(1, len(passages.hidden) // _START_TOKENS)].float()
    mean = sample.mean(dim=0)
    with torch.no_grad():
        if model.token_dim == model.hidden_size:
            torch.nn.init.eye_(model.token_head.weight)
        else:
            _, directions = torch.linalg.eigh(torch.cov((sample - mean).T))  # by ascending variance
            model.token_head.weight.copy_(directions[:, -model.token_dim :].T)
        model.token_head.bias.copy_(-(model.token_head.weight @ mean))
        torch.nn.init.zeros_(model.sparse_head.weight)
        torch.nn.init.constant_(model.sparse_head.bias, 0.3)


def train_heads(
    model: M3Model,
    queries: States,
    passages: States,
    pairs: Sequence[IndexedPair],
    dropped_ids: Sequence[int],
    config: HeadTraining,
    *,
    report: Callable[[Progress], None] = lambda progress: None,
    progress: bool | None = None,
) -> None:
    """Train both heads in place. The same seed on the same machine gives the same heads.

    dropped_ids: ids that are never part of a sparse vector
    """
    heads = [*model.token_head.parameters(), *model.sparse_head.parameters()]
    start = [parameter.detach().clone() for parameter in model.token_head.parameters()]
    optimizer = torch.optim.Adam(heads, lr=config.learning_rate)
    batches = [batch for epoch in range(config.epochs) for batch in epoch_batches(pairs, config, epoch)]
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=len(batches) + 1, pct_start=0.1
    )
    known = {(pair.query, pair.passage) for pair in pairs}
    dropped = torch.tensor(list(dropped_ids))
    recent: list[tuple[float, dict[str, float]]] = []
    with progress_bar(len(batches), "step", "training", progress) as bar:
        for step, batch in enumerate(batches, 1):
            scores, targets = batch_scores(model, queries, passages, batch, known, dropped)
            loss = heads_loss(scores, targets, config)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(heads, 1.0)
            optimizer.step()
            schedule.step()
            recent.append((loss.item(), accuracy(scores, targets)))
            bar.update(1)
            if step % _LOG_EVERY == 0 or step == len(batches):
                report(_average(step, recent))
                recent = []
    with torch.no_grad():
        for parameter, before in zip(model.token_head.parameters(), start, strict=True):
            parameter.lerp_(before, config.keep)


def epoch_batches(pairs: Sequence[IndexedPair], config: HeadTraining, epoch: int) -> list[list[IndexedPair]]:
    """Batches in random order, each of one source: passages of one kind are the harder negatives."""
    generator = random.Random(f"{config.seed}/{epoch}")
    by_source: dict[str, list[IndexedPair]] = {}
    for pair in pairs:
        by_source.setdefault(pair.source, []).append(pair)
    batches = []
    for group in by_source.values():
        generator.shuffle(group)
        batches += [group[start : start + config.batch] for start in range(0, len(group) - 1, config.batch)]
    generator.shuffle(batches)
    return batches


def batch_scores(
    model: M3Model,
    queries: States,
    passages: States,
    batch: Sequence[IndexedPair],
    known: set[tuple[int, int]],
    dropped: torch.Tensor,
) -> tuple[Scores, torch.Tensor]:
    """All three scores of a batch's queries with its distinct passages, and which passage each query is paired with.

    Another passage that also answers a query (it is in `known`) is no negative: its scores are EXCLUDED.
    """
    columns = list(dict.fromkeys(pair.passage for pair in batch))
    targets = torch.tensor([columns.index(pair.passage) for pair in batch])
    excluded = torch.tensor([[(pair.query, column) in known for column in columns] for pair in batch])
    excluded[torch.arange(len(batch)), targets] = False
    query, passage = take(queries, torch.tensor([pair.query for pair in batch])), take(passages, torch.tensor(columns))
    scores = Scores(
        dense_scores(query.dense, passage.dense),
        lexical_scores(
            query.ids, token_weights(model, query, dropped), passage.ids, token_weights(model, passage, dropped)
        ),
        multi_vector_scores(
            normalize(model.token_head(query.hidden), dim=-1),
            query.mask,
            normalize(model.token_head(passage.hidden), dim=-1),
            passage.mask,
        ),
    )
    return Scores(*(part.masked_fill(excluded, EXCLUDED) for part in scores)), targets


def token_weights(model: M3Model, texts: Padded, dropped: torch.Tensor) -> torch.Tensor:
    """float32 [b, s]: the sparse head's output, 0 on padding and on tokens that are left out of sparse vectors."""
    counts = texts.mask & ~torch.isin(texts.ids, dropped)
    return torch.relu(model.sparse_head(texts.hidden)).squeeze(-1) * counts


def heads_loss(scores: Scores, targets: torch.Tensor, config: HeadTraining) -> torch.Tensor:
    """The contrastive losses of the two heads and of the integrated score, and the heads' distillation from it."""
    teacher = integrated_scores(scores, _WEIGHTS)
    contrast = info_nce(scores.tokens, targets, config.temperature) + info_nce(teacher, targets, config.temperature)
    contrast = contrast + config.sparse_share * info_nce(scores.sparse, targets, config.temperature)
    distilled = distillation(scores.tokens, teacher, config.temperature)
    distilled = distilled + config.sparse_share * distillation(scores.sparse, teacher, config.temperature)
    return contrast / 3 + distilled / 2


def accuracy(scores: Scores, targets: torch.Tensor) -> dict[str, float]:
    """Each part's share of queries whose own passage scores best, and that of the general preset."""
    parts = {**scores._asdict(), "all": integrated_scores(scores, _WEIGHTS)}
    return {name: (part.argmax(dim=1) == targets).float().mean().item() for name, part in parts.items()}


def _average(step: int, recent: Sequence[tuple[float, dict[str, float]]]) -> Progress:
    names = recent[0][1]
    accuracies = {name: sum(item[name] for _, item in recent) / len(recent) for name in names}
    return Progress(step, sum(loss for loss, _ in recent) / len(recent), accuracies)
