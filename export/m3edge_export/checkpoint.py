"""Checkpoints: reading and writing a PyTorch M3 model in the layout that BGE-M3 uses.

    config.json, model.safetensors (or pytorch_model.bin)   the encoder, as transformers writes it
    tokenizer.json                                          its tokenizer; other tokenizer files are carried along
    sparse_linear.pt                                        weight [1, hidden], bias [1]
    colbert_linear.pt                                       weight [token_dim, hidden], bias [token_dim]
    m3edge_model.json                                       ModelSettings; absent: the defaults, which are BGE-M3's

A source is a local folder, or a model's id on the Hugging Face hub. Nothing here runs code that a checkpoint brings.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModel, PretrainedConfig

from m3edge.errors import FormatError
from m3edge.files import write_atomically
from m3edge.model_folder import TOKENIZER, ModelInfo
from m3edge_export.model import M3Model
from m3edge_export.settings import ModelSettings, complete, read_settings
from m3edge_export.source import locate_checkpoint
from m3edge_export.tokenizer_file import SpecialIds, check_tokenizer, special_ids

CONFIG = "config.json"
SPARSE_HEAD = "sparse_linear.pt"
TOKEN_HEAD = "colbert_linear.pt"
SETTINGS = "m3edge_model.json"

_LONGEST_REASON = 500  # letters
_COLOUR = re.compile(r"\x1b\[[\d;]*m")
_TOKENIZER_FILES = (TOKENIZER, "tokenizer_config.json", "special_tokens_map.json", "sentencepiece.bpe.model")
_SMALL_FILES = [CONFIG, *_TOKENIZER_FILES, SPARSE_HEAD, TOKEN_HEAD, SETTINGS]
# What decides a text's vectors besides the weights and the tokenizer.
_SETTINGS_THAT_COUNT = ("pooling", "query_prefix", "passage_prefix", "max_length")
_CONFIG_THAT_COUNTS = ("model_type", "hidden_act", "layer_norm_eps", "num_attention_heads", "pad_token_id")


class Checkpoint(NamedTuple):
    """A loaded model and where it came from.

    folder:   where its files lie; for a hub id, in the hub's cache
    settings: complete: name and max_length are filled in
    source:   the hub id, or the folder's name
    revision: the hub's commit, "" for a folder
    """

    model: M3Model
    folder: Path
    settings: ModelSettings
    source: str
    revision: str

    def tokenizer_files(self) -> dict[str, bytes]:
        """Name and content of every tokenizer file in the checkpoint."""
        paths = (self.folder / name for name in _TOKENIZER_FILES)
        return {path.name: path.read_bytes() for path in paths if path.is_file()}

    def special_ids(self) -> SpecialIds:
        """The ids of the tokens that stand for no text."""
        return special_ids(self.folder / TOKENIZER, self.model.config.pad_token_id)


def load_checkpoint(source: str | Path, *, attention: str = "eager") -> Checkpoint:
    """Load a checkpoint from a folder or the hub, on the CPU in float32, ready for evaluation.

    attention: transformers' implementation: "eager" traces to a graph that the export recognises, "sdpa"
        computes the same up to twice as fast
    Raises FormatError when it is no checkpoint, is incomplete, or holds a weight that is not a number.
    """
    folder, name, revision = locate_checkpoint(source, _SMALL_FILES)
    for required in (CONFIG, TOKENIZER, SPARSE_HEAD, TOKEN_HEAD):
        if not (folder / required).is_file():
            raise FormatError(f"{folder / required}: missing; {_advice(required)}")
    config = _read_config(folder)
    settings = complete(read_settings(folder / SETTINGS), config, folder / SETTINGS, name)
    sparse = _read_head(folder / SPARSE_HEAD, config.hidden_size, outputs=1)
    tokens = _read_head(folder / TOKEN_HEAD, config.hidden_size)
    encoder = _read_encoder(folder, attention, config.model_type)
    check_tokenizer(folder / TOKENIZER, encoder.get_input_embeddings().num_embeddings)
    model = M3Model(encoder, token_dim=len(tokens["weight"]), pooling=settings.pooling)
    model.sparse_head.load_state_dict(sparse)
    model.token_head.load_state_dict(tokens)
    return Checkpoint(model.eval(), folder, settings, name, revision)


def save_checkpoint(
    folder: Path, model: M3Model, settings: ModelSettings, tokenizer_files: Mapping[str, bytes]
) -> None:
    """Write a checkpoint into an existing, empty folder (see m3edge.files.new_folder)."""
    try:
        model.encoder.save_pretrained(folder)
    except SafetensorError as error:  # what it makes of a full disk
        raise OSError(f"{folder}: the weights cannot be written ({error})") from error
    for name, content in tokenizer_files.items():
        write_atomically(folder / name, content)
    _write_head(folder / SPARSE_HEAD, model.sparse_head)
    _write_head(folder / TOKEN_HEAD, model.token_head)
    text = json.dumps(asdict(settings), indent=2, ensure_ascii=False)
    write_atomically(folder / SETTINGS, text.encode() + b"\n")
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors gives 0600; other users may read a model


def fingerprint(checkpoint: Checkpoint) -> str:
    """SHA-256 over everything that decides a text's vectors: weights as float32, tokenizer, pooling, prefixes, length.

    A model's name and presets change no vector and do not count.
    """
    model, settings = checkpoint.model, checkpoint.settings
    computation = {name: getattr(settings, name) for name in _SETTINGS_THAT_COUNT}
    computation |= {name: getattr(model.config, name, None) for name in _CONFIG_THAT_COUNTS}
    digest = hashlib.sha256(json.dumps(computation, sort_keys=True).encode())
    digest.update((checkpoint.folder / TOKENIZER).read_bytes())
    for name, weight in sorted(model.state_dict().items()):
        values = weight.detach().float().contiguous().numpy()
        digest.update(f"{name} {values.dtype.str} {values.shape}".encode())
        digest.update(values.data)
    return digest.hexdigest()


def model_info(checkpoint: Checkpoint, *, name: str | None = None) -> ModelInfo:
    """What the runtime has to know about a checkpoint, as if exported in fp32."""
    model, settings, specials = checkpoint.model, checkpoint.settings, checkpoint.special_ids()
    return ModelInfo(
        name=name or settings.name,
        source=checkpoint.source,
        revision=checkpoint.revision,
        fingerprint=fingerprint(checkpoint),
        precision="fp32",
        dense_dim=model.hidden_size,
        token_dim=model.token_dim,
        pooling=settings.pooling,
        query_prefix=settings.query_prefix,
        passage_prefix=settings.passage_prefix,
        max_length=settings.max_length,
        vocab_size=int(model.config.vocab_size),
        cls_id=specials.cls,
        eos_id=specials.eos,
        pad_id=specials.pad,
        special_ids=specials.dropped,
        mcls=settings.pooling == "cls",
        presets=settings.presets,
    )


def _reason(error: Exception) -> str:
    """What an error says, in one line and without colours: torch puts what is wrong below a heading."""
    text = " ".join(_COLOUR.sub("", str(error)).split()) or type(error).__name__
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]} …"


def _advice(name: str) -> str:
    if name == CONFIG:
        return "a checkpoint is a Hugging Face folder with a config.json"
    if name == TOKENIZER:
        return "write it with AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
    return f"an M3 checkpoint has its heads in {SPARSE_HEAD} and {TOKEN_HEAD}; a dense-only model has none to export"


def _read_config(folder: Path) -> PretrainedConfig:
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise FormatError(f"{folder / CONFIG}: not a model that transformers knows ({_reason(error)})") from error
    if getattr(config, "is_encoder_decoder", False) or not hasattr(config, "hidden_size"):
        raise FormatError(
            f"{folder / CONFIG}: {config.model_type} is no encoder; m3edge takes BERT and XLM-RoBERTa types"
        )
    return config


def _read_head(path: Path, hidden_size: int, outputs: int | None = None) -> Mapping[str, torch.Tensor]:
    try:
        head = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise FormatError(
            f"{path}: not a PyTorch file of plain tensors ({_reason(error)}); download it again"
        ) from error
    is_pair = isinstance(head, Mapping) and set(head) == {"weight", "bias"}
    if not is_pair or not all(isinstance(values, torch.Tensor) for values in head.values()):
        raise FormatError(f"{path}: expected the tensors weight and bias; this is not an M3 head")
    weight, bias = head["weight"].float(), head["bias"].float()
    rows = outputs or max(1, len(weight) if weight.ndim else 1)
    if tuple(weight.shape) != (rows, hidden_size) or tuple(bias.shape) != (rows,):
        raise FormatError(
            f"{path}: weight {list(weight.shape)} and bias {list(bias.shape)}, expected [{rows}, {hidden_size}] and "
            f"[{rows}]; this head belongs to another encoder"
        )
    _check_finite(path, {"weight": weight, "bias": bias})
    return {"weight": weight, "bias": bias}


def _write_head(path: Path, head: nn.Linear) -> None:
    buffer = io.BytesIO()
    torch.save({"weight": head.weight.detach().cpu(), "bias": head.bias.detach().cpu()}, buffer)
    write_atomically(path, buffer.getvalue())


def _read_encoder(folder: Path, attention: str, kind: str) -> Any:
    """The encoder without its pooling layer; every weight must be in the checkpoint, none is made up or left over.

    kind: the configuration's model_type
    """
    try:
        encoder, report = AutoModel.from_pretrained(
            folder,
            local_files_only=True,
            attn_implementation=attention,
            dtype=torch.float32,
            add_pooling_layer=False,
            output_loading_info=True,
        )
    except (ValueError, TypeError) as error:  # of a class that knows no such argument or attention
        raise FormatError(
            f"{folder}: transformers cannot make this encoder, of type {kind!r} ({_reason(error)}); "
            "m3edge takes BERT and XLM-RoBERTa types"
        ) from error
    except (OSError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        raise FormatError(
            f"{folder}: the encoder cannot be loaded ({_reason(error)}); download the checkpoint again"
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise FormatError(f"{folder}: the encoder's weights lack {len(missing)} tensors, first {missing[0]}")
    # A pooling layer or another task's head may be left over, a layer may not.
    left_over = sorted(name for name in report["unexpected_keys"] if "encoder" in name.split("."))
    if left_over:
        raise FormatError(
            f"{folder}: the weights have {len(left_over)} tensors that the encoder of {CONFIG} has no place for, first "
            f"{left_over[0]}; they belong to another configuration"
        )
    _check_finite(folder, encoder.state_dict())
    return encoder.eval()


def _check_finite(path: Path, weights: Mapping[str, torch.Tensor]) -> None:
    for name, weight in weights.items():
        if not bool(torch.isfinite(weight).all()):
            raise FormatError(f"{path}: {name} holds a value that is not a number; download the checkpoint again")
