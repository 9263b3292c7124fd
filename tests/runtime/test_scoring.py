"""The model's definitions: golden values by hand, and agreement with a textbook loop."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3edge.embeddings import SparseRows, TokenRows, offsets_of
from m3edge.scoring import Weights, dense_scores, hybrid_scores, lexical_scores, maxsim, resolve_weights, sparse_row

SPECIAL = np.array([0, 1, 2, 3])


def rows(*texts: dict[int, float]) -> SparseRows:
    ids = [np.array(sorted(text), np.int64) for text in texts]
    weights = [np.array([text[i] for i in sorted(text)], np.float32) for text in texts]
    flat_ids = np.concatenate([np.empty(0, np.int64), *ids])
    flat_weights = np.concatenate([np.empty(0, np.float32), *weights])
    return SparseRows(flat_ids, flat_weights, np.ones(len(flat_ids), np.int32), offsets_of([len(i) for i in ids]))


def test_of_a_token_that_occurs_twice_the_larger_weight_counts():
    ids, weights, counts = sparse_row(np.array([7, 5, 7]), np.array([0.25, 0.5, 0.75], np.float32), SPECIAL)
    assert ids.tolist() == [5, 7]
    assert weights.tolist() == [0.5, 0.75]
    assert counts.tolist() == [1, 2]


def test_special_tokens_are_dropped_from_the_sparse_vector():
    ids, weights, _ = sparse_row(np.array([0, 9, 3, 2]), np.array([1, 2, 3, 4], np.float32), SPECIAL)
    assert ids.tolist() == [9]
    assert weights.tolist() == [2]


def test_a_text_of_special_tokens_only_has_an_empty_sparse_vector():
    ids, weights, counts = sparse_row(np.array([2]), np.ones(1, np.float32), SPECIAL)
    assert len(ids) == len(weights) == len(counts) == 0


def test_the_lexical_score_is_the_sum_of_products_over_shared_tokens():
    query = rows({10: 0.5, 20: 0.25, 30: 1.0})
    passages = rows({10: 0.5, 30: 0.75, 40: 9.0}, {}, {20: 0.5})
    assert lexical_scores(query, passages).tolist() == [0.5 * 0.5 + 1.0 * 0.75, 0.0, 0.125]


def test_the_lexical_score_of_an_empty_query_is_zero():
    assert lexical_scores(rows({}), rows({1: 1.0}, {2: 1.0})).tolist() == [0, 0]


def test_the_dense_score_is_the_inner_product():
    assert dense_scores(np.float32([0.6, 0.8]), np.float32([[1, 0], [0.6, 0.8]])).tolist() == pytest.approx([0.6, 1.0])


@pytest.mark.parametrize("n", [2, 7, 50])
@pytest.mark.parametrize("dim", [3, 16, 384])
def test_equal_passages_have_equal_dense_scores(n, dim):
    rng = np.random.default_rng(n * dim)
    for _ in range(20):
        query, passage = rng.standard_normal((2, dim)).astype(np.float32)
        assert len(set(dense_scores(query, np.tile(passage, (n, 1))).tolist())) == 1


def test_maxsim_is_the_mean_over_query_tokens_of_the_best_match():
    query = np.float32([[1, 0], [0, 1]])
    passages = TokenRows(np.float32([[0.6, 0.8], [0.8, 0.6], [1, 0]]), np.array([0, 2, 2, 3]))
    # first passage: best of (.6, .8) and best of (.8, .6); second has no token; third: 1 and 0
    assert maxsim(query, passages).tolist() == pytest.approx([0.8, 0.0, 0.5])


def test_the_hybrid_score_is_the_weighted_sum():
    score = hybrid_scores(np.float32([0.5]), np.float32([0.25]), np.float32([0.75]), Weights(1, 0.3, 1))
    assert score.tolist() == pytest.approx([0.5 + 0.3 * 0.25 + 0.75])


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.integers(0, 4), st.integers(0, 2**32 - 1))
def test_maxsim_equals_the_definition(lengths, n_query, seed):
    rng = np.random.default_rng(seed)
    query = rng.standard_normal((n_query, 8), np.float32)
    docs = [rng.standard_normal((n, 8), np.float32) for n in lengths]
    expected = [np.mean([max(q @ d for d in doc) for q in query]) if len(doc) and n_query else 0 for doc in docs]
    got = maxsim(query, TokenRows(np.concatenate(docs), offsets_of(lengths)))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@given(st.lists(st.dictionaries(st.integers(0, 12), st.floats(0, 2, width=16), max_size=6), min_size=2, max_size=8))
def test_lexical_scores_equal_the_definition(texts):
    query, *passages = texts
    expected = [sum(weight * passage.get(token, 0) for token, weight in query.items()) for passage in passages]
    np.testing.assert_allclose(lexical_scores(rows(query), rows(*passages)), expected, rtol=1e-5, atol=1e-6)


def test_presets_are_the_papers():
    assert resolve_weights("general") == (1, 0.3, 1)
    assert resolve_weights("long") == (0.15, 0.5, 0.35)
    assert resolve_weights("flagembedding") == (0.4, 0.2, 0.4)


@pytest.mark.parametrize("weights", [[1, 0.5, 0], np.array([1, 0.5, 0], np.float32), Weights(1, 0.5, 0), (1e6, 5e5, 0)])
def test_weights_are_three_numbers_in_their_order(weights):
    dense, sparse, tokens = resolve_weights(weights)
    assert (sparse, tokens) == (dense / 2, 0)


@pytest.mark.parametrize(
    ("weights", "error"),
    [
        ("fast", ValueError),
        ((1, 2), ValueError),
        ((1, 2, 3, 4), ValueError),
        ((0, 0, 0), ValueError),
        ((1e-300, 0, 0), ValueError),  # 0 in float32
        ((1, -1, 0), ValueError),
        ((1, float("nan"), 0), ValueError),
        ((1, float("inf"), 0), ValueError),
        ((1e300, 1, 1), ValueError),
        ((10**400, 1, 1), ValueError),
        ((1, None, 0), TypeError),
        (("1", "0", "0"), TypeError),
        ({"dense": 1, "sparse": 0.3, "tokens": 1}, TypeError),
        ({1, 2, 3}, TypeError),  # in no order
        (None, TypeError),
        (1.0, TypeError),
    ],
)
def test_weights_that_make_no_sense_are_refused(weights, error):
    with pytest.raises(error, match="weights must be"):
        resolve_weights(weights)
