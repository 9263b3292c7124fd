"""The index folder: golden folders of every version open for ever, and a damaged one answers rightly or not at all."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from m3edge import Document, Embeddings, FormatError, Index
from m3edge.embeddings import SparseRows, TokenRows
from m3edge.index.check import check_index
from m3edge.index.sqlite_file import explained
from m3edge.index.stored_rows import document_crc32

DATA = Path(__file__).parent.parent / "data"
GOLDEN = sorted(path.name for path in DATA.glob("index-*"))


def golden_query(name: str) -> Embeddings:
    with np.load(DATA / name / "query.npz") as arrays:
        return Embeddings(
            dense=arrays["dense"],
            sparse=SparseRows(*(arrays[f"sparse_{field}"] for field in SparseRows._fields)),
            tokens=TokenRows(arrays["tokens"], arrays["token_offsets"]),
            truncated=np.zeros(1, bool),
        )


def assert_answers_as_written(index: Index, name: str) -> None:
    expected = json.loads((DATA / name / "expected.json").read_text())
    hits = index.search(golden_query(name))
    assert [hit.id for hit in hits] == [hit["id"] for hit in expected["hits"]]
    for hit, written in zip(hits, expected["hits"], strict=True):
        assert (hit.text, hit.metadata) == (written["text"], written["metadata"])
        assert hit.scores == pytest.approx(written["scores"], abs=1e-5)
    assert index.note("made_by") == expected["note"]


@pytest.fixture(params=GOLDEN)
def golden(request, tmp_path):
    """A copy of a golden folder, and its name."""
    shutil.copytree(DATA / request.param / "index", tmp_path / "index")
    return tmp_path / "index", request.param


def test_there_is_a_golden_folder_of_each_version():
    assert GOLDEN == ["index-1", "index-2", "index-3"]
    for name in GOLDEN:
        size = sum(path.stat().st_size for path in (DATA / name).rglob("*") if path.is_file())
        assert size < 200_000


def test_a_golden_folder_answers_and_is_sound(golden):
    folder, name = golden
    with Index.open(folder) as index:
        assert_answers_as_written(index, name)
        assert index.check().sound
    with Index.open(folder) as index:  # the derived files are this version's now
        assert_answers_as_written(index, name)


def test_a_golden_folder_is_written_to_and_compacted(golden, encoder):
    folder, name = golden
    with Index.open(folder, encoder) as index:
        index.upsert([Document("new", "bzip2 compresses a file.")])
        index.delete("new")
        assert_answers_as_written(index, name)
        assert index.check().sound
        index.compact()
        assert_answers_as_written(index, name)
        assert index.check().sound


@pytest.mark.parametrize("name", GOLDEN[-1:])
def test_a_newer_index_says_upgrade(name, tmp_path):
    shutil.copytree(DATA / name / "index", tmp_path / "index")
    connection = sqlite3.connect(tmp_path / "index" / "index.sqlite")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(FormatError, match="version 99 is newer.*upgrade m3edge"):
        Index.open(tmp_path / "index")


# Damage


def test_damage_in_the_old_format_is_found_by_its_blocks(tmp_path, encoder):
    shutil.copytree(DATA / "index-2" / "index", tmp_path / "index")
    flip(tmp_path / "index" / "tokens.i8", 20)
    with Index.open(tmp_path / "index") as index:
        (problem,) = index.check().problems
        assert (problem.remedy, problem.documents) == ("encode", ("gzip", "zip-zh"))
        with pytest.raises(FormatError, match="token vectors of 2 documents are damaged"):
            index.compact()
    assert Index.repair(tmp_path / "index", encoder).sound
    with Index.open(tmp_path / "index") as index:
        assert_answers_as_written(index, "index-2")


def flip(path: Path, position: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


def open_and_search(folder: Path, query: Embeddings) -> None:
    with Index.open(folder) as index:
        index.search(query, k=100)


def change(folder: Path, statement: str) -> None:
    connection = sqlite3.connect(folder / "index.sqlite")
    connection.execute(statement)
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    ("statement", "what", "remedy"),
    [
        ("UPDATE documents SET text = 'another' WHERE id = 'd7'", "checksum differs", "backup"),
        ("UPDATE documents SET metadata = '{}' WHERE id = 'd7'", "checksum differs", "backup"),
        ("UPDATE documents SET id = 'other' WHERE id = 'd7'", "checksum differs", "backup"),
        ("UPDATE vectors SET dense = zeroblob(64) WHERE row = 8", "checksum differs", "encode"),
        ("UPDATE vectors SET sparse_weights = zeroblob(20) WHERE row = 8", "checksum differs", "encode"),
        ("UPDATE vectors SET token_count = token_count + 1 WHERE row = 8", "token vectors differ", "encode"),
        ("UPDATE vectors SET token_start = 1000000 WHERE row = 8", "behind the", "encode"),
        ("DELETE FROM vectors WHERE row = 8", "vectors are missing", "encode"),
        ("DELETE FROM documents WHERE row = 8", "holds 19 documents, expected 20", "backup"),
        ("UPDATE meta SET value = '99' WHERE key = 'token_rows'", "checksum differs", "backup"),
    ],
)
def test_damage_to_the_truth_is_named_and_mended_where_the_texts_are_whole(made_index, made, statement, what, remedy):
    made_index.close()
    folder = made_index.folder
    change(folder, statement)
    report = check_index(folder)
    assert not report.sound
    assert any(what in problem.what and problem.remedy == remedy for problem in report.problems), report
    (folder / "derived.json").unlink()  # so that everything is read
    with pytest.raises(FormatError):
        open_and_search(folder, made.embeddings_of({"query": 0}))


def test_repair_encodes_documents_with_damaged_vectors_again(index, encoder):
    documents = [Document(f"d{i}", f"Text number {i} about tea.") for i in range(10)]
    index.add(documents)
    expected = index.search("tea number 3")
    index.close()
    change(index.folder, "UPDATE vectors SET dense = zeroblob(1536) WHERE row = 4")
    flip(index.folder / "tokens.i8", 3000)
    assert not Index.repair(index.folder).sound  # nothing is lost without the encoder, and nothing mended
    assert Index.repair(index.folder, encoder).sound
    with Index.open(index.folder, encoder) as again:
        assert {hit.id: hit.scores for hit in again.search("tea number 3")} == {
            hit.id: pytest.approx(hit.scores, abs=1e-3) for hit in expected
        }


def test_a_short_token_file_is_refused_and_mended(index, encoder):
    index.add([Document(f"d{i}", f"Text number {i} about tea.") for i in range(10)])
    index.close()
    path = index.folder / "tokens.i8"
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(FormatError, match=r"tokens.i8: has \d+ bytes, expected at least .*m3edge check --repair"):
        Index.open(index.folder, encoder)
    assert Index.repair(index.folder, encoder).sound
    with Index.open(index.folder, encoder) as again:
        assert len(again.search("tea")) == 10


def test_damaged_token_vectors_are_never_answered_from(made_index, made):
    made_index.close()
    flip(made_index.folder / "tokens.i8", 5)
    with Index.open(made_index.folder) as index:
        with pytest.raises(FormatError, match=r"tokens.i8: token vectors 0 to \d+, of the document in row 1"):
            index.search(made.embeddings_of({"query": 0}), k=20)
        assert index.search(made.embeddings_of({"query": 0}), k=20, weights=(1, 1, 0))  # what is whole still serves


@pytest.mark.parametrize("model", [False, True], ids=["no folder", "a model"])
def test_a_folder_that_is_no_index_is_refused_by_check_and_repair_and_not_called_damaged(model, tmp_path, mini_fp32):
    folder = mini_fp32 if model else tmp_path / "nope"
    for look in (check_index, Index.repair):
        with pytest.raises(FormatError, match="not an m3edge index, it has no index.sqlite"):
            look(folder)


@pytest.mark.parametrize("pattern", ["index.sqlite", "derived.json", "postings-*.npz"])
def test_a_problem_does_not_name_its_file_twice(pattern, made_index):
    made_index.close()
    (path,) = made_index.folder.glob(pattern)
    flip(path, 3)
    (problem,) = check_index(made_index.folder).problems
    assert problem.file == str(path)
    assert problem.what.startswith("damaged (")


def test_only_a_closed_index_is_called_closed(tmp_path):
    path = tmp_path / "index.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        for statement, values in (("SELECT ?", ([],)), ("SELECT 1", (1,))):
            with pytest.raises(ValueError, match="a value that SQLite cannot store or look for"), explained(path):
                connection.execute(statement, values)
    with pytest.raises(ValueError, match="this index is closed"), explained(path):
        connection.execute("SELECT 1")


def test_metadata_that_cannot_be_read_are_named_and_not_called_damaged(made_index, made):
    """Added by an m3edge that took them: how deep is too deep depends on the stack of whoever reads."""
    made_index.close()
    folder, metadata = made_index.folder, '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"
    crc32 = document_crc32(8, "d7", "d7 in version 0", metadata)
    change(folder, f"UPDATE documents SET metadata = '{metadata}', crc32 = {crc32} WHERE row = 8")
    for path in folder.glob("columns-*.npz"):
        path.unlink()
    too_deep = r"index.sqlite: document 'd7', row 8: its metadata are nested too deeply to be read; upsert or delete it"
    (problem,) = (problem for problem in check_index(folder).problems if problem.documents)
    assert problem.what.startswith("document in row 8: its metadata are nested too deeply")
    with pytest.warns(RuntimeWarning, match="columns-.*: missing"):
        index = Index.open(folder)
    with index:
        with pytest.raises(FormatError, match=too_deep):
            index.get("d7")
        with pytest.raises(FormatError, match=too_deep):
            index.search(made.embeddings_of({"query": 0}), filter={"version": 0})
        index.delete("d7")
        assert len(index.search(made.embeddings_of({"query": 0}), k=50, filter={"version": 0})) == 19


def is_found_by_index(folder: Path) -> bool:
    with closing(sqlite3.connect(folder / "index.sqlite")) as connection:
        plan = connection.execute("EXPLAIN QUERY PLAN SELECT row FROM deletions WHERE generation > 7").fetchall()
    return "INDEX" in str(plan)


def test_what_was_deleted_since_is_found_without_reading_all_deletions(golden):
    folder, name = golden
    with Index.open(folder) as index:
        assert_answers_as_written(index, name)
        assert not is_found_by_index(folder)  # readers do without
        index.set_note("seen", True)
        assert is_found_by_index(folder)
        assert index.check().sound


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ((None, "a"), ValueError, "a value that this file cannot hold was refused"),
        ((2, None), ValueError, "a value that this file cannot hold was refused"),
        ((1, "a"), FormatError, "damaged"),  # looked for before it was written, and not found
    ],
)
def test_only_what_cannot_be_our_own_mistake_is_called_damage(tmp_path, values, error, message):
    with closing(sqlite3.connect(tmp_path / "index.sqlite")) as connection:
        connection.execute("CREATE TABLE notes (key INT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID")
        connection.execute("INSERT INTO notes VALUES (1, 'a')")
        with pytest.raises(ValueError, match=message) as raised, explained(tmp_path / "index.sqlite"):
            connection.execute("INSERT INTO notes VALUES (?, ?)", values)
    assert raised.type is error


def test_an_older_file_that_was_put_back_is_searched_as_it_is(made_index, made, tmp_path):
    made_index.close()
    for path in made_index.folder.glob("index.sqlite*"):
        shutil.copy(path, tmp_path)
    with Index.open(made_index.folder) as index:
        expected = index.search(made.embeddings_of({"query": 0}), k=50)
        index.upsert(made.documents_of({"d0": 1}), embeddings=made.embeddings_of({"d0": 1}))
    for path in tmp_path.glob("index.sqlite*"):
        shutil.copy(path, made_index.folder)
    with Index.open(made_index.folder) as index:
        assert index.search(made.embeddings_of({"query": 0}), k=50) == expected
        index.upsert(made.documents_of({"d1": 1}), embeddings=made.embeddings_of({"d1": 1}))
        assert index.check().sound
    with Index.open(made_index.folder) as index:
        hits = {hit.id: hit.metadata["version"] for hit in index.search(made.embeddings_of({"query": 0}), k=50)}
        assert (hits["d0"], hits["d1"]) == (0, 1)


@pytest.fixture
def older(made, tmp_path):
    """A folder whose index.sqlite and token file are from before its last commits, and a version of "d0" that has as
    many token vectors as version 0: only its checksums tell whose they are."""
    counts = [len(made.embeddings_of({"d0": version}).tokens.vectors) for version in range(100)]
    other = counts.index(counts[0], 1)
    folder, backup = tmp_path / "older", tmp_path / "backup"
    with Index.create(folder, made.MODEL, dense="exact") as index:
        versions = {f"d{i}": 0 for i in range(20)}
        index.add(made.documents_of(versions), embeddings=made.embeddings_of(versions))
    shutil.copytree(folder, backup)
    return folder, backup, other


def test_a_writer_that_is_killed_after_an_older_file_was_put_back_leaves_right_answers(older, made, tmp_path):
    folder, backup, other = older
    with Index.open(folder) as index:
        index.upsert(made.documents_of({"d0": 0}), embeddings=made.embeddings_of({"d0": 0}))
    shutil.copy(backup / "index.sqlite", folder)  # the token file has the rows of the second "d0" still
    with Index.open(folder) as index:
        index.upsert(made.documents_of({"d0": other}), embeddings=made.embeddings_of({"d0": other}))
        shutil.copytree(folder, tmp_path / "killed")
    with Index.open(tmp_path / "killed") as index:
        best = index.search(made.embeddings_of({"d0": other}), k=1)[0]
        assert (best.id, best.metadata, best.scores.dense) == ("d0", {"version": other}, pytest.approx(1, abs=1e-5))
        assert index.check().sound


def test_compacting_after_older_files_were_put_back_gives_right_answers(older, made):
    folder, backup, other = older
    with Index.open(folder) as index:
        index.upsert(made.documents_of({"d0": other}), embeddings=made.embeddings_of({"d0": other}))
        index.compact()
    for name in ("index.sqlite", "tokens.i8"):
        shutil.copy(backup / name, folder)
    for _ in range(2):
        with Index.open(folder) as index:
            index.compact()
            best = index.search(made.embeddings_of({"d0": 0}), k=20)[0]
            assert (best.id, best.metadata, best.scores.dense) == ("d0", {"version": 0}, pytest.approx(1, abs=1e-5))
            assert index.check().sound
