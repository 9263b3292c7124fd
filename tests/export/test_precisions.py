"""Every precision of the real mini model: near enough to fp32, the same alone and in company, as small as promised."""

from __future__ import annotations

import functools
import inspect
import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

pytest.importorskip("torch")
import onnx
from m3edge_export.export import export_precisions
from m3edge_export.report import build_report, fidelity, markdown
from m3edge_export.verify import TEXTS

from m3edge import Embeddings, Encoder
from m3edge.model_folder import GRAPH, WEIGHTS
from m3edge.onnxruntime_engine import session_options

PRECISIONS = ("fp32", "fp16", "int8", "int4")
# Texts that calibration did not see: sentences in ten languages, and prose and code from the standard library.
UNSEEN = [*TEXTS.values(), *(inspect.getdoc(item) or "" for item in (dict, str, json, functools, inspect.signature))]
UNSEEN += [inspect.getsource(functools)[start : start + 600] for start in range(0, 12_000, 600)]


@pytest.fixture(scope="module")
def encoders(mini_models: dict[str, Path]) -> dict[str, Encoder]:
    return {precision: Encoder.load(folder, "cpu") for precision, folder in mini_models.items()}


@pytest.fixture(scope="module")
def reference(encoders: dict[str, Encoder]) -> Embeddings:
    return encoders["fp32"].encode_passages(UNSEEN)


@pytest.mark.parametrize(
    ("precision", "dense_mean", "dense_worst", "tokens_mean"),
    [("fp16", 0.9999, 0.9999, 0.9999), ("int8", 0.9992, 0.998, 0.998), ("int4", 0.999, 0.995, 0.998)],
)
def test_vectors_are_near_those_of_fp32(encoders, reference, precision, dense_mean, dense_worst, tokens_mean):
    measured = fidelity(reference, encoders[precision].encode_passages(UNSEEN))
    assert measured.dense_cosine_mean >= dense_mean
    assert measured.dense_cosine_worst >= dense_worst
    assert measured.token_cosine_mean >= tokens_mean
    assert measured.sparse_weight_difference <= 0.03
    assert measured.sparse_jaccard >= 0.97
    assert measured.maxsim_difference <= 0.005


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_text_is_the_same_alone_among_31_others_and_beside_one_8_times_longer(encoders, precision):
    encoder = encoders[precision]
    text = UNSEEN[0]
    alone = encoder.encode_passages(text)
    crowd = encoder.encode_passages([text, *UNSEEN[1:32]], batch_tokens=100_000)[0]
    beside = encoder.encode_passages([text, " ".join([text] * 8)], batch_tokens=100_000)[0]
    for other in (crowd, beside):
        assert (alone.dense * other.dense).sum() >= 0.9999
        assert (alone.tokens.vectors * other.tokens.vectors).sum(axis=1).min() >= 0.9999
        weights = alone.sparse.weights, other.sparse.weights
        assert alone.sparse.ids.tolist() == other.sparse.ids.tolist()
        assert weights[0] @ weights[1] / np.linalg.norm(weights[0]) / np.linalg.norm(weights[1]) >= 0.9999


def test_graph_and_weights_are_as_small_as_promised(mini_models):
    size = {
        name: sum((folder / part).stat().st_size for part in (GRAPH, WEIGHTS)) for name, folder in mini_models.items()
    }
    assert size["int8"] <= 122e6
    assert size["int4"] < 0.65 * size["int8"]
    assert size["fp16"] < 0.51 * size["fp32"]


def test_no_int8_product_scales_its_rows_itself(mini_int8, tmp_path):
    options = session_options(onnxruntime, 1)
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(str(mini_int8 / GRAPH), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph
    sizes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    products = [node for node in graph.node if node.op_type == "MatMulIntegerToFloat"]
    assert len(products) == 6 * 12
    scales = [sizes.get(node.input[2], "found at run time") for node in products]
    assert all(scale == [] for scale in scales), "onnxruntime would multiply rows by their scales on one thread"


def test_rows_are_quantized_as_blocks_which_onnxruntime_does_on_all_threads(mini_int8):
    graph = onnx.load(mini_int8 / GRAPH, load_external_data=False).graph
    steps = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    assert len(steps) == 4 * 12  # attention, its output, and both products of the feed-forward network
    widths = [onnx.helper.get_node_attr_value(node, "block_size") for node in steps]
    assert sorted(widths) == [384] * 3 * 12 + [1536] * 12, "with a scale for each row of axis 0 it uses one"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_onnxruntime_by_itself_runs_the_graph_without_a_warning(mini_models, precision, capfd):
    session = onnxruntime.InferenceSession(str(mini_models[precision] / GRAPH), providers=["CPUExecutionProvider"])
    ids = np.full((2, 5), 9)
    for mask in (np.ones_like(ids), np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])):
        dense, weights, tokens = session.run(None, {"input_ids": ids, "attention_mask": mask})
        assert (dense.shape, weights.shape, tokens.shape) == ((2, 384), (2, 5), (2, 5, 384))
    assert "Expected shape" not in capfd.readouterr().err


def test_all_precisions_are_one_model(encoders):
    assert len({encoder.info.fingerprint for encoder in encoders.values()}) == 1
    assert {name: encoder.info.precision for name, encoder in encoders.items()} == {name: name for name in PRECISIONS}


def test_the_report_has_a_row_for_each_precision(mini_fp32, mini_int8):
    rows = [row for row in build_report([mini_fp32, mini_int8], UNSEEN[:12]) if row["engine"] == "cpu"]
    assert [row["precision"] for row in rows] == ["fp32", "int8"]
    assert rows[0]["dense_cosine_worst"] == pytest.approx(1, abs=1e-5)
    assert rows[1]["graph_mb"] < 122
    assert 0 < rows[1]["load_seconds"] < rows[1]["first_vector_seconds"]
    table = markdown(rows).splitlines()
    assert len(table) == 4
    assert table[0].count("|") == table[2].count("|")


def test_the_report_has_a_row_for_each_engine(mini_fp32, mini_openvino):
    pytest.importorskip("openvino", reason="the row is left out without it")
    pytest.importorskip("m3edge._native", reason="so is that of our own engine without a compiler")
    rows = build_report([mini_fp32, mini_openvino], UNSEEN[:4])
    assert [(row["precision"], row["engine"]) for row in rows] == [
        ("fp32", "cpu"), ("int8", "cpu"), ("int8", "native"), ("int8", "openvino"),
    ]  # fmt: skip
    dynamic, native, static = rows[1:]
    assert 0.998 < static["dense_cosine_worst"] < min(dynamic["dense_cosine_worst"], native["dense_cosine_worst"])
    assert native["graph_mb"] < dynamic["graph_mb"] < static["graph_mb"]
    assert "| int8 | openvino |" in markdown(rows)


def test_a_report_needs_fp32_and_one_model(mini_models):
    with pytest.raises(ValueError, match="must include an fp32 folder"):
        build_report([mini_models["int8"]], UNSEEN[:1])


def test_when_one_precision_fails_none_is_left(tiny_source: Path, tmp_path: Path) -> None:
    (tmp_path / "int8").mkdir()
    (tmp_path / "int8" / "mine").write_text("stays")
    with pytest.raises(FileExistsError):
        export_precisions(tiny_source, {"fp32": tmp_path / "fp32", "int8": tmp_path / "int8"})
    assert [path.name for path in tmp_path.iterdir()] == ["int8"]


def test_the_parity_report_says_what_was_measured(mini_models):
    for precision, folder in mini_models.items():
        report = json.loads((folder / "parity.json").read_text())
        assert report["precision"] == precision
        assert report["worst"]["min_cosine"] >= report["tolerance"]["cosine"]
    assert json.loads((mini_models["fp16"] / "parity.json").read_text())["fp32_layers"] == []
