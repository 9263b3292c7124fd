"""Whatever stands in the files of an index, or in a filter: the right answer comes out, or an error of ours.

The short runs belong to the suite. The long ones (`slow`) go on for M3EDGE_FUZZ_S seconds each, 60 by default.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3edge import Index, M3EdgeError
from m3edge.index.filters import parse_filter
from m3edge.index.stored_rows import document_crc32, meta_crc32, vectors_crc32

BUDGET_S = float(os.environ.get("M3EDGE_FUZZ_S", "60"))

SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4))
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)


# Damage


def hit_a_file(folder: Path, data: st.DataObject) -> None:
    """Any file: bits flipped, its end cut off, a stretch of zeros, of noise or of another file in it, or none left."""
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("writer"))
    path = folder / data.draw(st.sampled_from(names))
    content = path.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    kind = data.draw(st.sampled_from(["flip", "flip", "flip", "cut", "zeros", "noise", "splice", "swap", "remove"]))
    if kind == "flip":
        put(path, content, place, bytes([content[place] ^ 1 << data.draw(st.integers(0, 7))]))
    elif kind == "cut":
        path.write_bytes(content[:place])
    elif kind == "zeros":
        put(path, content, place, bytes(min(500, len(content) - place)))
    elif kind == "noise":
        put(path, content, place, data.draw(st.binary(min_size=1, max_size=64)))
    elif kind == "remove":
        path.unlink()
    else:
        other = (folder / data.draw(st.sampled_from(names))).read_bytes()
        start = data.draw(st.integers(0, len(other) - 1)) if kind == "splice" else 0
        length = data.draw(st.integers(1, 4096))
        path.write_bytes(other) if kind == "swap" else put(path, content, place, other[start : start + length])


def put(path: Path, content: bytes, place: int, new: bytes) -> None:
    path.write_bytes(content[:place] + new + content[place + len(new) :])


def hit_the_manifest(folder: Path, data: st.DataObject) -> None:
    """derived.json with other values, its checksum made to fit; or other JSON; or no JSON."""
    path = folder / "derived.json"
    content = json.loads(path.read_text())
    del content["crc32"]
    kind = data.draw(st.sampled_from(["value", "value", "entry", "json", "text"]))
    if kind == "value":
        content[data.draw(st.sampled_from(sorted(content)))] = data.draw(JSON)
    elif kind == "entry":
        entry = content["files"][data.draw(st.sampled_from(sorted(content["files"])))]
        names = st.sampled_from([*sorted(path.name for path in folder.iterdir()), "../x", "", "/", "\0"])
        entry[data.draw(st.sampled_from(["file", "size", "crc32"]))] = data.draw(JSON | names)
    elif kind == "json":
        content = data.draw(JSON)
    if isinstance(content, dict):
        content["crc32"] = zlib.crc32(json.dumps(content, sort_keys=True).encode())
    path.write_text(data.draw(st.text()) if kind == "text" else json.dumps(content), "utf-8", "surrogatepass")


def hit_an_array(folder: Path, data: st.DataObject) -> None:
    """A derived file with an array less, or of another type, shape or content, whose checksum fits all the same."""
    manifest = json.loads((folder / "derived.json").read_text())
    name = data.draw(st.sampled_from(["postings.npz", "columns.npz", "dense.npy", "dense.hnsw"]))
    path = folder / manifest["files"][name]["file"]
    arrays = arrays_of(path)
    chosen = data.draw(st.sampled_from(sorted(arrays)))
    kind = data.draw(st.sampled_from(["without", "shorter", "type", "shape", "bytes", "value", "value", "value"]))
    if kind == "without":
        del arrays[chosen]
    elif kind == "shorter":
        arrays[chosen] = arrays[chosen][: data.draw(st.integers(0, max(0, len(arrays[chosen]) - 1)))]
    elif kind == "type":
        with np.errstate(all="ignore"):
            arrays[chosen] = arrays[chosen].astype(data.draw(st.sampled_from(["S3", "c16", "f2", "u1"])))
    elif kind == "shape":
        arrays[chosen] = arrays[chosen][None]
    elif kind == "value" and arrays[chosen].size:
        put_values(arrays[chosen].reshape(-1), data, in_front=name == "dense.hnsw")
    if kind == "bytes":
        path.write_bytes(data.draw(st.binary(max_size=200)))
    else:
        write_arrays(path, arrays)
    forge_checksum(folder, name)


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    """A derived file's arrays, by name; one that is a single array, or a graph as words of 4 bytes, has none."""
    if path.suffix == ".hnsw":
        return {"": np.fromfile(path, "<u4")}
    found = np.load(path)
    return {"": found} if isinstance(found, np.ndarray) else dict(found)


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with path.open("wb") as file:
        if path.suffix == ".npz":
            np.savez(file, **arrays)
        elif path.suffix == ".npy":
            np.save(file, arrays.get("", np.empty(0)))
        else:
            file.write(arrays.get("", np.empty(0)).tobytes())


def put_values(values: np.ndarray, data: st.DataObject, *, in_front: bool) -> None:
    """Other bytes in a few places, or in one of the first where what they hold matters most."""
    last = 24 if in_front and data.draw(st.booleans()) else len(values) - 1
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, min(last, len(values) - 1)))
        small = st.integers(0, 3).map(lambda number: bytes([number]) + bytes(values.itemsize - 1))
        new = data.draw(st.binary(min_size=values.itemsize, max_size=values.itemsize) | small)
        values[place : place + 1] = np.frombuffer(new, values.dtype)


def forge_checksum(folder: Path, name: str) -> None:
    """Make derived.json say that this file is as it was written."""
    manifest = json.loads((folder / "derived.json").read_text())
    entry = manifest["files"][name]
    path = folder / entry["file"]
    entry |= {"size": path.stat().st_size, "crc32": zlib.crc32(path.read_bytes())}
    del manifest["crc32"]
    manifest["crc32"] = zlib.crc32(json.dumps(manifest, sort_keys=True).encode())
    (folder / "derived.json").write_text(json.dumps(manifest))


CELLS = st.one_of(
    st.none(), st.integers(-(2**63), 2**63 - 1), st.floats(), st.binary(max_size=80), st.text(max_size=20),
    JSON.map(json.dumps), st.just("[" * 100_000),
)  # fmt: skip
COLUMNS = {
    "documents": ("id", "text", "metadata", "crc32"),
    "vectors": ("token_start", "token_count", "dense", "sparse_ids", "sparse_weights", "sparse_counts", "token_crc32"),
    "meta": ("value",),
    "notes": ("value",),
    "deletions": ("generation",),
}


def hit_a_cell(folder: Path, data: st.DataObject) -> None:
    """A value in a table, its row's checksum made to fit or not; derived files gone, so that all rows are read."""
    table = data.draw(st.sampled_from(sorted(COLUMNS)))
    column = data.draw(st.sampled_from(COLUMNS[table]))
    connection = sqlite3.connect(folder / "index.sqlite")
    try:
        key = "key" if table in ("meta", "notes") else "row"
        keys = [found[0] for found in connection.execute(f"SELECT {key} FROM {table}")]
        chosen = data.draw(st.sampled_from(keys))
        connection.execute(f"UPDATE {table} SET {column} = ? WHERE {key} = ?", (data.draw(CELLS), chosen))
        if data.draw(st.booleans()):
            make_checksum_fit(connection, table, chosen)
        connection.commit()
    except (sqlite3.IntegrityError, UnicodeEncodeError):
        pass  # what no SQLite file can hold
    finally:
        connection.close()
    if data.draw(st.booleans()):
        (folder / "derived.json").unlink()


def make_checksum_fit(connection: sqlite3.Connection, table: str, key: Any) -> None:
    try:
        if table == "documents":
            row = connection.execute("SELECT row, id, text, metadata FROM documents WHERE row = ?", (key,)).fetchone()
            connection.execute("UPDATE documents SET crc32 = ? WHERE row = ?", (document_crc32(*row), key))
        elif table == "vectors":
            fields = "row, dense, sparse_ids, sparse_weights, sparse_counts"
            row = connection.execute(f"SELECT {fields} FROM vectors WHERE row = ?", (key,)).fetchone()
            connection.execute("UPDATE vectors SET crc32 = ? WHERE row = ?", (vectors_crc32(*row), key))
        elif table == "meta":
            texts = dict(connection.execute("SELECT key, value FROM meta WHERE key != 'crc32'"))
            connection.execute("UPDATE meta SET value = ? WHERE key = 'crc32'", (str(meta_crc32(texts)),))
    except (TypeError, AttributeError):
        pass  # a value of a type that has no checksum


# What must come of it


@pytest.fixture(scope="session")
def sound(made, tmp_path_factory):
    """A closed index, what it answers, and the documents it holds."""
    folder = tmp_path_factory.mktemp("fuzz") / "index"
    versions = {f"d{i}": 0 for i in range(30)}
    with Index.create(folder, made.MODEL, dense="hnsw") as index:
        index.add(made.documents_of(versions), embeddings=made.embeddings_of(versions))
        index.delete(["d3", "d4"])
        index.compact()
        index.set_note("made_by", "hand")
        index.delete("d5")
    with Index.open(folder) as index:
        documents = {id_: index.get(id_) for id_ in versions}
        return folder, answers(index, made), documents


def answers(index: Index, made) -> list:
    queries = [made.embeddings_of({name: 0}) for name in "ab"]
    found = [index.search(query, k=50, lexical=lexical) for query in queries for lexical in ("m3", "bm25")]
    return [*found, index.search(queries[0], k=50, filter={"version": {"$gte": 0}})]


def check_damage(sound, made, tmp_path_factory, hit: Callable, data: st.DataObject, *, is_right: bool) -> None:
    """The index opens and answers as before, or raises an error of ours; never anything else.

    is_right: whether answers must be those of before: not where a checksum was forged
    """
    source, expected, documents = sound
    folder = tmp_path_factory.mktemp("damaged") / "index"
    shutil.copytree(source, folder)
    hit(folder, data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # derived files that are made again
        try:
            with Index.open(folder) as index:
                found = answers(index, made)
                index.note("made_by")
                assert found == expected or not is_right
                for id_, document in documents.items():
                    found = index.get(id_)
                    assert found == document or found is None or not is_right
                    if found != document and is_right:  # the index over the ids is damaged, which a whole check sees
                        assert not index.check().sound
                sound_before = index.check().sound
        except M3EdgeError as error:
            if str(folder) not in str(error):
                raise
            sound_before = False
        if not sound_before and (folder / "index.sqlite").exists():
            Index.repair(folder)
    shutil.rmtree(folder.parent)


HITS = [(hit_a_file, True), (hit_the_manifest, False), (hit_an_array, False), (hit_a_cell, False)]


@pytest.mark.parametrize(("hit", "is_right"), HITS)
def test_a_damaged_index_answers_rightly_or_says_what_is_damaged(hit, is_right, sound, made, tmp_path_factory):
    @settings(max_examples=60, deadline=None)
    @given(data=st.data())
    def run(data):
        check_damage(sound, made, tmp_path_factory, hit, data, is_right=is_right)

    run()


@pytest.mark.slow
@pytest.mark.parametrize(("hit", "is_right"), HITS)
def test_a_damaged_index_answers_rightly_or_says_what_is_damaged_long(hit, is_right, sound, made, tmp_path_factory):
    go_on(lambda data: check_damage(sound, made, tmp_path_factory, hit, data, is_right=is_right))


# Filters

OPERATORS = ["$and", "$or", "$not", "$eq", "$ne", "$in", "$nin", "$gt", "$lte", "$exists", "$where", "a", "a.b", "$"]
THINGS = st.recursive(
    st.one_of(SCALARS, st.binary(max_size=2), st.complex_numbers(), st.builds(object)),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(OPERATORS) | SCALARS, inner, max_size=3)
    ),
    max_leaves=8,
)


def check_filter(thing: Any) -> None:
    """It is parsed, or refused by a plain error."""
    try:
        condition = parse_filter(thing)
    except (TypeError, ValueError):
        return
    hash(condition)  # it is the key of results that are kept


@settings(max_examples=400, deadline=None)
@given(THINGS)
def test_whatever_is_given_as_a_filter_is_parsed_or_refused_by_a_plain_error(thing):
    check_filter(thing)


@pytest.mark.slow
def test_whatever_is_given_as_a_filter_is_parsed_or_refused_by_a_plain_error_long():
    go_on(lambda data: check_filter(data.draw(THINGS)))


def go_on(check: Callable[[st.DataObject], None]) -> None:
    """Fuzz until the time is up; prints how many examples there were (`pytest -s`)."""
    examples, end = 0, time.monotonic() + BUDGET_S
    while time.monotonic() < end:

        @settings(max_examples=200, deadline=None, database=None)
        @given(data=st.data())
        def run(data):
            nonlocal examples
            examples += 1
            check(data)

        run()
    print(f"\n{examples} examples in {BUDGET_S:.0f} s")
