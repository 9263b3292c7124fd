"""A whole hybrid search in one call, native in every instruction set and in numpy, and what it refuses."""

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3edge import _kernels_numpy as twin
from m3edge._graph_numpy import NO_NODE
from m3edge._hybrid_numpy import HybridScores
from m3edge._maxsim_numpy import pack_records
from m3edge.embeddings import SparseRows, offsets_of
from m3edge.index.posting_blocks import block_of_rows
from m3edge.scoring import Weights, hybrid_scores

DIM, VOCABULARY = 16, 30


def drawn(seed, n, bits=8):
    """Documents with all parts, a graph that links everybody with neighbours by number, and a query: what
    hybrid_scores takes, by name, but blocks and links as arrays."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((n, DIM)).astype(np.float32)
    codes, scales, _ = twin.dense_codes(vectors, 1)
    lengths = rng.integers(1, 6, n)
    tokens = [np.sort(rng.choice(VOCABULARY, length, replace=False)) for length in lengths]
    rows = SparseRows(
        np.concatenate([*tokens, []]).astype(np.int64),
        rng.uniform(0.02, 0.3, lengths.sum()).astype(np.float32),
        rng.integers(1, 4, lengths.sum()).astype(np.int32),
        offsets_of(lengths.tolist()),
    )
    half = n // 2
    blocks = [block_of_rows(rows, *part, 0) for part in ((0, half), (half, n)) if part[0] < part[1]]
    counts = rng.integers(0, 5, n)
    starts = np.cumsum(counts) - counts
    records = pack_records(rng.standard_normal((int(counts.sum()), DIM)).astype(np.float32), bits)
    crc32s = np.array([zlib.crc32(records[s : s + c]) for s, c in zip(starts, counts, strict=True)], np.int64)
    crc32s[rng.random(n) < 0.1] = -1  # none
    crc32s[rng.random(n) < 0.1] ^= 4
    near = (np.arange(n)[:, None] + np.array([1, 2, 5, n - 1])) % n
    return rng, {
        "allowed": rng.random(n) < 0.8,
        "dense": (rng.standard_normal(DIM).astype(np.float32), vectors),
        "graph": (near.astype(np.uint32), codes, scales, 5, 8, 10**6),
        "lexical": (
            blocks,
            rng.choice(VOCABULARY, 4, replace=False).astype(np.uint32),
            rng.integers(1, 2**28, 4).astype(np.uint32),
            None,
            None,
            6,
            2.0**-31,
        ),
        "tokens": (
            rng.standard_normal((3, DIM)).astype(np.float32),
            records,
            bits,
            starts.astype(np.int64),
            counts.astype(np.int64),
            crc32s,
            rng.random(n) < 0.5,
        ),
        "nearest": None,
    }


def asked(kernels, parts, n_threads=1):
    """hybrid_scores of one implementation, with its own blocks and links."""
    parts = dict(parts)
    if parts["graph"] is not None:
        ground, *rest = parts["graph"]
        ends = np.zeros(len(ground) + 1, np.uint32), np.empty((0, 4), np.uint32), 0, 0
        parts["graph"] = (kernels.GraphLinks(ground, *ends), *rest)
    if parts["lexical"] is not None:
        blocks, *rest = parts["lexical"]
        parts["lexical"] = ([kernels.PostingBlock(*block) for block in blocks], *rest)
    return kernels.hybrid_scores(**parts, n_threads=n_threads)


def assert_same(found, expected):
    assert (found is None) == (expected is None)
    if found is None:
        return
    found, expected = HybridScores(*found), HybridScores(*expected)
    assert found.positions.dtype == np.int64
    assert found.positions.tolist() == expected.positions.tolist()
    assert (found.compared, found.damaged) == (expected.compared, expected.damaged)
    for part, other, seconds in zip(found[1:4], expected[1:4], found.seconds, strict=True):
        assert (part is None) == (other is None)
        assert seconds > 0 or part is None or len(part) == 0
        assert seconds == 0 or part is not None
        if part is not None:
            assert part.dtype == np.float32
            np.testing.assert_allclose(part, other, rtol=1e-5, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 40),
    missing=st.sets(st.sampled_from(["graph", "lexical", "tokens", "dense"])),
    is_given=st.booleans(),
    bits=st.sampled_from([8, 16]),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_implementation_puts_forward_and_scores_the_same(kernels, n, missing, is_given, bits, seed):
    rng, parts = drawn(seed, n, bits)
    if "dense" in missing or is_given:
        missing = missing | {"graph"}
    parts |= dict.fromkeys(missing)
    if is_given:
        parts["nearest"] = rng.integers(0, n, rng.integers(0, n + 1))
    assert_same(asked(kernels, parts), asked(twin, parts))


@pytest.mark.parametrize("n_threads", [1, 2, 5])
@pytest.mark.parametrize("finds", ["graph", "caller"])
def test_many_documents_on_several_threads_get_the_scores_of_one(kernels, n_threads, finds):
    rng, parts = drawn(0, 3000)
    parts["lexical"] = (*parts["lexical"][:5], 200, 1e-9)
    parts["graph"] = (*parts["graph"][:3], 100, 120, 10**6)
    if finds == "caller":
        parts |= {"graph": None, "nearest": rng.integers(0, 3000, 150)}
    expected = asked(twin, parts)
    assert len(expected[0]) > 200
    for _ in range(20):
        assert_same(asked(kernels, parts, n_threads), expected)


def test_scores_are_those_of_the_parts_own_kernels(kernels):
    _, parts = drawn(1, 300)
    positions, dense, lexical_scores, tokens, compared, damaged, _ = asked(kernels, parts)
    query, vectors = parts["dense"]
    assert dense.tolist() == kernels.dense_scores(query, vectors, positions).tolist()
    blocks, *lexical, k, scale = parts["lexical"]
    blocks = [kernels.PostingBlock(*block) for block in blocks]
    sums = kernels.score_postings(blocks, *lexical, positions)
    assert lexical_scores.tolist() == (sums * scale).astype(np.float32).tolist()
    best = kernels.top_postings(blocks, *lexical, parts["allowed"], k, 1)[0]
    assert set(best.tolist()) <= set(positions.tolist())
    assert parts["allowed"][positions].all()
    query, records, bits, starts, counts, _, sound = parts["tokens"]
    scores = kernels.maxsim_records(query, records, bits, starts[positions], counts[positions], 1)
    np.testing.assert_array_equal(tokens, np.where(np.isin(positions, damaged), np.nan, scores))
    assert sorted([*compared, *damaged]) == positions[~sound[positions]].tolist()


def test_only_tokens_that_were_not_compared_before_are_compared_with_their_checksums(kernels):
    _, parts = drawn(5, 200)
    every = parts | {"nearest": np.arange(200), "graph": None}
    query, records, bits, starts, counts, crc32s, _ = parts["tokens"]
    right = np.array([zlib.crc32(records[s : s + c]) for s, c in zip(starts, counts, strict=True)], np.int64)
    is_damaged = (crc32s >= 0) & (crc32s != right)
    assert 0 < is_damaged.sum() < 100
    for sound in (np.zeros(200, bool), np.arange(200) % 2 == 0, np.ones(200, bool)):
        *_, tokens, compared, damaged, _ = asked(kernels, every | changed(parts, "tokens", 6, sound))
        assert compared == np.flatnonzero(~sound & ~is_damaged).tolist()
        assert damaged == np.flatnonzero(~sound & is_damaged).tolist()
        assert np.flatnonzero(np.isnan(tokens)).tolist() == damaged
    misplaced = starts.copy()
    misplaced[[3, 4]] = -1, len(records) + 1
    unknown = every | {"tokens": (query, records, bits, misplaced, counts, right, np.zeros(200, bool))}
    assert asked(kernels, unknown)[5] == [3, 4]  # whatever else is read of an empty document


def test_a_graph_that_leads_to_too_few_or_too_far_leaves_it_to_the_caller(kernels):
    _, parts = drawn(2, 50)
    ground, *rest = parts["graph"]
    assert asked(kernels, parts) is not None
    assert asked(kernels, parts | {"graph": (np.full_like(ground, NO_NODE), *rest)}) is None
    assert asked(kernels, parts | {"graph": (*parts["graph"][:5], 3)}) is None
    few = np.zeros(50, bool)
    few[[3, 4]] = True  # the graph cannot find five, but these it does
    found = asked(kernels, parts | {"allowed": few, "lexical": None})
    assert found[0].tolist() == [3, 4]


def test_vectors_that_are_no_numbers_come_last(kernels):
    _, parts = drawn(4, 300)
    parts["graph"] = (*parts["graph"][:3], 40, 60, 10**6)
    parts["dense"][1][::2] = np.nan  # the codes know nothing of it
    positions, dense, *_ = asked(kernels, parts | {"lexical": None})
    assert len(positions) == 40
    assert (np.isnan(dense) == (positions % 2 == 0)).all()
    everything = asked(kernels, parts | {"lexical": None, "graph": (*parts["graph"][:3], 60, 60, 10**6)})
    assert np.isnan(dense).sum() == max(0, 40 - (~np.isnan(everything[1])).sum())


def changed(parts, name, at, value):
    return {name: (*parts[name][:at], value, *parts[name][at + 1 :])}


def test_what_does_not_fit_together_is_refused(kernels):
    _, parts = drawn(3, 20)
    query, vectors = parts["dense"]
    starts, counts, crc32s = parts["tokens"][3:6]
    behind = counts.copy()
    behind[:] = 10**6
    every = np.ones(20, bool)
    wrong = [
        ({"nearest": np.array([3, 20])} | {"graph": None}, "among the 20 documents"),
        ({"nearest": np.array([-1])} | {"graph": None}, "among the 20 documents"),
        ({"nearest": np.array([1])}, "graph needs dense"),
        ({"dense": None}, "graph needs dense"),
        ({"dense": (query, vectors[:19].copy())}, "dense must be"),
        ({"dense": (query[:5].copy(), vectors)}, "dense must be"),
        ({"dense": (query * np.float32(np.inf), vectors)}, "finite"),
        (changed(parts, "graph", 3, 0), "at least 1"),
        (changed(parts, "graph", 4, 4), "at least 1"),
        (changed(parts, "graph", 2, np.ones(19, np.float32)), "graph must have"),
        (changed(parts, "lexical", 5, 0), "at least 1"),
        (changed(parts, "lexical", 0, parts["lexical"][0][:1]), "allowed|documents"),
        (changed(parts, "tokens", 5, np.ones(19, np.int64)), "tokens must have"),
        (changed(parts, "tokens", 6, np.ones(19, bool)), "tokens must have"),
        (changed(parts, "tokens", 3, starts[:19].copy()), "tokens must have"),
        (changed(parts, "tokens", 2, 5), "bits"),
        ({"tokens": (*parts["tokens"][:4], behind, crc32s, every), "allowed": every}, "within the"),
        ({"tokens": (*parts["tokens"][:3], starts - 10**6, counts, crc32s, every), "allowed": every}, "within the"),
    ]
    for change, message in wrong:
        with pytest.raises(ValueError, match=message):
            asked(kernels, parts | change)
    for change in (
        changed(parts, "dense", 0, query.astype(np.float64)),
        changed(parts, "tokens", 3, starts.astype(np.int32)),
        {"allowed": np.ones(20, np.uint8)},
        {"nearest": np.array([1], np.int32), "graph": None},
    ):
        with pytest.raises(TypeError):
            asked(kernels, parts | change)


# Fusion


@settings(max_examples=200, deadline=None)
@given(
    n=st.integers(0, 60),
    missing=st.sets(st.integers(0, 2), max_size=2),
    k=st.integers(1, 70),
    few=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_best_by_the_weighted_sum_are_those_of_its_definition(kernels, n, missing, k, few, seed):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 3, (3, n)) if few else rng.standard_normal((3, n))  # of few there are equal sums
    parts = [None if i in missing else part.astype(np.float32) for i, part in enumerate(values)]
    if n and parts[0] is not None:
        parts[0][rng.integers(n)] = np.nan  # last of all, wherever it comes from
    weights = Weights(*rng.uniform(0, 2, 3))
    best, sums = kernels.weighted_best(*parts, weights, k)
    zero = np.zeros(n, np.float32)
    total = hybrid_scores(*(zero if part is None else part for part in parts), weights)
    expected = sorted(range(n), key=lambda i: (np.isnan(total[i]), -np.nan_to_num(total[i], nan=0.0), i))[:k]
    assert (best.dtype, sums.dtype) == (np.int64, np.float32)
    assert best.tolist() == expected
    np.testing.assert_array_equal(sums, total[expected])


def test_scores_that_cannot_be_added_up_are_refused(kernels):
    three, four = np.zeros(3, np.float32), np.zeros(4, np.float32)
    for parts in ((None, None, None), (three, four, None), (None, four, three)):
        with pytest.raises(ValueError, match="one length"):
            kernels.weighted_best(*parts, (1.0, 1.0, 1.0), 2)
    with pytest.raises(ValueError, match="k must be at least 1"):
        kernels.weighted_best(three, None, None, (1.0, 1.0, 1.0), 0)
    with pytest.raises(TypeError):
        kernels.weighted_best(three.astype(np.float64), None, None, (1.0, 1.0, 1.0), 1)
