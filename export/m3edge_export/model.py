"""The M3 model in PyTorch: one transformers encoder and three heads (arXiv 2402.03216v4, section 3.2).

It goes from token ids to the heads' raw outputs, for every position. What follows belongs to whoever uses them: leaving
out `<s>`, special tokens and the prefix, and taking the maximum over repeated tokens (m3edge.scoring, the trainer).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import normalize
from transformers import PreTrainedModel

from m3edge.model_folder import FURTHER_CLS, POOLINGS


class M3Output(NamedTuple):
    """What the three heads give for a batch; the names and the order of the ONNX graph's outputs.

    dense_vecs:    float32 [batch, hidden], unit length
    token_weights: float32 [batch, sequence], at least 0; 0 on padding
    colbert_vecs:  float32 [batch, sequence, token_dim], unit length; 0 on padding
    """

    dense_vecs: torch.Tensor
    token_weights: torch.Tensor
    colbert_vecs: torch.Tensor


class M3Model(nn.Module):
    """An encoder with a dense, a sparse and a token head.

    encoder:   a transformers encoder whose first output is the last hidden states
    token_dim: width of the token vectors
    pooling:   "cls" or "mean": how the dense vector is taken from the last hidden states
    """

    def __init__(self, encoder: PreTrainedModel, *, token_dim: int, pooling: str) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {POOLINGS}, got {pooling!r}")
        self.encoder = encoder
        self.config = encoder.config  # optimum's exporter looks here
        self.pooling = pooling
        self.sparse_head = nn.Linear(self.hidden_size, 1)
        self.token_head = nn.Linear(self.hidden_size, token_dim)

    @property
    def hidden_size(self) -> int:
        return int(self.config.hidden_size)

    @property
    def token_dim(self) -> int:
        return self.token_head.out_features

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> M3Output:
        """input_ids, attention_mask: int64 [batch, sequence].

        The mask is 1 on tokens, FURTHER_CLS on the `<s>` that MCLS puts between a long text's tokens, 0 on padding.
        """
        held = (attention_mask > 0).to(attention_mask.dtype)
        hidden = self.encoder(input_ids=input_ids, attention_mask=held)[0]
        return self.heads(hidden, attention_mask)

    def heads(self, hidden: torch.Tensor, attention_mask: torch.Tensor) -> M3Output:
        """The three heads over last hidden states, float32 [batch, sequence, hidden]."""
        held = (attention_mask > 0).to(hidden.dtype)
        token_weights = torch.relu(self.sparse_head(hidden)).squeeze(-1) * held
        colbert = normalize(self.token_head(hidden) * held.unsqueeze(-1), dim=-1)
        return M3Output(normalize(self.pool(hidden, attention_mask), dim=-1), token_weights, colbert)

    def pool(self, hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """[batch, hidden]: the mean of some tokens' states.

        "cls": of the first token and of those marked FURTHER_CLS (MCLS, arXiv 2402.03216);
        "mean": of all that are not padding
        """
        if self.pooling == "cls":
            first = torch.ones_like(attention_mask[:, :1], dtype=torch.bool)
            counted = torch.cat([first, attention_mask[:, 1:] == FURTHER_CLS], dim=1).to(hidden.dtype)
        else:
            counted = (attention_mask > 0).to(hidden.dtype)
        share = counted / counted.sum(dim=1, keepdim=True).clamp(min=1)
        return torch.matmul(share.unsqueeze(1), hidden).squeeze(1)
