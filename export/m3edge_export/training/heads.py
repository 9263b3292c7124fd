"""Where the training of fresh heads starts from."""

from __future__ import annotations

import torch

from m3edge_export.model import M3Model
from m3edge_export.training.states import States


def prepare_heads(model: M3Model, passages: States) -> None:
    """Give both heads a start that fits the encoder.

    The token head takes the mean hidden state away, a large common part that tells no two tokens apart, and changes
    nothing else; where it is narrower than the encoder it keeps the directions of most variance. The sparse head gives
    every token the same small weight, above 0 so that its ReLU lets the gradient through.

    passages: states of passages like those to be searched; a few hundred are enough
    """
    states = passages.hidden.to(model.token_head.weight.device).float()
    mean = states.mean(dim=0)
    with torch.no_grad():
        if model.token_dim == model.hidden_size:
            torch.nn.init.eye_(model.token_head.weight)
        else:
            _, directions = torch.linalg.eigh(torch.cov((states - mean).T))  # by ascending variance
            model.token_head.weight.copy_(directions[:, -model.token_dim :].T)
        model.token_head.bias.copy_(-(model.token_head.weight @ mean))
        torch.nn.init.zeros_(model.sparse_head.weight)
        torch.nn.init.constant_(model.sparse_head.bias, 0.3)
