"""What users and their machines do to an index: odd documents, folders that cannot be written, models that change."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from m3edge import Document, FormatError, Index

READ = """
import os, sys, m3edge
m3edge.Index.open(sys.argv[1]).close()  # imports everything: the next user may not be allowed to
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
with m3edge.Index.open(sys.argv[1]) as index:
    print(len(index), index.get("d7").text)
    try:
        index.delete("d7")
    except OSError as error:
        print(type(error).__name__, error)
"""


@pytest.fixture
def public_copy(made_index):
    """A copy of the closed index where every user may look."""
    made_index.close()
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)
    shutil.copytree(made_index.folder, place / "index")
    yield place / "index"
    (place / "index").chmod(0o755)
    shutil.rmtree(place)


def test_a_folder_that_cannot_be_written_opens_for_reading(public_copy):
    for path in (*public_copy.iterdir(), public_copy):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = sorted(path.name for path in public_copy.iterdir())
    result = subprocess.run([sys.executable, "-c", READ, str(public_copy)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    content, refusal = result.stdout.splitlines()
    assert content == "20 d7 in version 0"
    assert "Error" in refusal
    assert str(public_copy) in refusal
    assert sorted(path.name for path in public_copy.iterdir()) == before


def test_a_read_only_disk_opens_for_reading(made_index, made, tmp_path):
    expected = made_index.search(made.embeddings_of({"query": 0}))
    made_index.close()
    disk = tmp_path / "disk"
    disk.mkdir()
    bind = ["mount", "--bind", str(made_index.folder), str(disk)]
    if shutil.which("mount") is None or subprocess.run(bind, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(disk)], check=True)
        with Index.open(disk) as index:
            assert index.search(made.embeddings_of({"query": 0})) == expected
            with pytest.raises(OSError, match="Read-only file system"):
                index.delete("d1")
            with pytest.raises(OSError, match="Read-only file system"):
                index.compact()
            assert index.check().sound
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.parametrize("name", ["with spaces and é 索引", "a%20b?mode=ro#c", "link"])
def test_a_folder_with_an_odd_name_works(name, made_index, made, tmp_path):
    expected = made_index.search(made.embeddings_of({"query": 0}))
    made_index.close()
    folder = tmp_path / name
    if name == "link":
        folder.symlink_to(made_index.folder)
    else:
        made_index.folder.rename(folder)
    with Index.open(folder) as index:
        assert index.search(made.embeddings_of({"query": 0})) == expected
        index.delete("d1")
        index.compact()
        assert index.check().sound


def test_a_relative_folder_survives_a_change_of_directory(made_index, made, monkeypatch, tmp_path):
    made_index.close()
    monkeypatch.chdir(made_index.folder.parent)
    with Index.open(made_index.folder.name) as index:
        monkeypatch.chdir(tmp_path.parent)
        index.delete("d1")
        assert len(index.search(made.embeddings_of({"query": 0}), k=50)) == 19


@pytest.mark.parametrize(
    "document",
    [
        Document('a/b\\c:*?"<>|\n\0', "slashes and worse"),
        Document("x" * 10_000, "a long id"),
        Document("large", "y" * 10_000_000, {"also": "z" * 10_000_000}),
        Document("nested", "", {"a": {"b": [{"c": [None, True, -1.5e300, 2**70]}]}, "": {}}),
        Document("surrogates", "\ud800", {"\udfff": "\ud800"}),
        Document("empty", ""),
    ],
    ids=lambda document: document.id[:10].encode("unicode_escape").decode(),
)
def test_an_odd_document_comes_back_as_it_was(document, made_index, made):
    made_index.add([document], embeddings=made.embeddings_of({"a": 0}))
    made_index.compact()
    made_index.close()
    with Index.open(made_index.folder) as index:
        assert index.get(document.id) == document
        hits = {hit.id: hit for hit in index.search(made.embeddings_of({"a": 0}), k=50)}
        assert (hits[document.id].text, hits[document.id].metadata) == (document.text, document.metadata)
        assert index.check().sound


def test_a_name_that_is_no_unicode_is_nobodys(made_index):
    assert made_index.delete(["\ud800", "d1"]) == 1
    assert made_index.get("\ud800") is None
    assert made_index.note("\ud800") is None
    with pytest.raises(ValueError, match=r"^key must be valid Unicode, got '\\ud800'"):
        made_index.set_note("\ud800", 1)


@pytest.mark.parametrize("metadata", [{"n": float("nan")}, {"n": [float("inf")]}, {"n": {1, 2}}, {"n": b"x"}])
def test_metadata_that_json_cannot_hold_are_refused(metadata, made_index, made):
    with pytest.raises(ValueError, match=r"documents\[0\]: metadata must be a JSON object"):
        made_index.add([Document("a", "", metadata)], embeddings=made.embeddings_of({"a": 0}))


def test_metadata_nested_too_deeply_are_refused(made_index, made):
    nested: dict = {}
    for _ in range(100_000):
        nested = {"a": nested}
    with pytest.raises(ValueError, match=r"documents\[0\]: metadata must be a JSON object"):
        made_index.add([Document("a", "", nested)], embeddings=made.embeddings_of({"a": 0}))


def test_a_clock_that_jumps_changes_nothing(made_index, made, monkeypatch):
    """Nothing here is decided by a clock: neither what is newer nor who may write."""
    times = itertools.cycle([0.0, 4e9, 1e9])
    monkeypatch.setattr(time, "time", lambda: next(times))
    monkeypatch.setattr(time, "time_ns", lambda: int(next(times)) * 10**9)
    for round_, stamp in enumerate([0, 4_000_000_000]):
        made_index.upsert(made.documents_of({"d0": round_ + 1}), embeddings=made.embeddings_of({"d0": round_ + 1}))
        made_index.compact()
        expected = made_index.search(made.embeddings_of({"query": 0}), k=50)
        made_index.close()
        for path in made_index.folder.iterdir():
            os.utime(path, (stamp, stamp))
        made_index = Index.open(made_index.folder)
        assert made_index.search(made.embeddings_of({"query": 0}), k=50) == expected
        assert made_index.get("d0").metadata == {"version": round_ + 1}
        assert made_index.check().sound
    made_index.close()


def test_a_closed_index_says_so(made_index, made):
    made_index.close()
    made_index.close()  # twice does no harm
    calls = [
        lambda: made_index.search(made.embeddings_of({"query": 0})),
        lambda: made_index.get("d1"),
        lambda: made_index.delete("d1"),
        lambda: made_index.refresh(),
        lambda: made_index.compact(),
        lambda: len(made_index),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="this index is closed; open it again"):
            call()


def test_an_id_that_no_document_can_have_is_not_there(made_index):
    assert made_index.get("\ud800") is None
    assert "\ud800" not in made_index


def test_opening_something_that_is_no_folder_makes_nothing(tmp_path):
    with pytest.raises(FormatError, match="not an m3edge index"):
        Index.open(tmp_path / "nowhere")
    assert os.listdir(tmp_path) == []
