"""The encoder on the real mini model: order, invariance, limits, bad input, threads."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from sample_texts import TEXTS

from m3edge import CancelledError, Embeddings, Encoder, ProviderError
from m3edge.encoder import plan_batches
from m3edge.scoring import dense_scores, lexical_scores, maxsim
from m3edge.tokenization import Tokenizer


def assert_same(left: Embeddings, right: Embeddings, atol: float = 2e-5) -> None:
    np.testing.assert_allclose(left.dense, right.dense, atol=atol)
    assert left.sparse.ids.tolist() == right.sparse.ids.tolist()
    np.testing.assert_allclose(left.sparse.weights, right.sparse.weights, atol=atol)
    np.testing.assert_allclose(left.tokens.vectors, right.tokens.vectors, atol=atol)
    assert left.tokens.offsets.tolist() == right.tokens.offsets.tolist()


@pytest.fixture(scope="module")
def together(encoder: Encoder) -> Embeddings:
    return encoder.encode_passages(TEXTS)


def test_shapes_and_types_are_as_documented(together, encoder):
    n = len(TEXTS)
    assert together.dense.shape == (n, encoder.info.dense_dim)
    assert together.dense.dtype == together.sparse.weights.dtype == together.tokens.vectors.dtype == np.float32
    assert together.sparse.ids.dtype == together.sparse.offsets.dtype == together.tokens.offsets.dtype == np.int64
    assert len(together.sparse.offsets) == len(together.tokens.offsets) == n + 1
    assert together.tokens.vectors.shape == (together.tokens.offsets[-1], encoder.info.token_dim)
    assert (together.sparse.weights >= 0).all()


def test_dense_and_token_vectors_have_unit_length(together):
    np.testing.assert_allclose(np.linalg.norm(together.dense, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together.tokens.vectors, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("i", range(len(TEXTS)))
def test_a_text_does_not_depend_on_what_else_is_in_its_batch(encoder, together, i):
    assert_same(together[i], encoder.encode_passages(TEXTS[i]))


@pytest.mark.parametrize("batch_tokens", [1, 64, 100_000])
def test_results_come_in_input_order_whatever_the_batches(encoder, together, batch_tokens):
    assert_same(together, encoder.encode_passages(TEXTS, batch_tokens=batch_tokens))


def test_the_prefix_counts_for_the_dense_vector_only(encoder):
    text = "compress files"
    query, plain = encoder.encode_queries(text), encoder.encode(text)
    assert query.sparse.ids.tolist() == plain.sparse.ids.tolist()
    assert len(query.tokens.vectors) == len(plain.tokens.vectors)
    assert abs(query.dense - plain.dense).max() > 1e-3


@pytest.fixture
def letters(tmp_path):
    """A tokenizer with a token for a, b, c and d each, and one for "cd"."""
    from tokenizers import Tokenizer as HuggingFaceTokenizer
    from tokenizers import models, processors

    pieces = [("<s>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), *((letter, -3.0) for letter in "abcd"), ("cd", -1.0)]
    tokenizer = HuggingFaceTokenizer(models.Unigram(pieces, unk_id=2))
    ends = [("<s>", 0), ("</s>", 1)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return Tokenizer(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("interval", [None, 2, 3, 4])
@pytest.mark.parametrize(
    ("text", "content"), [("ab", ["a", "b", "</s>"]), ("dab", ["cd", "a", "b", "</s>"]), ("", ["</s>"])]
)
def test_of_a_prefix_whose_end_grew_together_with_the_text_the_rest_stays_outside(letters, interval, text, content):
    (tokens,) = letters.tokenize([text], prefix="abc", max_length=64, mcls_interval=interval)
    assert [letters.token(i) for i in tokens.ids[tokens.content]] == content


def test_token_vectors_leave_out_the_first_token_and_keep_the_last(encoder):
    (tokens,) = encoder.tokenizer.tokenize(["compress files"], prefix="passage: ", max_length=512)
    assert tokens.ids[0] == encoder.info.cls_id
    assert tokens.ids[-1] == encoder.info.eos_id
    assert len(encoder.encode_passages("compress files").tokens.vectors) == len(tokens.ids) - 1 - tokens.n_prefix


def test_special_tokens_never_have_a_sparse_weight(together, encoder):
    assert not np.isin(together.sparse.ids, encoder.info.special_ids).any()


def test_an_empty_text_has_a_dense_vector_no_lexical_one_and_one_token(together):
    empty = together[1]
    assert np.linalg.norm(empty.dense) == pytest.approx(1, abs=1e-5)
    assert len(empty.sparse.ids) == 0
    assert len(empty.tokens.vectors) == 1


def test_no_texts_give_empty_embeddings(encoder):
    nothing = encoder.encode_passages([])
    assert len(nothing) == 0
    assert nothing.dense.shape == (0, encoder.info.dense_dim)
    assert nothing.tokens.vectors.shape == (0, encoder.info.token_dim)
    assert nothing.to_flagembedding()["colbert_vecs"] == []


def test_a_hundred_thousand_words_are_cut_and_said_to_be(encoder):
    result = encoder.encode_passages(["word " * 100_000, "word"])
    assert result.truncated.tolist() == [True, False]
    assert np.isfinite(result.dense).all()
    _, prefix_and_first = 0, encoder.tokenizer.tokenize([""], prefix=encoder.info.passage_prefix, max_length=512)[0]
    assert len(result[0].tokens.vectors) == encoder.info.max_length - 1 - prefix_and_first.n_prefix


@pytest.mark.parametrize(
    "text", ["\ud800", "a\udfff b", "nul\x00byte", "\u202eright to left\u202c", "\x01\x02", "\u200b"]
)
def test_strange_characters_give_finite_vectors(encoder, text):
    result = encoder.encode_passages(text)
    assert np.isfinite(result.dense).all()
    assert np.isfinite(result.tokens.vectors).all()


def test_a_surrogate_pair_is_the_character_it_stands_for(encoder):
    assert_same(encoder.encode("\ud83d\ude00 smile"), encoder.encode("\U0001f600 smile"))


def test_a_none_among_the_texts_is_named(encoder):
    with pytest.raises(TypeError, match=r"texts\[1\] must be a string, got NoneType"):
        encoder.encode(["a", None, "b"])


@pytest.mark.parametrize("texts", [None, 3, b"text"])
def test_what_is_no_text_and_holds_none_is_refused(encoder, texts):
    with pytest.raises(TypeError, match=f"texts must be strings, got {type(texts).__name__}"):
        encoder.encode(texts)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"heads": ["dense", "lexical"]}, ValueError, "heads must be one or more of"),
        ({"heads": []}, ValueError, "heads must be one or more of"),
        ({"heads": iter([])}, ValueError, "heads must be one or more of"),
        ({"heads": [["dense"]]}, ValueError, "heads must be one or more of"),
        ({"heads": None}, TypeError, "heads must be one or more of .* got NoneType"),
        ({"max_length": 100_000}, ValueError, "max_length must be from 3 to the model's 512"),
        ({"max_length": 2}, ValueError, "max_length must be at least 3, got 2"),
        ({"max_length": 10.5}, TypeError, "max_length must be an integer, got float"),
        ({"max_length": "8"}, TypeError, "max_length must be an integer, got str"),
        ({"batch_tokens": 0}, ValueError, "batch_tokens must be at least 1"),
        ({"batch_tokens": 100.5}, TypeError, "batch_tokens must be an integer, got float"),
        ({"batch_tokens": True}, TypeError, "batch_tokens must be an integer, got bool"),
    ],
)
def test_wrong_arguments_say_what_was_expected(encoder, arguments, error, message):
    with pytest.raises(error, match=message):
        encoder.encode("text", **arguments)


def test_heads_may_be_a_generator_and_numbers_numpys(encoder):
    heads = (head for head in ("dense", "sparse"))
    result = encoder.encode(TEXTS, heads=heads, max_length=np.int64(8), batch_tokens=np.int32(64))
    expected = encoder.encode(TEXTS, heads=("dense", "sparse"), max_length=8, batch_tokens=64)
    assert result.dense.tolist() == expected.dense.tolist()
    assert result.sparse.weights.tolist() == expected.sparse.weights.tolist()
    assert result.tokens is None


def test_heads_that_are_not_asked_for_are_none(encoder):
    result = encoder.encode("text", heads="sparse")
    assert result.dense is None
    assert result.tokens is None
    assert len(result.sparse.ids) == 1


def test_a_set_event_cancels(encoder):
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(CancelledError, match="after 0 of 2 texts"):
        encoder.encode(["a", "b"], cancel=cancel)


def test_cancelling_between_two_batches_says_how_many_texts_were_done(encoder, monkeypatch):
    cancel, run = threading.Event(), encoder.session.run

    def run_and_cancel(*batch):
        cancel.set()
        return run(*batch)

    monkeypatch.setattr(encoder.session, "run", run_and_cancel)
    with pytest.raises(CancelledError, match="after 1 of 2 texts"):
        encoder.encode(["a", "b"], batch_tokens=1, cancel=cancel)


def test_several_threads_get_what_one_gets(encoder, together):
    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(lambda _: encoder.encode_passages(TEXTS), range(8)):
            assert_same(together, result)


def test_flagembedding_dictionaries(together, encoder):
    result = together.to_flagembedding()
    assert result["dense_vecs"].shape == (len(TEXTS), encoder.info.dense_dim)
    assert [len(vectors) for vectors in result["colbert_vecs"]] == np.diff(together.tokens.offsets).tolist()
    row = together[0].sparse
    expected = {str(i): w for i, w in zip(row.ids.tolist(), row.weights.tolist(), strict=True) if w > 0}
    assert result["lexical_weights"][0] == expected
    assert result["lexical_weights"][1] == {}


def test_a_relevant_passage_scores_higher_in_every_part(encoder):
    query = encoder.encode_queries("how do I compress a file")
    passages = encoder.encode_passages(["Use gzip to compress a file.", "Green tea is made from unoxidised leaves."])
    for good, bad in (
        dense_scores(query.dense[0], passages.dense),
        lexical_scores(query.sparse, passages.sparse),
        maxsim(query.tokens.vectors, passages.tokens),
    ):
        assert good > bad


def test_slices_and_single_items_agree(together):
    assert_same(together[2:4][1], together[3], atol=0)
    assert_same(together[-1], together[len(TEXTS) - 1], atol=0)
    with pytest.raises(IndexError):
        together[len(TEXTS)]


@pytest.mark.parametrize("provider", ["cuda", "directml", "coreml"])
def test_a_provider_that_is_not_installed_is_refused_by_name(mini_fp32, provider):
    with pytest.raises(ProviderError, match=f"provider '{provider}' is not part of the installed onnxruntime"):
        Encoder.load(mini_fp32, provider, verify=False)


def test_an_unknown_provider_is_a_wrong_argument(mini_fp32):
    with pytest.raises(ValueError, match="provider must be 'auto' or one of"):
        Encoder.load(mini_fp32, "gpu", verify=False)


def test_what_runs_is_what_is_said(encoder):
    assert encoder.provider == "cpu"


def test_batches_stay_within_the_token_bound_and_lose_nothing():
    lengths = [5, 100, 7, 7, 3, 50, 1]
    batches = list(plan_batches(lengths, 64))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 64 for batch in batches)


def test_texts_of_equal_length_go_without_padding_where_they_are_worth_a_run():
    assert list(plan_batches([40, 40, 39, 39], 160)) == [[0, 1], [2, 3]]
    assert list(plan_batches([40, 39, 39], 160)) == [[0, 1, 2]]
    assert list(plan_batches([40, 40, 39, 39], 160, may_pad=True)) == [[0, 1, 2, 3]]
