"""Training: its data, that it learns, that a seed reproduces it, and that it goes on after a kill."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch")

import numpy as np
import torch
from m3edge_export.checkpoint import load_checkpoint, model_info
from m3edge_export.cli import main
from m3edge_export.deltas import apply_deltas, read_deltas
from m3edge_export.model import M3Model
from m3edge_export.tokenizer_file import read_tokenizer
from m3edge_export.training.data import describe_bad_lines, read_pairs, sample_passages
from m3edge_export.training.encoder import states_encoder, torch_encoder
from m3edge_export.training.heads import prepare_heads
from m3edge_export.training.negatives import mine_negatives
from m3edge_export.training.passes import FrozenPass
from m3edge_export.training.states import States, encode_states, take
from m3edge_export.training.trainer import Training
from transformers import XLMRobertaConfig, XLMRobertaModel

from m3edge.errors import FormatError
from m3edge.scoring import dense_scores, hybrid_scores, lexical_scores, maxsim, resolve_weights
from m3edge.tokenization import Tokenizer

NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """More threads gain nothing on a model this small, and lose much on a busy machine."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of the killed process
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


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
    texts = Tokenizer(tiny_source / "tokenizer.json").tokenize(
        ["three files", "", "a"], prefix="the file ", max_length=64
    )
    states = encode_states(checkpoint.model, texts)
    batch = take(states, torch.tensor([2, 0]))
    tokenizer = read_tokenizer(tiny_source / "tokenizer.json")
    ids = torch.tensor([tokenizer.encode("the file three files").ids])
    prefix = len(tokenizer.encode("the file ").ids) - 2
    with torch.no_grad():
        hidden = checkpoint.model.encoder(input_ids=ids, attention_mask=torch.ones_like(ids))[0][0, 1 + prefix :]
    assert batch.ids[1, batch.mask[1]].tolist() == ids[0, 1 + prefix :].tolist()
    torch.testing.assert_close(batch.hidden[1, batch.mask[1]], hidden, atol=2e-3, rtol=0)  # kept in half precision


@pytest.mark.parametrize("stage", ["heads", "lora", "full"])
def test_training_learns_and_its_seed_reproduces_it(
    stage: str, tiny_source: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(name: str, seed: int) -> M3Model:
        options = ["--data", str(data), "--stage", stage, "--batch", "12", "--steps", "60", "--seed", str(seed)]
        options += ["--fresh-heads", "--learning-rate", "0.01", "--encoder-rate", "0.003", "--keep", "0"]
        assert main(["train", str(tiny_source), str(tmp_path / name), *options]) == 0
        return load_checkpoint(tmp_path / name).model

    start, first, again, other = load_checkpoint(tiny_source).model, train("a", 0), train("b", 0), train("c", 1)
    log = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step 60/60")]
    accuracies = dict(re.findall(r"(dense|tokens|all) ([\d.]+)", log[0]))
    assert float(accuracies["tokens" if stage == "heads" else "all"]) > 0.7  # 1 in 12 would be chance
    weights, same, different = first.state_dict(), again.state_dict(), other.state_dict()
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    assert not all(torch.equal(weights[name], different[name]) for name in weights)
    changed = {
        name
        for name, weight in start.encoder.state_dict().items()
        if not torch.equal(weight, weights[f"encoder.{name}"])
    }
    assert changed == {"heads": set(), "lora": _linear_weights(start)}.get(stage, changed)
    assert stage != "full" or "embeddings.word_embeddings.weight" in changed


def test_what_comes_out_is_averaged_with_its_start(tiny_source: Path, data: Path, tmp_path: Path) -> None:
    def train(keep: str) -> M3Model:
        out = tmp_path / keep
        options = ["--data", str(data), "--stage", "lora", "--batch", "12", "--steps", "5", "--keep", keep]
        assert main(["train", str(tiny_source), str(out), *options]) == 0
        return load_checkpoint(out).model

    start, all_of_it, half = (
        load_checkpoint(tiny_source).model.state_dict(),
        train("0").state_dict(),
        train("0.5").state_dict(),
    )
    for name, weight in half.items():
        torch.testing.assert_close(weight, (start[name] + all_of_it[name]) / 2, atol=1e-6, rtol=0, msg=name)
    assert any((all_of_it[name] - start[name]).abs().max() > 1e-4 for name in start if "encoder" in name)


def test_deltas_make_the_trained_model_out_of_the_first(tiny_source: Path, data: Path, tmp_path: Path) -> None:
    deltas = tmp_path / "deltas.safetensors"
    options = ["--data", str(data), "--stage", "lora", "--rank", "4", "--steps", "10", "--save-deltas", str(deltas)]
    assert main(["train", str(tiny_source), str(tmp_path / "out"), *options]) == 0
    model = load_checkpoint(tiny_source).model
    apply_deltas(model, read_deltas(deltas))
    trained = load_checkpoint(tmp_path / "out").model.state_dict()
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, trained[name], atol=1e-3, rtol=0, msg=name)  # the file is in half precision


def test_a_killed_training_goes_on_where_it_was(tiny_source: Path, data: Path, tmp_path: Path) -> None:
    def command(name: str) -> list[str]:
        options = ["--data", str(data), "--stage", "lora", "--steps", "200", "--batch", "12", "--save-every", "20"]
        options += ["--negatives", "1", "--guard", "1", "--refresh", "90"]
        return ["train", str(tiny_source), str(tmp_path / name), *options]

    process = subprocess.Popen(
        [sys.executable, "-m", "m3edge_export.cli", *command("killed")], stderr=subprocess.DEVNULL
    )
    state = tmp_path / "killed.training" / "state.pt"
    deadline = time.monotonic() + 60
    while not state.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert state.exists()
    assert not (tmp_path / "killed").exists()
    assert torch.load(state, weights_only=True)["step"] < 200
    assert main(command("killed")) == 0
    assert main(command("whole")) == 0
    killed, whole = (load_checkpoint(tmp_path / name).model.state_dict() for name in ("killed", "whole"))
    assert all(torch.equal(killed[name], whole[name]) for name in whole)
    steps = [
        [json.loads(line).get("step") for line in (tmp_path / name / "training.jsonl").read_text().splitlines()]
        for name in ("killed", "whole")
    ]
    assert steps[0][-1] == steps[1][-1] == 200
    assert len(set(steps[0])) == len(steps[0])
    assert not state.parent.exists()


def test_without_distillation_other_heads_come_out(tiny_source: Path, data: Path, tmp_path: Path) -> None:
    def train(name: str, *options: str) -> M3Model:
        assert (
            main(["train", str(tiny_source), str(tmp_path / name), "--data", str(data), "--steps", "5", *options]) == 0
        )
        return load_checkpoint(tmp_path / name).model

    whole, contrastive = train("whole"), train("contrastive", "--no-distillation")
    assert not torch.equal(whole.token_head.weight, contrastive.token_head.weight)
    logs = [(tmp_path / name / "training.jsonl").read_text().splitlines() for name in ("whole", "contrastive")]
    assert [json.loads(log[0])["training"]["objective"]["distillation"] for log in logs] == [True, False]


def test_speed_and_padding_are_reported(tiny_source: Path, tmp_path: Path) -> None:
    """Padding is what a batch's rectangles hold beside its texts' tokens."""
    queries, passages = ["one", "one", "one"], ["a", "a b c d", "a b c d e f g h i j"]
    path = tmp_path / "pairs.jsonl"
    lines = [
        json.dumps({"query": f"{q} {i}", "positive": p}) for i, (q, p) in enumerate(zip(queries, passages, strict=True))
    ]
    path.write_text("\n".join(lines))
    assert main(["train", str(tiny_source), str(tmp_path / "out"), "--data", str(path), "--steps", "2"]) == 0
    tokenizer = Tokenizer(tiny_source / "tokenizer.json")
    lengths = [
        [len(text.ids) for text in tokenizer.tokenize(texts, prefix="", max_length=64)]
        for texts in ([f"one {i}" for i in range(3)], passages)
    ]
    assert len(set(lengths[0])) == 1
    expected = 1 - sum(map(sum, lengths)) / (3 * max(lengths[0]) + 3 * max(lengths[1]))
    report = json.loads((tmp_path / "out" / "training.jsonl").read_text().splitlines()[-1])
    assert report["padding"] == pytest.approx(expected)
    assert expected > 0.2
    assert report["tokens_per_second"] > 0
    assert set(report["accuracy"]) == {"dense", "sparse", "tokens", "all"}


def test_another_command_does_not_go_on_with_it(
    tiny_source: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left = tmp_path / "out.training"
    left.mkdir()
    (left / "training.jsonl").write_text('{"seed": 7}\n')
    assert main(["train", str(tiny_source), str(tmp_path / "out"), "--data", str(data)]) == 1
    assert "left by a training with other settings or data" in capsys.readouterr().err
    assert left.exists()


def test_data_files_say_how_much_of_them_is_wanted(
    tiny_source: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--data", f"{data}:5", str(data), "--passages", "7", "--steps", "1"]
    assert main(["train", str(tiny_source), str(tmp_path / "out"), *options]) == 0
    assert re.findall(r"(\d+) of 12 pairs", capsys.readouterr().err) == ["5", "7"]


def test_it_measures_along_the_way(
    tiny_source: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "numbers"
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text(
        "".join(json.dumps({"_id": f"d{i}", "text": f"the file {n}"}) + "\n" for i, n in enumerate(NUMBERS))
    )
    (folder / "queries.jsonl").write_text(
        "".join(json.dumps({"_id": f"q{i}", "text": n}) + "\n" for i, n in enumerate(NUMBERS))
    )
    (folder / "qrels" / "test.tsv").write_text(
        "query-id\tcorpus-id\tscore\n" + "".join(f"q{i}\td{i}\t1\n" for i in range(len(NUMBERS)))
    )
    options = ["--data", str(data), "--steps", "4", "--eval", str(folder), "--eval-every", "2"]
    assert main(["train", str(tiny_source), str(tmp_path / "out"), *options]) == 0
    printed = capsys.readouterr().err
    assert re.findall(r"step (\d)  nDCG@10 on numbers: dense 0\.\d+", printed) == ["0", "2", "4"]
    records = [json.loads(line) for line in (tmp_path / "out" / "training.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "nDCG@10" in record] == [0, 2, 4]


def test_mined_negatives_rank_high_and_are_not_the_answer(tiny_source: Path) -> None:
    checkpoint = load_checkpoint(tiny_source)
    encoder = torch_encoder(checkpoint.model, model_info(checkpoint), Tokenizer(tiny_source / "tokenizer.json"))
    passages = [f"the file {number}" for number in NUMBERS]
    positives = {i: frozenset({i}) for i in range(len(NUMBERS))}
    free = mine_negatives(encoder, passages, passages, positives, n=3, guard=1.0)
    strict = mine_negatives(encoder, passages, passages, positives, n=3, guard=0.9)
    assert all(len(found) == 3 and i not in found for i, found in free.items())
    embeddings = encoder.encode_queries(passages)
    documents = encoder.encode_passages(passages)
    weights = resolve_weights("general")
    for i in positives:
        query = embeddings[i]
        assert query.dense is not None
        assert query.sparse is not None
        assert query.tokens is not None
        scores = hybrid_scores(
            dense_scores(query.dense[0], documents.dense), lexical_scores(query.sparse, documents.sparse),
            maxsim(query.tokens.vectors, documents.tokens), weights,
        )  # fmt: skip
        best = [int(j) for j in np.argsort(-scores) if j != i]
        assert scores[list(free[i])].min() >= scores[best[2]] - 5e-3  # the store keeps token vectors in fewer bits
        assert (scores[list(strict[i])] <= 0.9 * scores[i] + 5e-3).all()


def test_states_give_the_embeddings_of_the_heads_as_they_are_now(tiny_source: Path) -> None:
    checkpoint = load_checkpoint(tiny_source, attention="sdpa")
    model, info, tokenizer = checkpoint.model, model_info(checkpoint), Tokenizer(tiny_source / "tokenizer.json")
    texts = [f"the file {number}" for number in NUMBERS]
    tokenized = tokenizer.tokenize(texts, prefix=info.passage_prefix, max_length=info.max_length)
    known = [(tokenized, encode_states(model, tokenized))]
    quick, whole = states_encoder(model, info, tokenizer, known), torch_encoder(model, info, tokenizer)
    before = quick.encode_passages(texts)
    with torch.no_grad():
        model.token_head.bias += 0.5
        model.sparse_head.bias += 0.5
    after, expected = quick.encode_passages(texts), whole.encode_passages(texts)
    assert before.tokens is not None
    assert after.tokens is not None
    assert expected.tokens is not None
    assert after.sparse is not None
    assert expected.sparse is not None
    np.testing.assert_allclose(after.dense, expected.dense, atol=1e-5)
    np.testing.assert_allclose(after.tokens.vectors, expected.tokens.vectors, atol=2e-3)  # states are in half precision
    np.testing.assert_array_equal(after.sparse.ids, expected.sparse.ids)
    np.testing.assert_allclose(after.sparse.weights, expected.sparse.weights, atol=2e-3)
    assert np.abs(after.tokens.vectors - before.tokens.vectors).max() > 0.01
    with pytest.raises(KeyError):
        quick.encode_passages(["the file unknown"])


def test_negatives_are_mined_again_and_train_the_model(
    tiny_source: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [
        "--data",
        str(data),
        "--steps",
        "5",
        "--negatives",
        "2",
        "--refresh",
        "2",
        "--guard",
        "1",
        "--batch",
        "2",
    ]
    assert main(["train", str(tiny_source), str(tmp_path / "out"), *options]) == 0
    assert re.findall(r"step (\d)  mined 24 negatives for 12 queries", capsys.readouterr().err) == ["0", "2", "4"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--keep", "1"], "keep must be at least 0 and below 1"),
        (["--batch", "1"], "batch must be at least 2"),
        (["--guard", "2"], "guard must be above 0 and at most 1"),
        (["--stage", "full", "--save-deltas", "deltas"], "with stage 'full' every weight changes"),
    ],
)
def test_bad_settings_are_refused(
    options: list[str], message: str, tiny_source: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(tiny_source), str(tmp_path / "out"), "--data", str(data), *options]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


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


@pytest.mark.parametrize("options", [[], ["--steps", "5"]])
def test_files_of_one_passage_each_are_refused(
    options: list[str], tiny_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path in paths:
        path.write_text("".join(json.dumps({"query": q, "positive": path.stem}) + "\n" for q in ("one", "two")))
    command = ["train", str(tiny_source), str(tmp_path / "out"), "--data", *map(str, paths), *options]
    assert main(command) == 1
    assert "no file has two different passages" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == paths


def test_no_steps_is_not_the_same_as_unset() -> None:
    with pytest.raises(ValueError, match="steps must be at least 1, or None"):
        Training(steps=0)


def test_heads_learn_on_the_device_that_they_are_on() -> None:
    """On the device "meta", which any machine has: nothing is computed there, and what lies elsewhere is refused."""
    shape = XLMRobertaConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    model = M3Model(XLMRobertaModel(shape, add_pooling_layer=False), token_dim=8, pooling="cls").to("meta")
    ids = torch.ones(6, dtype=torch.int64)
    states = States(torch.zeros(2, 8), ids, torch.zeros(6, 8, dtype=torch.float16), torch.tensor([0, 3, 6]))
    prepare_heads(model, states)
    queries, passages = FrozenPass(states, states, "meta").forward([0, 1], [1, 0])
    assert {values.device.type for values in (*queries, *passages)} == {"meta"}


def _linear_weights(model: M3Model) -> set[str]:
    return {f"{name}.weight" for name, layer in model.encoder.named_modules() if isinstance(layer, torch.nn.Linear)}
