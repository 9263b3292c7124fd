"""Deltas: what a training changed in a model, as one small file beside the weights it started from.

Both heads whole and, where the encoder's linear layers were trained by low rank, for each the factors of its change:
W' = W + B A. A safetensors file in half precision; read and written here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from m3edge.errors import FormatError
from m3edge.files import write_atomically
from m3edge_export.model import M3Model

_HEADS = ("sparse_head", "token_head")
_A, _B = ".lora_a", ".lora_b"

Factors = Mapping[
    str, tuple[torch.Tensor, torch.Tensor]
]  # a linear layer's name in the encoder -> A [r, in], B [out, r]


def write_deltas(path: Path, model: M3Model, factors: Factors) -> None:
    """Write the heads of a model and the factors of its encoder's change."""
    tensors: dict[str, torch.Tensor] = {}
    for name in _HEADS:
        head: nn.Linear = getattr(model, name)
        tensors |= {f"{name}.weight": head.weight, f"{name}.bias": head.bias}
    for name, (a, b) in factors.items():
        tensors |= {f"encoder.{name}{_A}": a, f"encoder.{name}{_B}": b}
    write_atomically(path, save({name: tensor.detach().cpu().half().contiguous() for name, tensor in tensors.items()}))


def read_deltas(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a deltas file, float32. Raises FormatError when it is none."""
    try:
        tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
    except (SafetensorError, OSError) as error:
        raise FormatError(f"{path}: not a safetensors file ({error}); reinstall m3edge") from error
    missing = [name for head in _HEADS for name in (f"{head}.weight", f"{head}.bias") if name not in tensors]
    if missing:
        raise FormatError(f"{path}: has no {missing[0]}; reinstall m3edge")
    return tensors


def apply_deltas(model: M3Model, tensors: Mapping[str, torch.Tensor]) -> None:
    """Give a model, still with the weights that the training started from, the heads and the changed layers."""
    with torch.no_grad():
        for name in _HEADS:
            head: nn.Linear = getattr(model, name)
            head.weight.copy_(tensors[f"{name}.weight"])
            head.bias.copy_(tensors[f"{name}.bias"])
        for name in tensors:
            if name.endswith(_A):
                layer = model.get_submodule(name.removesuffix(_A))
                assert isinstance(layer, nn.Linear)
                layer.weight += tensors[name.removesuffix(_A) + _B] @ tensors[name]
