"""Derived files whose checksums are right and whose contents lead out of their arrays: made again, not followed."""

from __future__ import annotations

import dataclasses
import json
import zlib

import numpy as np
import pytest

from m3edge import Index, kernels
from m3edge.index.graph import HnswConfig, HnswGraph
from m3edge.index.graph_file import problem_of_graph, read_links

DIM, M = 16, 16
LINKS0_BYTES = 4 * (1 + 2 * M)
ELEMENT_BYTES = LINKS0_BYTES + 4 * DIM + 8


@pytest.fixture
def folder(made, tmp_path):
    """A closed index whose postings have large counts, whose columns have values of every kind."""
    versions = {f"d{i}": i for i in range(20)}
    embeddings = made.embeddings_of(versions)
    embeddings.sparse.counts[::7] = 40
    documents = [dataclasses.replace(d, metadata={**d.metadata, "name": d.id}) for d in made.documents_of(versions)]
    with Index.create(tmp_path / "index", made.MODEL, dense="hnsw") as index:
        index.add(documents, embeddings=embeddings)
        index.delete("d7")
    return tmp_path / "index"


def answers(index, made):
    query = made.embeddings_of({"query": 0})
    filters = ({"version": {"$gte": 5}}, {"name": {"$lt": "d3"}})
    return [
        *(index.search(query, k=20, lexical=lexical) for lexical in ("m3", "m3-idf", "bm25")),
        *(index.search(query, k=20, filter=one) for one in filters),
    ]


def forge(folder, name, change):
    """Change a derived file's arrays, or a graph's bytes, and make its checksum fit."""
    manifest = json.loads((folder / "derived.json").read_text())
    entry = manifest["files"][name]
    path = folder / entry["file"]
    if name == "dense.hnsw":
        content = bytearray(path.read_bytes())
        change(content)
        path.write_bytes(content)
    else:
        with np.load(path) as found:
            arrays = dict(found)
        change(arrays)
        with path.open("wb") as file:
            np.savez(file, **arrays)
    entry |= {"size": path.stat().st_size, "crc32": zlib.crc32(path.read_bytes())}
    del manifest["crc32"]
    manifest["crc32"] = zlib.crc32(json.dumps(manifest, sort_keys=True).encode())
    (folder / "derived.json").write_text(json.dumps(manifest))


def setting(name, place, value):
    def change(arrays):
        arrays[name].reshape(-1).view(np.uint8 if arrays[name].dtype == bool else arrays[name].dtype)[place] = value

    return pytest.param(change, id=f"{name}-{value}")


def fields(change):
    def change_fields(arrays):
        content = json.loads(arrays["fields"].tobytes())
        change(content)
        arrays["fields"] = np.frombuffer(json.dumps(content).encode(), np.uint8)

    return change_fields


POSTINGS = [
    setting("packed_documents", 0, 65535),
    setting("packed_documents", -1, 65535),
    setting("starts", 1, 2**32 - 1),
    setting("starts", 0, 5),
    setting("tokens", 0, 2**32 - 1),
    setting("large_at", 0, 2**31),
    setting("large_at", -1, 0),
    setting("large_counts", 0, -1),
    setting("block_weights", 1, 3),
    setting("block_documents_held", 0, 2**40),
    setting("block_documents_held", 0, -1),
    setting("alive", 0, 200),
    setting("lengths", 0, -5),
    setting("exponent", 0, 2**40),
    setting("exponent", 0, -1),
    setting("rows", 0, 2**62),
    setting("rows", 0, -1),
    setting("rows", -1, 2**62),
    setting("token_starts", 0, 2**62),
    setting("token_starts", 0, -1),
    setting("token_starts", 0, 2**63 - 1),
    setting("token_counts", 0, -1),
]


@pytest.mark.parametrize("change", POSTINGS)
def test_postings_that_lead_out_of_their_arrays_are_made_again_under_the_graph_that_is_there(
    change, folder, made, taken_in
):
    with Index.open(folder) as index:
        expected = answers(index, made)
    taken_in.clear()
    forge(folder, "postings.npz", change)
    with pytest.warns(RuntimeWarning, match=f"{folder}.* made again"), Index.open(folder) as index:
        assert answers(index, made) == expected
    with Index.open(folder) as index:  # without a warning
        assert answers(index, made) == expected
    assert taken_in == []


@pytest.mark.parametrize("change", [setting("token_starts", 0, 2**60), setting("token_counts", 0, 2**40)])
def test_token_vectors_beyond_the_files_end_are_nobodys(change, folder, made):
    with Index.open(folder) as index:
        expected = answers(index, made)
    forge(folder, "postings.npz", change)
    with pytest.warns(RuntimeWarning, match="name token vectors that are not there"), Index.open(folder) as index:
        assert answers(index, made) == expected
    with Index.open(folder) as index:  # without a warning
        assert answers(index, made) == expected


COLUMNS = [
    setting("documents", 0, 2**40),
    setting("positions-0-0", 0, 2**40),
    setting("positions-0-0", 0, -1),
    setting("codes-0-0", 0, 2**30),
    setting("codes-0-0", 0, -2),
    setting("segments", 0, 2**40),
    pytest.param(fields(lambda f: f[0][0].__setitem__(1, [[], {}])), id="values that are none"),
    pytest.param(fields(lambda f: f[0][0].__setitem__(1, list(range(100, 0, -1)))), id="values that descend"),
    pytest.param(fields(lambda f: f[0][0].__setitem__(2, 5)), id="values that are no list"),
    pytest.param(fields(lambda f: f.append([])), id="a segment too many"),
    pytest.param(lambda arrays: arrays.update(fields=np.frombuffer(b"[" * 100_000, np.uint8)), id="nested"),
]


@pytest.mark.parametrize("change", COLUMNS)
def test_columns_that_lead_out_of_their_arrays_are_made_again(change, folder, made):
    with Index.open(folder) as index:
        expected = answers(index, made)
    forge(folder, "columns.npz", change)
    with Index.open(folder) as index, pytest.warns(RuntimeWarning, match="columns.*damaged .* made again"):
        assert answers(index, made) == expected
    with Index.open(folder) as index:  # without a warning
        assert answers(index, made) == expected


def word(place, value, n_bytes=4):
    def change(content):
        at = place if place >= 0 else len(content) + place
        content[at : at + n_bytes] = value.to_bytes(n_bytes, "little")

    return change


ELEMENTS = 96
GRAPH = {
    "room for fewer than there are": word(8, 3, 8),
    "room for more than there is memory": word(8, 2**50, 8),
    "more elements than it has": word(16, 2**40, 8),
    "fewer elements than it has": word(16, 5, 8),
    "elements of another size": word(24, 8, 8),
    "labels elsewhere": word(32, 2**20, 8),
    "vectors elsewhere": word(40, 2**20, 8),
    "more levels than it has": word(48, 9),
    "a start that there is not": word(52, 1000),
    "more links a level": word(56, 1000, 8),
    "more links on the ground": word(64, 1000, 8),
    "levels without end": word(80, 2**62, 8),
    "a search without end": word(88, 2**62, 8),
    "a link to nowhere": word(ELEMENTS + 4, 20),
    "more links than places": word(ELEMENTS, 33, 2),
    "a label that is no row": word(ELEMENTS + ELEMENT_BYTES - 8, 2**64 - 1, 8),
    "levels of half a list": word(ELEMENTS + 20 * ELEMENT_BYTES, 4),
    "a level too many at the end": word(-4, 2**32 - 1),
    "its end cut off": lambda content: content.__delitem__(slice(-4, None)),
    "its beginning alone": lambda content: content.__delitem__(slice(50, None)),
}


@pytest.mark.parametrize("what", GRAPH)
def test_a_graph_that_leads_out_of_its_file_is_made_again_before_hnswlib_follows_it(what, folder, made):
    with Index.open(folder) as index:
        expected = answers(index, made)
    forge(folder, "dense.hnsw", GRAPH[what])
    with Index.open(folder) as index, pytest.warns(RuntimeWarning, match="hnsw: damaged .* made again"):
        assert answers(index, made) == expected
    with Index.open(folder) as index:  # without a warning
        assert answers(index, made) == expected


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    """The bytes of a graph of several levels, where its upper levels begin, and a path to write it to."""
    path = tmp_path_factory.mktemp("graph") / "graph"
    rng = np.random.default_rng(0)
    graph = HnswGraph(DIM, HnswConfig(), 1)
    for start in range(0, 2000, 500):  # it makes room as it grows
        graph.add(np.arange(start + 1, start + 501), rng.standard_normal((500, DIM)).astype(np.float32))
    graph.delete(np.arange(1, 100))
    graph.save(path)
    return path.read_bytes(), ELEMENTS + 2000 * ELEMENT_BYTES, path


def problem(graph, place=None, value=None, n_bytes=4):
    content, _, path = graph
    changed = bytearray(content)
    if place is not None:
        word(place, value, n_bytes)(changed)
    path.write_bytes(changed)
    return problem_of_graph(path, DIM, M, 200)


def test_what_hnswlib_wrote_is_sound(graph, tmp_path):
    assert problem(graph) is None
    HnswGraph(DIM, HnswConfig(), 1).save(tmp_path / "empty")
    assert problem_of_graph(tmp_path / "empty", DIM, M, 200) is None
    small = HnswGraph(DIM, HnswConfig(m=5, ef_construction=2), 1)
    small.add(np.arange(1, 301), np.random.default_rng(0).standard_normal((300, DIM)).astype(np.float32))
    small.save(tmp_path / "small")
    assert problem_of_graph(tmp_path / "small", DIM, 5, 2) is None
    assert "sizes" in problem_of_graph(tmp_path / "small", DIM, M, 200)


def test_links_on_upper_levels_are_followed_only_to_elements_that_have_them(graph):
    content, levels_at, _ = graph
    words = np.frombuffer(content[levels_at:], "<u4")
    first = int(np.flatnonzero(words)[0])  # all elements before it are on the ground alone
    assert first > 0
    a_list = levels_at + 4 * (first + 1)
    assert "not on its level" in problem(graph, a_list + 4, 0)  # to element 0
    assert "not on its level" in problem(graph, a_list + 4, 2000)
    assert "more links" in problem(graph, a_list, M + 1, 2)
    assert "another size" in problem(graph, levels_at + 4 * first, 4 * (M + 1) * 1000)
    assert "starts at" in problem(graph, 52, 0)


def test_bytes_changed_anywhere_are_refused_or_searched_without_harm(graph):
    """Every one of these graphs that is not refused is searched: by hnswlib, which checks nothing, and by codes."""
    rng = np.random.default_rng(1)
    content, levels_at, path = graph
    queries = rng.standard_normal((5, DIM)).astype(np.float32)
    codes, scales, _ = kernels.dense_codes(rng.standard_normal((2000, DIM)).astype(np.float32), 1)
    refused = 0
    for i in range(300):
        changed = bytearray(content)
        low, high = [(0, 96), (96, levels_at), (levels_at, len(content))][i % 3]
        at = int(rng.integers(low, high))
        changed[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        if problem_of_graph(path, DIM, M, 200) is not None:
            refused += 1
            continue
        loaded = HnswGraph(DIM, HnswConfig(), 1, path)
        links = kernels.GraphLinks(*read_links(path, DIM, M, 200)[:5])
        for query in queries:
            loaded.search(query, 10)
            links.candidates(query, codes, scales, np.ones(2000, bool), 10, 2000)
    assert 100 < refused < 300
