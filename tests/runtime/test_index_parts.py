"""The graph on its own, against brute force, whatever is added and deleted."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3edge.errors import FormatError
from m3edge.index.dense import DenseIndex, HnswConfig
from m3edge.index.tokens import TokenStore


def unit(rng, n, dim=16):
    vectors = rng.standard_normal((n, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@settings(max_examples=30)
@given(st.integers(0, 60), st.data())
def test_the_graph_returns_k_live_rows_as_long_as_there_are_k(n, data):
    rng = np.random.default_rng(n)
    index = DenseIndex(16, HnswConfig(m=4, ef_construction=20), 1)
    vectors = unit(rng, n)
    labels = np.arange(10, 10 + n)
    index.add(labels, vectors)
    gone = data.draw(st.sets(st.sampled_from(labels.tolist()))) if n else set()
    index.delete(np.array(sorted(gone), np.int64))
    index.delete(np.array(sorted(gone), np.int64))  # twice does no harm
    found = index.search(unit(rng, 1)[0], 25)
    assert len(found) == len(set(found.tolist())) == min(25, n - len(gone))
    assert not gone & set(found.tolist())


def test_the_graph_finds_the_nearest_after_growing_past_its_room_and_reloading(rng, tmp_path):
    vectors = unit(rng, 3000)
    index = DenseIndex(16, HnswConfig(), 2)
    for start in range(0, 3000, 700):
        block = vectors[start : start + 700]
        index.add(np.arange(start, start + len(block)), block)
    index.delete(np.arange(0, 3000, 2))
    index.save(tmp_path / "graph")
    again = DenseIndex(16, HnswConfig(), 2, tmp_path / "graph")
    again.restore_deleted(np.arange(1, 3000, 2), last_row=2999)
    for graph in (index, again):
        hits = 0
        for query in unit(rng, 50):
            exact = np.argsort(-(vectors[1::2] @ query))[:10] * 2 + 1
            hits += len(set(exact.tolist()) & set(graph.search(query, 10).tolist()))
        assert hits >= 490  # recall .98
    again.add(np.arange(3000, 3100), unit(rng, 100))
    assert again.vectors(np.array([1, 3]))[0].tolist() == vectors[1].tolist()


def test_token_vectors_come_back_in_half_precision(rng, tmp_path):
    store = TokenStore(tmp_path, 16, "fp16")
    vectors = unit(rng, 10)
    store.write(0, vectors[:4])
    store.write(4, np.ones((9, 16)))  # an interrupted job's rest
    store.write(4, vectors[4:])
    store.map_rows(10)
    read = store.read(np.array([4, 0, 2]), np.array([6, 1, 0]))
    assert read.offsets.tolist() == [0, 6, 7, 7]
    np.testing.assert_allclose(read.vectors, vectors[[4, 5, 6, 7, 8, 9, 0]], atol=1e-3)
    with pytest.raises(FormatError, match="or restore a backup"):
        store.map_rows(20)
