"""Training the heads: its data, its reproducibility, and that it learns."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch
from m3edge_export.checkpoint import load_checkpoint, read_tokenizer
from m3edge_export.cli import main
from m3edge_export.training.data import describe_bad_lines, read_pairs, sample_passages
from m3edge_export.training.states import encode_states, take
from safetensors.torch import load_file

from m3edge.errors import FormatError

NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "numbers-en.jsonl.gz"
    with gzip.open(path, "wt") as file:
        for number in NUMBERS:
            print(json.dumps({"query": number, "positive": f"the file {number}", "lang": "en"}), file=file)
    return path


def test_bad_lines_are_counted_and_named(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(
        b'{"query": "a", "positive": "b"}\n{"query": "a"}\nnot json\n{"query": " ", "positive": "b"}\n[1]\n\xff\n'
        b'{"query": "c", "positive": "d", "lang": "en"}\n'
    )
    pairs, bad = read_pairs(path)
    assert [(pair.query, pair.positive, pair.language, pair.source) for pair in pairs] == [
        ("a", "b", "", "pairs"),
        ("c", "d", "en", "pairs"),
    ]
    assert [line.number for line in bad] == [2, 3, 4, 5, 6]
    assert describe_bad_lines(bad, show=1).startswith(f"5 bad lines left out: {path}:2: expected a text 'positive'")
    assert describe_bad_lines([]) == ""


def test_a_file_that_is_not_gzip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl.gz"
    path.write_bytes(b"plain text")
    with pytest.raises(FormatError, match=r"pairs\.jsonl\.gz: cannot be read"):
        read_pairs(path)


def test_a_sample_keeps_all_queries_of_a_passage(data: Path) -> None:
    pairs, _ = read_pairs(data)
    doubled = [pair._replace(query=f"{pair.query} {i}") for pair in pairs for i in range(2)]
    sample = sample_passages(doubled, 5, seed=1)
    assert len({pair.positive for pair in sample}) == 5
    assert len(sample) == 10
    assert sample == sample_passages(doubled, 5, seed=1) != sample_passages(doubled, 5, seed=2)


def test_states_are_the_texts_own_tokens_in_order(tiny_source: Path) -> None:
    checkpoint = load_checkpoint(tiny_source, attention="sdpa")
    states = encode_states(checkpoint, ["three files", "", "a"], prefix="the file ", max_length=64)
    batch = take(states, torch.tensor([2, 0]))
    tokenizer = read_tokenizer(tiny_source / "tokenizer.json")
    ids = torch.tensor([tokenizer.encode("the file three files").ids])
    prefix = len(tokenizer.encode("the file ").ids) - 2
    with torch.no_grad():
        hidden = checkpoint.model.encoder(input_ids=ids, attention_mask=torch.ones_like(ids))[0][0, 1 + prefix :]
    assert batch.ids[1, batch.mask[1]].tolist() == ids[0, 1 + prefix :].tolist()
    torch.testing.assert_close(batch.hidden[1, batch.mask[1]], hidden, atol=2e-3, rtol=0)  # kept in half precision


def test_training_learns_and_its_seed_reproduces_it(
    tiny_source: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(name: str, seed: int) -> dict[str, torch.Tensor]:
        heads = tmp_path / f"{name}.safetensors"
        options = ["--data", str(data), "--fresh-heads", "--epochs", "100", "--batch", "12", "--seed", str(seed)]
        options += ["--learning-rate", "0.01"]
        assert main(["train", str(tiny_source), str(tmp_path / name), *options, "--save-heads", str(heads)]) == 0
        return load_file(heads)

    first, again, other = train("first", 0), train("again", 0), train("other", 1)
    log = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert float(log[1].split("tokens ")[1].split()[0]) > 0.8  # 1 in 12 would be chance
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    trained = load_checkpoint(tmp_path / "first").model
    assert torch.equal(trained.token_head.weight.half(), first["token_head.weight"])
    assert (trained.token_head(torch.zeros(32)) != 0).any()


def test_a_file_without_pairs_leaves_nothing(
    tiny_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text("{}\n")
    assert main(["train", str(tiny_source), str(tmp_path / "out"), "--data", str(path)]) == 1
    printed = capsys.readouterr().err
    assert f"1 bad lines left out: {path}:1" in printed
    assert "holds no pair" in printed
    assert [item.name for item in tmp_path.iterdir()] == ["empty.jsonl"]
