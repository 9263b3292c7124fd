"""The model folder: the contract between the export, which writes it, and the runtime, which reads it.

    m3edge.json        this module's ModelInfo, every other file's size and SHA-256, and a SHA-256 of itself
    model.onnx         input_ids, attention_mask -> dense_vecs, token_weights, colbert_vecs
    model.onnx_data    the weights of the graph
    model.layers.json  in int8: where in them each layer's arrays lie, for the engine that is m3edge's own
    model.static.onnx  in int8, where asked for: the same with static scales, in plain operators, for OpenVINO; most of
                       its weights are the other graph's, the others are in model.static.onnx_data
    tokenizer.json     Hugging Face tokenizers
    vocabulary.bin     for Unigram tokenizers: the same vocabulary mapped instead of parsed (m3edge.vocabulary)
    parity.json        this precision measured against the PyTorch model

Nothing here knows ONNX or tokenizers; a file is bytes with a checksum.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from m3edge.errors import FormatError
from m3edge.files import sha256_file, write_atomically

FORMAT_NAME = "m3edge-model"
FORMAT_VERSION = 1

MANIFEST = "m3edge.json"
GRAPH = "model.onnx"
WEIGHTS = "model.onnx_data"
LAYERS = "model.layers.json"
STATIC_GRAPH = "model.static.onnx"
STATIC_WEIGHTS = "model.static.onnx_data"
TOKENIZER = "tokenizer.json"
VOCABULARY = "vocabulary.bin"
PARITY = "parity.json"
_KNOWN = (GRAPH, WEIGHTS, LAYERS, STATIC_GRAPH, STATIC_WEIGHTS, TOKENIZER, VOCABULARY, PARITY)

INPUTS = ("input_ids", "attention_mask")
DENSE_OUTPUT = "dense_vecs"
SPARSE_OUTPUT = "token_weights"
TOKENS_OUTPUT = "colbert_vecs"

POOLINGS = ("cls", "mean")
PRECISIONS = ("fp32", "fp16", "int8", "int4")

# In attention_mask, beside 1 for a token and 0 for padding: a `<s>` between the tokens of a long text, whose state
# counts for the dense vector as the first one's does (MCLS).
FURTHER_CLS = 2

PRESETS: Mapping[str, tuple[float, float, float]] = {
    "general": (1.0, 0.3, 1.0),  # arXiv 2402.03216, MIRACL and MKQA
    "long": (0.15, 0.5, 0.35),  # arXiv 2402.03216, MLDR
    "flagembedding": (0.4, 0.2, 0.4),  # the example in FlagEmbedding's README
}


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What the runtime has to know about a model, as written in m3edge.json."""

    name: str  # for people: "m3-mini"
    source: str  # the checkpoint it was exported from: a hub id, or a folder's name
    revision: str  # the hub's commit, or "" for a local checkpoint
    fingerprint: str  # SHA-256 over the PyTorch weights, the tokenizer and the settings: the same for every precision
    precision: str  # one of PRECISIONS
    dense_dim: int
    token_dim: int
    pooling: str  # one of POOLINGS; done inside the graph
    query_prefix: str  # put before a query's text; its tokens count for the dense vector only
    passage_prefix: str
    max_length: int  # tokens of a text, special tokens and prefix included
    vocab_size: int
    cls_id: int  # <s>: the first token of every text, left out of the token vectors
    eos_id: int  # </s>: the last token
    pad_id: int
    special_ids: tuple[int, ...]  # left out of the sparse vectors
    mcls: bool = False  # whether the graph knows FURTHER_CLS
    presets: dict[str, tuple[float, float, float]] = field(default_factory=lambda: dict(PRESETS))
    parity: dict[str, float] = field(default_factory=dict)  # the headline figures of parity.json

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {POOLINGS}, got {self.pooling!r}")
        for name in ("dense_dim", "token_dim", "vocab_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.max_length < 3:
            raise ValueError(f"max_length must leave room for <s>, one token and </s>, got {self.max_length}")


def write_manifest(folder: Path, info: ModelInfo) -> None:
    """Describe the files now in `folder` in its m3edge.json; the last step of making a model folder."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != MANIFEST)
    for name in (GRAPH, TOKENIZER):
        if name not in names:
            raise FormatError(f"{folder}: cannot write a manifest without {name}")
    files = {
        name: {"size_bytes": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)} for name in names
    }
    manifest: dict[str, Any] = {
        "format": FORMAT_NAME,
        "format_version": FORMAT_VERSION,
        "model": asdict(info),
        "files": files,
    }
    manifest["sha256"] = _self_checksum(manifest)
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False).encode() + b"\n")


def read_model_folder(folder: Path | str, *, verify: bool = True) -> ModelInfo:
    """Read and check a model folder.

    verify: compare the SHA-256 of every file (about a second for 1.5 GB); without it, only that each is there
        with its size.
    Raises FormatError when the folder is not a model folder, is incomplete or altered, or from a newer m3edge.
    """
    with checked_model_folder(folder, verify=verify) as info:
        return info


@contextmanager
def checked_model_folder(folder: Path | str, *, verify: bool = True) -> Iterator[ModelInfo]:
    """Read and check a model folder, its weights while the block runs: that takes a thread of its own, not time.

    What a program parses is checked before the block, the weights, which are but numbers, by its end. Arguments and
    errors as of read_model_folder; the block's own error gives way to that of damaged weights.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not folder.is_dir():
        raise FormatError(f"{folder}: no such folder; a model folder is written by `m3edge-export onnx SOURCE OUT`")
    if not path.is_file():
        raise FormatError(f"{folder}: not a model folder, it has no {MANIFEST}; write one with `m3edge-export onnx`")
    manifest = _parse_manifest(path)
    info = _model_info(path, manifest["model"])
    files = manifest["files"]
    _check_names(folder, files)
    _check_sizes(folder, files)
    if not verify:
        yield info
        return
    weights = {name: entry for name, entry in files.items() if name in (WEIGHTS, STATIC_WEIGHTS)}
    with ThreadPoolExecutor(1, thread_name_prefix="m3edge-verify") as pool:
        checked = pool.submit(_check_sums, folder, weights)
        try:
            _check_sums(folder, {name: entry for name, entry in files.items() if name not in weights})
            yield info
        finally:
            checked.result()


def _parse_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_bytes())
        checksum = _self_checksum(manifest) if isinstance(manifest, dict) else ""
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: not valid JSON ({error}); export the model again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT_NAME:
        raise FormatError(f"{path}: not the manifest of an m3edge model; export the model with `m3edge-export onnx`")
    version = manifest.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise FormatError(
            f"{path}: format version {version} is newer than this m3edge reads ({FORMAT_VERSION}); upgrade m3edge"
        )
    intact = version == FORMAT_VERSION and all(isinstance(manifest.get(key), dict) for key in ("model", "files"))
    if not intact or manifest.get("sha256") != checksum:
        raise FormatError(f"{path}: altered after it was written (its checksum differs); export the model again")
    return manifest


def _self_checksum(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of the manifest without its own checksum, in one canonical spelling."""
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def _check_names(folder: Path, files: Mapping[str, Any]) -> None:
    """Whoever finds a file under a known name takes it for the model's: without a checksum it must not be there."""
    for name in _KNOWN:
        if name not in files and (folder / name).exists():
            raise FormatError(
                f"{folder / name}: not of this model ({MANIFEST} does not name it); remove it or export the model again"
            )


def _check_sizes(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise FormatError(f"{path}: missing; copy the whole model folder again or export the model again")
        size = path.stat().st_size
        if size != expected["size_bytes"]:
            raise FormatError(
                f"{path}: has {size} bytes, expected {expected['size_bytes']}; "
                "copy the model folder again or export the model again"
            )


def _check_sums(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    for name, expected in files.items():
        if sha256_file(folder / name) != expected["sha256"]:
            raise FormatError(
                f"{folder / name}: altered (its SHA-256 differs from {MANIFEST}); "
                "copy the model folder again or export the model again"
            )


def _model_info(path: Path, model: Mapping[str, Any]) -> ModelInfo:
    known = {item.name for item in fields(ModelInfo)}
    values = {key: value for key, value in model.items() if key in known}
    try:
        values["special_ids"] = tuple(values["special_ids"])
        values["presets"] = {name: tuple(weights) for name, weights in values["presets"].items()}
        return ModelInfo(**values)
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{path}: incomplete model description ({error}); export the model again") from error
