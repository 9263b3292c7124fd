"""A PyTorch model as the runtime's Encoder, so that mining and evaluation go through the runtime's own code."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from m3edge.encoder import Encoder
from m3edge.model_folder import DENSE_OUTPUT, ModelInfo
from m3edge.session import Session
from m3edge.tokenization import TokenizedText, Tokenizer
from m3edge_export.model import M3Model
from m3edge_export.training.states import States


class _TorchSession(Session):
    """Runs the model as it is now, in the middle of a training too."""

    def __init__(self, model: M3Model) -> None:
        self._model = model
        self.provider = "pytorch"
        self.n_threads = torch.get_num_threads()

    def run(self, input_ids: np.ndarray, attention_mask: np.ndarray, outputs: Sequence[str]) -> list[np.ndarray]:
        device = self._model.sparse_head.weight.device
        with torch.inference_mode():
            output = self._model(torch.from_numpy(input_ids).to(device), torch.from_numpy(attention_mask).to(device))
        return [getattr(output, name).cpu().numpy() for name in outputs]


class _StatesSession(_TorchSession):
    """Runs the heads, as they are now, over states that a frozen encoder left."""

    def __init__(self, model: M3Model, known: Iterable[tuple[Sequence[TokenizedText], States]]) -> None:
        super().__init__(model)
        self._places = {
            text.ids.tobytes(): (states, place) for texts, states in known for place, text in enumerate(texts)
        }

    def run(self, input_ids: np.ndarray, attention_mask: np.ndarray, outputs: Sequence[str]) -> list[np.ndarray]:
        dense = torch.empty(len(input_ids), self._model.hidden_size)
        hidden = torch.zeros(*input_ids.shape, self._model.hidden_size)
        for row, (ids, length) in enumerate(zip(input_ids, attention_mask.sum(axis=1), strict=True)):
            states, place = self._places[ids[:length].tobytes()]
            here = slice(int(states.offsets[place]), int(states.offsets[place + 1]))
            dense[row] = states.dense[place]
            hidden[row, length - (here.stop - here.start) : length] = states.hidden[here]  # a text's own tokens end it
        with torch.inference_mode():
            device = self._model.sparse_head.weight.device
            heads = self._model.heads(hidden.to(device), torch.from_numpy(attention_mask).to(device))
        values = {**heads._asdict(), DENSE_OUTPUT: dense}
        return [values[name].cpu().numpy() for name in outputs]


def torch_encoder(model: M3Model, info: ModelInfo, tokenizer: Tokenizer) -> Encoder:
    """An Encoder over a PyTorch model."""
    return Encoder(info, _TorchSession(model), tokenizer)


def states_encoder(
    model: M3Model, info: ModelInfo, tokenizer: Tokenizer, known: Iterable[tuple[Sequence[TokenizedText], States]]
) -> Encoder:
    """An Encoder that knows some texts only, and needs no more than the heads for them.

    info:  its max_length must be the one that the texts were tokenized with
    known: tokenized texts with their states, from encode_states
    Encoding any other text raises KeyError.
    """
    return Encoder(info, _StatesSession(model, known), tokenizer)
