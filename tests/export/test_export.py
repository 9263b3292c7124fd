"""From a checkpoint to a model folder, or to nothing at all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
import onnx
import torch
from m3edge_export import export, graph, verify
from m3edge_export.checkpoint import fingerprint, load_checkpoint
from m3edge_export.errors import ParityError
from m3edge_export.export import export_onnx
from m3edge_export.folders import new_folders
from m3edge_export.fuse import FusionCounts, fuse
from m3edge_export.verify import Case, compare, expected_outputs, open_graph, verification_cases
from m3edge_export.weights import WeightReader

from m3edge.errors import FormatError
from m3edge.model_folder import read_model_folder
from m3edge.session import Session, open_session

HIDDEN, TOKEN_DIM = 32, 16  # the tiny model's


@pytest.fixture(scope="module")
def tiny_folder(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "tiny-fp32"
    export_onnx(tiny_source, folder, precision="fp32")
    return folder


def test_a_model_in_bge_m3s_layout_becomes_a_model_folder(tiny_folder: Path, tiny_source: Path) -> None:
    info = read_model_folder(tiny_folder)
    assert (info.name, info.source, info.revision, info.precision) == ("tiny-m3", "tiny-m3", "", "fp32")
    assert (info.dense_dim, info.token_dim, info.pooling, info.max_length) == (HIDDEN, TOKEN_DIM, "cls", 64)
    assert (info.query_prefix, info.passage_prefix) == ("", "")
    assert (info.cls_id, info.eos_id, info.pad_id, info.special_ids) == (0, 2, 1, (0, 1, 2, 3))
    assert info.fingerprint == fingerprint(load_checkpoint(tiny_source))
    assert sorted(path.name for path in tiny_folder.iterdir()) == [
        "m3edge.json", "model.onnx", "model.onnx_data", "parity.json", "tokenizer.json", "vocabulary.bin",
    ]  # fmt: skip


def test_the_graph_has_the_contracts_inputs_and_outputs(tiny_folder: Path) -> None:
    session = open_graph(tiny_folder / "model.onnx")
    assert [(item.name, item.type, item.shape) for item in session.get_inputs()] == [
        ("input_ids", "tensor(int64)", ["batch", "sequence"]),
        ("attention_mask", "tensor(int64)", ["batch", "sequence"]),
    ]
    assert [(item.name, item.type, item.shape) for item in session.get_outputs()] == [
        ("dense_vecs", "tensor(float)", ["batch", HIDDEN]),
        ("token_weights", "tensor(float)", ["batch", "sequence"]),
        ("colbert_vecs", "tensor(float)", ["batch", "sequence", TOKEN_DIM]),
    ]


def test_every_weight_lies_aligned_in_one_file(tiny_folder: Path) -> None:
    model = onnx.load(tiny_folder / "model.onnx", load_external_data=False)
    external = [tensor for tensor in model.graph.initializer if tensor.external_data]
    entries = [{item.key: item.value for item in tensor.external_data} for tensor in external]
    assert len(entries) >= 12  # two layers of six matrices; biases are small enough to stay in the graph
    assert {entry["location"] for entry in entries} == {"model.onnx_data"}
    assert all(int(entry["offset"]) % 64 == 0 for entry in entries)
    end = max(int(entry["offset"]) + int(entry["length"]) for entry in entries)
    assert end == (tiny_folder / "model.onnx_data").stat().st_size


def test_a_text_alone_and_in_a_padded_batch_is_the_same(tiny_folder: Path, tiny_source: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [[0, *rng.integers(4, 40, length).tolist(), 2] for length in (0, 1, 5, 62)]
    model = load_checkpoint(tiny_source).model
    for case in (Case("batch", rows), *(Case(f"{len(row)} tokens", [row]) for row in rows)):
        expected = expected_outputs(model, case, pad_id=1)
        measured = compare(open_session(tiny_folder, "cpu"), case, expected, pad_id=1)
        assert max(measured.max_abs.values()) < 1e-5
        assert measured.cosine > 1 - 1e-5


def test_the_mini_model_is_exported_within_tolerance(mini_fp32: Path) -> None:
    info = read_model_folder(mini_fp32)
    report = json.loads((mini_fp32 / "parity.json").read_text())
    assert report["worst"] == info.parity
    assert report["tolerance"]["max_abs"] == 1e-4
    assert report["fused"] == {"layers": 12, "attentions": 12, "gelus": 12, "normalizations": 25, "products": 72}
    assert all(value <= 1e-4 for name, value in info.parity.items() if name.startswith("max_abs"))
    assert info.parity["min_cosine"] > 0.99999
    cases = {case["case"]: (case["batch"], case["tokens"]) for case in report["cases"]}
    assert cases["empty text"] == (1, 2)
    assert cases["one token"] == (1, 1)
    assert cases["512 tokens"] == (1, 512)
    assert cases["batch of all languages"][0] == 10


def test_a_graph_that_computes_something_else_is_no_export(
    tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export_another(model: torch.nn.Module, folder: Path) -> None:
        bias = model.sparse_head.bias
        with torch.no_grad():
            bias += 0.01
            graph.export_graph(model, folder)
            bias -= 0.01

    monkeypatch.setattr(export, "export_graph", export_another)
    with pytest.raises(ParityError, match=r"differs from the PyTorch model by 1\.00e-02 in token_weights"):
        export_onnx(tiny_source, tmp_path / "out", precision="fp32")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", ["export_graph", "fuse", "verify", "write_manifest"])
def test_an_interrupted_export_leaves_nothing(
    where: str, tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(export, where, interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_onnx(tiny_source, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_bad_checkpoint_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FormatError):
        export_onnx(tmp_path, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_stays_as_it_is(tiny_source: Path, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="already exists"):
        export_onnx(tiny_source, tmp_path)
    assert (tmp_path / "note.txt").read_text() == "mine"


def test_a_place_that_no_folder_can_take_is_refused_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*arguments: object) -> None:
        raise AssertionError("the work has begun")

    monkeypatch.setattr(export, "load_checkpoint", load)
    (tmp_path / "empty").mkdir()
    for name, aim in (("link", "empty"), ("dangling", "nowhere")):
        (tmp_path / name).symlink_to(tmp_path / aim)
        with pytest.raises(FileExistsError, match=f"{name} is a link, which no folder can replace"):
            export_onnx("source", tmp_path / name)
    monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "empty")
    with pytest.raises(FileExistsError, match="empty is a mount point.* such as .*empty/model"):
        export_onnx("source", tmp_path / "empty")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "empty", "link"]


def test_when_one_of_several_folders_cannot_take_its_place_none_does(tmp_path: Path) -> None:
    first, second = tmp_path / "fp32", tmp_path / "int8"

    def make() -> None:
        with new_folders([first, second]) as folders:
            for folder in folders:
                (folder / "model.onnx").write_text("hours of work")
            first.mkdir()
            (first / "model.onnx").write_text("another export's")

    with pytest.raises(OSError, match="fp32"):
        make()
    assert [path.name for path in tmp_path.iterdir()] == ["fp32"]
    assert (first / "model.onnx").read_text() == "another export's"


def test_an_unknown_precision_is_refused(tiny_source: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"precision must be one of \['fp32', 'fp16', 'int8', 'int4'\], got \['int3'\]"
    ):
        export_onnx(tiny_source, tmp_path / "out", precision="int3")


def test_an_encoder_that_optimum_cannot_export_is_named(tiny_source: Path, tmp_path: Path) -> None:
    config = load_checkpoint(tiny_source).model.config
    config.model_type = "newfangled"
    with pytest.raises(FormatError, match="no ONNX exporter for encoders of type 'newfangled'"):
        graph.check_exportable(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act is 'relu'; m3edge exports .* with hidden_act 'gelu'"),
        ({"hidden_act": "gelu_new"}, "hidden_act is 'gelu_new'"),
        ({"is_decoder": True}, "is a decoder"),
    ],
)
def test_an_encoder_that_fusing_would_make_another_is_refused_before_it_is_traced(
    change: dict[str, object], message: str, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trace(*arguments: object) -> None:
        raise AssertionError("it was traced")

    monkeypatch.setattr(export, "export_graph", trace)
    path = tiny_checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(FormatError, match=message):
        export_onnx(tiny_checkpoint, tmp_path / "out", precision="int4")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_a_fused_graph_that_is_only_similar_is_no_export(
    precision: str, tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fuse_into_another(model: onnx.ModelProto, **shape: int) -> FusionCounts:
        counts = fuse(model, **shape)
        for node in model.graph.node:
            if node.op_type == "Gelu":
                node.op_type, node.domain = "Relu", ""
        return counts

    monkeypatch.setattr(export, "fuse", fuse_into_another)
    with pytest.raises(ParityError, match="differs from the PyTorch model"):
        export_onnx(tiny_source, tmp_path / "out", precision=precision)
    assert list(tmp_path.iterdir()) == []


class _Answers(Session):
    """A session that gives the same vectors for every batch but for one, of which it gives something else."""

    def __init__(self, another: dict[str, float]) -> None:
        self._another = another

    def run(self, input_ids: np.ndarray, attention_mask: np.ndarray, outputs: Sequence[str]) -> list[np.ndarray]:
        values = same_answers(len(input_ids), input_ids.shape[1])
        if input_ids[0, 1] == 6:
            values |= {name: np.full_like(values[name], value) for name, value in self._another.items()}
        return [values[name] for name in outputs]


def same_answers(n_texts: int, length: int) -> dict[str, np.ndarray]:
    vector = np.array([1, 0, 0, 0], np.float32)
    return {
        "dense_vecs": np.tile(vector, (n_texts, 1)),
        "token_weights": np.zeros((n_texts, length), np.float32),
        "colbert_vecs": np.tile(vector, (n_texts, length, 1)),
    }


@pytest.mark.parametrize("name", ["dense_vecs", "token_weights", "colbert_vecs"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_no_number_is_an_error_wherever_it_comes(name: str, value: float) -> None:
    cases = [Case(f"text {i}", [[0, i, 2]]) for i in (5, 6, 7)]  # neither the first nor the last one
    reference = verify.Reference(64, 1, cases, [same_answers(1, 3) for _ in cases])
    with pytest.raises(ParityError, match=rf"the int4 graph on cpu gives values in {name} .* on 'text 6'"):
        verify._measure(_Answers({name: value}), reference, "int4 graph on cpu")


@pytest.mark.parametrize("precision", sorted(verify.TOLERANCES))
def test_a_difference_that_is_no_number_is_within_no_tolerance(precision: str) -> None:
    same = verify.Differences("same", (1, 3), {"dense_vecs": 0.0, "token_weights": 0.0, "colbert_vecs": 0.0}, 1.0)
    overflowing = same._replace(case="overflowing", cosine=float("nan"))
    measured = [same, overflowing, same]
    with pytest.raises(ParityError, match="cosine nan on 'overflowing'"):
        verify._require(measured, precision, verify.TOLERANCES[precision])
    assert np.isnan(verify.parity_report(measured, precision)["worst"]["min_cosine"])


def test_cases_hold_the_extremes_of_length(tiny_source: Path) -> None:
    from m3edge_export.tokenizer_file import read_tokenizer

    cases = verification_cases(read_tokenizer(tiny_source / "tokenizer.json"), max_length=64)
    lengths = {len(row) for case in cases for row in case.rows}
    assert {1, 2, 64} <= lengths
    assert max(lengths) == 64


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_an_xlm_roberta_is_quantized(precision: str, tiny_source: Path, tmp_path: Path) -> None:
    info = export_onnx(tiny_source, tmp_path / "out", precision=precision)
    assert info.precision == precision
    assert info.parity["min_cosine"] > 0.8


def test_equal_weights_are_rounded_for_each_of_their_inputs(tiny_checkpoint: Path, tmp_path: Path) -> None:
    encoder = load_checkpoint(tiny_checkpoint).model.encoder
    first, second = encoder.encoder.layer
    with torch.no_grad():
        for norm, outlier in ((encoder.embeddings.LayerNorm, 3), (first.output.LayerNorm, 11)):
            norm.weight[outlier] = 30
        for name, weight in first.named_parameters():
            if weight.ndim == 2:  # of two that are equal the tracer keeps one
                second.get_parameter(name).copy_(weight)
    encoder.save_pretrained(tiny_checkpoint)
    export_onnx(tiny_checkpoint, tmp_path / "out", precision="int8")
    model = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False)
    reader = WeightReader(model.graph, tmp_path / "out")
    products = {node.name: node.input for node in model.graph.node if node.op_type == "MatMulIntegerToFloat"}
    for number, layer in enumerate((first, second)):
        rows, quantized, _, scale, _ = products[f"fused/layer.{number}/attention/self/query/product"]
        rounded = reader[quantized] * reader[scale] * reader[f"{rows}/smoothing"][:, None]
        weight = layer.attention.self.query.weight.detach().numpy().T
        assert np.linalg.norm(rounded - weight) < 0.1 * np.linalg.norm(weight)
