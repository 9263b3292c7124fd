"""The parts of an index on their own: postings and graph against brute force, whatever is added and deleted."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3edge.embeddings import SparseRows, offsets_of
from m3edge.errors import FormatError
from m3edge.index.dense import DenseIndex, HnswConfig
from m3edge.index.search import top
from m3edge.index.sparse import PostingIndex
from m3edge.index.tokens import TokenStore
from m3edge.scoring import lexical_scores

TEXTS = st.lists(
    st.dictionaries(st.integers(0, 20), st.tuples(st.floats(0, 2, width=16), st.integers(1, 5)), max_size=8),
    max_size=12,
)


def rows(texts) -> SparseRows:
    entries = [sorted(text.items()) for text in texts]
    return SparseRows(
        np.array([token for row in entries for token, _ in row], np.int64),
        np.array([weight for row in entries for _, (weight, _) in row], np.float32),
        np.array([count for row in entries for _, (_, count) in row], np.int32),
        offsets_of([len(row) for row in entries]),
    )


@given(st.lists(TEXTS, max_size=4), TEXTS.filter(bool), st.booleans())
def test_posting_scores_equal_the_definition_however_documents_came(blocks, queries, saved):
    index = PostingIndex()
    for block in blocks:
        index.add(rows(block))
        index.bm25_scores(rows(queries[:1]))  # sorts the tail in between
        index.add(rows(block))  # and this stays in the tail
    if saved:
        index = PostingIndex.from_arrays(index.to_arrays())
    everything = [text for block in blocks for text in block + block]
    assert len(index) == len(everything)
    for i in range(len(queries)):
        query = rows(queries[i : i + 1])
        expected = lexical_scores(query, rows(everything))
        np.testing.assert_allclose(index.scores(query), expected, rtol=1e-5, atol=1e-5)


@given(TEXTS.filter(bool), st.data())
def test_bm25_equals_the_textbook(texts, data):
    alive = np.array(data.draw(st.lists(st.booleans(), min_size=len(texts), max_size=len(texts))))
    query = data.draw(st.dictionaries(st.integers(0, 20), st.tuples(st.just(1.0), st.integers(1, 2)), max_size=5))
    index = PostingIndex()
    index.add(rows(texts))
    lengths = [sum(count for _, count in text.values()) for text in texts]
    live = [text for text, is_alive in zip(texts, alive, strict=True) if is_alive]
    mean = max(1.0, np.mean([n for n, is_alive in zip(lengths, alive, strict=True) if is_alive])) if live else 1.0
    expected = []
    for text, length in zip(texts, lengths, strict=True):
        score = 0.0
        for token, (_, repeats) in query.items():
            df = sum(token in other for other in live)
            idf = np.log(1 + (len(live) - df + 0.5) / (df + 0.5))
            tf = text.get(token, (0, 0))[1]
            score += repeats * idf * tf * 2.2 / (tf + 1.2 * (0.25 + 0.75 * length / mean))
        expected.append(score if live else 0.0)
    np.testing.assert_allclose(index.bm25_scores(rows([query]), alive), expected, rtol=1e-4, atol=1e-4)


def test_many_additions_are_sorted_in_and_score_the_same(rng):
    index, texts = PostingIndex(), []
    for _ in range(30):
        block = [{int(t): (float(rng.random()), 1) for t in rng.choice(50, 5, replace=False)} for _ in range(100)]
        index.add(rows(block))
        texts += block
    query = rows([{7: (1.0, 1), 13: (0.5, 1)}])
    np.testing.assert_allclose(index.scores(query), lexical_scores(query, rows(texts)), rtol=1e-5)


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), max_size=20), st.integers(1, 25))
def test_top_takes_the_largest_and_breaks_ties_by_position(scores, n):
    expected = sorted((i for i, score in enumerate(scores) if score > 0), key=lambda i: (-scores[i], i))[:n]
    assert top(np.array(scores, np.float32), n).tolist() == expected


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
    again.restore_deleted(np.arange(0, 3000, 2))
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
    with pytest.raises(FormatError, match="restore it from a backup"):
        store.map_rows(20)
