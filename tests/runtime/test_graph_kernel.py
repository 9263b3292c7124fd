"""The search of a graph by codes, native in every instruction set and in numpy, and of graphs that hnswlib wrote."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3edge import _kernels_numpy as twin
from m3edge._graph_numpy import NO_NODE
from m3edge.index.code_graph import CodeGraph
from m3edge.index.dense import DenseIndex
from m3edge.index.graph import HnswConfig, HnswGraph
from m3edge.index.graph_file import read_links
from m3edge.index.scan import DenseScan

ALL = 2**40


def coded(rng, n, dim):
    vectors = rng.standard_normal((n, dim)).astype(np.float32)
    codes, scales, _ = twin.dense_codes(vectors, 1)
    return codes, scales


def drawn(seed, n, places=4):
    """A graph with links that lead anywhere, some of them several times, and two levels above the ground."""
    rng = np.random.default_rng(seed)
    n_levels = rng.choice(3, n, p=[0.6, 0.3, 0.1])
    n_levels[0] = 2  # where it starts
    starts = np.concatenate([[0], np.cumsum(n_levels)]).astype(np.uint32)

    def some(of):
        row = np.full(places, NO_NODE, np.uint32)
        count = rng.integers(places + 1)
        row[:count] = rng.choice(of, count)
        return row

    ground = np.array([some(np.arange(n)) for _ in range(n)], np.uint32)
    levels = [some(np.flatnonzero(n_levels >= level)) for node in range(n) for level in range(1, n_levels[node] + 1)]
    return rng, (ground, starts, np.array(levels, np.uint32), 0, 2)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 60), dim=st.integers(1, 70), effort=st.integers(1, 40), seed=st.integers(0, 2**32 - 1))
def test_every_implementation_takes_the_same_way(kernels, n, dim, effort, seed):
    rng, graph = drawn(seed, n)
    codes, scales = coded(rng, n, dim)
    codes[rng.random(n) < 0.2] = codes[0]  # equal scores
    query, allowed = rng.standard_normal(dim).astype(np.float32), rng.random(n) < 0.7
    for most in (1, n // 2 + 1, ALL):
        found = kernels.GraphLinks(*graph).candidates(query, codes, scales, allowed, effort, most)
        expected = twin.GraphLinks(*graph).candidates(query, codes, scales, allowed, effort, most)
        assert (found is None) == (expected is None)
        if found is not None:
            assert found.dtype == np.int64
            assert found.tolist() == expected.tolist()


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 40), seed=st.integers(0, 2**32 - 1))
def test_with_all_in_view_everything_that_links_lead_to_is_found_best_first(kernels, n, seed):
    rng, (ground, *_) = drawn(seed, n)
    codes, scales = coded(rng, n, 8)
    query, allowed = rng.standard_normal(8).astype(np.float32), rng.random(n) < 0.7
    reached, new = set(), [0]
    while new:
        reached.update(new)
        new = [int(node) for node in ground[new].ravel() if node != NO_NODE and int(node) not in reached]
    links = kernels.GraphLinks(ground, np.zeros(n + 1, np.uint32), np.empty((0, 4), np.uint32), 0, 0)
    found = links.candidates(query, codes, scales, allowed, n, ALL)
    assert set(found.tolist()) == {node for node in reached if allowed[node]}
    scores = (codes[found] * scales[found, None]) @ query
    assert (np.diff(scores) <= 1e-4).all()
    if len(reached) > 1:
        assert links.candidates(query, codes, scales, allowed, n, len(reached) - 1) is None


def test_what_is_no_graph_is_refused(kernels):
    _, (ground, starts, levels, start, top) = drawn(3, 20)
    n_levels = np.diff(starts.astype(int))
    low = int(np.flatnonzero(n_levels == 0)[0])
    outside, too_high = ground.copy(), levels.copy()
    outside[3, 0] = 20
    too_high[0, 0] = low
    falling = starts.copy()
    falling[1] = 99
    for wrong in (
        (outside, starts, levels, start, top),
        (ground, starts, too_high, start, top),
        (ground, falling, levels, start, top),
        (ground, starts[:-1], levels, start, top),
        (ground, starts, levels[:-1], start, top),
        (ground, starts, levels, 20, top),
        (ground, starts, levels, -1, top),
        (ground, starts, levels, start, 3),
        (ground, starts, levels, low, 1),
    ):
        with pytest.raises(ValueError, match="graph|level_starts"):
            kernels.GraphLinks(*wrong)
    with pytest.raises(TypeError):
        kernels.GraphLinks(ground.astype(np.int64), starts, levels, start, top)


def test_wrong_arguments_are_refused(kernels):
    rng, graph = drawn(3, 20)
    links = kernels.GraphLinks(*graph)
    codes, scales = coded(rng, 20, 8)
    query, allowed = np.ones(8, np.float32), np.ones(20, bool)
    for wrong, message in (
        ((query[:7], codes, scales, allowed, 5, 5), "one width"),
        ((query, codes[:19], scales[:19], allowed[:19], 5, 5), "at least that of the graph"),
        ((query, codes, scales[:19], allowed, 5, 5), "one length"),
        ((query, codes, scales, allowed[:19], 5, 5), "one length"),
        ((query * np.float32(np.nan), codes, scales, allowed, 5, 5), "finite"),
        ((query, codes, scales, allowed, 0, 5), "effort and most"),
        ((query, codes, scales, allowed, 5, 0), "effort and most"),
    ):
        with pytest.raises(ValueError, match=message):
            links.candidates(*wrong)
    with pytest.raises(TypeError):
        links.candidates(query, codes.astype(np.float32), scales, allowed, 5, 5)


def test_an_empty_graph_finds_nothing(kernels):
    links = kernels.GraphLinks(np.empty((0, 4), np.uint32), np.zeros(1, np.uint32), np.empty((0, 4), np.uint32), 0, 0)
    nothing = np.empty((0, 8), np.int8), np.empty(0, np.float32), np.empty(0, bool)
    assert links.candidates(np.ones(8, np.float32), *nothing, 5, 5).tolist() == []


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """3,000 vectors, their rows, which have gaps, and the file of their graph, built by two threads."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((3000, 24)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = np.cumsum(rng.integers(1, 4, 3000))
    graph = HnswGraph(24, HnswConfig(), 2)
    graph.add(rows, vectors)
    path = tmp_path_factory.mktemp("graph") / "graph"
    graph.save(path)
    return vectors, rows, path


def test_a_graph_that_hnswlib_wrote_leads_to_the_nearest_as_with_hnswlib(written):
    vectors, rows, path = written
    scan = DenseScan(24)
    scan.add(vectors)
    graph = CodeGraph(read_links(path, 24, 16, 200), rows)
    assert len(graph) == 3000
    hnswlib = HnswGraph(24, HnswConfig(), 1, path)
    hits = hnswlib_hits = 0
    for query in vectors[::30] + 0.02:
        nearest = np.argsort(-(vectors @ query))[:50]
        hits += len(np.intersect1d(graph.near(query, scan, np.ones(3000, bool), 64, ALL)[:50], nearest))
        hnswlib_hits += len(np.intersect1d(np.searchsorted(rows, hnswlib.search(query, 50)), nearest))
    assert hits >= hnswlib_hits - 50  # of 5,000: codes confuse some
    assert hits >= 4750


def test_links_of_other_rows_are_refused(written):
    _, rows, path = written
    stored = read_links(path, 24, 16, 200)
    with pytest.raises(ValueError, match="not of these rows"):
        CodeGraph(stored, rows[1:])
    with pytest.raises(ValueError, match="not of these rows"):
        CodeGraph(stored, rows[:-1])
    assert len(CodeGraph(stored, np.append(rows, rows[-1] + 1))) == 3000


def test_a_file_that_is_no_graph_is_refused(written, tmp_path):
    content = written[2].read_bytes()
    (tmp_path / "short").write_bytes(content[:-4])
    for dim, path in ((25, written[2]), (24, tmp_path / "short")):
        with pytest.raises(ValueError, match="sizes|levels"):
            read_links(path, dim, 16, 200)


def test_an_empty_graph_of_hnswlib_has_no_links(tmp_path):
    HnswGraph(24, HnswConfig(), 1).save(tmp_path / "empty")
    graph = CodeGraph(read_links(tmp_path / "empty", 24, 16, 200), np.arange(1, 4))
    assert len(graph) == 0


@pytest.mark.parametrize("most_behind", [10**9, 0])  # what was added later is scanned; is left to hnswlib
def test_a_saved_graph_that_has_grown_finds_old_and_new_and_no_deleted_ones(written, monkeypatch, most_behind):
    monkeypatch.setattr("m3edge.index.dense._MOST_NUMBERS_BEHIND", most_behind)
    vectors, rows, path = written
    index = DenseIndex(24, HnswConfig(), 1, "hnsw")
    index.load_graph(path)
    index.add(rows, vectors)
    rng = np.random.default_rng(1)
    new = vectors[:200] + 0.1 * rng.standard_normal((200, 24)).astype(np.float32)
    new /= np.linalg.norm(new, axis=1, keepdims=True)
    index.add(rows[-1] + 1 + np.arange(200), new)
    index.delete(np.arange(0, 3200, 7))
    index.hide_deleted()
    alive = np.arange(3200) % 7 > 0
    together = np.concatenate([vectors, new])
    hits = 0
    for query in together[::32]:
        nearest = np.argsort(np.where(alive, -(together @ query), np.inf))[:20]
        found = index.search(query, 20)
        assert alive[found].all()
        hits += len(np.intersect1d(found, nearest))
    assert hits >= 1960  # recall .98
    index.close()
