"""Low-rank adapters on the encoder's linear layers, by peft: attached for the training, merged at its end."""

from __future__ import annotations

from typing import Any

import torch

from m3edge_export.model import M3Model


def attach_lora(model: M3Model, rank: int) -> None:
    """Freeze the encoder and give each of its linear layers W an adapter, W + B A; B starts at 0.

    rank: rows of A and columns of B; the product is not scaled (peft's alpha is the rank)
    """
    peft = _import_peft()
    config = peft.LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules="all-linear")
    model.encoder = peft.get_peft_model(model.encoder, config).eval()


def lora_factors(model: M3Model) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Of each linear layer, by its name in the encoder: A float32 [rank, in] and B float32 [out, rank]."""
    return {
        name.removeprefix("base_model.model."): (layer.lora_A["default"].weight, layer.lora_B["default"].weight)
        for name, layer in model.encoder.named_modules()
        if hasattr(layer, "lora_A")
    }


def merge_lora(model: M3Model) -> None:
    """Add the adapters to the weights they belong to and take them away."""
    peft_model: Any = model.encoder
    model.encoder = peft_model.merge_and_unload()


def _import_peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ImportError("--stage lora needs peft: pip install 'm3edge[train]'") from error
    return peft
