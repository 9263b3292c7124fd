"""Filtered searches, batches, exact search and an index without token vectors, on the real mini model."""

import sqlite3
import threading
from contextlib import closing

import numpy as np
import pytest

from m3edge import CancelledError, Document, FormatError, Index

TEXTS = {
    "gzip": "The gzip module compresses and decompresses files.",
    "tea": "Green tea is made from unoxidised leaves.",
    "zip": "The zipfile module reads and writes archives of compressed files.",
    "mail": "The smtplib module sends electronic mail to a server.",
    "date": "The datetime module adds and subtracts dates.",
}
METADATA = {
    "gzip": {"kind": "module", "year": 2001, "tags": ["compression", "files"]},
    "tea": {"kind": "drink"},
    "zip": {"kind": "module", "year": 2003, "tags": ["compression", "archives"]},
    "mail": {"kind": "module", "year": 1999, "author": {"name": "dragon"}},
    "date": {"kind": "module", "year": 2003},
}
DOCUMENTS = [Document(id_, text, METADATA[id_]) for id_, text in TEXTS.items()]
QUERY = "how do I compress a file"


@pytest.fixture
def filled(index):
    index.add(DOCUMENTS)
    return index


def ids(hits) -> set[str]:
    return {hit.id for hit in hits}


@pytest.mark.parametrize("weights", ["general", (1, 0, 0), (0, 0, 1)])
@pytest.mark.parametrize(
    ("filter", "expected"),
    [
        ({}, {"gzip", "tea", "zip", "mail", "date"}),
        ({"kind": "drink"}, {"tea"}),
        ({"year": {"$gte": 2001, "$lt": 2003}}, {"gzip"}),
        ({"tags": "compression", "year": {"$ne": 2001}}, {"zip"}),
        ({"$or": [{"author.name": "dragon"}, {"year": {"$exists": False}}]}, {"mail", "tea"}),
        ({"kind": "nothing"}, set()),
    ],
)
def test_every_document_that_passes_is_found_and_no_other(filled, filter, expected, weights):
    assert ids(filled.search(QUERY, filter=filter, weights=weights)) == expected


def test_the_sparse_part_finds_only_what_passes(filled):
    assert ids(filled.search("module files", filter={"year": 2003}, weights=(0, 1, 0))) == {"zip", "date"}


def test_a_filtered_hit_scores_as_without_the_filter(filled):
    unfiltered = {hit.id: hit for hit in filled.search(QUERY)}
    (hit,) = filled.search(QUERY, filter={"tags": "archives"})
    assert hit.scores == pytest.approx(unfiltered["zip"].scores, abs=1e-6)


def test_filters_follow_what_is_added_deleted_and_replaced_here_and_elsewhere(filled, encoder):
    filter = {"kind": "drink"}
    assert ids(filled.search(QUERY, filter=filter)) == {"tea"}
    with Index.open(filled.folder, encoder) as reader:
        filled.add([Document("coffee", "Coffee is roasted.", {"kind": "drink"})])
        assert ids(filled.search(QUERY, filter=filter)) == {"tea", "coffee"}
        filled.upsert([Document("tea", "Tea.", {"kind": "leaf"}), Document("zip", "Not a module.", {"kind": "drink"})])
        assert ids(filled.search(QUERY, filter=filter)) == {"coffee", "zip"}
        filled.delete("coffee")
        assert ids(filled.search(QUERY, filter=filter)) == {"zip"}
        reader.refresh()
        assert reader.search(QUERY, filter=filter) == filled.search(QUERY, filter=filter)


@pytest.mark.parametrize("arguments", [{"k": 10**23}, {"k": 2**63, "candidates": 2**63}, {"candidates": 2**64}])
@pytest.mark.parametrize("lexical", ["m3", "bm25"])
def test_who_asks_for_more_than_there_is_gets_all_there_is(made_index, made, arguments, lexical):
    query, arguments = made.embeddings_of({"query": 0}), {"k": 20, **arguments}
    expected = made_index.search(query, 20, lexical=lexical)
    assert len(expected) == 20
    assert made_index.search(query, lexical=lexical, **arguments) == expected
    assert made_index.search_batch(query, lexical=lexical, **arguments) == [expected]


def test_numbers_and_weights_may_be_numpys(made_index, made):
    query = made.embeddings_of({"query": 0})
    numpys = made_index.search(query, np.int64(2), candidates=np.int32(5), weights=np.array([1, 0, 1]))
    assert numpys == made_index.search(query, 2, candidates=5, weights=(1, 0, 1))


def test_a_filter_may_be_made_of_numpys_values(filled):
    years = np.array([1999, 2003])
    assert ids(filled.search(QUERY, filter={"year": {"$in": years}})) == {"zip", "mail", "date"}
    assert ids(filled.search(QUERY, filter={"year": years[1], "kind": np.str_("module")})) == {"zip", "date"}


def test_a_wrong_filter_is_refused_before_anything_is_encoded(filled):
    with pytest.raises(ValueError, match=r"filter\.year\.\$like: unknown operator"):
        filled.search(QUERY, filter={"year": {"$like": 1}})
    with pytest.raises(TypeError, match="filter must be a mapping, got str"):
        filled.search_batch([QUERY], filter="kind = drink")


# Batches

QUERIES = [QUERY, "what is tea", "send mail", "dates", QUERY, "", "compress archives"] * 3


@pytest.mark.parametrize("arguments", [{}, {"filter": {"kind": "module"}, "weights": (1, 1, 0)}, {"lexical": "bm25"}])
def test_a_batch_finds_what_single_searches_find(filled, encoder, arguments):
    embeddings = encoder.encode_queries(QUERIES)
    single = [filled.search(embeddings[i], 3, **arguments) for i in range(len(QUERIES))]
    assert filled.search_batch(embeddings, 3, **arguments) == single
    for found, expected in zip(filled.search_batch(QUERIES, 3, **arguments), single, strict=True):
        assert [hit.id for hit in found] == [hit.id for hit in expected]
        assert [hit.score for hit in found] == pytest.approx([hit.score for hit in expected], abs=1e-4)


def test_batches_larger_than_a_block_keep_their_order(filled, encoder, monkeypatch):
    monkeypatch.setattr("m3edge.index.searching._SEARCH_BLOCK", 4)
    embeddings = encoder.encode_queries(QUERIES)
    assert filled.search_batch(embeddings, 2) == [filled.search(embeddings[i], 2) for i in range(len(QUERIES))]


def test_an_empty_batch_finds_nothing(filled, encoder):
    assert filled.search_batch([]) == []
    assert filled.search_batch(encoder.encode_queries([])) == []


def test_a_batch_can_be_cancelled(filled):
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(CancelledError):
        filled.search_batch(QUERIES, cancel=cancel)


@pytest.mark.parametrize("several", [iter, dict.fromkeys, np.array], ids=["iterator", "keys", "array"])
def test_a_batch_may_come_as_any_iterable(filled, several):
    queries = QUERIES[:4]
    assert filled.search_batch(several(queries), 2) == filled.search_batch(queries, 2)


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        (QUERY, "put it in a list"),
        (None, "queries must be strings, got NoneType"),
        (b"ab", "queries must be strings, got bytes"),
        ([QUERY, 3], r"queries\[1\] must be a string, got int"),
    ],
)
def test_what_holds_no_queries_is_no_batch(filled, queries, message):
    with pytest.raises(TypeError, match=message):
        filled.search_batch(queries)


# The dense part


@pytest.mark.parametrize("dense", ["auto", "exact", "hnsw"])
def test_an_index_keeps_how_it_finds_the_nearest(dense, tmp_path, encoder):
    with Index.create(tmp_path / "index", encoder, dense=dense) as index:
        index.add(DOCUMENTS)
        expected = index.search(QUERY, weights=(1, 0, 0))
    assert bool(list((tmp_path / "index").glob("dense-*.hnsw"))) == (dense == "hnsw")
    with Index.open(tmp_path / "index", encoder) as again:
        assert again.dense_mode == dense
        assert again.search(QUERY, weights=(1, 0, 0)) == expected
        again.delete("tea")
        again.add([Document("tar", "tarfile packs files into an archive.")])
        assert ids(again.search(QUERY, weights=(1, 0, 0))) == {"gzip", "zip", "mail", "date", "tar"}


def test_an_unknown_dense_mode_is_refused(tmp_path, encoder):
    with pytest.raises(ValueError, match="dense must be one of auto, exact, hnsw, got 'flat'"):
        Index.create(tmp_path / "index", encoder, dense="flat")


@pytest.mark.parametrize("name", ["dense-*.npy", "dense-*.hnsw"])
def test_a_damaged_file_of_the_dense_part_is_made_again_with_a_warning(name, tmp_path, encoder):
    with Index.create(tmp_path / "index", encoder, dense="hnsw") as index:
        index.add(DOCUMENTS)
        expected = index.search(QUERY)
    (path,) = (tmp_path / "index").glob(name)
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(bytes(content))
    with pytest.warns(RuntimeWarning, match=path.name), Index.open(tmp_path / "index", encoder) as again:
        assert again.search(QUERY) == expected


# Without token vectors


@pytest.fixture
def tokenless(tmp_path, encoder):
    with Index.create(tmp_path / "tokenless", encoder, token_codec="none") as index:
        index.add(DOCUMENTS)
        yield index


def test_without_stored_token_vectors_a_search_makes_them_anew(tokenless, filled, encoder):
    assert not any(path.name.startswith("tokens") for path in tokenless.folder.iterdir())
    hits, expected = (index.search(QUERY, filter={"kind": "module"}) for index in (tokenless, filled))
    assert [hit.id for hit in hits] == [hit.id for hit in expected]
    for hit, other in zip(hits, expected, strict=True):
        assert hit.scores == pytest.approx(other.scores, abs=4e-3)  # the other's are in int8
    assert len(tokenless.search_batch([QUERY, "tea"], 2)) == 2


def test_without_stored_token_vectors_and_encoder_only_their_score_is_missing(tokenless, encoder):
    query = encoder.encode_queries(QUERY)
    expected = tokenless.search(query, weights=(1, 1, 0))
    tokenless.close()
    with Index.open(tokenless.folder) as index:
        index.check()
        assert index.search(query, weights=(1, 1, 0)) == expected
        with pytest.raises(ValueError, match="open it with its encoder"):
            index.search(query)


def test_pooling_vectors_that_are_not_kept_is_refused(tmp_path, encoder):
    with pytest.raises(ValueError, match="token_pooling must be 1 when token_codec is 'none'"):
        Index.create(tmp_path / "index", encoder, token_codec="none", token_pooling=2)


def test_damaged_metadata_is_named_and_never_answered_from(filled, encoder):
    with closing(sqlite3.connect(filled.folder / "index.sqlite")) as connection, connection:
        connection.execute("""UPDATE documents SET metadata = '{"kind": "drink"}' WHERE id = 'mail'""")
    with Index.open(filled.folder, encoder) as again, pytest.raises(FormatError, match="document 'mail'"):
        again.search(QUERY, filter={"kind": "drink"})


@pytest.mark.parametrize("lexical", ["m3", "m3-idf", "bm25"])
def test_a_preset_means_the_same_weights_with_every_lexical_score(filled, lexical):
    def found(**arguments):
        return [(hit.id, hit.score) for hit in filled.search(QUERY, lexical=lexical, **arguments)]

    assert found() == found(weights="general") == found(weights=(1, 0.3, 1))
    assert found(weights="long") == found(weights=(0.15, 0.5, 0.35)) != found()
