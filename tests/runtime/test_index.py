"""The index on the real mini model: what is added is found, what is deleted is not, in this process and the next."""

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from m3edge import Document, Encoder, FormatError, Index, ModelMismatchError
from m3edge.index import HnswConfig
from m3edge.scoring import dense_scores, lexical_scores, maxsim

DOCUMENTS = [
    Document("gzip", "The gzip module compresses and decompresses files.", {"lang": "en", "year": 2001}),
    Document("tea", "Green tea is made from unoxidised leaves.", {"lang": "en"}),
    Document("zip-zh", "使用 zipfile 模块压缩文件。", {"lang": "zh"}),
    Document("mail-de", "Mit smtplib verschickt man E-Mails über einen Server.", {"lang": "de"}),
    Document("date-ru", "Модуль datetime складывает и вычитает даты.", {"lang": "ru"}),
]
QUERY = "how do I compress a file"


@pytest.fixture
def filled(index):
    index.add(DOCUMENTS)
    return index


def ids(hits) -> list[str]:
    return [hit.id for hit in hits]


def test_the_relevant_documents_come_first(filled):
    assert set(ids(filled.search(QUERY, k=2))) == {"gzip", "zip-zh"}


def test_a_hit_carries_its_document(filled):
    hit = filled.search(QUERY, k=1)[0]
    document = next(document for document in DOCUMENTS if document.id == hit.id)
    assert (hit.text, hit.metadata) == (document.text, document.metadata)


def test_scores_are_the_definitions_of_every_part(filled, encoder):
    query = encoder.encode_queries(QUERY)
    passages = encoder.encode_passages([document.text for document in DOCUMENTS])
    dense = dense_scores(query.dense[0], passages.dense)
    sparse = lexical_scores(query.sparse, passages.sparse)
    tokens = maxsim(query.tokens.vectors, passages.tokens)
    hits = {hit.id: hit for hit in filled.search(QUERY)}
    assert len(hits) == len(DOCUMENTS)
    for i, document in enumerate(DOCUMENTS):
        assert hits[document.id].scores == pytest.approx((dense[i], sparse[i], tokens[i]), abs=4e-3)  # int8 store
        assert hits[document.id].score == pytest.approx(dense[i] + 0.3 * sparse[i] + tokens[i], abs=5e-3)


def test_a_part_with_weight_zero_is_switched_off(filled):
    hit = filled.search(QUERY, k=1, weights=(0, 1, 0))[0]
    assert hit.scores.dense is None
    assert hit.scores.tokens is None
    assert hit.score == pytest.approx(hit.scores.sparse)


def test_tokens_alone_rerank_the_dense_candidates(filled):
    hits = filled.search(QUERY, weights=(0, 0, 1))
    assert len(hits) == len(DOCUMENTS)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_sparse_alone_finds_only_documents_that_share_a_token(filled):
    assert all(hit.scores.sparse > 0 for hit in filled.search("compresses", weights=(0, 1, 0)))


def test_embeddings_and_their_text_find_the_same(filled, encoder):
    assert filled.search(QUERY) == filled.search(encoder.encode_queries(QUERY))


def test_a_new_process_finds_the_same(filled, mini_fp32):
    expected = [[hit.id, round(hit.score, 4)] for hit in filled.search(QUERY)]
    filled.close()
    code = (
        "import json, sys, m3edge\n"
        "with m3edge.Index.open(sys.argv[1], m3edge.Encoder.load(sys.argv[2], 'cpu')) as index:\n"
        "    print(json.dumps([[h.id, round(h.score, 4)] for h in index.search(sys.argv[3])]))\n"
    )
    command = [sys.executable, "-c", code, str(filled.folder), str(mini_fp32), QUERY]
    assert json.loads(subprocess.run(command, capture_output=True, check=True).stdout) == expected


def test_it_takes_adds_and_deletes_after_reopening(filled, encoder):
    filled.close()
    with Index.open(filled.folder, encoder) as again:
        assert again.delete(["gzip", "nothing"]) == 1
        again.add([Document("tar", "tarfile packs files into an archive.")])
        assert len(again) == len(DOCUMENTS)
        assert "gzip" not in ids(again.search(QUERY))
        assert "tar" in ids(again.search(QUERY))
    with Index.open(filled.folder, encoder) as third:
        assert "gzip" not in ids(third.search(QUERY))
        assert "tar" in ids(third.search(QUERY))


def test_an_index_that_was_never_closed_opens_with_all_it_committed(filled, encoder):
    with Index.open(filled.folder, encoder) as other:  # the first one still open, nothing derived saved yet
        assert other.search(QUERY) == filled.search(QUERY)


def test_another_index_on_the_same_folder_sees_changes_after_refresh(filled, encoder):
    with Index.open(filled.folder, encoder) as reader:
        filled.delete("gzip")
        filled.add([Document("tar", "tarfile packs files into an archive.")])
        reader.refresh()
        assert reader.search(QUERY) == filled.search(QUERY)


def test_upsert_replaces(filled):
    report = filled.upsert([Document("tea", "bzip2 compresses a file."), Document("new", "lzma compresses a file.")])
    assert report.added == 2
    assert len(filled) == len(DOCUMENTS) + 1
    assert filled.get("tea").text == "bzip2 compresses a file."
    hits = ids(filled.search(QUERY))
    assert hits.count("tea") == 1
    assert set(hits[:4]) == {"tea", "new", "gzip", "zip-zh"}


def test_fewer_than_k_documents_give_fewer_hits(filled):
    assert len(filled.search(QUERY, k=1000)) == len(DOCUMENTS)


def test_an_empty_index_finds_nothing(index):
    assert index.search(QUERY) == []
    assert index.search(QUERY, weights=(0, 1, 0)) == []


def test_an_index_whose_documents_are_all_deleted_finds_nothing(filled):
    assert filled.delete([document.id for document in DOCUMENTS]) == len(DOCUMENTS)
    assert filled.search(QUERY) == []


def test_adding_nothing_changes_nothing(filled):
    assert filled.add([]).added == 0
    assert len(filled.search(QUERY)) == len(DOCUMENTS)


def test_an_empty_query_and_an_empty_document_are_allowed(filled):
    filled.add([Document("empty", "")])
    assert len(filled.search("")) == len(DOCUMENTS) + 1


def test_texts_longer_than_the_model_reads_are_reported(index):
    report = index.add([Document("short", "a b c"), Document("long", "word " * 2000)])
    assert report.truncated == ("long",)


@pytest.mark.parametrize("text", ["lone \ud800 surrogate", "nul \x00 byte", "\u202eright to left", "😀\n\t"])
def test_a_stored_text_comes_back_letter_by_letter(index, text):
    index.add([Document("strange/ id ✓", text, {"k": text.encode("utf-8", "replace").decode()})])
    assert index.get("strange/ id ✓").text == text
    assert index.search("anything")[0].text == text


@pytest.mark.parametrize(
    ("documents", "error", "message"),
    [
        ([Document("a", "x"), Document("a", "y")], ValueError, "id 'a' came twice"),
        ([Document("gzip", "x")], ValueError, "id 'gzip' is already in the index; use upsert"),
        ([Document("", "x")], ValueError, "id must not be empty"),
        ([Document("\ud800", "x")], ValueError, "id must be valid Unicode"),
        ([Document("a", None)], TypeError, r"documents\[0\]: text must be a string, got NoneType"),
        ([Document(7, "x")], TypeError, "id must be a string, got int"),
        ([Document("a", "x"), None], TypeError, r"documents\[1\] must be a Document or a mapping, got NoneType"),
        ([{"id": "a"}], ValueError, "must have 'id', 'text'"),
        ([{"id": "a", "text": "x", "meta": {}}], ValueError, "at most 'metadata'"),
        ([Document("a", "x", {"n": float("nan")})], ValueError, "metadata must be a JSON object"),
        ([Document("a", "x", {"n": object()})], ValueError, "metadata must be a JSON object"),
        ([Document("a", "x", {"n": {1: "a", "1": "b"}})], ValueError, "its keys must be strings, got 1"),
        ([Document("a", "x", json.loads('{"n": [' * 32 + "{}" + "]}" * 32))], ValueError, "more than 64 levels deep"),
        ([Document("a", "x", [1])], TypeError, "metadata must be a mapping"),
        (Document("a", "x"), TypeError, "put it in a list"),
        ("text", TypeError, "put it in a list"),
    ],
)
def test_a_bad_document_is_named_and_nothing_of_the_call_is_added(filled, documents, error, message):
    before = filled.search(QUERY)
    many = [Document(f"good-{i}", "some text") for i in range(300)]  # more than one block: the first is already written
    if isinstance(documents, list):
        documents = [*many, *documents]
        message = message.replace(r"[0]", r"[300]").replace(r"\[0\]", r"\[300\]").replace(r"\[1\]", r"\[301\]")
    with pytest.raises(error, match=message):
        filled.add(documents)
    assert len(filled) == len(DOCUMENTS)
    assert filled.search(QUERY) == before
    filled.add([Document("after", "the index still works")])
    assert "after" in filled


def test_metadata_are_a_documents_own():
    Document("a", "x").metadata["n"] = 1
    assert Document("b", "y").metadata == {}


def test_an_index_hands_out_its_documents_in_the_order_they_came(filled):
    assert [document.id for document in filled] == [document.id for document in DOCUMENTS]
    filled.delete(DOCUMENTS[0].id)
    with filled.transaction():
        filled.add([Document("new", "text")])
        assert [document.id for document in filled] == [*(document.id for document in DOCUMENTS[1:]), "new"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda index: None in index, "id_ must be a string, got NoneType"),
        (lambda index: index.get(5), "id_ must be a string, got int"),
        (lambda index: index.delete([1]), "ids must be strings, got 1"),
        (lambda index: index.set_note(None, 1), "key must be a string, got NoneType"),
        (lambda index: Index.open(index.folder, "models/mini"), "encoder must be an Encoder, .* got str"),
        (lambda index: Index.create(index.folder / "new", index.encoder, hnsw={"m": 16}), "hnsw must be an HnswConfig"),
    ],
)
def test_what_is_of_another_type_is_named(filled, call, message):
    with pytest.raises(TypeError, match=message):
        call(filled)


def test_an_interrupt_while_adding_leaves_the_last_state(filled):
    def documents():
        yield from (Document(f"d{i}", "text") for i in range(400))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        filled.add(documents())
    assert len(filled) == len(DOCUMENTS)
    assert filled.add([Document("d0", "gzip compresses")]).added == 1
    assert "d0" in ids(filled.search(QUERY))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"k": 0}, ValueError, "k must be at least 1"),
        ({"k": 2.5}, TypeError, "k must be an integer, got float"),
        ({"k": True}, TypeError, "k must be an integer, got bool"),
        ({"k": np.True_}, TypeError, "k must be an integer, got bool"),
        ({"candidates": "5"}, TypeError, "candidates must be an integer, got str"),
        ({"candidates": np.array([1, 2])}, TypeError, "candidates must be an integer, got ndarray"),
        ({"candidates": -1}, ValueError, "candidates must be at least 1"),
        ({"weights": "best"}, ValueError, r"weights must be three numbers \(dense, sparse, tokens\) or one of"),
    ],
)
def test_wrong_search_arguments_say_what_was_expected(filled, arguments, error, message):
    with pytest.raises(error, match=message):
        filled.search(QUERY, **arguments)


def test_a_query_of_the_wrong_kind_is_refused(filled, encoder):
    with pytest.raises(TypeError, match="query must be a string or Embeddings"):
        filled.search(["a", "b"])
    with pytest.raises(ValueError, match="embeddings of one text, got 2"):
        filled.search(encoder.encode_queries(["a", "b"]))
    with pytest.raises(ValueError, match="query must have the parts dense, sparse, tokens, got none of tokens"):
        filled.search(encoder.encode_queries("a", heads=("dense", "sparse")))
    wide = encoder.encode_queries("a")
    with pytest.raises(ModelMismatchError, match="query's dense vectors must be 384 wide, as the index's are"):
        filled.search(replace(wide, dense=wide.dense[:, :8]))


def test_another_models_encoder_is_refused(filled, encoder):
    filled.close()
    other = Encoder(replace(encoder.info, name="other", fingerprint="f" * 64), encoder.session, encoder.tokenizer)
    with pytest.raises(ModelMismatchError, match="built with model 'm3-mini'.*the encoder is 'other'.*new index"):
        Index.open(filled.folder, other)


def test_the_same_model_in_another_precision_is_taken(filled, encoder):
    filled.close()
    other = Encoder(replace(encoder.info, precision="int8"), encoder.session, encoder.tokenizer)
    with Index.open(filled.folder, other) as index:
        assert len(index.search(QUERY)) == len(DOCUMENTS)


def test_without_an_encoder_embeddings_still_search(filled, encoder):
    query = encoder.encode_queries(QUERY)
    expected = filled.search(query)
    filled.close()
    with Index.open(filled.folder) as index:
        assert index.search(query) == expected
        with pytest.raises(ValueError, match="to search for a text, open the index with its encoder"):
            index.search(QUERY)


def test_a_folder_that_is_no_index_is_refused(tmp_path, encoder):
    with pytest.raises(FormatError, match="not an m3edge index"):
        Index.open(tmp_path, encoder)
    (tmp_path / "index.sqlite").write_bytes(b"not a database, but long enough to look like one" * 100)
    with pytest.raises(FormatError, match="index.sqlite: damaged"):
        Index.open(tmp_path, encoder)


def test_a_newer_index_says_upgrade(filled, encoder):
    import sqlite3

    filled.close()
    connection = sqlite3.connect(filled.folder / "index.sqlite")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(FormatError, match="version 99 is newer.*upgrade m3edge"):
        Index.open(filled.folder, encoder)


def test_creating_over_something_is_refused(filled, encoder):
    with pytest.raises(FileExistsError, match="already exists"):
        Index.create(filled.folder, encoder)


def test_an_index_that_may_exist_is_opened_as_it_was_made(filled, encoder, tmp_path):
    n = len(filled)
    filled.close()
    with Index.create(filled.folder, encoder, token_codec="fp16", exist_ok=True) as index:
        assert (len(index), index.token_codec) == (n, "int8")
    with Index.create(tmp_path / "new", encoder, token_codec="fp16", exist_ok=True) as index:
        assert (len(index), index.token_codec) == (0, "fp16")


def test_what_exists_and_is_no_index_is_left_alone(encoder, tmp_path):
    (tmp_path / "letter.txt").write_text("Dear reader")
    with pytest.raises(FormatError, match="not an m3edge index"):
        Index.create(tmp_path, encoder, exist_ok=True)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize("name", ["dense-*.npy", "postings-*.npz", "derived.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_derived_file_is_made_again_with_a_warning(filled, encoder, name, damage):
    expected = filled.search(QUERY)
    filled.close()
    (path,) = filled.folder.glob(name)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    {"flip": lambda: path.write_bytes(data), "truncate": lambda: path.write_bytes(data[:10]), "remove": path.unlink}[
        damage
    ]()
    if (name, damage) == ("derived.json", "remove"):
        index = Index.open(filled.folder, encoder)  # as if nothing had ever been saved
    else:
        with pytest.warns(RuntimeWarning, match="made again from the documents"):
            index = Index.open(filled.folder, encoder)
    assert index.search(QUERY) == expected
    index.close()


def test_a_token_file_that_is_too_short_is_refused(filled, encoder):
    filled.close()
    path = filled.folder / "tokens.i8"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FormatError, match=r"tokens.i8: has \d+ bytes, expected at least"):
        Index.open(filled.folder, encoder)


@pytest.mark.parametrize("lexical", ["m3", "m3-idf", "bm25"])
def test_explain_takes_the_scores_apart(filled, lexical):
    hit = filled.search(QUERY, k=1, lexical=lexical, explain=True)[0]
    assert sum(item.score for item in hit.explanation.shared) == pytest.approx(hit.scores.sparse, abs=1e-5)
    assert np.mean([item.similarity for item in hit.explanation.matches]) == pytest.approx(hit.scores.tokens, abs=4e-3)
    assert "press" in [item.token for item in hit.explanation.shared]
    with pytest.raises(ValueError, match="explain needs the query as a text"):
        filled.search(filled.encoder.encode_queries(QUERY), explain=True)


@pytest.mark.parametrize("codec", ["fp16", "int4", "binary"])
def test_an_index_keeps_its_token_codec(codec, tmp_path, encoder):
    with Index.create(tmp_path / "index", encoder, token_codec=codec) as index:
        index.add([{"id": "zip", "text": "The zipfile module writes archives."}, {"id": "tea", "text": "Green tea."}])
    with Index.open(tmp_path / "index", encoder) as index:
        assert index.token_codec == codec
        assert index.search("archive", k=1)[0].id == "zip"


def test_an_unknown_token_codec_leaves_no_folder(tmp_path, encoder):
    with pytest.raises(ValueError, match="token_codec must be one of int8, fp16, int4, binary, none, got 'int2'"):
        Index.create(tmp_path / "index", encoder, token_codec="int2")
    assert not (tmp_path / "index").exists()


def test_the_lexical_score_is_chosen_for_each_search(filled):
    found = {kind: filled.search(QUERY, k=3, weights=(0, 1, 0), lexical=kind) for kind in ("m3", "m3-idf", "bm25")}
    assert len({hits[0].score for hits in found.values()}) == 3
    assert len({hits[0].id for hits in found.values()}) == 1
    with pytest.raises(ValueError, match="lexical must be one of m3, m3-idf, bm25, got 'tf'"):
        filled.search(QUERY, lexical="tf")


def test_searching_while_another_thread_adds_gives_only_whole_documents(filled):
    stop = threading.Event()

    def search_all_the_time():
        while not stop.is_set():
            for hit in filled.search(QUERY, k=20):
                assert hit.text
        return True

    with ThreadPoolExecutor(3) as pool:
        searches = [pool.submit(search_all_the_time) for _ in range(2)]
        for i in range(5):
            filled.add([Document(f"{i}-{j}", f"file number {j}") for j in range(4)])
            filled.delete(f"{i}-0")
        stop.set()
        assert all(search.result() for search in searches)
    assert len(filled) == len(DOCUMENTS) + 15


def test_hnsw_settings_are_kept_with_the_index(tmp_path, encoder):
    with Index.create(tmp_path / "a", encoder, hnsw=HnswConfig(m=8)) as index:
        index.add(DOCUMENTS)
    with Index.open(tmp_path / "a", encoder) as index:
        assert len(index.search(QUERY)) == len(DOCUMENTS)
    with pytest.raises(ValueError, match="m must be at least 2, got 1"):
        HnswConfig(m=1)


def test_a_path_with_spaces_unicode_and_a_link_works(tmp_path, encoder):
    folder = tmp_path / "mit Leerzeichen é 索引"
    with Index.create(folder, encoder) as index:
        index.add(DOCUMENTS)
    (tmp_path / "link").symlink_to(folder)
    with Index.open(tmp_path / "link", encoder) as index:
        assert len(index.search(QUERY)) == len(DOCUMENTS)
