"""The dense part and the token file on their own, against brute force, whatever is added and deleted."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3edge._maxsim_numpy import unpack_records
from m3edge.errors import FormatError
from m3edge.index.dense import GRAPH_FILE, MODES, VECTORS_FILE, DenseIndex
from m3edge.index.graph import HnswConfig
from m3edge.index.tokens import TokenStore


def unit(rng, n, dim=16):
    vectors = rng.standard_normal((n, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 60), st.sampled_from(MODES), st.booleans(), st.booleans(), st.data())
def test_k_live_documents_come_back_as_long_as_k_pass_the_filter(n, mode, is_filtered, hidden, data):
    rng = np.random.default_rng(n)
    index = DenseIndex(16, HnswConfig(m=4, ef_construction=20), 1, mode)
    index.add(np.arange(10, 10 + n), unit(rng, n))
    gone = data.draw(st.sets(st.integers(0, n - 1))) if n else set()
    index.delete(np.array(sorted(gone), np.int64))
    index.delete(np.array(sorted(gone), np.int64))  # twice does no harm
    if hidden:
        index.hide_deleted()
    allowed = rng.random(n) < 0.5 if is_filtered else None
    expected = set(range(n) if allowed is None else np.flatnonzero(allowed).tolist()) - gone
    found = index.search(unit(rng, 1)[0], 25, allowed)
    assert len(found) == len(set(found.tolist())) == min(25, len(expected))
    assert set(found.tolist()) <= expected


@pytest.mark.parametrize("mode", MODES)
def test_the_nearest_are_found_after_growing_and_reloading(mode, rng, tmp_path, monkeypatch):
    monkeypatch.setattr("m3edge.index.dense.AUTO_NUMBERS", 2000 * 16)  # auto becomes a graph on the way
    vectors, rows = unit(rng, 3000), np.arange(5, 9005, 3)
    index = DenseIndex(16, HnswConfig(), 2, mode)
    for start in range(0, 3000, 700):
        index.add(rows[start : start + 700], vectors[start : start + 700])
    index.delete(np.arange(0, 3000, 2))
    index.hide_deleted()
    for name, write in index.writers().items():
        write(tmp_path / name)
    assert (tmp_path / GRAPH_FILE).exists() == (mode != "exact")
    again, rebuilt = (DenseIndex(16, HnswConfig(), 2, mode) for _ in range(2))
    alive = np.arange(3000) % 2 == 1
    for loaded in (again, rebuilt):
        loaded.load_vectors(tmp_path / VECTORS_FILE, rows, alive)
    assert again.wants_graph == (mode != "exact")
    if again.wants_graph:
        again.load_graph(tmp_path / GRAPH_FILE)
        rebuilt.build_graph()
    for some in (index, again, rebuilt):
        hits = 0
        for query in unit(rng, 50):
            exact = np.argsort(-(vectors[1::2] @ query))[:10] * 2 + 1
            hits += len(set(exact.tolist()) & set(some.search(query, 10).tolist()))
        assert hits == 500 if mode == "exact" else hits >= 490  # recall .98
    again.add(np.arange(9005, 9105), unit(rng, 100))
    assert again.vectors(np.array([3, 1])).tolist() == vectors[[3, 1]].tolist()


@pytest.mark.parametrize("share", [0.9, 0.3, 0.01])
@pytest.mark.parametrize("cost", [0, 10**9])  # of the graph: asked always, asked never
def test_filtered_searches_find_the_nearest_that_pass(share, cost, rng, monkeypatch):
    monkeypatch.setattr("m3edge.index.dense.NUMBERS_A_GRAPH_RESULT", cost)
    vectors = unit(rng, 4000)
    index = DenseIndex(16, HnswConfig(), 2, "hnsw")
    index.add(np.arange(4000), vectors)
    allowed = rng.random(4000) < share
    hits = 0
    for query in unit(rng, 20):
        exact = np.argsort(np.where(allowed, -(vectors @ query), np.inf))[:10]
        hits += len(set(exact.tolist()) & set(index.search(query, 10, allowed).tolist()))
    assert hits >= 196  # recall .98


def test_what_passes_lies_far_from_the_query_and_is_found_all_the_same(rng, monkeypatch):
    monkeypatch.setattr("m3edge.index.dense.NUMBERS_A_GRAPH_RESULT", 0)
    vectors = unit(rng, 2000)
    index = DenseIndex(16, HnswConfig(), 1, "hnsw")
    index.add(np.arange(2000), vectors)
    order = np.argsort(-(vectors @ vectors[0]))
    allowed = np.zeros(2000, bool)
    allowed[order[1000:]] = True  # half pass, and none of them among the nearest thousand
    assert index.search(vectors[0], 5, allowed).tolist() == order[1000:1005].tolist()


@pytest.mark.parametrize("mode", MODES)
def test_what_a_successor_takes_in_or_deletes_its_predecessor_does_not_see(mode, rng):
    vectors = unit(rng, 300)
    before = DenseIndex(16, HnswConfig(), 1, mode)
    before.add(np.arange(1, 201), vectors[:200])
    expected = [before.search(query, 20).tolist() for query in vectors[190:210]]
    interrupted = before.successor()
    interrupted.add(np.arange(201, 251), vectors[200:250])
    after = before.successor()
    after.add(np.arange(220, 301), vectors[219:])  # rows 201 to 219 were deleted before anyone saw them
    after.delete(np.arange(100))
    assert [before.search(query, 20).tolist() for query in vectors[190:210]] == expected
    after.hide_deleted()
    known = np.concatenate([vectors[100:200], vectors[219:]])
    for query in vectors[190:230]:
        found = after.search(query, 181)
        assert len(found) == 181
        exact = np.argsort(-(known @ query), kind="stable")[:10] + 100
        assert len(set(exact.tolist()) & set(after.search(query, 10).tolist())) >= 9
        assert mode == "hnsw" or after.search(query, 10).tolist() == exact.tolist()


def test_searches_with_other_breadths_run_beside_each_other(rng):
    vectors = unit(rng, 2000)
    index = DenseIndex(16, HnswConfig(), 1, "hnsw")
    index.add(np.arange(2000), vectors)
    wanted = [5, 300, 5, 80] * 25
    alone = [index.search(vectors[i], k).tolist() for i, k in enumerate(wanted)]
    with ThreadPoolExecutor(8) as threads:
        together = threads.map(lambda item: index.search(vectors[item[0]], item[1]).tolist(), enumerate(wanted))
        assert list(together) == alone


def test_token_vectors_come_back_in_half_precision(rng, tmp_path):
    store = TokenStore(tmp_path, 16, "fp16")
    vectors = unit(rng, 10)
    store.write(0, vectors[:4])
    store.write(4, np.ones((9, 16)))  # an interrupted job's rest
    store.write(4, vectors[4:])
    store.map_rows(10)
    read, _ = unpack_records(store.rows(0, 10), 16, 16)
    np.testing.assert_allclose(read, vectors, atol=1e-3)
    with pytest.raises(FormatError, match="or restore a backup"):
        store.map_rows(20)
