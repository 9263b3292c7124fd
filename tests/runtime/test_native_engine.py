"""m3edge's own engine on the real mini model in int8: near fp32, the same in every batch, chosen where it gains, and
everything that can be missing or broken."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from m3edge import Embeddings, Encoder, FormatError, ProviderError, kernels, native_engine
from m3edge.model_folder import LAYERS, WEIGHTS
from m3edge.session import open_session

if kernels.Transformer is None:
    pytest.skip("without a compiler there is no engine of our own", allow_module_level=True)

TEXTS = [
    "How do I compress a file?",
    "",
    "压缩文件的方法",
    "كيف أضغط ملفا",
    "x",
    "The quick brown fox jumps over the lazy dog. " * 20,
    "a <pad> b",
    "naïve café ﬁle Ⅷ",
]
gains_here = pytest.mark.skipif(
    kernels.instruction_set() not in native_engine._FAST, reason="`auto` takes it where it was measured to gain"
)


@pytest.fixture(scope="module")
def native(mini_int8: Path) -> Encoder:
    return Encoder.load(mini_int8, "native")


@pytest.fixture(scope="module")
def together(native: Encoder) -> Embeddings:
    return native.encode_passages(TEXTS)


def assert_equal(left: Embeddings, right: Embeddings) -> None:
    for ours, theirs in ((left.dense, right.dense), *zip(left.tokens, right.tokens, strict=True)):
        np.testing.assert_array_equal(ours, theirs)
    for ours, theirs in zip(left.sparse, right.sparse, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_encoder_says_that_it_runs(native):
    assert native.provider == "native"
    assert repr(native) == "<Encoder m3-mini, int8 on native>"


def test_vectors_are_as_near_to_fp32_as_those_of_the_graph(encoder, mini_int8, together):
    reference, graph = encoder.encode_passages(TEXTS), Encoder.load(mini_int8, "cpu").encode_passages(TEXTS)
    for part in (lambda e: e.dense, lambda e: e.tokens.vectors):
        ours, theirs = ((part(reference) * part(other)).sum(axis=1) for other in (together, graph))
        assert ours.mean() > theirs.mean() - 1e-4
        assert ours.min() > theirs.min() - 1e-3
    assert reference.sparse.ids.tolist() == together.sparse.ids.tolist()
    np.testing.assert_allclose(together.sparse.weights, reference.sparse.weights, atol=0.02)


@pytest.mark.parametrize("i", range(len(TEXTS)))
def test_a_text_is_the_same_bit_for_bit_alone_and_beside_others(native, together, i):
    assert_equal(native.encode_passages(TEXTS[i]), together[i : i + 1])


def test_one_thread_gives_what_several_give(mini_int8, together):
    assert_equal(Encoder.load(mini_int8, "native", n_threads=1).encode_passages(TEXTS), together)


def test_several_threads_get_what_one_gets(native, together):
    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(native.encode_passages, [TEXTS] * 8):
            assert_equal(result, together)


def test_results_stay_when_the_next_run_has_come(native):
    first = native.session.run(np.full((1, 9), 7), np.ones((1, 9), np.int64), ["colbert_vecs"])[0]
    before = first.copy()
    native.session.run(np.full((2, 9), 8), np.ones((2, 9), np.int64), ["colbert_vecs"])
    np.testing.assert_array_equal(first, before)


@gains_here
def test_auto_takes_it_for_an_int8_folder_and_onnxruntime_for_fp32(mini_int8, mini_fp32):
    assert open_session(mini_int8).provider == "native"
    assert open_session(mini_fp32).provider == "cpu"


def test_auto_leaves_it_alone_where_it_was_not_measured_to_gain(mini_int8, monkeypatch):
    monkeypatch.setattr(kernels, "instruction_set", lambda: "avx2")
    assert open_session(mini_int8).provider == "cpu"


def test_auto_leaves_it_alone_without_a_compiler(mini_int8, monkeypatch):
    monkeypatch.setattr(kernels, "Transformer", None)
    assert open_session(mini_int8).provider == "cpu"


@gains_here
@pytest.mark.parametrize("provider", ["auto", "native"])
def test_no_other_engine_is_needed(mini_int8, provider):
    code = (
        "import sys; sys.modules['onnxruntime'] = sys.modules['openvino'] = None\n"
        "from m3edge import Encoder\n"
        "print(Encoder.load(sys.argv[1], sys.argv[2]).encode('x').dense.shape)\n"
    )
    command = [sys.executable, "-c", code, str(mini_int8), provider]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "(1, 384)"


@gains_here
def test_onnxruntime_is_not_even_imported(mini_int8):
    code = (
        "import sys; from m3edge import Encoder, onnxruntime_engine\n"
        "Encoder.load(sys.argv[1]).encode('x')\n"
        "print('onnxruntime' in sys.modules, onnxruntime_engine.may_drive_gpus())\n"
    )
    command = [sys.executable, "-c", code, str(mini_int8)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert printed in (["False", "False"], ["True", "True"])


def test_without_a_compiler_it_says_so(mini_int8, monkeypatch):
    monkeypatch.setattr(kernels, "Transformer", None)
    with pytest.raises(ProviderError, match=r"provider 'native' needs m3edge's native kernels.*or take provider 'cpu'"):
        Encoder.load(mini_int8, "native", verify=False)


@pytest.mark.parametrize("provider", ["native:", "native:0", "native:GPU"])
def test_it_has_no_devices(mini_int8, provider):
    with pytest.raises(ValueError, match=r"provider must be 'auto' or one of .*'native'"):
        open_session(mini_int8, provider)


@pytest.fixture
def copied(mini_int8: Path, tmp_path: Path) -> Path:
    """A folder to spoil, but for its weights, which are the same file."""
    folder = tmp_path / "mini-int8"
    shutil.copytree(mini_int8, folder, ignore=shutil.ignore_patterns("*_data"))
    (folder / WEIGHTS).hardlink_to(mini_int8 / WEIGHTS)
    return folder


def test_a_folder_without_the_list_is_named_and_auto_does_without(copied, mini_fp32):
    with pytest.raises(
        FormatError, match=r"has no model\.layers\.json, .*export the model again with `--precision int8`"
    ):
        open_session(mini_fp32, "native")
    (copied / LAYERS).unlink()
    assert open_session(copied).provider == "cpu"


def spoil(layers: dict, how: str) -> None:
    first = layers["layers"][0]
    if how == "an array beyond the end":
        first["inner"]["linears"][0]["codes"]["offset"] = 1 << 40
    elif how == "a negative place":
        layers["words"]["codes"]["offset"] = -64
    elif how == "between two numbers":
        first["output_norm"]["weights"]["offset"] += 2
    elif how == "a part is missing":
        del first["output"]
    elif how == "another kind of number":
        first["output_norm"]["weights"]["dtype"] = "float64"
    elif how == "another width":
        first["output_norm"]["weights"]["shape"] = [16]
    elif how == "a huge shape":
        layers["words"]["codes"]["shape"] = [1 << 40, 1 << 40]
    elif how == "no number of heads":
        layers["n_heads"] = "twelve"
    elif how == "fewer words":
        layers["words"]["codes"]["shape"][0] -= 1


@pytest.mark.parametrize(
    "how",
    [
        "an array beyond the end",
        "a negative place",
        "between two numbers",
        "a part is missing",
        "another kind of number",
        "another width",
        "a huge shape",
        "no number of heads",
        "fewer words",
    ],
)
def test_a_list_that_does_not_fit_the_weights_is_a_damaged_folder(copied, how):
    layers = json.loads((copied / LAYERS).read_bytes())
    spoil(layers, how)
    (copied / LAYERS).write_text(json.dumps(layers))
    with pytest.raises(FormatError, match=rf"{LAYERS}: does not fit {WEIGHTS} \(.*\); export the model again"):
        open_session(copied, "native")


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"null", b"\xff"])
def test_a_list_that_is_none_is_a_damaged_folder(copied, damage):
    (copied / LAYERS).write_bytes(damage)
    with pytest.raises(FormatError, match=rf"{LAYERS}: does not fit {WEIGHTS}"):
        open_session(copied, "native")


@gains_here
def test_auto_falls_back_from_a_damaged_list_with_a_warning_that_says_why(copied):
    (copied / LAYERS).write_bytes(b"{}")
    with pytest.warns(RuntimeWarning, match=r"does not fit model\.onnx_data.*trying the next provider"):
        assert open_session(copied).provider == "cpu"
