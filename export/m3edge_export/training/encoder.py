"""A PyTorch model as the runtime's Encoder, so that mining and evaluation go through the runtime's own code."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from m3edge.encoder import Encoder
from m3edge.model_folder import ModelInfo
from m3edge.session import Session
from m3edge.tokenization import Tokenizer
from m3edge_export.model import M3Model


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


def torch_encoder(model: M3Model, info: ModelInfo, tokenizer: Tokenizer) -> Encoder:
    """An Encoder over a PyTorch model."""
    return Encoder(info, _TorchSession(model), tokenizer)
