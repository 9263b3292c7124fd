"""The frozen encoder's last hidden states of many texts, computed once and kept in half precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import normalize

from m3edge.embeddings import offsets_of
from m3edge.progress import progress_bar
from m3edge.tokenization import TokenizedText, Tokenizer
from m3edge_export.checkpoint import TOKENIZER, Checkpoint

_BATCH_TOKENS = 4096  # padded tokens a batch; more gains nothing on a CPU


class States(NamedTuple):
    """Hidden states of n texts.

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
    """Some texts of States, side by side.

    dense: float32 [b, hidden]; ids: int64 [b, s]; hidden: float32 [b, s, hidden]; mask: bool [b, s]
    """

    dense: torch.Tensor
    ids: torch.Tensor
    hidden: torch.Tensor
    mask: torch.Tensor


def encode_states(
    checkpoint: Checkpoint, texts: Sequence[str], *, prefix: str, max_length: int, progress: bool | None = None
) -> States:
    """Run the encoder over texts, in batches of similar length; the texts' order is kept."""
    tokenized = Tokenizer(checkpoint.folder / TOKENIZER).tokenize(texts, prefix=prefix, max_length=max_length)
    lengths = np.array([len(text.ids) - 1 - text.n_prefix for text in tokenized], np.int64)
    offsets = torch.from_numpy(offsets_of(lengths))
    width = checkpoint.model.hidden_size
    states = States(
        dense=torch.empty(len(texts), width),
        ids=torch.empty(int(offsets[-1]), dtype=torch.int64),
        hidden=torch.empty(int(offsets[-1]), width, dtype=torch.float16),
        offsets=offsets,
    )
    order = sorted(range(len(texts)), key=lambda i: len(tokenized[i].ids))
    with torch.inference_mode(), progress_bar(len(texts), "text", "encoding", progress) as bar:
        for batch in _batches(order, tokenized):
            _encode_batch(checkpoint, batch, tokenized, states)
            bar.update(len(batch))
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


def _batches(order: Sequence[int], tokenized: Sequence[TokenizedText]) -> list[list[int]]:
    """Consecutive texts of `order`, ascending in length, at most _BATCH_TOKENS padded tokens at a time."""
    batches: list[list[int]] = []
    for i in order:
        if not batches or (len(batches[-1]) + 1) * len(tokenized[i].ids) > _BATCH_TOKENS:
            batches.append([])
        batches[-1].append(i)
    return batches


def _encode_batch(
    checkpoint: Checkpoint, batch: Sequence[int], tokenized: Sequence[TokenizedText], states: States
) -> None:
    model = checkpoint.model
    rows = [torch.from_numpy(tokenized[i].ids) for i in batch]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=model.config.pad_token_id or 0)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    hidden = model.encoder(input_ids=ids, attention_mask=mask)[0]
    dense = normalize(model.pool(hidden, mask), dim=-1)
    for row, i in enumerate(batch):
        start, end = int(states.offsets[i]), int(states.offsets[i + 1])
        content = slice(len(rows[row]) - (end - start), len(rows[row]))
        states.dense[i] = dense[row]
        states.ids[start:end] = ids[row, content]
        states.hidden[start:end] = hidden[row, content].half()
