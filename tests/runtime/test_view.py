"""What an open index shows and holds: its snapshot, SQLite's write-ahead log, and the folder that another may take."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from m3edge import Document, Index, ModelMismatchError
from m3edge.index import view
from m3edge.index.dense import DenseIndex
from m3edge.index.store import Store


def search(index, made, **options):
    return index.search(made.embeddings_of({"query": 0}), k=100, **options)


def upsert(index, made, versions):
    index.upsert(made.documents_of(versions), embeddings=made.embeddings_of(versions))


def first_fails(function, error):
    """It, but the first call raises."""
    calls = []

    def failing(*arguments, **named):
        calls.append(arguments)
        if len(calls) == 1:
            raise error
        return function(*arguments, **named)

    return failing


def full(*arguments):
    raise OSError(28, "No space left on device")


@pytest.fixture
def snapshots(monkeypatch):
    """All snapshots that are made, in a list that grows."""
    made_since = []
    snapshot = Store.snapshot

    def remembered(self):
        made_since.append(snapshot(self))
        return made_since[-1]

    monkeypatch.setattr(Store, "snapshot", remembered)
    return made_since


def is_open(snapshot):
    try:
        snapshot.rows_of(["d0"])
    except ValueError:
        return False
    return True


# The write-ahead log


@pytest.fixture
def large_log(monkeypatch):
    """The log counts as large, however little is in it."""
    monkeypatch.setattr(Store, "wal_bytes", lambda self: 1 << 40)


def test_the_log_does_not_grow_beside_a_reader_that_refreshes(made_index, made):
    wal = made_index.folder / "index.sqlite-wal"
    text = "x" * 2_000_000
    with Index.open(made_index.folder) as reader:
        for i in range(24):  # 48 MB
            made_index.upsert([Document("large", text)], embeddings=made.embeddings_of({str(i): 0}))
            reader.refresh()
        assert wal.stat().st_size < 20_000_000
        assert search(reader, made) == search(made_index, made)


def test_a_reader_empties_the_log_of_a_writer_that_is_gone(made_index, made, large_log):
    wal = made_index.folder / "index.sqlite-wal"
    with Index.open(made_index.folder) as reader:
        upsert(made_index, made, {"d0": 1})
        made_index.close()
        assert wal.stat().st_size > 0
        reader.refresh()
        assert wal.stat().st_size == 0
        assert reader.get("d0").metadata == {"version": 1}


def test_searches_go_on_while_the_log_is_brought_into_the_file(made_index, made, large_log, monkeypatch):
    checkpoint = Store.checkpoint
    found = []
    with ThreadPoolExecutor(1) as pool:

        def searching(self):
            found.append(pool.submit(search, made_index, made).result(timeout=20))
            return checkpoint(self)

        monkeypatch.setattr(Store, "checkpoint", searching)
        upsert(made_index, made, {"new": 1})
    assert [len(hits) for hits in found] == [20, 21]  # before the transaction and after it


def test_what_is_committed_is_no_error_where_the_log_cannot_be_emptied(made_index, made, large_log, monkeypatch):
    monkeypatch.setattr(Store, "checkpoint", full)
    with pytest.warns(RuntimeWarning, match="all is written and safe, but SQLite's write-ahead log goes on growing"):
        upsert(made_index, made, {"new": 1})
    made_index.refresh()
    assert "new" in {hit.id for hit in search(made_index, made)}


def test_an_index_stays_open_when_no_other_snapshot_can_be_made(made_index, made, monkeypatch):
    before = search(made_index, made)
    checkpoint, snapshot = Store.checkpoint, Store.snapshot

    def nothing_afterwards(self):
        monkeypatch.setattr(Store, "snapshot", full)
        return checkpoint(self)

    monkeypatch.setattr(Store, "checkpoint", nothing_afterwards)
    with pytest.raises(OSError, match="No space left"):
        made_index.compact()
    monkeypatch.setattr(Store, "snapshot", snapshot)
    assert search(made_index, made) == before


# Refreshing


def test_a_compaction_while_an_index_refreshes_does_not_disturb_it(made_index, made, monkeypatch):
    with Index.open(made_index.folder) as reader:
        upsert(made_index, made, {"d0": 1})
        open_tokens = view.open_tokens

        def compact_first(*arguments):
            monkeypatch.undo()
            made_index.compact()
            return open_tokens(*arguments)

        monkeypatch.setattr(view, "open_tokens", compact_first)
        reader.refresh()
        assert search(reader, made) == search(made_index, made)


def test_a_refresh_that_fails_leaves_no_snapshot_open(made_index, made, snapshots, monkeypatch):
    with Index.open(made_index.folder) as reader:
        before = search(reader, made)
        upsert(made_index, made, {"d0": 1})
        made_index.close()
        snapshots.clear()
        monkeypatch.setattr(DenseIndex, "hide_deleted", first_fails(DenseIndex.hide_deleted, MemoryError()))
        with pytest.raises(MemoryError):
            reader.refresh()
        assert not any(is_open(snapshot) for snapshot in snapshots)
        assert search(reader, made) == before
        reader.refresh()
        assert reader.get("d0").metadata == {"version": 1}


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux says what is mapped")
def test_a_closed_index_has_nothing_open(made_index):
    made_index.close()
    index = Index.open(made_index.folder)
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(index.folder) in line]
    assert any("dense-" in line for line in mapped)
    index.close()
    gc.collect()
    assert str(index.folder) not in Path("/proc/self/maps").read_text()


# Another index in the folder


def swap(folder, other):
    folder.rename(folder.with_name("old"))
    other.rename(folder)


@pytest.mark.parametrize("adds", [1, 2], ids=["in the same generation", "in a later one"])
def test_refresh_turns_to_the_index_that_took_the_folder(adds, made_index, made, tmp_path):
    with Index.create(tmp_path / "other", made.MODEL, dense=made_index.dense_mode) as other:
        for i in range(adds):
            upsert(other, made, {f"n{i}": 7, f"m{i}": 7})
        expected = search(other, made)
    with Index.open(made_index.folder) as reader:
        before = search(reader, made)
        swap(made_index.folder, other.folder)
        assert search(reader, made) == before
        reader.refresh()
        assert search(reader, made) == expected
        assert len(reader) == 2 * adds
        upsert(made_index, made, {"later": 1})  # as does who writes
        assert len(made_index) == 2 * adds + 1
    assert made_index.check().sound


def test_an_index_whose_folder_another_took_saves_nothing_there(made_index, made, tmp_path):
    with Index.create(tmp_path / "other", made.MODEL, dense=made_index.dense_mode) as other:
        upsert(other, made, {"n0": 7})
        expected = search(other, made)
    swap(made_index.folder, other.folder)
    names = {path.name for path in made_index.folder.iterdir()}
    made_index.close()
    assert {path.name for path in made_index.folder.iterdir()} == names
    with Index.open(made_index.folder) as again:
        assert search(again, made) == expected


def test_an_index_with_other_settings_in_the_folder_is_refused(made_index, made, tmp_path):
    Index.create(tmp_path / "other", made.MODEL, dense=made_index.dense_mode, token_codec="fp16").close()
    before = search(made_index, made)
    swap(made_index.folder, tmp_path / "other")
    for call in (made_index.refresh, lambda: made_index.delete("d0")):
        with pytest.raises(ModelMismatchError, match="another index took its place, with another token codec; open it"):
            call()
    assert search(made_index, made) == before
