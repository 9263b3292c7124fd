"""How a step gets the hidden states of its texts, and how gradients go back into the encoder: three ways.

FrozenPass: the encoder does not learn; states are computed once for the whole corpus
LivePass:   the encoder learns; a batch must fit in memory
CachedPass: the encoder learns; batches of any size, at the price of running it twice
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from m3edge.tokenization import TokenizedText
from m3edge_export.model import M3Model
from m3edge_export.training.states import CachedStates, Padded, States, live_states, take


class Pass(Protocol):
    """One step: forward, a loss on what it returns, backward."""

    def forward(self, queries: Sequence[int], passages: Sequence[int]) -> tuple[Padded, Padded]:
        """The states of these queries and of these passages."""

    def backward(self, loss: torch.Tensor) -> None:
        """Gradients of the loss in every weight that learns."""


class FrozenPass:
    """States that are there already, in the computer's memory; a batch of them goes to the heads' device."""

    def __init__(self, queries: States, passages: States, device: torch.device | str = "cpu") -> None:
        self.queries, self.passages = queries, passages
        self._device = device

    def forward(self, queries: Sequence[int], passages: Sequence[int]) -> tuple[Padded, Padded]:
        return self._take(self.queries, queries), self._take(self.passages, passages)

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def _take(self, states: States, rows: Sequence[int]) -> Padded:
        return Padded(*(values.to(self._device) for values in take(states, torch.tensor(rows))))


class LivePass:
    """Everything in memory at once."""

    def __init__(
        self,
        model: M3Model,
        queries: Sequence[TokenizedText],
        passages: Sequence[TokenizedText],
        sub_batch_tokens: int,
    ) -> None:
        self._model = model
        self._queries, self._passages = queries, passages
        self._sub_batch_tokens = sub_batch_tokens

    def forward(self, queries: Sequence[int], passages: Sequence[int]) -> tuple[Padded, Padded]:
        return (
            live_states(self._model, [self._queries[i] for i in queries], self._sub_batch_tokens),
            live_states(self._model, [self._passages[i] for i in passages], self._sub_batch_tokens),
        )

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()


class CachedPass(LivePass):
    """Gradient caching, see CachedStates."""

    def forward(self, queries: Sequence[int], passages: Sequence[int]) -> tuple[Padded, Padded]:
        self._cached = [
            CachedStates(self._model, [self._queries[i] for i in queries], self._sub_batch_tokens),
            CachedStates(self._model, [self._passages[i] for i in passages], self._sub_batch_tokens),
        ]
        return self._cached[0].padded, self._cached[1].padded

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()
        for states in self._cached:
            states.backward()
