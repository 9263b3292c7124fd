"""OpenVINO as the engine: what the encoder gives, what it says of itself, and everything that can be missing or broken.

On the real mini model's static int8 graph, beside onnxruntime on its fp32 graph.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from openvino_results import assert_same
from sample_texts import TEXTS

from m3edge import Encoder, FormatError, ProviderError, native_engine, openvino_engine, session
from m3edge.cpu import multiplies_bytes
from m3edge.model_folder import STATIC_GRAPH
from m3edge.session import PROVIDERS, open_session

openvino = pytest.importorskip("openvino", reason="the engine under test is not installed")
onnx = pytest.importorskip("onnx", reason="a test spoils a graph with it")
has_vnni = pytest.mark.skipif(not multiplies_bytes(), reason="`auto` takes OpenVINO on x86 with VNNI only")


def test_the_encoder_says_that_openvino_runs(openvino_encoder):
    assert openvino_encoder.provider == "openvino"
    assert "openvino" in PROVIDERS


def test_vectors_are_near_those_of_fp32(encoder, together):
    reference = encoder.encode_passages(TEXTS)
    dense = (reference.dense * together.dense).sum(axis=1)
    tokens = (reference.tokens.vectors * together.tokens.vectors).sum(axis=1)
    assert dense.mean() >= 0.998
    assert dense.min() >= 0.995
    assert tokens.mean() >= 0.995
    assert reference.sparse.ids.tolist() == together.sparse.ids.tolist()


@pytest.mark.parametrize("i", range(len(TEXTS)))
def test_a_text_does_not_depend_on_what_else_is_in_its_batch(openvino_encoder, together, i):
    assert_same(together[i], openvino_encoder.encode_passages(TEXTS[i]))
    crowd = openvino_encoder.encode_passages(TEXTS, batch_tokens=100_000)
    assert_same(together[i], crowd[i])


def test_several_threads_get_what_one_gets(openvino_encoder, together):
    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(lambda _: openvino_encoder.encode_passages(TEXTS), range(8)):
            assert_same(together, result)


def test_the_throughput_hint_gives_the_same_to_many_threads(mini_openvino, together):
    encoder = Encoder.load(mini_openvino, "openvino", verify=False, n_threads=2, hint="throughput")
    assert encoder.session._compiled.get_property("NUM_STREAMS") > 1
    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(lambda _: encoder.encode_passages(TEXTS), range(4)):
            assert_same(together, result)


def test_an_unknown_hint_is_refused(mini_openvino):
    with pytest.raises(ValueError, match=r"hint must be one of \('latency', 'throughput'\), got 'speed'"):
        Encoder.load(mini_openvino, "openvino", verify=False, hint="speed")


def test_new_lengths_do_not_compile_anew(openvino_encoder, monkeypatch):
    monkeypatch.setattr(openvino_engine, "_compile", None)
    for n_tokens in (3, 17, 40):
        assert openvino_encoder.session.run(*batch(n_tokens, seed=0), ["colbert_vecs"])[0].shape == (2, n_tokens, 384)


def test_the_number_of_threads_is_what_was_asked_for(mini_openvino):
    encoder = Encoder.load(mini_openvino, "openvino", verify=False, n_threads=1)
    assert encoder.session._compiled.get_property("INFERENCE_NUM_THREADS") == 1


def test_results_stay_when_the_next_run_has_come(openvino_encoder):
    first = openvino_encoder.session.run(*batch(5, seed=0), ["dense_vecs"])[0]
    kept = first.copy()
    openvino_encoder.session.run(*batch(5, seed=1), ["dense_vecs"])
    np.testing.assert_array_equal(first, kept)


def batch(n_tokens: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    ids = np.random.default_rng(seed).integers(4, 200_000, (2, n_tokens))
    return ids, np.ones_like(ids)


@pytest.fixture
def without_native(monkeypatch):
    """`auto` on a machine where m3edge's own engine is not the best."""
    monkeypatch.setattr(native_engine, "gains", lambda folder: False)


@has_vnni
def test_auto_takes_openvino_for_an_int8_folder_and_onnxruntime_for_fp32(without_native, mini_openvino, mini_fp32):
    assert open_session(mini_openvino).provider == "openvino"
    assert open_session(mini_fp32).provider == "cpu"


@has_vnni
def test_auto_falls_back_with_a_warning_that_says_why(without_native, mini_openvino, monkeypatch):
    monkeypatch.setattr(openvino_engine, "_OLDEST", (9999, 1))
    with pytest.warns(RuntimeWarning, match="too old, m3edge needs 9999.1.*trying the next provider"):
        fallen_back = Encoder.load(mini_openvino)
    assert fallen_back.provider == "cpu"


def test_auto_leaves_openvino_alone_on_a_cpu_where_it_was_not_measured_to_gain(
    without_native, mini_openvino, monkeypatch
):
    monkeypatch.setattr(session, "_openvino_gains", lambda folder: False)
    assert open_session(mini_openvino).provider == "cpu"


def test_a_missing_openvino_names_the_pip_command(mini_openvino, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ImportError, match=r"pip install 'm3edge\[openvino\]'"):
        Encoder.load(mini_openvino, "openvino")


def test_an_openvino_that_is_too_old_is_named(mini_openvino, monkeypatch):
    monkeypatch.setattr(openvino, "__version__", "2023.3.0-1-releases/2023/3")
    with pytest.raises(ProviderError, match=r"OpenVINO 2023\.3\.0.* is too old, m3edge needs 2026\.4"):
        Encoder.load(mini_openvino, "openvino")


def test_a_device_that_is_not_here_is_named_with_those_that_are(mini_openvino):
    with pytest.raises(ProviderError, match=r"finds no device 'NPU' here, only \['CPU'"):
        Encoder.load(mini_openvino, "openvino:NPU")


def test_a_quantized_folder_without_a_static_graph_is_refused(mini_int8):
    with pytest.raises(FormatError, match=r"no model.static.onnx, which OpenVINO needs of a model in int8; .*--openv"):
        Encoder.load(mini_int8, "openvino", verify=False)


# fp32 on OpenVINO.


def test_an_fp32_folder_gives_what_onnxruntime_gives(mini_fp32, encoder):
    on_openvino = Encoder.load(mini_fp32, "openvino", verify=False)
    assert on_openvino.provider == "openvino"
    assert_same(on_openvino.encode_passages(TEXTS), encoder.encode_passages(TEXTS), cosine=0.99999)


@pytest.fixture(scope="module")
def tiny_fp32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT with 61 positions, no multiple of what lengths are padded to."""
    torch = pytest.importorskip("torch", reason="makes a model")
    transformers = pytest.importorskip("transformers", reason="makes a model")
    from m3edge_export.export import export_onnx
    from tokenizers import Tokenizer, models, processors

    source = tmp_path_factory.mktemp("tiny") / "tiny"
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz"]
    tokenizer = Tokenizer(models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], unk_id=3))
    tokenizer.add_special_tokens(pieces[:4])
    ends = [("<s>", 0), ("</s>", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(pieces), hidden_size=384, num_hidden_layers=2, num_attention_heads=12, intermediate_size=1536,
        max_position_embeddings=61, type_vocab_size=1, pad_token_id=1, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(source)
    tokenizer.save(str(source / "tokenizer.json"))
    for name, outputs in (("sparse_linear.pt", 1), ("colbert_linear.pt", 384)):
        torch.save(torch.nn.Linear(384, outputs).state_dict(), source / name)
    export_onnx(source, source.with_name("tiny-fp32"), precision="fp32")
    return source.with_name("tiny-fp32")


def test_the_first_run_of_every_shape_is_right(tiny_fp32, rng):
    outputs = ["dense_vecs", "token_weights", "colbert_vecs"]
    on_cpu, on_openvino = open_session(tiny_fp32, "cpu"), open_session(tiny_fp32, "openvino")
    for n_texts, length, padded in itertools.product((1, 2, 5), range(8, 57, 8), (False, True)):
        ids = rng.integers(4, 30, (n_texts, length))
        mask = np.ones_like(ids)
        mask[0, length // 2 :] = not padded
        for ours, theirs in zip(on_openvino.run(ids, mask, outputs), on_cpu.run(ids, mask, outputs), strict=True):
            held = slice(None) if ours.shape == (n_texts, 384) else mask.astype(bool)
            np.testing.assert_allclose(ours[held], theirs[held], atol=1e-4)


def test_no_branch_is_left_for_openvino_to_choose(mini_fp32, monkeypatch):
    kinds: set[str] = set()

    class Core(openvino.Core):
        def compile_model(self, model, name, properties):
            kinds.update(operator.get_type_name() for operator in model.get_ops())
            raise RuntimeError("seen enough")

    monkeypatch.setattr(openvino, "Core", Core)
    with pytest.raises(ProviderError, match="seen enough"):
        open_session(mini_fp32, "openvino")
    assert "Softmax" in kinds or "ScaledDotProductAttention" in kinds
    assert "If" not in kinds


def test_nothing_is_padded_beyond_the_models_positions(tiny_fp32):
    text = "ab" * 100
    expected = Encoder.load(tiny_fp32, "cpu").encode(text)
    assert len(expected.tokens.vectors) == 61 - 1
    assert_same(Encoder.load(tiny_fp32, "openvino").encode(text), expected)


@pytest.mark.parametrize("device", ["CPU", "bf16"])
def test_only_who_asks_for_bfloat16_gets_it(monkeypatch, mini_fp32, device):
    """On a CPU that has it OpenVINO would take it of itself."""
    compiled: dict[str, object] = {}

    class Core(openvino.Core):
        def get_property(self, name, key):
            return ["FP32", "BF16"] if key == "OPTIMIZATION_CAPABILITIES" else super().get_property(name, key)

        def compile_model(self, model, name, properties):
            compiled.update(properties)
            raise RuntimeError("seen enough")

    monkeypatch.setattr(openvino, "Core", Core)
    with pytest.raises(ProviderError, match="seen enough"):
        Encoder.load(mini_fp32, f"openvino:{device}", verify=False)
    assert compiled["INFERENCE_PRECISION_HINT"] == {"CPU": "f32", "bf16": "bf16"}[device]


@pytest.mark.skipif(not openvino_engine.has_bfloat16(openvino.Core()), reason="this CPU has no bfloat16")
@pytest.mark.parametrize("folder", ["mini_fp32", "mini_openvino"])
def test_bfloat16_stays_near_to_float32(request, folder):
    texts = ["How do I compress a file?", "绿茶", "Green tea is made from unoxidised leaves.", ""]
    folder = request.getfixturevalue(folder)
    expected = Encoder.load(folder, "openvino").encode_passages(texts)
    encoder = Encoder.load(folder, "openvino:bf16")
    assert encoder.provider == "openvino:bf16"
    got = encoder.encode_passages(texts)
    assert (got.dense * expected.dense).sum(1).min() > 0.999
    assert (got.tokens.vectors * expected.tokens.vectors).sum(1).min() > 0.98


def test_a_cpu_without_bfloat16_says_so(mini_fp32, monkeypatch):
    class Core(openvino.Core):
        def get_property(self, name, key):
            return ["FP32", "INT8"] if key == "OPTIMIZATION_CAPABILITIES" else super().get_property(name, key)

    monkeypatch.setattr(openvino, "Core", Core)
    with pytest.raises(ProviderError, match="no bfloat16 products; take provider 'openvino'"):
        Encoder.load(mini_fp32, "openvino:bf16", verify=False)


def test_a_static_graph_that_is_none_is_a_damaged_folder(copied):
    (copied / STATIC_GRAPH).write_bytes(b"no graph at all")
    with pytest.raises(FormatError, match="altered|has 15 bytes"):
        Encoder.load(copied, "openvino")
    with pytest.raises(FormatError, match="OpenVINO cannot read it"):
        open_session(copied, "openvino")


def test_an_operator_that_openvino_does_not_know_is_named(copied):
    graph = onnx.load(copied / STATIC_GRAPH, load_external_data=False)
    next(node for node in graph.graph.node if node.op_type == "Softmax").op_type = "Softermax"
    onnx.save(graph, copied / STATIC_GRAPH)
    with pytest.raises(FormatError, match=r"OpenVINO cannot read it(.|\n)*Softermax(.|\n)*export the model again"):
        open_session(copied, "openvino")


@has_vnni
def test_auto_falls_back_from_a_graph_that_openvino_does_not_read(without_native, copied):
    (copied / STATIC_GRAPH).write_bytes(b"no graph at all")
    with pytest.warns(RuntimeWarning, match="OpenVINO cannot read it(.|\n)*trying the next provider"):
        assert open_session(copied).provider == "cpu"


def test_onnxruntime_is_not_needed(mini_openvino):
    code = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from m3edge import Encoder\n"
        "print(Encoder.load(sys.argv[1], 'openvino').encode('x').dense.shape)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(mini_openvino)], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "(1, 384)"


def test_the_converter_and_its_reports_are_left_out_until_somebody_asks(tmp_path):
    """OpenVINO's package would import both, and tell a server of it."""
    value = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("Neg", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [value("x", 1, [2])], [value("y", 1, [2])])
    onnx.save(onnx.helper.make_model(graph, ir_version=10), tmp_path / "model.onnx")
    code = (
        "import sys\n"
        "from m3edge.openvino_engine import import_openvino\n"
        "openvino = import_openvino()\n"
        "assert openvino is import_openvino()\n"
        "print(sorted(name for name in sys.modules if name.startswith(('openvino.tools.', 'openvino_telemetry'))))\n"
        "print([str(output.any_name) for output in openvino.convert_model(sys.argv[1]).outputs])\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model.onnx")], capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines() == ["[]", "['y']"]
