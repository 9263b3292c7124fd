"""Checkpoints in BGE-M3's layout: read, written, refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch
from m3edge_export.checkpoint import fingerprint, load_checkpoint, save_checkpoint
from m3edge_export.settings import ModelSettings
from m3edge_export.tokenizer_file import read_tokenizer

from m3edge.errors import FormatError

HIDDEN, TOKEN_DIM = 32, 16  # the tiny model's


def test_without_settings_it_is_read_as_bge_m3(tiny_source: Path) -> None:
    checkpoint = load_checkpoint(tiny_source)
    assert checkpoint.settings == ModelSettings(name="tiny-m3", pooling="cls", max_length=64)  # 66 positions less 2
    assert (checkpoint.source, checkpoint.revision) == ("tiny-m3", "")
    assert (checkpoint.model.hidden_size, checkpoint.model.token_dim) == (HIDDEN, TOKEN_DIM)
    assert checkpoint.special_ids() == (0, 2, 1, (0, 1, 2, 3))


def test_saved_and_loaded_it_is_the_same_model(tiny_source: Path, tmp_path: Path) -> None:
    first = load_checkpoint(tiny_source)
    settings = replace(first.settings, pooling="mean", query_prefix="q: ", presets={"mine": (1.0, 0.0, 2.0)})
    first.model.pooling = "mean"
    save_checkpoint(tmp_path, first.model, settings, first.tokenizer_files())
    second = load_checkpoint(tmp_path)
    assert second.settings == settings
    assert second.model.pooling == "mean"
    ids = torch.tensor([[0, 9, 8, 7, 2], [0, 5, 2, 1, 1]])
    with torch.no_grad():
        for ours, theirs in zip(first.model(ids, (ids != 1).long()), second.model(ids, (ids != 1).long()), strict=True):
            assert torch.equal(ours, theirs)


def test_the_heads_follow_the_papers_definitions(tiny_source: Path) -> None:
    model = load_checkpoint(tiny_source).model
    ids = torch.tensor([[0, 9, 8, 7, 2], [0, 5, 2, 1, 1]])
    mask = (ids != 1).long()
    with torch.no_grad():
        hidden = model.encoder(input_ids=ids, attention_mask=mask)[0]
        output = model(ids, mask)
        model.pooling = "mean"
        mean = model(ids, mask).dense_vecs
    for text, length in ((0, 5), (1, 3)):
        states = hidden[text, :length]
        expected = states[0] / states[0].norm()
        torch.testing.assert_close(output.dense_vecs[text], expected)
        torch.testing.assert_close(mean[text], states.mean(0) / states.mean(0).norm())
        weights = (states @ model.sparse_head.weight[0] + model.sparse_head.bias[0]).clamp(min=0)
        torch.testing.assert_close(output.token_weights[text, :length], weights)
        vectors = states @ model.token_head.weight.T + model.token_head.bias
        torch.testing.assert_close(output.colbert_vecs[text, :length], vectors / vectors.norm(dim=1, keepdim=True))
    assert not output.token_weights[1, 3:].any()
    assert not output.colbert_vecs[1, 3:].any()


def test_the_fingerprint_is_of_what_decides_the_vectors(tiny_source: Path) -> None:
    checkpoint = load_checkpoint(tiny_source)
    original = fingerprint(checkpoint)
    assert fingerprint(load_checkpoint(tiny_source)) == original
    assert fingerprint(checkpoint._replace(settings=replace(checkpoint.settings, name="other"))) == original
    assert fingerprint(checkpoint._replace(settings=replace(checkpoint.settings, query_prefix="q: "))) != original
    with torch.no_grad():
        checkpoint.model.sparse_head.bias += 1e-3
    assert fingerprint(checkpoint) != original


def _without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _cut(name: str, keep: int) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:keep])


def _head(name: str, **tensors: object) -> Callable[[Path], None]:
    return lambda folder: torch.save(tensors, folder / name)


def _settings(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "m3edge_model.json").write_text(text)


def _nan_in_the_encoder(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer.1.output.dense.weight"][3, 3] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _a_layer_less(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))


def _config(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def _tokenizer_with_another_id(folder: Path) -> None:
    tokenizer = read_tokenizer(folder / "tokenizer.json")
    tokenizer.add_special_tokens(["<mask>"])
    tokenizer.save(str(folder / "tokenizer.json"))


def _no_unknown_token(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["unk_id"] = None
    path.write_text(json.dumps(content))


class _Callable:
    """What a pickle may hold and a checkpoint must not."""

    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("executed",))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without("config.json"), r"config\.json: missing"),
        (_without("tokenizer.json"), r"tokenizer\.json: missing"),
        (_without("sparse_linear.pt"), r"sparse_linear\.pt: missing; an M3 checkpoint has its heads"),
        (_without("colbert_linear.pt"), r"colbert_linear\.pt: missing"),
        (_without("model.safetensors"), r"the encoder cannot be loaded"),
        (_cut("model.safetensors", 5000), r"the encoder cannot be loaded"),
        (_cut("sparse_linear.pt", 300), r"sparse_linear\.pt: not a PyTorch file"),
        (_cut("tokenizer.json", 300), r"tokenizer\.json: not a tokenizer"),
        (_cut("config.json", 30), r"config\.json: not a model"),
        (_head("sparse_linear.pt", weight=torch.zeros(1, HIDDEN)), r"sparse_linear\.pt: expected the tensors"),
        (_head("sparse_linear.pt", weight=torch.zeros(2, HIDDEN), bias=torch.zeros(2)), r"belongs to another encoder"),
        (_head("colbert_linear.pt", weight=torch.zeros(8, 99), bias=torch.zeros(8)), r"\[8, 99\].*\[8, 32\]"),
        (_head("colbert_linear.pt", weight=torch.full((8, HIDDEN), torch.nan), bias=torch.zeros(8)), r"not a number"),
        (_head("colbert_linear.pt", weight=_Callable(), bias=_Callable()), r"colbert_linear\.pt: not a PyTorch file"),
        (_nan_in_the_encoder, r"encoder\.layer\.1\.output\.dense\.weight holds a value that is not a number"),
        (_a_layer_less, r"lack 16 tensors"),
        (_config(num_hidden_layers=1), r"16 tensors that the encoder of config\.json has no place for, first encoder"),
        (_config(hidden_size=64), r"size mismatch|expected \[1, 64\]"),
        (_config(intermediate_size=96), r"the encoder cannot be loaded \(.*mismatch.*\)"),
        (_config(model_type="distilbert", dim=HIDDEN), r"of type 'distilbert' \(.*m3edge takes BERT and XLM-RoBERTa"),
        (_tokenizer_with_another_id, r"tokenizer\.json: the id of '<mask>' is 49, but the encoder has 49 embeddings"),
        (_no_unknown_token, r"tokenizer\.json: has no token for unknown characters"),
        (_head("colbert_linear.pt", weight=[1, 2], bias=[1]), r"colbert_linear\.pt: expected the tensors"),
        (_head("colbert_linear.pt", weight=torch.tensor(1.0), bias=torch.tensor(1.0)), r"weight \[\] and bias \[\]"),
        (_head("colbert_linear.pt", weight=torch.zeros(0, HIDDEN), bias=torch.zeros(0)), r"another encoder"),
        (_settings("{"), r"m3edge_model\.json: "),
        (_settings('{"pooling": "max"}'), r"pooling must be one of"),
        (_settings('{"poling": "cls"}'), r"poling.*it may hold name, pooling"),
        (_settings("[1]"), r"m3edge_model\.json: .*it may hold name, pooling"),
        (_settings('{"name": 7}'), r"name must be a string, got 7"),
        (_settings('{"query_prefix": 5}'), r"query_prefix must be a string, got 5"),
        (_settings('{"max_length": "64"}'), r"max_length must be an integer, got '64'"),
        (_settings('{"presets": {"mine": [1, 2]}}'), r"preset 'mine': weights must be three numbers .*, got 2 numbers"),
        (_settings('{"presets": {"mine": "abc"}}'), r"preset 'mine': weights must be"),
        (_settings('{"presets": {"mine": [1, 2, NaN]}}'), r"preset 'mine': weights must be"),
        (_settings('{"max_length": 2}'), r"max_length must be 0, or leave room for"),
        (_settings('{"max_length": 65}'), r"max_length is 65, but the encoder has 64 positions"),
    ],
)
def test_a_bad_checkpoint_is_refused(
    spoil: Callable[[Path], None], message: str, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(tiny_checkpoint)
    with pytest.raises(FormatError, match=message) as caught:
        load_checkpoint(tiny_checkpoint).special_ids()
    assert str(tiny_checkpoint) in str(caught.value)
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("source", ["no/such/folder", "justaname", "/nowhere/at/all"])
def test_what_is_neither_a_folder_nor_an_id_is_refused(source: str) -> None:
    with pytest.raises(FormatError, match="no such checkpoint; give a folder, or an id"):
        load_checkpoint(source)


def test_an_id_is_fetched_at_the_hubs_commit(
    tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "5617a9f61b028005a4858fdac845db406aefb181"
    snapshot = tmp_path / commit
    snapshot.symlink_to(tiny_source)
    asked = []

    def snapshot_download(repo_id: str, **options: object) -> str:
        asked.append((repo_id, options))
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    checkpoint = load_checkpoint("BAAI/bge-m3")
    assert (checkpoint.source, checkpoint.revision) == ("BAAI/bge-m3", commit)
    assert checkpoint.settings.name == "bge-m3"
    assert [repo_id for repo_id, _ in asked] == ["BAAI/bge-m3"]  # safetensors are there: no pickles are fetched


def test_a_hub_that_does_not_answer_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    def snapshot_download(*arguments: object, **options: object) -> str:
        raise LocalEntryNotFoundError("no connection\nlong explanation")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(FormatError, match=r"BAAI/bge-m3: .*\(no connection\); check the id, or download"):
        load_checkpoint("BAAI/bge-m3")
