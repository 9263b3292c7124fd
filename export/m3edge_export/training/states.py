"""Last hidden states of texts: what the three heads and the losses work on.

Either of every text of a corpus, once, from a frozen encoder (States), or of one batch from an encoder that learns
(live_states), in memory for a batch of any size by gradient caching (CachedStates).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence

from m3edge.embeddings import offsets_of
from m3edge.encoder import plan_batches
from m3edge.progress import progress_bar
from m3edge.tokenization import TokenizedText
from m3edge_export.model import M3Model

_BATCH_TOKENS = 4096  # padded tokens a batch; more gains nothing on a CPU


class States(NamedTuple):
    """Hidden states of n texts, one after another.

    dense:   float32 [n, hidden], the dense vectors
    ids:     int64 [n_tokens], the texts' own tokens and `</s>`: neither `<s>` nor the prefix
    hidden:  float16 [n_tokens, hidden], their last hidden states
    offsets: int64 [n + 1]
    """

    dense: torch.Tensor
    ids: torch.Tensor
    hidden: torch.Tensor
    offsets: torch.Tensor


class Padded(NamedTuple):
    """Hidden states of b texts, side by side.

    dense: float32 [b, hidden]; ids: int64 [b, s]; hidden: float32 [b, s, hidden]; mask: bool [b, s]
    """

    dense: torch.Tensor
    ids: torch.Tensor
    hidden: torch.Tensor
    mask: torch.Tensor


class Part(NamedTuple):
    """Some texts that go through the encoder together.

    rows: their places in the batch; dense: float32 [n, hidden]; hidden: float32 [n, s, hidden], all positions
    """

    rows: list[int]
    dense: torch.Tensor
    hidden: torch.Tensor


def encode_states(model: M3Model, texts: Sequence[TokenizedText], *, progress: bool | None = None) -> States:
    """Run a frozen encoder over texts, in batches of similar length; the texts' order is kept."""
    offsets = torch.from_numpy(offsets_of(np.array([_content_length(text) for text in texts], np.int64)))
    states = States(
        dense=torch.empty(len(texts), model.hidden_size),
        ids=torch.empty(int(offsets[-1]), dtype=torch.int64),
        hidden=torch.empty(int(offsets[-1]), model.hidden_size, dtype=torch.float16),
        offsets=offsets,
    )
    with torch.inference_mode(), progress_bar(len(texts), "text", "encoding", progress) as bar:
        for part in _parts(model, texts, _BATCH_TOKENS):
            for i, row in enumerate(part.rows):
                text, here = texts[row], slice(int(offsets[row]), int(offsets[row + 1]))
                states.dense[row] = part.dense[i]
                states.ids[here] = torch.from_numpy(text.ids[text.content])
                states.hidden[here] = part.hidden[i, _content(text)].half()
            bar.update(len(part.rows))
    return states


def take(states: States, rows: torch.Tensor) -> Padded:
    """The texts `rows` (int64 [b]) of States as one padded batch."""
    starts, ends = states.offsets[rows], states.offsets[rows + 1]
    lengths = ends - starts
    places = torch.arange(int(lengths.max()))
    mask = places < lengths[:, None]
    at = (starts[:, None] + places).clamp(max=len(states.ids) - 1)
    hidden = states.hidden[at.flatten()].float().view(*at.shape, -1)
    return Padded(states.dense[rows], states.ids[at], hidden, mask)


def live_states(model: M3Model, texts: Sequence[TokenizedText], sub_batch_tokens: int) -> Padded:
    """The states of a batch with everything that backward() needs, on the model's device.

    sub_batch_tokens: padded tokens that go through the encoder together, at most: texts of similar length pad less
    """
    return _side_by_side(texts, list(_parts(model, texts, sub_batch_tokens)))


class CachedStates:
    """Gradient caching (arXiv 2101.06983): the gradients of one large batch in the memory of its sub-batches.

    The encoder runs twice. The first time it leaves only the hidden states, whose gradients the loss gives; the second
    time one sub-batch after the other turns these into gradients of its weights. With an encoder that draws no random
    numbers (no dropout) they are those of the whole batch at once.
    """

    def __init__(self, model: M3Model, texts: Sequence[TokenizedText], sub_batch_tokens: int) -> None:
        self._model, self._texts = model, texts
        with torch.no_grad():
            parts = list(_parts(model, texts, sub_batch_tokens))
        self._parts = [Part(p.rows, p.dense.requires_grad_(), p.hidden.requires_grad_()) for p in parts]
        self.padded = _side_by_side(texts, self._parts)

    def backward(self) -> None:
        """Carry on what loss.backward() has left at `padded`."""
        for part in self._parts:
            again = _run(self._model, self._texts, part.rows)
            torch.autograd.backward([again.dense, again.hidden], [part.dense.grad, part.hidden.grad])


def _parts(model: M3Model, texts: Sequence[TokenizedText], batch_tokens: int) -> Iterator[Part]:
    for rows in plan_batches([len(text.ids) for text in texts], batch_tokens):
        yield _run(model, texts, rows)


def _run(model: M3Model, texts: Sequence[TokenizedText], rows: list[int]) -> Part:
    device = model.sparse_head.weight.device
    members = [torch.from_numpy(texts[row].ids) for row in rows]
    ids = pad_sequence(members, batch_first=True, padding_value=model.config.pad_token_id or 0).to(device)
    mask = pad_sequence([torch.ones_like(ids) for ids in members], batch_first=True).to(device)
    hidden = model.encoder(input_ids=ids, attention_mask=mask)[0]
    return Part(rows, normalize(model.pool(hidden, mask), dim=-1), hidden)


def _side_by_side(texts: Sequence[TokenizedText], parts: Sequence[Part]) -> Padded:
    dense: list[torch.Tensor] = [torch.empty(0)] * len(texts)
    hidden = list(dense)
    for part in parts:
        for i, row in enumerate(part.rows):
            dense[row], hidden[row] = part.dense[i], part.hidden[i, _content(texts[row])]
    device = hidden[0].device
    ids = pad_sequence([torch.from_numpy(text.ids[text.content]) for text in texts], batch_first=True)
    lengths = torch.tensor([_content_length(text) for text in texts])
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    return Padded(torch.stack(dense), ids.to(device), pad_sequence(hidden, batch_first=True), mask.to(device))


def _content(text: TokenizedText) -> torch.Tensor:
    """Where a text's own tokens and `</s>` lie, padding left out."""
    return torch.from_numpy(text.content)


def _content_length(text: TokenizedText) -> int:
    return len(text.content)
