"""The training loop: steps, learning rates, what is reported, and a state from which it goes on after being killed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Any, NamedTuple

import torch

from m3edge.encoder import plan_batches
from m3edge.progress import progress_bar
from m3edge.tokenization import TokenizedText
from m3edge_export.model import M3Model
from m3edge_export.training.batching import IndexedPair, plan_epoch
from m3edge_export.training.losses import Objective, final_loss
from m3edge_export.training.passes import Pass
from m3edge_export.training.scores import accuracy, batch_scores, make_batch

STAGES = ("heads", "lora", "full")
_ENCODER_RATES = {"heads": 0.0, "lora": 2e-4, "full": 2e-5}


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a model is trained."""

    stage: str = "heads"  # what learns: the two heads; also adapters on the encoder; or everything
    epochs: int = 1
    steps: int | None = None  # instead of whole epochs
    batch: int = 32  # passages a step, each with all its queries: each other's negatives
    batch_tokens: int = 8192  # passages times the longest one's tokens, at most
    # Padded tokens that go through the encoder together; on two cores 1024 took three quarters of the time of 4096.
    sub_batch_tokens: int = 1024
    cache_gradients: bool = False  # batches larger than memory; the encoder runs twice
    learning_rate: float = 1e-3  # of the heads
    encoder_rate: float | None = None  # of the encoder; by default 2e-4 for adapters, 2e-5 for everything
    rank: int = 32  # of the adapters
    # Share of the start in what comes out: averaging the two keeps what other domains need (arXiv 2109.01903).
    keep: float = 0.6
    negatives: int = 0  # mined for each query
    guard: float = 0.95  # share of the right passage's score that a mined negative may reach
    refresh: int = 0  # steps after which negatives are mined again; 0 for never
    objective: Objective = field(default_factory=Objective)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.stage not in STAGES:
            raise ValueError(f"stage must be one of {STAGES}, got {self.stage!r}")
        for name in ("epochs", "batch_tokens", "sub_batch_tokens", "learning_rate", "rank"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps must be at least 1, or None for whole epochs, got {self.steps}")
        if self.batch < 2:
            raise ValueError(f"batch must be at least 2 (the others' passages are the negatives), got {self.batch}")
        if not 0 <= self.keep < 1:
            raise ValueError(f"keep must be at least 0 and below 1, got {self.keep}")
        if not 0 < self.guard <= 1:
            raise ValueError(f"guard must be above 0 and at most 1, got {self.guard}")
        if self.negatives < 0 or self.refresh < 0:
            raise ValueError(f"negatives and refresh must be at least 0, got {self.negatives} and {self.refresh}")

    @property
    def rates(self) -> tuple[float, float]:
        """The largest learning rates: of the heads, of what learns in the encoder."""
        return self.learning_rate, _ENCODER_RATES[self.stage] if self.encoder_rate is None else self.encoder_rate


class TrainingData(NamedTuple):
    """The distinct queries and passages, and the pairs that name them by their places."""

    queries: list[TokenizedText]
    passages: list[TokenizedText]
    pairs: list[IndexedPair]

    def positives(self) -> dict[int, frozenset[int]]:
        """Query -> every passage that some pair says answers it."""
        found: dict[int, set[int]] = {}
        for pair in self.pairs:
            found.setdefault(pair.query, set()).add(pair.passage)
        return {query: frozenset(passages) for query, passages in found.items()}


def plan(data: TrainingData, config: Training, epoch: int) -> list[list[IndexedPair]]:
    """The batches of an epoch; none in every epoch or in no one."""
    lengths = [len(text.ids) for text in data.passages]
    return plan_epoch(
        data.pairs, lengths, batch=config.batch, batch_tokens=config.batch_tokens, seed=f"{config.seed}/{epoch}"
    )


class Progress(NamedTuple):
    """Means over the steps since the last report.

    accuracy: each part's share of queries whose own passage scores best in its batch
    tokens_per_second: texts' tokens, once each, over all that a step takes
    padding: share of padding in what goes through the encoder, 0 to 1
    """

    step: int
    steps: int
    loss: float
    accuracy: dict[str, float]
    tokens_per_second: float
    padding: float


class Trainer:
    """Trains a model in place. The same seed on the same machine gives the same weights, killed in between or not."""

    def __init__(
        self, model: M3Model, run: Pass, data: TrainingData, dropped_ids: Sequence[int], config: Training
    ) -> None:
        """data: with at least one batch, see plan; dropped_ids: ids that are never part of a sparse vector"""
        self.config = config
        self.step = 0
        self.negatives: Mapping[int, tuple[int, ...]] = {}
        self._model, self._run, self._data = model, run, data
        self._device = model.sparse_head.weight.device
        self._dropped = torch.tensor(list(dropped_ids), device=self._device)
        self._positives = data.positives()
        heads = [*model.token_head.parameters(), *model.sparse_head.parameters()]
        encoder = [parameter for parameter in model.encoder.parameters() if parameter.requires_grad]
        self._parameters = [*heads, *encoder]
        groups = [(group, rate) for group, rate in zip((heads, encoder), config.rates, strict=True) if group]
        self._optimizer = torch.optim.Adam([{"params": group, "lr": rate} for group, rate in groups])
        self.steps = config.epochs * len(plan(data, config, epoch=0)) if config.steps is None else config.steps
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimizer,
            [rate for _, rate in groups],
            total_steps=self.steps + 1,
            pct_start=0.1,
            cycle_momentum=False,
        )
        # Of an adapter's change B A, whose start is 0, B alone is averaged: both would count twice.
        averaged = [parameter for name, parameter in model.encoder.named_parameters() if ".lora_A." not in name]
        self._averaged = [*heads, *(parameter for parameter in averaged if parameter.requires_grad)]
        self._start = [parameter.detach().clone() for parameter in self._averaged]

    def train(
        self,
        *,
        before_step: Callable[[int], None] = lambda step: None,
        report: Callable[[Progress], None] = lambda progress: None,
        report_every: int = 50,
        progress: bool | None = None,
    ) -> None:
        """Take the steps that are left.

        before_step: called with the number of steps taken, before each step and once at the end
        """
        window = _Window()
        batches = (batch for epoch in count() for batch in plan(self._data, self.config, epoch))
        with progress_bar(self.steps, "step", "training", progress) as bar:
            bar.update(self.step)
            for pairs in islice(batches, self.step, self.steps):
                before_step(self.step)
                self._take_step(pairs, window)
                bar.update(1)
                if self.step % report_every == 0 or self.step == self.steps:
                    report(window.summary(self.step, self.steps))
                    window = _Window()
        before_step(self.step)

    def finish(self) -> None:
        """Average the trained weights with their start, by the configuration's `keep`."""
        with torch.no_grad():
            for parameter, start in zip(self._averaged, self._start, strict=True):
                parameter.lerp_(start, self.config.keep)

    def state(self) -> dict[str, Any]:
        """All that changes while training."""
        return {
            "step": self.step,
            "parameters": [parameter.detach() for parameter in self._parameters],
            "start": self._start,
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "negatives": dict(self.negatives),
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from an earlier `state` of the same model, data and configuration."""
        self.step, self.negatives, self._start = state["step"], state["negatives"], state["start"]
        with torch.no_grad():
            for parameter, saved in zip(self._parameters, state["parameters"], strict=True):
                parameter.copy_(saved)
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])

    def _take_step(self, pairs: Sequence[IndexedPair], window: _Window) -> None:
        batch = make_batch(pairs, self._positives, self.negatives)
        queries, passages = self._run.forward(batch.queries, batch.passages)
        targets = batch.targets.to(self._device)
        scores = batch_scores(self._model, queries, passages, batch.excluded.to(self._device), self._dropped)
        loss = final_loss(scores, targets, self.config.objective)
        self._optimizer.zero_grad()
        self._run.backward(loss)
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()
        self._schedule.step()
        self.step += 1
        with torch.no_grad():
            window.add(
                loss.item(),
                accuracy(scores, targets, self.config.objective.weights),
                [len(self._data.queries[i].ids) for i in batch.queries],
                [len(self._data.passages[i].ids) for i in batch.passages],
                self.config.sub_batch_tokens,
            )


class _Window:
    """Sums over the steps between two reports."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._losses: list[float] = []
        self._accuracies: list[dict[str, float]] = []
        self._tokens = self._places = 0

    def add(
        self,
        loss: float,
        accuracies: dict[str, float],
        query_lengths: Sequence[int],
        passage_lengths: Sequence[int],
        sub_batch_tokens: int,
    ) -> None:
        self._losses.append(loss)
        self._accuracies.append(accuracies)
        for lengths in (query_lengths, passage_lengths):
            self._tokens += sum(lengths)
            sub_batches = ([lengths[i] for i in rows] for rows in plan_batches(lengths, sub_batch_tokens))
            self._places += sum(len(sub_batch) * max(sub_batch) for sub_batch in sub_batches)

    def summary(self, step: int, steps: int) -> Progress:
        n = len(self._losses)
        means = {name: sum(item[name] for item in self._accuracies) / n for name in self._accuracies[0]}
        seconds = time.perf_counter() - self._began
        return Progress(
            step, steps, sum(self._losses) / n, means, self._tokens / seconds, 1 - self._tokens / self._places
        )
