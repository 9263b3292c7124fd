"""The dense kernels, native in every instruction set and in numpy, against a sort of all products."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3edge import _kernels_numpy as twin
from m3edge.index.scan import DenseScan


def candidates(kernels, query, vectors, allowed, k, n_threads=1):
    return kernels.dense_candidates(query, *kernels.dense_codes(vectors, n_threads), allowed, k, n_threads)


def drawn(seed, n, dim, kind):
    """Vectors of several kinds: as random as can be, many alike, close together, of very different lengths, zero."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((n, dim)).astype(np.float32)
    if kind == "alike" and n:
        vectors = vectors[rng.integers(0, max(1, n // 3), n)]
    elif kind == "close":
        vectors = 10 + vectors / 1000
    elif kind == "lengths":
        vectors *= 10.0 ** rng.integers(-20, 15, (n, 1))
    elif kind == "zero":
        vectors[::2] = 0
    query = rng.standard_normal(dim).astype(np.float32)
    return np.ascontiguousarray(vectors, np.float32), query, rng.random(n) < 0.7


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(0, 80),
    dim=st.integers(1, 150),
    k=st.integers(1, 100),
    kind=st.sampled_from(["random", "alike", "close", "lengths", "zero"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_no_row_of_the_k_best_is_left_out_and_no_score_is_above_its_bound(kernels, n, dim, k, kind, seed):
    vectors, query, allowed = drawn(seed, n, dim, kind)
    positions, bounds = candidates(kernels, query, vectors, allowed, k)
    scores = vectors.astype(np.float64) @ query.astype(np.float64)
    assert len(set(positions.tolist())) == len(positions)
    assert allowed[positions].all()
    if len(positions):
        assert (scores[positions] <= bounds).all()
        assert (vectors[positions] @ query <= bounds).all()  # in float32, in whatever order numpy adds
    best = np.sort(scores[allowed])[::-1][:k]
    np.testing.assert_array_equal(np.sort(scores[positions])[::-1][:k], best)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 60),
    st.integers(1, 40),
    st.sampled_from(["random", "alike", "zero", "lengths"]),
    st.integers(0, 2**32 - 1),
)
def test_every_implementation_finds_the_same(kernels, n, dim, kind, seed):
    vectors, query, allowed = drawn(seed, n, dim, kind)
    codes, scales, errors = kernels.dense_codes(vectors, 2)
    expected = twin.dense_codes(vectors, 1)
    np.testing.assert_array_equal(codes, expected[0])
    np.testing.assert_array_equal(scales, expected[1])
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    left_out = np.linalg.norm(vectors - codes * scales[:, None].astype(np.float64), axis=1)
    assert (errors >= left_out + dim * 1.2e-7 * lengths).all()
    assert (np.abs(errors - expected[2]) <= 1e-4 * expected[2] + 1e-6 * lengths).all()
    positions, bounds = kernels.dense_candidates(query, *expected, allowed, 5, 1)
    expected_positions, expected_bounds = twin.dense_candidates(query, *expected, allowed, 5, 1)
    np.testing.assert_array_equal(positions, expected_positions)
    np.testing.assert_allclose(bounds, expected_bounds, rtol=1e-12)


def test_the_scan_gives_the_k_best_of_many_in_order(rng):
    vectors = rng.standard_normal((5000, 96)).astype(np.float32)
    allowed = rng.random(5000) < 0.5
    scan = DenseScan(96)
    for start in range(0, 5000, 700):
        scan.add(vectors[start : start + 700])
    for query in rng.standard_normal((20, 96)).astype(np.float32):
        found = scan.top(query, 50, allowed, partial(twin.dense_scores, query, vectors))
        scores = np.where(allowed, vectors @ query, -np.inf)
        assert found.tolist() == np.argsort(-scores, kind="stable")[:50].tolist()


def test_few_rows_are_looked_at_in_full(rng):
    vectors = rng.standard_normal((20_000, 384)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    positions, _ = candidates(twin, vectors[0], vectors, np.ones(20_000, bool), 100)
    assert len(positions) < 500


def test_several_threads_find_what_one_finds(kernels, rng):
    vectors = rng.standard_normal((30_000, 300)).astype(np.float32)
    allowed = np.ones(len(vectors), bool)
    one = candidates(kernels, vectors[7], vectors, allowed, 10)
    four = candidates(kernels, vectors[7], vectors, allowed, 10, 4)
    for a, b in zip(one, four, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("step", [1, 7, 64])
@pytest.mark.parametrize("n_threads", [1, 4])
def test_the_best_are_found_where_a_sample_misleads(kernels, rng, step, n_threads):
    """A kernel may expect from some rows how much the k-th best will score. Here every step-th row is better."""
    vectors = rng.standard_normal((10_000, 64)).astype(np.float32)
    query = rng.standard_normal(64).astype(np.float32)
    vectors[::step] += query
    allowed = rng.random(10_000) < 0.9
    scores = np.where(allowed, vectors @ query, -np.inf)
    for k in (1, 100, 3000):
        positions, _ = candidates(kernels, query, vectors, allowed, k, n_threads)
        assert set(np.argsort(-scores)[:k].tolist()) <= set(positions.tolist())
        assert len(positions) < 1.3 * k + 50


def test_the_largest_products_do_not_overflow(kernels):
    vectors = np.ones((3, 70_000), np.float32)
    positions, bounds = candidates(kernels, np.ones(70_000, np.float32), vectors, np.ones(3, bool), 1)
    assert positions.tolist() == [0, 1, 2]
    assert 70_000 <= bounds[0] < 72_000


def call(kernels, **changed):
    codes, scales, errors = twin.dense_codes(np.ones((3, 8), np.float32), 1)
    arguments = {"query": np.ones(8, np.float32), "codes": codes, "scales": scales, "errors": errors}
    arguments |= {"allowed": np.ones(3, bool), "k": 1, "n_threads": 1} | changed
    return kernels.dense_candidates(**arguments)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"query": np.ones(7, np.float32)}, "query and codes must be of one width, got 7 and 8"),
        ({"query": np.full(8, np.nan, np.float32)}, "query must be finite"),
        ({"scales": np.ones(2, np.float32)}, "one for each of the 3 rows"),
        ({"allowed": np.ones(4, bool)}, "one for each of the 3 rows"),
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"n_threads": 0}, "n_threads must be at least 1, got 0"),
    ],
)
def test_wrong_values_are_refused(kernels, changed, message):
    with pytest.raises(ValueError, match=message):
        call(kernels, **changed)


@pytest.mark.parametrize(
    "changed",
    [
        {"query": np.ones(8)},
        {"codes": np.ones((8, 3), np.int8).T},
        {"codes": np.ones((3, 8), np.uint8)},
        {"allowed": np.ones(3, np.uint8)},
    ],
)
def test_wrong_types_and_layouts_are_refused_and_never_copied(kernels, changed):
    with pytest.raises(TypeError):
        call(kernels, **changed)


def test_vectors_that_are_not_finite_are_refused(kernels):
    with pytest.raises(ValueError, match="vectors must be finite"):
        kernels.dense_codes(np.array([[1, 2], [1, np.inf]], np.float32), 1)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 40), dim=st.integers(1, 150), seed=st.integers(0, 2**32 - 1))
def test_scores_are_products_and_equal_vectors_have_equal_ones(kernels, n, dim, seed):
    rng = np.random.default_rng(seed)
    vectors, query = rng.standard_normal((n, dim)).astype(np.float32), rng.standard_normal(dim).astype(np.float32)
    vectors[-1] = vectors[0]
    positions = rng.integers(0, n, rng.integers(0, 30))
    scores = kernels.dense_scores(query, vectors, positions)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, vectors[positions] @ query, atol=1e-4)
    both = kernels.dense_scores(query, vectors, np.array([n - 1, *positions, 0]))
    assert both[0] == both[-1]
    assert np.array_equal(both[1:-1], scores)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"query": np.ones(8)}, TypeError),
        ({"query": np.ones(7, np.float32)}, ValueError),
        ({"vectors": np.ones((8, 3), np.float32).T}, TypeError),
        ({"positions": np.array([0, 3])}, ValueError),
        ({"positions": np.array([-1])}, ValueError),
        ({"positions": np.array([1], np.int32)}, TypeError),
    ],
)
def test_wrong_arguments_for_scores_are_refused(kernels, changes, error):
    arguments = {"query": np.ones(8, np.float32), "vectors": np.ones((3, 8), np.float32), "positions": np.array([0, 2])}
    with pytest.raises(error):
        kernels.dense_scores(**{**arguments, **changes})
