"""Derived files: each counts for itself, what is damaged is made again and kept, what did not change is not written."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from m3edge import Index
from m3edge.files import _beside
from m3edge.index.check import check_index
from m3edge.index.derived import MANIFEST, forget_damaged, read_derived
from m3edge.index.graph import HnswConfig, HnswGraph
from m3edge.index.snapshot import Snapshot
from m3edge.index.tokens import CODECS, token_file

FILTER = {"version": {"$gte": 0}}


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def files(folder):
    """The derived files' names, by the parts' names."""
    return {name: entry["file"] for name, entry in json.loads((folder / MANIFEST).read_text())["files"].items()}


def answers(index, made):
    query = made.embeddings_of({"query": 0})
    return [index.search(query, k=50), index.search(query, k=50, filter=FILTER)]


@pytest.fixture
def closed(made_index, made):
    """A closed index's folder and what it answers."""
    expected = answers(made_index, made)
    made_index.close()
    return made_index.folder, expected


@pytest.mark.parametrize("made_index", ["hnsw"], indirect=True)
@pytest.mark.parametrize("name", ["postings.npz", "dense.npy", "columns.npz", "dense.hnsw"])
def test_only_what_is_damaged_is_made_again_and_it_is_kept(name, closed, made, taken_in):
    folder, expected = closed
    before = files(folder)
    flip(folder / before[name])
    with (
        pytest.warns(RuntimeWarning, match=f"{before[name]}: damaged .*made again from the documents"),
        Index.open(folder) as index,
    ):
        assert answers(index, made) == expected
    assert sum(taken_in) == (20 if name == "dense.hnsw" else 0)  # a graph is the one part that takes long
    if name in ("columns.npz", "dense.hnsw"):
        after = files(folder)
        assert {part for part in before if after[part] != before[part]} == {name}
    with Index.open(folder) as index:  # without a warning
        assert answers(index, made) == expected
        assert index.check().sound


@pytest.mark.parametrize("made_index", ["hnsw"], indirect=True)
def test_check_names_the_damaged_file_and_repair_makes_it_again(closed, made):
    folder, expected = closed
    path = folder / files(folder)["dense.hnsw"]
    flip(path)
    (problem,) = check_index(folder).problems
    assert (problem.file, problem.remedy) == (str(path), "rebuild")
    assert Index.repair(folder).sound  # and warns of nothing
    with Index.open(folder) as index:
        assert answers(index, made) == expected


def test_a_filter_after_opening_reads_no_documents(closed, made, monkeypatch):
    folder, expected = closed

    def metadata(*_):
        raise AssertionError("documents were read")

    monkeypatch.setattr(Snapshot, "metadata", metadata)
    with Index.open(folder) as index:
        assert answers(index, made) == expected


def test_documents_that_came_later_are_filtered_too(closed, made):
    folder, _ = closed
    with Index.open(folder) as index:
        index.upsert(made.documents_of({"d1": 5, "new": 5}), embeddings=made.embeddings_of({"d1": 5, "new": 5}))
        query = made.embeddings_of({"query": 0})
        for _ in range(2):
            found = {hit.id for hit in index.search(query, k=50, filter={"version": 5})}
            assert found == {"d1", "new"}
            index.close()
            index = Index.open(folder)
        index.close()


def test_deleting_leaves_all_but_the_postings_as_it_is(closed, made):
    folder, _ = closed
    before = files(folder)
    with Index.open(folder) as index:
        index.delete("d3")
    after = files(folder)
    assert {part for part in before if after[part] != before[part]} == {"postings.npz"}
    with Index.open(folder) as index:
        assert {hit.id for hit in answers(index, made)[1]} == {f"d{i}" for i in range(20)} - {"d3"}


def test_what_changes_no_document_writes_no_derived_file_again(closed, made):
    folder, expected = closed
    before = files(folder)
    with Index.open(folder) as index:
        index.set_note("seen", True)
    assert files(folder) == before
    with Index.open(folder) as index:
        assert answers(index, made) == expected


def test_a_file_that_others_have_mapped_is_never_written_over(closed, made):
    folder, expected = closed
    with Index.open(folder) as reader:
        (folder / MANIFEST).unlink()
        Index.open(folder).close()  # makes all of them again, for the same generation
        assert answers(reader, made) == expected
    Index.open(folder).close()
    assert len(list(folder.glob("dense-*.npy"))) == 1  # the older ones were removed


def test_only_files_that_m3edge_itself_writes_are_removed(closed, made):
    folder, _ = closed
    unfinished = [_beside(folder / name).name for name in (MANIFEST, "dense.hnsw.json")]
    tokens = [token_file(codec, epoch) for codec in CODECS if codec != "none" for epoch in (0, 12)]
    parts = ["dense-1-0.npy", "dense-12-3-1.hnsw", "postings-1-0-2.npz", "columns-7-0.npz", "postings.npz.json"]
    ours = {*unfinished, *tokens, *parts, "dense.hnsw"} - {path.name for path in folder.iterdir()}
    users = {
        "backup-2026-11-22.zip", "index-2026-11.sqlite", "tokens.txt", "tokens-1.bak", "report-1-2.pdf", ".hidden.tmp",
        "dense-1-0.npz", "dense-1.npy", "postings-2026-11.csv", "my-dense-1-0.npy", ".derived.json.tmp", "dense.npy",
    }  # fmt: skip
    for name in ours | users:
        (folder / name).write_text("here")
    with Index.open(folder) as index:
        index.delete("d19")
    left = {path.name for path in folder.iterdir()}
    assert not ours & left
    assert users <= left
    assert Index.repair(folder).sound


def test_derived_files_of_other_documents_are_found_and_made_again(made, tmp_path):
    """As when files of two indexes were mixed: of one generation, each of them whole."""
    folders = [tmp_path / name for name in ("a", "b")]
    for version, folder in enumerate(folders):
        with Index.create(folder, made.MODEL, dense="exact") as index:
            versions = {f"d{i}": version for i in range(20)}
            index.add(made.documents_of(versions), embeddings=made.embeddings_of(versions))
            expected = answers(index, made)
    for name in (MANIFEST, *files(folders[0]).values()):
        shutil.copy(folders[0] / name, folders[1])
    (problem,) = check_index(folders[1]).problems
    assert (problem.file, problem.remedy) == (str(folders[1] / MANIFEST), "rebuild")
    assert "made from other documents" in problem.what
    assert Index.repair(folders[1]).sound
    with Index.open(folders[1]) as index:
        assert answers(index, made) == expected


def test_what_forget_damaged_leaves_is_sound(closed):
    folder, _ = closed
    flip(folder / files(folder)["dense.npy"])
    forget_damaged(folder)
    derived = read_derived(folder)
    assert derived.damaged == {}
    assert "dense.npy" not in derived.files
    (folder / MANIFEST).write_text("{}")
    forget_damaged(folder)
    assert read_derived(folder) is None


def test_a_graph_that_hnswlib_could_not_write_whole_is_an_error(largest_file, tmp_path):
    """hnswlib itself says nothing, and the file's checksum would be that of a half."""
    graph = HnswGraph(16, HnswConfig(), 1)
    graph.add(np.arange(1, 2001), np.random.default_rng(0).standard_normal((2000, 16)).astype(np.float32))
    with largest_file(100_000), pytest.raises(OSError, match="graph: only|only 100000 of"):
        graph.save(tmp_path / "graph")
    graph.save(tmp_path / "graph")
    assert len(HnswGraph(16, HnswConfig(), 1, tmp_path / "graph")) == 2000
