"""The static int8 graph: plain operators, near the fp32 graph on OpenVINO, and no weight stored twice."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")
import onnx
from m3edge_export import verify
from m3edge_export.eight_bits import byte_range
from m3edge_export.errors import ParityError
from m3edge_export.export import export_onnx

from m3edge.model_folder import GRAPH, STATIC_GRAPH, STATIC_WEIGHTS, WEIGHTS
from m3edge.session import open_session


def graphs(folder: Path) -> tuple[onnx.GraphProto, onnx.GraphProto]:
    """The dynamic and the static graph."""
    dynamic, static = (onnx.load(folder / name, load_external_data=False).graph for name in (GRAPH, STATIC_GRAPH))
    return dynamic, static


def places(graph: onnx.GraphProto) -> dict[str, tuple[str, int, int]]:
    """Where each large weight lies: file, offset and length."""
    found = {}
    for tensor in graph.initializer:
        if tensor.external_data:
            entry = {item.key: item.value for item in tensor.external_data}
            found[tensor.name] = entry["location"], int(entry["offset"]), int(entry["length"])
    return found


@given(st.floats(-100, 100), st.floats(-100, 100))
def test_bytes_reach_over_the_whole_range_and_hold_zero_exactly(least, largest):
    least, largest = min(least, largest), max(largest, least)
    scale, zero_point = byte_range(least, largest)
    assert 0 <= zero_point <= 255
    for value in (least, largest, 0.0):
        byte = np.clip(np.rint(value / scale) + zero_point, 0, 255)
        assert abs((byte - zero_point) * scale - value) <= scale * 1.001
    assert (np.rint(0.0 / scale) + zero_point - zero_point) * scale == 0


def test_the_static_graph_has_plain_operators_only(mini_openvino: Path) -> None:
    model = onnx.load(mini_openvino / STATIC_GRAPH, load_external_data=False)
    assert [(item.domain, item.version) for item in model.opset_import] == [("", 21)]
    kinds = {node.op_type for node in model.graph.node}
    assert "If" not in kinds
    assert all(not node.domain for node in model.graph.node)


def test_every_product_of_the_layers_takes_bytes(mini_openvino: Path) -> None:
    _, static = graphs(mini_openvino)
    producers = {node.output[0]: node.op_type for node in static.node}
    products = [node for node in static.node if node.op_type == "MatMul" and node.name.endswith("/product")]
    assert len(products) == 72 - products_without_bias(static)
    assert {tuple(producers[name] for name in node.input) for node in products} == {
        ("DequantizeLinear", "DequantizeLinear")
    }


def products_without_bias(static: onnx.GraphProto) -> int:
    return sum(node.op_type == "MatMul" and node.name.endswith("attention/self/key") for node in static.node)


def test_both_graphs_share_their_weights_but_for_two_products_a_layer(mini_openvino: Path) -> None:
    dynamic, static = map(places, graphs(mini_openvino))
    both = set(dynamic) & set(static)
    assert all(dynamic[name] == static[name] for name in both)
    assert sum(static[name][2] for name in both) > 0.9 * sum(length for *_, length in dynamic.values())
    own = {name: place for name, place in static.items() if name not in dynamic}
    assert {file for file, *_ in own.values()} == {STATIC_WEIGHTS}
    sizes = [length for *_, length in own.values()]
    assert sizes.count(1536 * 384) == sizes.count(384 * 384) == 12  # behind GELU, behind attention
    assert sum(sizes) < 1.1 * 12 * (1536 + 384) * 384


def test_no_two_weights_overlap(mini_openvino: Path) -> None:
    dynamic, static = map(places, graphs(mini_openvino))
    taken = sorted({*dynamic.values(), *static.values()})
    for (file, offset, length), (next_file, following, _) in itertools.pairwise(taken):
        assert file != next_file or offset + length <= following
    for name in (WEIGHTS, STATIC_WEIGHTS):
        end = max(offset + length for file, offset, length in taken if file == name)
        assert end == (mini_openvino / name).stat().st_size


def test_parity_on_openvino_is_part_of_the_report(mini_openvino: Path) -> None:
    pytest.importorskip("openvino", reason="the export leaves this part out without it")
    report = json.loads((mini_openvino / "parity.json").read_text())
    assert [case["case"] for case in report["openvino"]["cases"]] == [case["case"] for case in report["cases"]]
    assert report["openvino"]["worst"]["min_cosine"] >= 0.98
    headline = json.loads((mini_openvino / "m3edge.json").read_text())["model"]["parity"]
    assert headline["openvino_min_cosine"] == report["openvino"]["worst"]["min_cosine"]
    assert headline["min_cosine"] == report["worst"]["min_cosine"]


def test_an_activation_has_one_scale_and_says_so(mini_openvino: Path) -> None:
    """A scalar: with a vector, even of one value, runtimes look for the axis it belongs to."""
    _, static = graphs(mini_openvino)
    shapes = {tuple(item.dims) for item in static.initializer if item.name.endswith("/static/zero_point")}
    scales = {node.input[1] for node in static.node if node.op_type == "QuantizeLinear"}
    assert shapes | {tuple(item.dims) for item in static.initializer if item.name in scales} == {()}


def test_what_gelu_gives_uses_most_of_a_byte_above_zero(mini_openvino: Path) -> None:
    """It never falls below -.17, and smoothing must not blow that up in the channels that are quiet."""
    _, static = graphs(mini_openvino)
    points = {
        tensor.name: int(onnx.numpy_helper.to_array(tensor))
        for tensor in static.initializer
        if tensor.name.endswith("/gelu/static/zero_point")
    }
    assert len(points) == 12
    assert max(points.values()) < 256 / 6


@pytest.fixture
def odd_checkpoint(tiny_checkpoint: Path) -> Path:
    """An XLM-RoBERTa for texts of up to 61 tokens: no multiple of what lengths are padded to on OpenVINO."""
    from transformers import XLMRobertaConfig, XLMRobertaModel

    config = XLMRobertaConfig.from_pretrained(tiny_checkpoint, max_position_embeddings=63)
    XLMRobertaModel(config, add_pooling_layer=False).save_pretrained(tiny_checkpoint)
    return tiny_checkpoint


def test_an_xlm_roberta_has_a_static_graph_too_however_long_its_texts(odd_checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="nothing else here runs the static graph fast enough")
    export_onnx(odd_checkpoint, tmp_path / "tiny", precision="int8", openvino=True)
    ids = np.array([[0, 5, 6, 7, 2], [0, 9, 2, 1, 1]])
    mask = np.where(ids == 1, 0, 1)
    outputs = ["dense_vecs", "token_weights", "colbert_vecs"]
    dynamic, static = (open_session(tmp_path / "tiny", name).run(ids, mask, outputs) for name in ("cpu", "openvino"))
    assert (dynamic[0] * static[0]).sum(axis=1).min() > 0.98
    assert not static[1][mask == 0].any()
    assert not static[2][mask == 0].any()
    # MCLS: a further `<s>` counts for the dense vector on both engines.
    ids[0, 3], mask[0, 3] = 0, 2
    further = [open_session(tmp_path / "tiny", name).run(ids, mask, outputs[:1])[0] for name in ("cpu", "openvino")]
    assert (further[0] * further[1]).sum(axis=1).min() > 0.98
    assert not np.allclose(further[1][0], static[0][0], atol=1e-3)


def test_a_static_graph_that_computes_something_else_is_no_export(
    tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino", reason="without it nothing compares the static graph")
    monkeypatch.setattr(verify, "_STATIC_TOLERANCE", verify.Tolerance(np.inf, 1.1))
    with pytest.raises(ParityError, match="graph's vectors differ"):
        export_onnx(tiny_source, tmp_path / "tiny", precision="int8", openvino=True)
    assert list(tmp_path.iterdir()) == []


def test_only_int8_has_a_static_graph(tiny_source: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="openvino needs precision int8, got"):
        export_onnx(tiny_source, tmp_path / "tiny", precision="fp32", openvino=True)
    export_onnx(tiny_source, tmp_path / "tiny", precision="int8")
    assert not (tmp_path / "tiny" / STATIC_GRAPH).exists()
