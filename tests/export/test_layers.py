"""The list of layers that an int8 export writes, and what m3edge's own engine makes of it, on a tiny XLM-RoBERTa."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
import torch
from m3edge_export.checkpoint import load_checkpoint
from m3edge_export.export import export_onnx

from m3edge import Encoder, kernels
from m3edge.model_folder import LAYERS, PARITY

TEXTS = ["the file", "", "0123456789 zip <pad> unzip", "你好 the file ing", "abcdefgh " * 20]

pytestmark = pytest.mark.skipif(kernels.Transformer is None, reason="without a compiler there is no engine of our own")


def configure(checkpoint: Path, **settings: int) -> Path:
    config = json.loads((checkpoint / "config.json").read_bytes())
    (checkpoint / "config.json").write_text(json.dumps(config | settings))
    return checkpoint


@pytest.fixture(scope="module")
def checkpoint(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights in two heads, which are as wide as the kernels want them."""
    copy = tmp_path_factory.mktemp("layers") / "tiny-m3"
    shutil.copytree(tiny_source, copy)
    return configure(copy, num_attention_heads=2)


@pytest.fixture(scope="module")
def folder(checkpoint: Path) -> Path:
    folder = checkpoint.parent / "tiny-int8"
    export_onnx(checkpoint, folder, precision="int8")
    return folder


def near(left: np.ndarray, right: np.ndarray) -> bool:
    return (left * right).sum(axis=-1).min() > 0.999


def test_positions_count_from_the_padding_as_xlm_robertas_do(folder):
    layers = json.loads((folder / LAYERS).read_bytes())
    assert (layers["first_position"], layers["pad_id"], layers["pooling"]) == (2, 1, "cls")


@pytest.mark.parametrize("interval", [None, 8])
def test_it_computes_what_pytorch_computes(folder, checkpoint, interval):
    native = Encoder.load(folder, "native", mcls_interval=interval)
    graph = Encoder.load(folder, "cpu", mcls_interval=interval)
    ours, theirs = native.encode(TEXTS), graph.encode(TEXTS)
    assert near(ours.dense, theirs.dense)
    assert near(ours.tokens.vectors, theirs.tokens.vectors)
    assert ours.sparse.ids.tolist() == theirs.sparse.ids.tolist()
    np.testing.assert_allclose(ours.sparse.weights, theirs.sparse.weights, atol=0.01)
    if interval is None:
        (text,) = native.tokenizer.tokenize(TEXTS[2:3], prefix="", max_length=64)
        ids = torch.from_numpy(np.asarray(text.ids, np.int64))[None]
        assert 1 in ids  # the padding's token, written in a text
        with torch.no_grad():
            output = load_checkpoint(checkpoint).model(ids, torch.ones_like(ids))
        assert near(ours.dense[2:3], output.dense_vecs.numpy())


def test_a_text_is_the_same_alone_in_its_batch_and_beside_a_longer_one(folder):
    native = Encoder.load(folder, "native", mcls_interval=8)
    together = native.encode(TEXTS, batch_tokens=10_000)
    for i, text in enumerate(TEXTS):
        np.testing.assert_array_equal(native.encode(text).dense[0], together.dense[i])
        np.testing.assert_array_equal(native.encode(text).tokens.vectors, together[i].tokens.vectors)


def test_parity_with_pytorch_is_measured_and_part_of_the_report(folder):
    parity = json.loads((folder / PARITY).read_bytes())
    assert parity["native"]["worst"]["min_cosine"] > 0.98
    assert len(parity["native"]["cases"]) == len(parity["cases"])


@pytest.mark.parametrize("change", [{"num_attention_heads": 4}, {"intermediate_size": 72}])
def test_widths_that_the_kernels_do_not_have_get_no_list(tiny_checkpoint, tmp_path, change):
    from transformers import XLMRobertaConfig, XLMRobertaModel

    config = XLMRobertaConfig.from_pretrained(tiny_checkpoint)
    config.update({"num_attention_heads": 2} | change)
    XLMRobertaModel(config, add_pooling_layer=False).save_pretrained(tiny_checkpoint)
    export_onnx(tiny_checkpoint, tmp_path / "tiny-int8", precision="int8")
    assert not (tmp_path / "tiny-int8" / LAYERS).exists()
    assert Encoder.load(tmp_path / "tiny-int8").provider == "cpu"


def test_parameters_that_are_equal_are_found_all_the_same(tiny_checkpoint, tmp_path):
    """Of which the tracer keeps one: here the biases of both heads and of every LayerNorm."""
    for name in ("sparse_linear.pt", "colbert_linear.pt"):
        state = torch.load(tiny_checkpoint / name)
        state["bias"] = torch.zeros_like(state["bias"])
        if name == "colbert_linear.pt":  # as wide as the model
            state = {"weight": torch.randn(32, 32).half(), "bias": torch.zeros(32).half()}
        torch.save(state, tiny_checkpoint / name)
    export_onnx(configure(tiny_checkpoint, num_attention_heads=2), tmp_path / "tiny-int8", precision="int8")
    ours = Encoder.load(tmp_path / "tiny-int8", "native").encode(TEXTS)
    theirs = Encoder.load(tmp_path / "tiny-int8", "cpu").encode(TEXTS)
    assert near(ours.dense, theirs.dense)
    assert near(ours.tokens.vectors, theirs.tokens.vectors)
