"""The posting index: every kind of lexical score against the textbook, in the native kernels and their numpy twins."""

import math
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import m3edge.kernels
from m3edge import _kernels_numpy as twin
from m3edge.embeddings import SparseRows, offsets_of
from m3edge.index.posting_blocks import BLOCK_DOCUMENTS, block_of_rows
from m3edge.index.sparse import LEXICAL, PostingIndex

NAMES = ("PostingBlock", "query_factors", "top_postings", "score_postings", "count_postings")
TEXTS = st.lists(
    st.dictionaries(st.integers(0, 20), st.tuples(st.floats(0, 2, width=16), st.integers(1, 40)), max_size=8),
    max_size=12,
)


@contextmanager
def running(kernels):
    """Posting indexes made and asked inside use these kernels."""
    with pytest.MonkeyPatch.context() as patch:
        for name in NAMES:
            patch.setattr(m3edge.kernels, name, getattr(kernels, name))
        yield


def rows(texts) -> SparseRows:
    entries = [sorted(text.items()) for text in texts]
    return SparseRows(
        np.array([token for row in entries for token, _ in row], np.int64),
        np.array([weight for row in entries for _, (weight, _) in row], np.float32),
        np.array([count for row in entries for _, (_, count) in row], np.int32),
        offsets_of([len(row) for row in entries]),
    )


def textbook(query, texts, alive, lexical):
    """Scores of all texts, one product at a time; deleted ones are counted nowhere."""
    live = [text for text, is_alive in zip(texts, alive, strict=True) if is_alive]
    lengths = [sum(count for _, count in text.values()) for text in live]
    mean = max(1.0, sum(lengths) / len(lengths)) if lengths else 1.0
    idf = {
        t: math.log(1 + (len(live) - df + 0.5) / (df + 0.5)) for t in query if (df := sum(t in x for x in live)) >= 0
    }
    if lexical == "m3":
        factors = {token: weight for token, (weight, _) in query.items()}
    elif lexical == "m3-idf":
        factors = {token: weight * idf[token] for token, (weight, _) in query.items()}
        total = sum(factors.values())
        scale = sum(weight for weight, _ in query.values()) / total if total > 0 else 1
        factors = {token: factor * scale for token, factor in factors.items()}
    else:
        total = sum(count * idf[token] for token, (_, count) in query.items())
        factors = {token: count * idf[token] / total for token, (_, count) in query.items()}
    scores = []
    for text in texts:
        length = sum(count for _, count in text.values())
        score = 0.0
        for token, factor in factors.items():
            weight, count = text.get(token, (0, 0))
            score += factor * (count / (count + 1.2 * (0.25 + 0.75 * length / mean)) if lexical == "bm25" else weight)
        scores.append(score)
    return np.array(scores)


@settings(max_examples=60, deadline=None)
@given(
    blocks=st.lists(TEXTS, max_size=4),
    queries=TEXTS.filter(bool),
    saved=st.booleans(),
    k=st.integers(1, 30),
    data=st.data(),
)
def test_every_lexical_score_equals_the_textbook(kernels, blocks, queries, saved, k, data):
    texts = [text for block in blocks for text in block]
    gone = sorted(data.draw(st.sets(st.sampled_from(range(len(texts)))))) if texts else []
    with running(kernels):
        index = PostingIndex()
        for block in blocks:
            index.add(rows(block))
        index.delete(np.array(gone, np.int64))
        if saved:
            index = PostingIndex.from_arrays(index.to_arrays())
        assert len(index) == len(texts)
        for query, lexical in [(query, lexical) for query in queries for lexical in LEXICAL]:
            ready = index.query(rows([query]), lexical)
            expected = textbook(query, texts, index.alive, lexical)
            everywhere = index.scores(ready, np.arange(len(texts)))
            np.testing.assert_allclose(everywhere, expected, rtol=1e-4, atol=1e-3)  # weights up to 2 in 16 bits
            found = index.top(ready, k)
            live = np.flatnonzero(index.alive & (everywhere > 0))
            order = live[np.lexsort((live, -everywhere[live]))][:k]
            np.testing.assert_allclose(found.scores, everywhere[found.positions])
            np.testing.assert_allclose(found.scores, everywhere[order])
            assert not set(found.positions.tolist()) & set(gone)


def zipf_rows(rng, n_documents, n_tokens=3000, length=12):
    texts = []
    ranks = (n_tokens * rng.random((n_documents, length)) ** 3).astype(int)
    for tokens in ranks:
        distinct, counts = np.unique(tokens, return_counts=True)
        texts.append({int(t): (float(rng.random()), int(c)) for t, c in zip(distinct, counts, strict=True)})
    return rows(texts)


def test_skipping_leaves_nothing_out_and_ties_go_to_the_older_document(kernels, rng):
    documents = zipf_rows(rng, 20_000)
    with running(twin):
        slow = PostingIndex()
        slow.add(documents)
    with running(kernels):
        fast = PostingIndex()
        fast.add(documents)
    gone = rng.choice(20_000, 3000, replace=False)
    for lexical in LEXICAL:
        for query in (zipf_rows(rng, 1) for _ in range(5)):
            for k in (1, 10, 1000):
                slow.delete(gone)
                fast.delete(gone)
                with running(twin):
                    expected = slow.top(slow.query(query, lexical), k)
                with running(kernels):
                    got = fast.top(fast.query(query, lexical), k)
                assert got.positions.tolist() == expected.positions.tolist()
                assert np.array_equal(got.scores, expected.scores)


SIX = np.arange(6)  # tokens: with so many postings a query is worth several threads


def holding_six_tokens(weights) -> SparseRows:
    """One document for each weight, which all its tokens have."""
    n = len(weights)
    return SparseRows(np.tile(SIX, n), np.repeat(weights, 6), np.ones(6 * n, np.int32), np.arange(n + 1) * 6)


@pytest.mark.parametrize("n_threads", [1, 4])
def test_the_best_are_found_where_a_sample_misleads(kernels, n_threads):
    """A kernel may expect from the first documents how good the 100 best will be. Here the first are the best."""
    weights = np.full(BLOCK_DOCUMENTS + 20_000, 0.01, np.float32)
    weights[:120] = np.linspace(0.3, 0.9, 120)
    with running(kernels):
        index = PostingIndex()
        index.add(holding_six_tokens(weights))
        found = index.top(index.query(rows([dict.fromkeys(SIX, (1.0, 1))])), 100, n_threads=n_threads)
    assert found.positions.tolist() == list(range(119, 19, -1))


@pytest.mark.parametrize("n_threads", [1, 4])
def test_of_equal_scores_the_first_are_found_wherever_searching_begins(kernels, n_threads):
    with running(kernels):
        index = PostingIndex()
        index.add(holding_six_tokens(np.full(BLOCK_DOCUMENTS + 20_000, 0.5, np.float32)))
        found = index.top(index.query(rows([dict.fromkeys(SIX, (1.0, 1))])), 100, n_threads=n_threads)
    assert found.positions.tolist() == list(range(100))


def test_several_threads_find_what_one_finds(kernels, rng):
    n, n_tokens = BLOCK_DOCUMENTS + 5000, 30
    holds = rng.random((n, n_tokens)) < np.linspace(0.05, 0.8, n_tokens)
    weights = (rng.integers(1, 9, np.count_nonzero(holds)) / 16).astype(np.float32)  # so few that scores often tie
    documents = SparseRows(
        np.nonzero(holds)[1], weights, np.ones(len(weights), np.int32), offsets_of(holds.sum(axis=1).tolist())
    )
    with running(kernels):
        index = PostingIndex()
        index.add(documents)
        index.delete(np.arange(0, n, 7))
        query = index.query(rows([{token: (1 + token % 3, 1) for token in range(n_tokens)}]))
        # Whole numbers: as float32, scores that differ may be equal.
        sums = m3edge.kernels.score_postings(index._kernel_blocks, *query[:2], None, None, np.arange(n))
        for k in (1, 100, 5000):
            expected = np.argsort(-np.where(index.alive, sums, 0), kind="stable")[:k]
            for n_threads in (1, 2, 7):
                assert np.array_equal(index.top(query, k, n_threads=n_threads).positions, expected)


def test_blocks_are_joined_and_full_ones_left_alone(kernels, rng):
    texts = [{int(t): (0.5, 1)} for t in rng.integers(0, 50, BLOCK_DOCUMENTS + 3000)]
    with running(kernels):
        index = PostingIndex()
        for start in range(0, len(texts), 9000):
            index.add(rows(texts[start : start + 9000]))
        whole = PostingIndex()
        whole.add(rows(texts))
        query = rows([{7: (1.0, 1)}])
        expected = np.array([i for i, text in enumerate(texts) if 7 in text])
        for each in (index, whole):
            assert np.array_equal(each.top(each.query(query), len(texts)).positions, expected)
            assert len(each._blocks) == 2
    assert index.size_bytes / index.n_postings < 12  # of which the documents, with one posting each, take 5


def test_a_larger_weight_later_keeps_the_earlier_ones(kernels):
    with running(kernels):
        index = PostingIndex()
        index.add(rows([{1: (0.5, 1)}, {2: (0.25, 1)}]))
        index.add(rows([{1: (100.0, 1)}]))
        scores = index.scores(index.query(rows([{1: (1.0, 1), 2: (1.0, 1)}])), np.arange(3))
    np.testing.assert_allclose(scores, [0.5, 0.25, 100.0], atol=2**-9)


@pytest.mark.parametrize("weight", [-0.5, np.nan, np.inf])
def test_weights_that_are_none_are_refused(kernels, weight):
    with running(kernels):
        index = PostingIndex()
        with pytest.raises(ValueError, match="weights must be finite and at least 0"):
            index.add(rows([{1: (weight, 1)}]))
        assert len(index) == 0


def test_an_unknown_kind_of_score_is_refused():
    with pytest.raises(ValueError, match="lexical must be one of m3, m3-idf, bm25, got 'tfidf'"):
        PostingIndex().query(rows([{1: (1.0, 1)}]), "tfidf")


def test_a_filter_names_the_documents_that_may_be_found(kernels):
    with running(kernels):
        index = PostingIndex()
        index.add(rows([{1: (0.1 * i, 1)} for i in range(1, 9)]))
        found = index.top(index.query(rows([{1: (1.0, 1)}])), 3, allowed=np.arange(8) % 2 == 0)
    assert found.positions.tolist() == [6, 4, 2]


def arguments(**changes):
    block = block_of_rows(rows([{1: (0.5, 1), 2: (0.5, 20)}, {1: (0.25, 1)}]), 0, 2, 0)
    call = {
        "blocks": [block],
        "tokens": np.array([1, 1], np.uint32),
        "factors": np.array([2 << 16, 3 << 16], np.uint32),
        "norms": None,
        "smallest": None,
        "allowed": np.ones(2, bool),
        "k": 5,
        "n_threads": 1,
    }
    return {**call, **changes}


def test_a_token_that_comes_twice_counts_twice(kernels):
    call = arguments()
    call["blocks"] = [kernels.PostingBlock(*block) for block in call["blocks"]]
    positions, scores = kernels.top_postings(**call)
    assert positions.tolist() == [0, 1]
    assert scores.tolist() == [5 * 32768, 5 * 16384]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"tokens": np.array([1, 1], np.int64)}, TypeError),
        ({"factors": np.array([2, 0, 3, 0], np.uint32)[::2]}, TypeError),
        ({"factors": np.array([2], np.uint32)}, ValueError),
        ({"allowed": np.ones(3, bool)}, ValueError),
        ({"factors": np.array([2**31 - 1, 1], np.uint32)}, ValueError),
        ({"k": 0}, ValueError),
        ({"n_threads": 0}, ValueError),
        ({"norms": np.ones(2, np.float32)}, ValueError),
    ],
)
def test_wrong_arguments_are_refused(kernels, changes, error):
    call = arguments(**changes)
    call["blocks"] = [kernels.PostingBlock(*block) for block in call["blocks"]]
    with pytest.raises(error):
        kernels.top_postings(**call)


@pytest.mark.parametrize(
    "changes",
    [
        {"n_documents": 1},
        {"n_documents": 70_000},
        {"tokens": np.array([2, 1], np.uint32)},
        {"starts": np.array([0, 3, 2], np.uint32)},
        {"packed_documents": np.array([1, 0, 0], np.uint16)},
        {"weights": np.array([1], np.uint16)},
    ],
)
def test_a_block_that_is_none_is_refused(kernels, changes):
    block = arguments()["blocks"][0]
    with pytest.raises(ValueError, match=r"must"):
        kernels.PostingBlock(*block._replace(**changes))


def frequent_and_rare():
    """200 documents: all hold token 1, every third token 2, three of them token 3."""
    texts = [{1: (0.5, 1)} for _ in range(200)]
    for i in range(0, 200, 3):
        texts[i][2] = (i / 400, 1 + i % 20)
    for i in (5, 64, 199):
        texts[i][3] = (0.25, 2)
    return texts


def test_a_block_may_be_empty(kernels):
    empty = block_of_rows(rows([]), 0, 0, 0)
    block = kernels.PostingBlock(*empty)
    nothing = np.empty(0, np.uint32)
    assert kernels.count_postings([block], 1, np.empty(0, bool)) == 0
    found = kernels.top_postings([block], nothing, nothing, None, None, np.empty(0, bool), 5, 1)
    assert [len(each) for each in found] == [0, 0]


def test_frequent_tokens_documents_are_a_bitmap():
    block = block_of_rows(rows(frequent_and_rare()), 0, 200, 0)
    words = (200 + 63) // 64 * 4
    assert np.diff(block.starts).tolist() == [200, 67, 3]
    assert len(block.packed_documents) == words + words + 3
    assert block.packed_documents[:words].tolist() == 12 * [65535] + [255, 0, 0, 0]
    assert block.packed_documents[-3:].tolist() == [5, 64, 199]


@pytest.mark.parametrize("lexical", LEXICAL)
def test_frequent_and_rare_tokens_are_scored_alike(kernels, lexical):
    texts = frequent_and_rare()
    with running(kernels):
        index = PostingIndex()
        index.add(rows(texts))
        query = {1: (0.5, 1), 2: (1.0, 2), 3: (1.0, 1)}
        ready = index.query(rows([query]), lexical)
        expected = textbook(query, texts, index.alive, lexical)
        np.testing.assert_allclose(index.scores(ready, np.arange(200)), expected, atol=1e-3)
        for k in (1, 3, 50, 200):
            found = index.top(ready, k)
            np.testing.assert_allclose(found.scores, np.sort(expected)[::-1][:k], atol=1e-3)
        assert kernels.count_postings(index._kernel_blocks, 2, np.arange(200) < 100) == 34


@pytest.mark.parametrize(
    ("word", "bits"), [(0, 65534), (12, 511), (15, 32768), (3, 0)], ids=["one less", "one more", "behind", "none"]
)
def test_a_bitmap_that_tells_of_other_documents_is_refused(kernels, word, bits):
    block = block_of_rows(rows(frequent_and_rare()), 0, 200, 0)
    packed = block.packed_documents.copy()
    packed[word] = bits
    with pytest.raises(ValueError, match="must"):
        kernels.PostingBlock(*block._replace(packed_documents=packed))


def test_a_bitmap_of_documents_that_are_not_there_is_refused(kernels):
    block = block_of_rows(rows(frequent_and_rare()), 0, 200, 0)
    packed = block.packed_documents.copy()
    packed[0], packed[12] = 65534, 511  # as many as before, but the last is document 200
    with pytest.raises(ValueError, match="documents must be less than n_documents"):
        kernels.PostingBlock(*block._replace(packed_documents=packed))


@given(weights=st.lists(st.one_of(st.just(0.0), st.floats(1e-40, 1e30)), max_size=12))
def test_a_querys_weights_become_whole_numbers_of_which_no_score_overflows(kernels, weights):
    ids, values = np.arange(len(weights)) * 7, np.array(weights, np.float64)
    tokens, factors, unit = kernels.query_factors(ids, values)
    assert (tokens.dtype, factors.dtype) == (np.uint32, np.uint32)
    assert tokens.tolist() == ids[values > 0].tolist()
    assert int(factors.sum(dtype=np.int64)) < 2**31
    expected = values[values > 0]
    assert (np.abs(factors * unit - expected) <= unit * (1 + 1e-3) + 1e-12 * expected).all()
    of_twin = twin.query_factors(ids, values)
    assert factors.tolist() == of_twin[1].tolist()
    assert unit == of_twin[2]


def test_ids_and_weights_that_do_not_belong_together_are_refused(kernels):
    with pytest.raises(ValueError, match="of one length"):
        kernels.query_factors(np.arange(3), np.ones(2))
    with pytest.raises(TypeError):
        kernels.query_factors(np.arange(3), np.ones(3, np.float32))
