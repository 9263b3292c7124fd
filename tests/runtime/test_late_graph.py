"""The graph is read when the first search wants it, whatever became of its file since the index was opened."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from m3edge import Index
from m3edge.index import graph_file as graph_file_module
from m3edge.index.graph import HnswGraph
from m3edge.index.late_graph import HeldFile

SEARCH_IN_A_CHILD = """
import os, sys
import writer_process as made
from m3edge import Index
with Index.open(sys.argv[1]) as index:
    with index.view.reading() as current:
        dense = current.state.dense
        query = made.embeddings_of({"query": 0}).dense[0]
        child = os.fork()
        if not child:
            print(dense.search(query, 5).tolist(), flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        print(dense.search(query, 5).tolist())
"""

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="graphs are read late only on Linux")


@pytest.fixture
def folder(made, tmp_path):
    versions = {f"d{i}": 0 for i in range(20)}
    with Index.create(tmp_path / "index", made.MODEL, dense="hnsw") as index:
        index.add(made.documents_of(versions), embeddings=made.embeddings_of(versions))
    return tmp_path / "index"


@pytest.fixture
def readings(monkeypatch):
    """What graphs were made of, files and None, in a list that grows, by hnswlib or of a file's links alone."""
    made_of = []
    make, read = HnswGraph.__init__, graph_file_module.read_links

    def remember(self, dim, config, n_threads, path=None):
        made_of.append(path)
        make(self, dim, config, n_threads, path)

    def remember_links(path, **config):
        made_of.append(path)
        return read(path, **config)

    monkeypatch.setattr(HnswGraph, "__init__", remember)
    monkeypatch.setattr(graph_file_module, "read_links", remember_links)
    return made_of


def search(index, made, **options):
    return index.search(made.embeddings_of({"query": 0}), k=20, **options)


def graph_file(folder):
    return folder / json.loads((folder / "derived.json").read_text())["files"]["dense.hnsw"]["file"]


def test_opening_reads_no_graph_and_neither_do_documents_or_searches_without_a_dense_part(folder, made, readings):
    with Index.open(folder) as index:
        assert len(index) == 20
        assert index.get("d1").id == "d1"
        assert search(index, made, weights=(0, 1, 0))
        assert search(index, made, filter={"version": 1}) == []
        assert readings == []
        assert len(search(index, made)) == 20
        assert len(readings) == 1


def test_threads_that_search_at_once_read_it_once(folder, made, readings):
    with Index.open(folder) as index, ThreadPoolExecutor(8) as threads:
        start = threading.Barrier(8)
        results = list(threads.map(lambda _: (start.wait(), search(index, made))[1], range(8)))
        assert len(readings) == 1
        assert all(result == results[0] for result in results)


def test_a_reader_finds_its_graph_after_a_writer_has_removed_the_file(folder, made, readings):
    with Index.open(folder) as writer:
        expected = search(writer, made)
        with Index.open(folder) as reader:
            writer.delete([f"d{i}" for i in range(10)])
            writer.compact()
            assert not any(path.name == "dense-1-0.hnsw" for path in folder.iterdir())
            readings.clear()
            assert search(reader, made) == expected
            assert [path.parent for path in readings] == [Path("/proc/self/fd")]


def test_a_graph_that_was_written_to_since_opening_is_made_again_and_kept(folder, made, readings):
    path = graph_file(folder)
    with Index.open(folder) as index:
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size // 2)
        with pytest.warns(RuntimeWarning, match=f"{path.name}: damaged .*made again from the documents"):
            found = search(index, made)
        assert len(found) == 20
    assert graph_file(folder) != path
    readings.clear()
    with Index.open(folder) as index:  # without a warning
        assert search(index, made) == found
        assert index.check().sound
    assert None not in readings


def test_hnswlib_reads_it_where_documents_are_added(folder, made, monkeypatch):
    by_hnswlib = []
    monkeypatch.setattr(HnswGraph, "search", lambda self, query, k: by_hnswlib.append(k))
    with Index.open(folder) as index:
        expected = search(index, made)
        dense = index.view._current.state.dense
        assert dense._graph._graph is None
        index.add(made.documents_of({"new": 1}), embeddings=made.embeddings_of({"new": 1}))
        assert dense._graph._graph is not None
        found = search(index, made)  # the new one, which the links do not know, is scanned
        assert [hit for hit in found if hit.id != "new"] == expected[:19]
        assert "new" in {hit.id for hit in index.search(made.embeddings_of({"new": 1}), k=5)}
        assert by_hnswlib == []


def test_documents_are_deleted_without_hnswlib_which_hears_of_it_when_it_reads_the_graph(folder, made):
    def rows_of_hnswlib(index, k=30):
        dense = index.view._current.state.dense
        return set(dense._graph.get().search(made.embeddings_of({"query": 0}).dense[0], k).tolist())

    path = graph_file(folder)
    with Index.open(folder) as index:
        index.delete(["d3", "d4"])
        assert index.view._current.state.dense._graph._graph is None
        assert {hit.id for hit in search(index, made)} == {f"d{i}" for i in range(20)} - {"d3", "d4"}
        assert index.view._current.state.dense._graph._graph is None
        assert rows_of_hnswlib(index) == set(range(1, 21)) - {4, 5}
        index.delete("d5")
        assert rows_of_hnswlib(index) == set(range(1, 21)) - {4, 5, 6}
    assert graph_file(folder) == path  # with no mark of those that were deleted since it was written
    with Index.open(folder) as index:
        index.delete("d6")
        assert rows_of_hnswlib(index) == set(range(1, 21)) - {4, 5, 6, 7}
        index.add(made.documents_of({"new": 1}), embeddings=made.embeddings_of({"new": 1}))
        assert rows_of_hnswlib(index) == set(range(1, 22)) - {4, 5, 6, 7}
    assert graph_file(folder) != path
    with Index.open(folder) as index:
        assert rows_of_hnswlib(index) == set(range(1, 22)) - {4, 5, 6, 7}
        assert index.check().sound


def test_what_was_deleted_or_added_before_the_first_search_counts(folder, made):
    with Index.open(folder) as index:
        index.delete("d3")
        index.upsert(made.documents_of({"new": 1}), embeddings=made.embeddings_of({"new": 1}))
        expected = {hit.id for hit in search(index, made, weights=(1, 0, 0))}
        assert expected == {"new", *(f"d{i}" for i in range(20))} - {"d3"}
    with Index.open(folder) as index:
        assert {hit.id for hit in search(index, made, weights=(1, 0, 0))} == expected


def test_an_index_that_nobody_searched_leaves_no_file_open(folder, made):
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        Index.open(folder).close()
    with Index.open(folder) as index:
        index.compact()
    assert os.listdir("/proc/self/fd") == before


def test_a_process_that_forks_reads_it_on_both_sides(folder, made):
    result = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", SEARCH_IN_A_CHILD, str(folder)],
        cwd=Path(made.__file__).parent, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    child, parent = result.stdout.splitlines()
    assert child == parent


def test_where_a_held_file_cannot_be_opened_again_the_graph_is_read_at_once(folder, made, readings, monkeypatch):
    before = HeldFile.__init__

    def without_proc(self, path):
        before(self, path)
        self.can_wait, self.path = False, path

    monkeypatch.setattr(HeldFile, "__init__", without_proc)
    with Index.open(folder) as index:
        assert readings == [graph_file(folder)] * 2  # its links, and by hnswlib, which adding needs
        assert len(search(index, made)) == 20
        assert len(readings) == 2
