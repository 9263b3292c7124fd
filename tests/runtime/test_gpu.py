"""The mini model on an NVIDIA GPU: what the CPU computes, and really on the GPU. Run with `pytest -m gpu`."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from m3edge import Encoder

pytestmark = pytest.mark.gpu

TEXTS = [
    "How do I compress a file?",
    "",
    "压缩文件的方法",
    "The quick brown fox jumps over the lazy dog. " * 20,
    "naïve ﬁle",
]


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def on_gpu(request, mini_models):
    return Encoder.load(mini_models[request.param], "cuda")


def test_cuda_is_what_runs(on_gpu):
    assert on_gpu.provider == "cuda"


def test_vectors_are_those_of_the_cpu(on_gpu, encoder):
    ours, theirs = on_gpu.encode_passages(TEXTS), encoder.encode_passages(TEXTS)
    assert (ours.dense * theirs.dense).sum(axis=1).min() >= 0.9995
    assert (ours.tokens.vectors * theirs.tokens.vectors).sum(axis=1).min() >= 0.999


def test_a_text_does_not_depend_on_its_batch(on_gpu):
    together = on_gpu.encode_passages(TEXTS, batch_tokens=100_000)
    for i, text in enumerate(TEXTS):
        assert (together.dense[i] * on_gpu.encode_passages(text).dense[0]).sum() >= 0.9999


def test_several_threads_get_what_one_gets(on_gpu):
    expected = on_gpu.encode_passages(TEXTS).dense
    with ThreadPoolExecutor(4) as pool:
        for dense in pool.map(lambda _: on_gpu.encode_passages(TEXTS).dense, range(8)):
            assert (dense * expected).sum(axis=1).min() >= 0.9999
