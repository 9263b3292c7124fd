"""Readers beside a writer, in threads and processes: each on a whole snapshot, until it asks for the next."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from m3edge import Document, Index
from m3edge.embeddings import Embeddings, SparseRows, TokenRows
from m3edge.index import check
from m3edge.index.dense import DenseIndex
from m3edge.index.snapshot import Snapshot
from m3edge.index.transaction import Transaction
from m3edge.scoring import dense_scores

USE_IN_A_CHILD = """
import os, sys
import writer_process as made
from m3edge import Index

def attempt(name, action):
    try:
        print(name, action())
    except Exception as error:
        print(name, type(error).__name__, error)

def child(action):
    sys.stdout.flush()
    if not os.fork():
        action()
        sys.stdout.flush()
        os._exit(0)
    os.wait()

def use():
    attempt("open", lambda: len(Index.open(folder)))
    attempt("search", lambda: len(index.search(query)))
    attempt("delete", lambda: index.delete("d1"))
    attempt("check", lambda: index.check().sound)
    with Index.open(other) as another:
        attempt("another", lambda: another.delete("d1"))
    attempt("grandchild", lambda: child(lambda: attempt("open", lambda: len(Index.open(folder)))))

folder, other = sys.argv[1:]
query = made.embeddings_of({"query": 0})
index = Index.open(folder)
child(use)
with index.transaction():
    index.delete("d0")
    child(lambda: attempt("inside", lambda: index.delete("d1")))
    index.delete("d2")
print("parent", len(index.search(query, k=50)), index.check().sound)
index.close()
child(lambda: attempt("after", lambda: len(Index.open(folder))))
"""


def search(index, made, k=100, **options):
    return index.search(made.embeddings_of({"query": 0}), k=k, **options)


def upsert(index, made, versions):
    index.upsert(made.documents_of(versions), embeddings=made.embeddings_of(versions))


def test_a_reader_keeps_its_snapshot_whatever_the_writer_does(made_index, made):
    with Index.open(made_index.folder) as reader:
        before = search(reader, made)
        upsert(made_index, made, {"d0": 1, "new": 1})
        made_index.delete([f"d{i}" for i in range(1, 12)])
        made_index.compact()
        upsert(made_index, made, {"newer": 1})
        assert search(reader, made) == before
        assert (len(reader), reader.get("d0").metadata, reader.get("new")) == (20, {"version": 0}, None)
        reader.refresh()
        assert search(reader, made) == search(made_index, made)
        assert len(reader) == 11


def test_a_reading_process_is_never_blocked(made_index, made):
    code = (
        "import sys, json, m3edge\n"
        "index = m3edge.Index.open(sys.argv[1])\n"
        "for line in sys.stdin:\n"
        "    index.refresh()\n"
        "    print(json.dumps([len(index), index.get('d0').metadata['version']]), flush=True)\n"
    )
    command = [sys.executable, "-c", code, str(made_index.folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as reader:

        def answer():
            reader.stdin.write("\n")
            return json.loads(reader.stdout.readline())

        assert answer() == [20, 0]
        with made_index.transaction():
            upsert(made_index, made, {"d0": 7, "new": 1})
            assert answer() == [20, 0]
        assert answer() == [21, 7]
        made_index.delete("d3")
        made_index.compact()
        assert answer() == [20, 7]
        reader.stdin.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_is_refused_what_its_parent_has_open(made_index, made, tmp_path):
    """SQLite would let it write without locks."""
    made_index.close()
    shutil.copytree(made_index.folder, tmp_path / "other")
    command = [sys.executable, "-c", USE_IN_A_CHILD, str(made_index.folder), str(tmp_path / "other")]
    environment = {**os.environ, "PYTHONPATH": str(Path(made.__file__).parent)}
    found = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True, timeout=60)
    refused = f"ValueError {made_index.folder}: this process was forked from one that has the index open, and cannot "
    lines = [line.replace(refused, "refused ").split(" use it safely")[0] for line in found.stdout.splitlines()]
    assert lines == [
        *("open refused", "search refused", "delete refused", "check refused", "another 1"),
        *("open refused", "grandchild None", "inside refused", "parent 18 True", "after 18"),
    ]


@pytest.mark.parametrize("early", [True, False], ids=["before the token file was mapped", "afterwards"])
def test_a_check_beside_a_compaction_finds_nothing_wrong(early, made_index, made, monkeypatch):
    place, name = (check, "open_tokens") if early else (Snapshot, "integrity")
    original = getattr(place, name)

    def compact_first(*arguments):
        monkeypatch.undo()
        made_index.delete("d5")
        made_index.compact()
        return original(*arguments)

    with Index.open(made_index.folder) as reader:
        monkeypatch.setattr(place, name, compact_first)
        assert reader.check() == ((19 if early else 20), ())
        assert reader.check() == (19, ())


@pytest.mark.parametrize("seconds", [2, pytest.param(60, marks=pytest.mark.slow)])
def test_eight_threads_search_while_one_writes_and_every_hit_is_right(seconds, made_index, made):
    stop = threading.Event()
    problems: list[BaseException] = []
    searches = [0] * 8

    def search_all_the_time(number):
        query = made.embeddings_of({f"query {number}": 0})
        try:
            while not stop.is_set():
                hits = made_index.search(query, k=15)
                assert len(hits) == 15  # there are always as many
                assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
                for hit in hits:
                    version = hit.metadata["version"]
                    assert hit.text == f"{hit.id} in version {version}"
                    expected = dense_scores(query.dense[0], made.embeddings_of({hit.id: version}).dense)[0]
                    assert hit.scores.dense == pytest.approx(expected, abs=1e-5)
                searches[number] += 1
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=search_all_the_time, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    end, version = time.monotonic() + seconds, 0
    while (time.monotonic() < end or version < 2) and not problems:  # however slow the machine is
        version += 1
        upsert(made_index, made, {f"d{i % 20}": version for i in range(version, version + 3)})
        extra = {f"extra {version} {i}": version for i in range(100)}
        upsert(made_index, made, extra)
        made_index.delete(list(extra))
        if version % 5 == 0:
            made_index.compact()
    stop.set()
    for thread in threads:
        thread.join()
    assert problems == []
    assert min(searches) > 0


def test_searches_of_the_old_snapshot_do_not_see_what_the_graph_is_taking_in(made_index, made, monkeypatch):
    """A refresh that is interrupted half-way leaves new rows in the graph; they are nobody's until the next one."""
    before = search(made_index, made, k=20)
    add = DenseIndex.add

    def add_and_stop(self, *arguments, **named):
        add(self, *arguments, **named)
        raise KeyboardInterrupt

    monkeypatch.setattr(DenseIndex, "add", add_and_stop)
    with pytest.raises(KeyboardInterrupt):
        upsert(made_index, made, {f"new {i}": 0 for i in range(200)})
    monkeypatch.undo()
    assert search(made_index, made, k=20) == before
    assert len(made_index) == 20
    with Index.open(
        made_index.folder
    ) as other:  # it deletes rows that our graph holds and no snapshot of ours ever had
        other.delete([f"new {i}" for i in range(0, 40, 2)])
    made_index.delete("new 1")
    dense_only = search(made_index, made, k=300, candidates=300, weights=(1, 0, 0))
    expected = {f"new {i}" for i in range(200)} - {f"new {i}" for i in range(0, 40, 2)} - {"new 1"}
    assert sorted(hit.id for hit in dense_only) == sorted(expected | {hit.id for hit in before})
    assert made_index.check().sound


def test_the_write_ahead_log_does_not_grow_for_ever(made_index, made):
    wal = made_index.folder / "index.sqlite-wal"
    text = "x" * 2_000_000
    for i in range(24):  # 48 MB
        made_index.upsert([Document("large", text)], embeddings=made.embeddings_of({str(i): 0}))
    assert wal.stat().st_size < 20_000_000


# Compaction


def folder_bytes(folder):
    return sum(path.stat().st_size for path in folder.iterdir())


def test_compaction_gives_room_back_and_changes_no_result(made_index, made):
    versions = {f"more {i}": 0 for i in range(1000)}
    upsert(made_index, made, versions)
    made_index.delete(list(versions))
    expected = [(hit.id, hit.scores) for hit in search(made_index, made)]
    report = made_index.compact()
    assert report.bytes_after < report.bytes_before / 8
    assert report.bytes_after == folder_bytes(made_index.folder)
    assert [(hit.id, hit.scores) for hit in search(made_index, made)] == expected
    assert made_index.check().sound
    made_index.close()
    names = {path.name.split("-")[0].split(".")[0] for path in made_index.folder.iterdir()}
    assert names == {"index", "tokens", "derived", "dense", "postings", "columns", "writer"}
    # The lock and its holder's pid are among them.
    assert len(list(made_index.folder.iterdir())) == (9 if made_index.dense_mode == "hnsw" else 8)
    with Index.open(made_index.folder) as again:
        assert [(hit.id, hit.scores) for hit in search(again, made)] == expected
        upsert(again, made, {"after": 1})
        assert "after" in {hit.id for hit in search(again, made)}


def test_a_compaction_that_fails_leaves_nothing_and_changes_nothing(made_index, made, monkeypatch):
    def full(self, count):
        raise OSError(28, "No space left on device")

    made_index.delete("d1")
    before = search(made_index, made)
    names = {path.name for path in made_index.folder.iterdir()}
    monkeypatch.setattr(Transaction, "set_token_rows", full)
    with pytest.raises(OSError, match="No space left"):
        made_index.compact()
    assert {path.name for path in made_index.folder.iterdir()} == names
    assert search(made_index, made) == before
    monkeypatch.undo()
    made_index.compact()
    assert search(made_index, made) == before


def test_an_index_opens_at_any_moment_of_a_compaction(made_index, made):
    stop = threading.Event()

    def compact_all_the_time():
        while not stop.is_set():
            made_index.compact()
        return True

    expected = search(made_index, made)
    with ThreadPoolExecutor(1) as pool:
        compacting = pool.submit(compact_all_the_time)
        for _ in range(40):
            with Index.open(made_index.folder) as reader:
                assert search(reader, made) == expected
                reader.refresh()
                assert search(reader, made) == expected
        stop.set()
        assert compacting.result()


def test_an_empty_index_can_be_compacted(made, tmp_path):
    with Index.create(tmp_path / "index", made.MODEL, dense="hnsw") as index:
        index.compact()
        assert search(index, made) == []
        upsert(index, made, {"a": 1})
        index.delete("a")
        index.compact()
        assert index.check() == (0, ())


def test_deleted_documents_never_come_back_and_k_are_found_while_there_are_k(made_index, made):
    upsert(made_index, made, {f"more {i}": 0 for i in range(500)})
    gone = [f"more {i}" for i in range(0, 500, 2)] + [f"d{i}" for i in range(10)]
    made_index.delete(gone)
    for k in (1, 100, 260):
        hits = {hit.id for hit in search(made_index, made, k=k, candidates=k, weights=(1, 0, 0))}
        assert len(hits) == k
        assert not hits & set(gone)


def test_recall_after_deleting_and_adding_half_again_is_that_of_a_new_index(made, tmp_path):
    rng = np.random.default_rng(0)
    n, dim = 3000, made.DIM
    vectors = rng.standard_normal((n, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    documents = [Document(str(i), "") for i in range(n)]

    def embeddings(chosen):
        empty = SparseRows(
            np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.int32), np.zeros(len(chosen) + 1, np.int64)
        )
        tokens = TokenRows(np.empty((0, dim), np.float32), np.zeros(len(chosen) + 1, np.int64))
        return Embeddings(dense=vectors[chosen], sparse=empty, tokens=tokens, truncated=np.zeros(len(chosen), bool))

    def recall(index):
        hits = 0
        queries = rng.standard_normal((100, dim)).astype(np.float32)
        for query in queries / np.linalg.norm(queries, axis=1, keepdims=True):
            best = set(np.argsort(-(vectors @ query))[:10].tolist())
            part = Embeddings(dense=query[None], sparse=None, tokens=None, truncated=np.zeros(1, bool))
            hits += len(best & {int(hit.id) for hit in index.search(part, k=10, candidates=10, weights=(1, 0, 0))})
        return hits / 1000

    everything, half = np.arange(n), np.arange(0, n, 2)
    with Index.create(tmp_path / "index", made.MODEL, dense="hnsw") as index:
        index.add(documents, embeddings=embeddings(everything))
        fresh = recall(index)
        index.delete([str(i) for i in half])
        index.add([documents[i] for i in half], embeddings=embeddings(half))
        assert recall(index) >= fresh - 0.01
        index.compact()
        assert recall(index) >= fresh - 0.01
