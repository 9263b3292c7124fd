"""A model folder that is altered, incomplete, newer or none at all is refused, by name and with the way out."""

import json
import shutil
from pathlib import Path

import pytest

from m3edge import Encoder, FormatError
from m3edge.model_folder import (
    GRAPH,
    MANIFEST,
    PARITY,
    STATIC_GRAPH,
    STATIC_WEIGHTS,
    TOKENIZER,
    VOCABULARY,
    WEIGHTS,
    ModelInfo,
    checked_model_folder,
    read_model_folder,
    write_manifest,
)

INFO = ModelInfo(
    name="tiny", source="here", revision="", fingerprint="0" * 64, precision="fp32", dense_dim=8, token_dim=8,
    pooling="cls", query_prefix="", passage_prefix="", max_length=16, vocab_size=10, cls_id=0, eos_id=2, pad_id=1,
    special_ids=(0, 1, 2, 3),
)  # fmt: skip
FILES = (GRAPH, WEIGHTS, TOKENIZER, PARITY)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / name).write_bytes(f"the content of {name}".encode())
    write_manifest(tmp_path, INFO)
    return tmp_path


def test_what_was_written_is_read_again(folder):
    assert read_model_folder(folder) == INFO


@pytest.mark.parametrize("name", FILES)
def test_one_altered_byte_is_noticed(folder, name):
    data = bytearray((folder / name).read_bytes())
    data[5] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(FormatError, match=rf"{name}: altered.*again"):
        read_model_folder(folder)


def test_altered_weights_come_before_the_error_that_they_caused(folder):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes().swapcase())
    with pytest.raises(FormatError, match=rf"{WEIGHTS}: altered"), checked_model_folder(folder):
        raise ValueError("the graph cannot be loaded")


@pytest.mark.parametrize("name", [GRAPH, TOKENIZER, PARITY])
def test_what_is_parsed_is_checked_before_anybody_reads_it(folder, name):
    (folder / name).write_bytes((folder / name).read_bytes().swapcase())
    with pytest.raises(FormatError, match=rf"{name}: altered"), checked_model_folder(folder):
        pytest.fail("the block ran")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(FormatError, match=rf"{name}: missing.*again"):
        read_model_folder(folder)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("name", [STATIC_GRAPH, STATIC_WEIGHTS, VOCABULARY])
def test_a_file_that_would_be_taken_for_the_models_but_is_not_named_is_refused(folder, name, verify):
    (folder / name).write_bytes(b"from elsewhere")
    with pytest.raises(FormatError, match=rf"{name}: not of this model .*remove it"):
        read_model_folder(folder, verify=verify)


def test_a_file_that_nobody_reads_may_lie_beside(folder):
    (folder / "README.md").write_text("a note")
    assert read_model_folder(folder) == INFO


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_named_without_reading_it(folder, name):
    (folder / name).write_bytes((folder / name).read_bytes()[:-1])
    with pytest.raises(FormatError, match=rf"{name}: has \d+ bytes, expected"):
        read_model_folder(folder, verify=False)


def test_no_altered_byte_of_the_manifest_goes_unnoticed(folder):
    original = (folder / MANIFEST).read_bytes()
    for position in range(len(original)):
        changed = bytearray(original)
        changed[position] ^= 1
        (folder / MANIFEST).write_bytes(changed)
        try:
            assert read_model_folder(folder) == INFO  # white space between values says nothing
        except FormatError as error:
            assert str(folder) in str(error)  # noqa: PT017 - either outcome is right, byte by byte


def test_a_newer_format_says_upgrade(folder):
    manifest = json.loads((folder / MANIFEST).read_bytes())
    manifest["format_version"] = 99
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(FormatError, match="version 99 is newer.*upgrade m3edge"):
        read_model_folder(folder)


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(FormatError, match="not a model folder.*m3edge-export"):
        read_model_folder(tmp_path)
    with pytest.raises(FormatError, match="no such folder"):
        read_model_folder(tmp_path / "nowhere")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": "other"}', "\x00\xff", '{"format": "m3edge-model"}'])
def test_a_manifest_of_anything_else_is_refused(folder, content):
    (folder / MANIFEST).write_text(content)
    with pytest.raises(FormatError, match=MANIFEST):
        read_model_folder(folder)


@pytest.mark.parametrize("content", ["[" * 100_000, '{"format": "m3edge-model", "model": ' + '{"a":' * 100_000])
def test_a_manifest_nested_without_end_is_refused(folder, content):
    (folder / MANIFEST).write_text(content)
    with pytest.raises(FormatError, match="not valid JSON"):
        read_model_folder(folder)


def test_the_real_model_folder_is_whole_and_says_what_it_is(mini_fp32):
    info = read_model_folder(mini_fp32)
    assert (info.precision, info.dense_dim, info.pooling) == ("fp32", 384, "mean")
    assert info.query_prefix == "query: "


def test_a_real_folder_with_a_changed_weight_is_not_loaded(mini_fp32, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(mini_fp32, copy)
    with (copy / WEIGHTS).open("r+b") as file:
        file.seek(100_000_000)
        byte = file.read(1)[0]
        file.seek(100_000_000)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(FormatError, match=rf"{WEIGHTS}: altered"):
        Encoder.load(copy)
