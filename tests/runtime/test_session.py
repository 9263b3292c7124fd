"""What a session decides about the CPU it runs on, tried on CPUs that are not at hand."""

import sys
import time
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest

import m3edge
from m3edge import onnxruntime_engine
from m3edge.arguments import checked_integer
from m3edge.cpu import available_cpus, multiplies_bytes, products_saturate
from m3edge.model_folder import DENSE_OUTPUT, SPARSE_OUTPUT, TOKENS_OUTPUT
from m3edge.onnxruntime_engine import OnnxruntimeSession, bucket, session_options
from m3edge.session import open_session


@pytest.mark.parametrize(
    ("machine", "flags", "saturates"),
    [
        ("x86_64", "fpu sse2 avx2", True),
        ("AMD64", "fpu avx2 avx512f avx512bw", True),
        ("x86_64", "fpu avx2 avx512_vnni", False),
        ("x86_64", "fpu avx2 avx_vnni", False),
        ("aarch64", "", False),
        ("arm64", "", False),
    ],
)
def test_only_x86_without_vnni_saturates(tmp_path, machine, flags, saturates):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    assert products_saturate(machine, tmp_path / "cpuinfo") is saturates


def test_an_x86_that_says_nothing_of_itself_is_taken_to_saturate(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "m3edge._native", None)
    monkeypatch.delattr(m3edge, "_native", raising=False)
    assert products_saturate("x86_64", tmp_path / "nothing")
    assert not multiplies_bytes("x86_64", tmp_path / "nothing")


@pytest.mark.parametrize(("best", "vnni"), [("avx512-vnni", True), ("avx-vnni", True), ("avx2", False)])
def test_where_the_system_does_not_tell_the_native_kernels_do(tmp_path, monkeypatch, best, vnni):
    native = SimpleNamespace(instruction_sets=lambda: [best, "plain"])
    monkeypatch.setitem(sys.modules, "m3edge._native", native)
    monkeypatch.setattr(m3edge, "_native", native, raising=False)
    assert multiplies_bytes("AMD64", tmp_path / "nothing") is vnni
    assert products_saturate("AMD64", tmp_path / "nothing") is not vnni


@pytest.mark.parametrize(("machine", "gains"), [("x86_64", True), ("aarch64", False)])
def test_only_an_x86_with_vnni_is_known_to_gain_from_openvino(tmp_path, machine, gains):
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu avx2 avx512_vnni\n")
    assert multiplies_bytes(machine, tmp_path / "cpuinfo") is gains


@pytest.mark.parametrize("saturates", [True, False])
def test_weights_are_turned_unsigned_only_where_products_saturate(monkeypatch, saturates):
    monkeypatch.setattr(onnxruntime_engine, "products_saturate", lambda: saturates)
    options = session_options(onnxruntime, 1)
    if saturates:
        assert options.get_session_config_entry("session.x64quantprecision") == "1"
    else:
        with pytest.raises(RuntimeError):  # onnxruntime's answer for an entry that was never made
            options.get_session_config_entry("session.x64quantprecision")


@pytest.mark.parametrize(("version", "can"), [("1.31.1", True), ("1.26.0", True), ("1.25.1", False), ("2.0.0", True)])
def test_threads_spin_only_where_onnxruntime_can_be_told_for_how_long(version, can):
    release = SimpleNamespace(__version__=version, SessionOptions=onnxruntime.SessionOptions)
    entry = session_options(release, 2).get_session_config_entry
    key, value = ("spin_duration_us", "100") if can else ("allow_spinning", "0")
    assert entry(f"session.intra_op.{key}") == value


def test_after_a_batch_no_thread_keeps_the_cpu(mini_fp32):
    on_cpu = open_session(mini_fp32, "cpu", n_threads=2)
    for _ in range(3):
        on_cpu.run(np.full((1, 64), 5), np.ones((1, 64), np.int64), [DENSE_OUTPUT])
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.03, "a thread that waits for up to half a second is still spinning"


@pytest.mark.parametrize(("provider", "fused"), [("cpu", False), ("cuda", True)])
def test_the_bias_goes_into_gelu_only_where_that_is_faster(tmp_path, provider, fused):
    onnx = pytest.importorskip("onnx", reason="makes a graph")
    text = """<ir_version: 10, opset_import: ["" : 20]>
        g (float[N, 4] x) => (float[N, 4] y) <float[4] bias = {1, 2, 3, 4}> { sum = Add(x, bias) y = Gelu(sum) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "gelu.onnx")
    options = session_options(onnxruntime, 1, provider)
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(str(tmp_path / "gelu.onnx"), options, providers=["CPUExecutionProvider"])
    operators = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert operators == (["BiasGelu"] if fused else ["Add", "Gelu"])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"provider": None}, TypeError, "provider must be a string such as 'auto', got NoneType"),
        ({"provider": "gpu"}, ValueError, "provider must be 'auto' or one of .* got 'gpu'"),
        ({"n_threads": 1.5}, TypeError, "n_threads must be an integer, got float"),
        ({"n_threads": True}, TypeError, "n_threads must be an integer, got bool"),
        ({"n_threads": 0}, ValueError, "n_threads must be at least 1, got 0"),
        ({"n_threads": 2**31}, ValueError, "n_threads must be at most 2147483647, got 2147483648"),
        ({"hint": None}, ValueError, "hint must be one of .* got None"),
    ],
)
def test_wrong_arguments_say_what_was_expected_before_a_graph_is_looked_for(tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        open_session(tmp_path / "nothing", **arguments)


@pytest.mark.parametrize("value", [3, np.int8(3), np.uint64(3), np.array(3)])
def test_an_integer_may_be_numpys_and_becomes_pythons(value):
    number = checked_integer("n", value)
    assert (number, type(number)) == (3, int)


def test_at_least_one_cpu_is_available():
    assert available_cpus() >= 1


def test_buckets_are_few_and_leave_at_most_a_third_empty():
    buckets = {bucket(size) for size in range(1, 8193)}
    assert len(buckets) == 26
    assert all(size <= bucket(size) < 1.5 * size + 1 for size in range(1, 8193))
    assert all(bucket(size) == size for size in buckets)


def test_on_a_gpu_batches_come_in_few_shapes_and_with_the_same_results(mini_fp32, rng):
    on_cpu = open_session(mini_fp32, "cpu")
    shapes = set()

    class Gpu:
        """Stands for a session on a GPU: the same graph, and what it was given to run."""

        def run(self, outputs, inputs):
            shapes.add(inputs["input_ids"].shape)
            return on_cpu.run(inputs["input_ids"], inputs["attention_mask"], outputs)

    outputs = [DENSE_OUTPUT, SPARSE_OUTPUT, TOKENS_OUTPUT]
    on_gpu = OnnxruntimeSession(Gpu(), "cuda", 1)
    for n_texts, length in ((1, 9), (3, 17), (5, 21), (6, 24)):
        ids = rng.integers(5, 200_000, (n_texts, length))
        mask = np.tri(n_texts, length, length - n_texts, dtype=np.int64)
        for ours, theirs in zip(on_gpu.run(ids, mask, outputs), on_cpu.run(ids, mask, outputs), strict=True):
            assert ours.shape == theirs.shape
            held = mask.astype(bool) if ours.ndim > 1 and ours.shape[1] == length else slice(None)
            np.testing.assert_allclose(ours[held], theirs[held], atol=1e-5)
    assert shapes == {(1, 12), (3, 24), (6, 24)}


def test_on_a_gpu_nothing_is_padded_beyond_the_longest_text():
    lengths = []

    class Gpu:
        def run(self, outputs, inputs):
            lengths.append(inputs["input_ids"].shape[1])
            return [np.zeros((*inputs["input_ids"].shape, 4), np.float32)]

    on_gpu = OnnxruntimeSession(Gpu(), "cuda", 1, max_length=61)
    for length in (20, 50, 61):
        ids = np.ones((1, length), np.int64)
        assert on_gpu.run(ids, ids, [TOKENS_OUTPUT])[0].shape == (1, length, 4)
    assert lengths == [24, 61, 61]
