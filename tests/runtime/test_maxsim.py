"""The MaxSim kernel, native in every instruction set and in numpy, against a loop over all pairs of tokens."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3edge import _kernels_numpy as twin
from m3edge._maxsim_numpy import pack_records, unpack_records
from m3edge.embeddings import TokenRows, offsets_of
from m3edge.scoring import maxsim

BITS = [16, 8, 4, 1]


def textbook(query, vectors, starts, counts):
    """The mean over the query's tokens of the largest product, one product at a time, in float64."""
    scores = []
    for start, count in zip(starts, counts, strict=True):
        best = [max(float(np.dot(q, v)) for v in vectors[start : start + count]) for q in query if count]
        scores.append(sum(best) / len(best) if best else 0.0)
    return np.array(scores)


def stored(vectors, bits):
    """The values that the records of these vectors stand for."""
    codes, scales = unpack_records(pack_records(vectors, bits), bits, vectors.shape[1])
    return codes.astype(np.float64) * scales[:, None]


def as_multiplied(query, bits):
    """The values that the kernel multiplies for a query: those of its 8-bit codes, or its own."""
    if bits == 16:
        return query.astype(np.float64)
    codes, scales = twin.quantize_rows(query, 127)
    return codes * scales[:, None].astype(np.float64)


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(0, 30), max_size=6),
    n_query=st.integers(0, 40),
    dim=st.integers(1, 150),
    bits=st.sampled_from(BITS),
    zero_rows=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_maxsim_over_records_equals_the_textbook(kernels, counts, n_query, dim, bits, zero_rows, seed):
    rng = np.random.default_rng(seed)
    query = rng.standard_normal((n_query, dim)).astype(np.float32)
    vectors = rng.standard_normal((sum(counts), dim)).astype(np.float32)
    if zero_rows:
        query[::2], vectors[::2] = 0, 0
    order = rng.integers(0, max(1, len(counts)), 2 * len(counts))  # in any order, some twice
    starts, counts = offsets_of(counts)[:-1][order], np.array(counts, np.int64)[order]
    expected = textbook(as_multiplied(query, bits), stored(vectors, bits), starts, counts)
    got = kernels.maxsim_records(query, pack_records(vectors, bits), bits, starts, counts, 3)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dim", [100, 384])
@pytest.mark.parametrize("n_query", [1, 16, 17, 33])
def test_every_implementation_gives_the_same_numbers(kernels, rng, n_query, dim, bits):
    query = rng.standard_normal((n_query, dim)).astype(np.float32)
    counts = np.array([1, 15, 16, 17, 31, 32, 33, 127, 128, 129, 161, 300])  # round what kernels take at a time
    offsets = offsets_of(counts)
    records = pack_records(rng.standard_normal((offsets[-1], dim)).astype(np.float32), bits)
    expected = twin.maxsim_records(query, records, bits, offsets[:-1], counts, 1)
    got = kernels.maxsim_records(query, records, bits, offsets[:-1], counts, 1)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", [16, 8])
def test_large_work_on_several_threads_gives_what_one_thread_gives(kernels, rng, bits):
    query = rng.standard_normal((32, 256)).astype(np.float32)
    records = pack_records(rng.standard_normal((6000, 256)).astype(np.float32), bits)
    starts, counts = np.arange(0, 6000, 40), np.full(150, 40)
    one = kernels.maxsim_records(query, records, bits, starts, counts, 1)
    results = []
    callers = [
        threading.Thread(target=lambda: results.append(kernels.maxsim_records(query, records, bits, starts, counts, 4)))
        for _ in range(4)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert [result.tolist() for result in results] == [one.tolist()] * 4


@pytest.mark.parametrize(
    ("dim", "bits", "error"), [(384, 16, 2e-5), (384, 8, 0.003), (1024, 8, 0.002), (384, 4, 0.04), (384, 1, 0.3)]
)
def test_quantized_scores_are_near_those_of_the_vectors(kernels, rng, dim, bits, error):
    unit = rng.standard_normal((320, dim)).astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    query, vectors = unit[:20] + 0.02 * unit[20:40], unit[20:]  # some products large, as a relevant passage has them
    offsets = np.arange(0, 301, 30)
    exact = maxsim(query, TokenRows(vectors, offsets))
    records = pack_records(vectors, bits)
    got = kernels.maxsim_records(query, records, bits, offsets[:-1], np.diff(offsets), 1)
    np.testing.assert_allclose(got, exact, atol=error)


def test_the_largest_products_do_not_overflow(kernels):
    query, vectors = np.full((1, 4096), -1, np.float32), np.ones((1, 4096), np.float32)
    records = pack_records(vectors, 8)
    got = kernels.maxsim_records(query, records, 8, np.array([0]), np.array([1]), 1)
    np.testing.assert_allclose(got, [-4096], rtol=1e-6)


def test_rows_too_small_to_scale_count_as_zero(kernels):
    tiny = np.full((2, 8), 1e-39, np.float32)
    records = pack_records(tiny, 8)
    assert kernels.maxsim_records(tiny, records, 8, np.array([0]), np.array([2]), 1).tolist() == [0]


@pytest.mark.parametrize("column", [0, 32])  # inside a register, and in what remains behind the last whole one
def test_every_half_precision_number_is_read_as_it_is(kernels, column):
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)]  # from the smallest subnormal to the largest
    records = np.repeat(halves[:, None], 33, axis=1).view(np.uint8)
    starts, counts = np.arange(len(halves)), np.ones(len(halves), np.int64)
    got = kernels.maxsim_records(np.eye(1, 33, column, np.float32), records, 16, starts, counts, 1)
    np.testing.assert_array_equal(got, halves.astype(np.float32))


def test_a_read_only_mapped_file_is_scored_as_it_lies(kernels, rng, tmp_path):
    vectors = rng.standard_normal((10, 16)).astype(np.float32)
    records = pack_records(vectors, 8)
    (tmp_path / "records").write_bytes(records.tobytes())
    mapped = np.memmap(tmp_path / "records", np.uint8, "r", shape=records.shape)
    arguments = (8, np.array([0]), np.array([10]), 1)
    assert kernels.maxsim_records(vectors, mapped, *arguments) == kernels.maxsim_records(vectors, records, *arguments)


QUERY = np.ones((2, 8), np.float32)
RECORDS = pack_records(np.ones((4, 8), np.float32), 8)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"query": QUERY.astype(np.float64)}, TypeError, "query"),
        ({"query": QUERY[0]}, TypeError, "query"),
        ({"query": np.asfortranarray(QUERY)}, TypeError, "query"),
        ({"records": RECORDS[:, ::2]}, TypeError, "records"),
        ({"records": RECORDS.view(np.int8)}, TypeError, "records"),
        ({"starts": np.array([0], np.int32)}, TypeError, "starts"),
        ({"records": RECORDS[:, :8].copy()}, ValueError, "records must be 12 bytes wide for 8 dimensions in 8 bits"),
        ({"bits": 2}, ValueError, "bits must be 16, 8, 4 or 1, got 2"),
        ({"counts": np.array([1, 1])}, ValueError, "starts and counts must be of one length, got 1 and 2"),
        ({"starts": np.array([-1])}, ValueError, "must lie within the 4 records, got start -1, count 4"),
        ({"starts": np.array([1])}, ValueError, "must lie within the 4 records, got start 1, count 4"),
        ({"counts": np.array([-1])}, ValueError, "must lie within the 4 records, got start 0, count -1"),
        ({"starts": np.array([2**63 - 1])}, ValueError, "must lie within the 4 records"),
        ({"query": QUERY * np.nan}, ValueError, "query must be finite"),
        ({"query": QUERY * np.inf}, ValueError, "query must be finite"),
        ({"n_threads": 0}, ValueError, "n_threads must be at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_refused(kernels, changed, error, message):
    good = {
        "query": QUERY,
        "records": RECORDS,
        "bits": 8,
        "starts": np.array([0]),
        "counts": np.array([4]),
        "n_threads": 1,
    }
    with pytest.raises(error, match=message):
        kernels.maxsim_records(**{**good, **changed})
