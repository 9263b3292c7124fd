"""Quantized weights are what their definitions say, and the fused graph is the traced one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")
import onnx
from m3edge_export.calibrate import calibration_texts
from m3edge_export.checkpoint import load_checkpoint
from m3edge_export.eight_bits import quantize_columns, quantize_rows
from m3edge_export.four_bits import BLOCK, quantize_product, quantize_table
from m3edge_export.fuse import fuse
from m3edge_export.graph import export_graph
from m3edge_export.half import OVERFLOW_LIMIT, blocked_layers
from m3edge_export.quantize import smoothing_factors
from m3edge_export.verify import open_graph
from m3edge_export.weights import WeightReader, WeightWriter

from m3edge.errors import FormatError

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 3))


def matrix(rows: int, columns: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((rows, columns)) * 10 ** rng.uniform(-3, 3, (1, columns))).astype(np.float32)


def unpack(packed: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The definition of the 4-bit form: value = (bits - 8) · scale, the lower half of a byte first."""
    bits = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:2], 32).astype(np.float32)
    return ((bits - 8) * scales[..., None]).reshape(len(packed), -1)


@given(SHAPES, st.integers(0, 1000))
def test_a_column_is_off_by_at_most_half_a_step(shape, seed):
    weight = matrix(*shape, seed)
    quantized, scale = quantize_columns(weight)
    assert quantized.dtype == np.int8
    assert (np.abs(quantized * scale - weight) <= scale * 0.5001).all()
    assert quantized.min() >= -127


def test_8_bit_products_of_inputs_like_those_of_calibration_lose_less(rng):
    mixing = np.eye(200) + rng.standard_normal((200, 200)) / 5
    x = (rng.standard_normal((1200, 200)) @ mixing).astype(np.float32)
    weight = rng.standard_normal((200, 40)).astype(np.float32)
    seen, unseen = x[:1000], x[1000:]
    lost = []
    for moments in (seen.T @ seen / len(seen), None):
        quantized, scale = quantize_columns(weight, moments)
        assert quantized.min() >= -127
        lost.append(float(np.square(unseen @ (weight - quantized * scale)).sum()))
    assert lost[0] < 0.7 * lost[1]


def test_losses_are_spread_as_gptq_says_however_they_are_grouped(rng):
    """One input after the other: w_j -= (w_i - q_i) / u_ii · u_ij for all j behind i, with U^T U = H^-1."""
    x = rng.standard_normal((1000, 300)) @ rng.standard_normal((300, 300))
    moments = x.T @ x
    weight = rng.standard_normal((300, 7)).astype(np.float32)
    quantized, scale = quantize_columns(weight, moments)
    damped = moments + 0.01 * np.diag(moments).mean() * np.eye(300)
    u = np.linalg.cholesky(np.linalg.inv(damped)).T
    rest, expected = weight.astype(np.float64), np.empty_like(quantized)
    for i in range(300):
        expected[i] = np.clip(np.rint(rest[i] / scale), -127, 127)
        rest[i + 1 :] -= u[i, i + 1 :, None] * (rest[i] - expected[i] * scale) / u[i, i]
    assert (quantized != expected).mean() < 0.002  # float32 falls on the other side of a half here and there


@given(SHAPES, st.integers(0, 1000))
def test_a_table_row_is_off_by_at_most_half_a_step(shape, seed):
    table = matrix(*shape, seed)
    quantized, scale = quantize_rows(table)
    assert (np.abs(quantized * scale - table) <= scale * 0.5001).all()


def nearest(weight: np.ndarray) -> np.ndarray:
    """Each block's largest value is met exactly, all others are rounded to the nearest: what four_bits has to beat."""
    blocks = weight.reshape(len(weight), -1, BLOCK)
    scale = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=2)[..., None], axis=2) / -8
    bits = np.clip(np.rint(blocks / np.where(scale == 0, 1, scale)), -8, 7)
    return (bits * scale).reshape(weight.shape)


@given(st.integers(1, 5), st.integers(1, 3), st.integers(0, 1000))
def test_a_4_bit_table_loses_no_more_than_rounding_to_the_nearest(rows, blocks, seed):
    table = matrix(rows, 32 * blocks, seed)
    packed, scales = quantize_table(table)
    assert (packed.shape, packed.dtype) == ((rows, blocks, 16), np.uint8)
    assert (scales.shape, scales.dtype) == ((rows, blocks), np.float32)
    lost, by_nearest = (
        np.square(table - other).reshape(rows, blocks, 32).sum(axis=2)
        for other in (unpack(packed, scales), nearest(table))
    )
    assert (lost <= by_nearest * 1.0001).all()


def test_4_bit_products_of_inputs_like_those_of_calibration_lose_less(rng):
    mixing = np.eye(96) + rng.standard_normal((96, 96)) / 5
    x = (rng.standard_normal((600, 96)) @ mixing).astype(np.float32)
    weight = rng.standard_normal((40, 96)).astype(np.float32)
    seen, unseen = x[:500], x[500:]
    rounded = unpack(*quantize_product(weight, seen.T @ seen / len(seen)))
    lost, by_table, by_nearest = (
        float(np.square(unseen @ (weight - other).T).sum())
        for other in (rounded, unpack(*quantize_table(weight)), nearest(weight))
    )
    assert lost < 0.7 * by_table
    assert by_table < by_nearest


def test_an_input_that_calibration_never_saw_does_not_spoil_a_4_bit_product(rng):
    weight = rng.standard_normal((8, 64)).astype(np.float32)
    moments = np.zeros((64, 64), np.float32)
    moments[:32, :32] = np.eye(32)
    for seen in (moments, np.zeros_like(moments)):
        rounded = unpack(*quantize_product(weight, seen))
        assert np.abs(rounded - weight).max() < 0.5


def test_zero_weights_stay_zero():
    for quantize in (quantize_columns, quantize_rows, lambda weight: quantize_columns(weight, np.eye(len(weight)))):
        values, scale = quantize(np.zeros((4, 4), np.float32))
        assert not (values * scale).any()
    zeros = np.zeros((2, 64), np.float32)
    assert not unpack(*quantize_table(zeros)).any()
    assert not unpack(*quantize_product(zeros, np.eye(64))).any()


def test_a_width_that_4_bit_blocks_do_not_fill_is_refused():
    with pytest.raises(ValueError, match="multiple of 32, got 33"):
        quantize_table(np.zeros((2, 33), np.float32))


def test_smoothing_changes_no_product_and_tames_an_outlier(rng):
    x, weight = rng.standard_normal((50, 64)).astype(np.float32), rng.standard_normal((64, 8)).astype(np.float32)
    x[:, 7] *= 100
    factors = smoothing_factors(np.abs(x).max(axis=0), np.abs(weight).max(axis=1))
    np.testing.assert_allclose((x / factors) @ (weight * factors[:, None]), x @ weight, rtol=1e-3, atol=1e-2)
    smooth = np.abs(x / factors).max(axis=0)
    assert smooth.max() / np.median(smooth) < 0.2 * np.abs(x).max() / np.median(np.abs(x).max(axis=0))


@pytest.fixture(scope="module")
def traced(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("traced")
    export_graph(load_checkpoint(tiny_source).model, folder)
    return folder


def test_the_fused_graph_computes_what_was_traced(traced: Path, rng: np.random.Generator) -> None:
    model = onnx.load(traced / "model.onnx", load_external_data=False)
    counts = fuse(model, n_layers=2, n_heads=4)
    assert counts == (2, 2, 2, 5, 12)
    onnx.save(model, traced / "fused.onnx")
    ids = rng.integers(4, 40, (3, 20))
    for mask in (np.ones((3, 20), np.int64), np.tri(3, 20, 5, dtype=np.int64)):  # whole, and padded to 6, 7 and 8
        inputs = {"input_ids": np.where(mask == 1, ids, 1), "attention_mask": mask}
        before, after = (open_graph(traced / name).run(None, inputs) for name in ("model.onnx", "fused.onnx"))
        np.testing.assert_allclose(before[0], after[0], atol=1e-5)
        for left, right in zip(before[1:], after[1:], strict=True):
            np.testing.assert_allclose(left[mask == 1], right[mask == 1], atol=1e-5)


def test_a_long_text_takes_the_attention_that_keeps_no_scores(tiny_source: Path, traced: Path) -> None:
    model = onnx.load(traced / "model.onnx", load_external_data=False)
    fuse(model, n_layers=2, n_heads=4)
    (choice,) = (node for node in model.graph.node if node.name == "fused/layer.0/attention")
    branches = {item.name: item.g for item in choice.attribute}
    inner = {item.name: item.g.node[0].op_type for item in branches["else_branch"].node[0].attribute}
    assert branches["then_branch"].node[0].op_type == "Attention"
    assert inner == {"then_branch": "MultiHeadAttention", "else_branch": "Attention"}


def test_a_graph_with_another_number_of_layers_is_not_fused(traced: Path) -> None:
    model = onnx.load(traced / "model.onnx", load_external_data=False)
    with pytest.raises(FormatError, match="has 2 BERT-type layers, the model 3"):
        fuse(model, n_layers=3, n_heads=4)


def test_weights_come_back_from_the_file_as_they_went_in(tmp_path: Path, rng: np.random.Generator) -> None:
    values = {
        "large": rng.standard_normal((100, 7)).astype(np.float32),
        "small": np.arange(3),
        "bytes": rng.integers(-100, 100, 2000).astype(np.int8),
    }
    with WeightWriter(tmp_path) as writer:
        tensors = [writer.tensor(name, value) for name, value in values.items()]
    reader = WeightReader(onnx.helper.make_graph([], "g", [], [], tensors), tmp_path)
    for name, value in values.items():
        np.testing.assert_array_equal(reader[name], value)
    assert all(int(item.value) % 64 == 0 for t in tensors for item in t.external_data if item.key == "offset")


def test_a_layer_that_could_overflow_half_precision_is_named(traced: Path) -> None:
    model = onnx.load(traced / "model.onnx", load_external_data=False)
    fuse(model, n_layers=2, n_heads=4)
    seen = {"fused/layer.1/intermediate/dense": np.array([1.0, 2 * OVERFLOW_LIMIT])}
    assert blocked_layers(model, seen) == [1]
    assert blocked_layers(model, {"fused/layer.0/gelu": np.array([float("nan")])}) == [0]
    assert blocked_layers(model, {"fused/layer.0/gelu": np.array([1.0])}) == []


def test_the_packages_calibration_texts_are_in_many_languages() -> None:
    texts = calibration_texts()
    assert len(texts) >= 200
    assert len(set(texts)) == len(texts)
    assert any("一" <= letter <= "鿿" for letter in "".join(texts))


def test_calibration_texts_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "texts"
    path.write_text('plain text\n\n{"text": "from JSON", "lang": "en"}\n[1, 2]\n')
    assert calibration_texts(path) == ["plain text", "from JSON", "[1, 2]"]
    path.write_text("\ufeffone\u2028line\r\nanother\x0cline\n", encoding="utf-8")
    assert calibration_texts(path) == ["one\u2028line", "another\x0cline"]
    path.write_text("\n  \n")
    with pytest.raises(FormatError, match="holds no text"):
        calibration_texts(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FormatError, match="not UTF-8"):
        calibration_texts(path)
    with pytest.raises(FormatError, match="no such file"):
        calibration_texts(tmp_path / "nowhere")
