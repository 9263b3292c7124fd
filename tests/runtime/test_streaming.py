"""Adding very many documents: memory stays flat, progress shows, and Ctrl-C leaves what was committed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from m3edge import Index

STREAM = """
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from m3edge import Document, Embeddings, Index
from m3edge.embeddings import SparseRows, TokenRows
import writer_process as made

def own_memory_mib():
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["RssAnon"].split()[0]) / 1024

def encode_passages(texts, **_):
    n = len(texts)
    ones = np.arange(n + 1, dtype=np.int64)
    vectors = np.random.default_rng(n).standard_normal((n, made.DIM)).astype(np.float32)
    sparse = SparseRows(np.zeros(n, np.int64), np.ones(n, np.float32), np.ones(n, np.int32), ones)
    return Embeddings(dense=vectors, sparse=sparse, tokens=TokenRows(vectors, ones), truncated=np.zeros(n, bool))

def documents(n):
    for i in range(n):
        if i % (n // 20) == 0:
            print(own_memory_mib(), flush=True)
        yield Document(f"new {i}", f"{i} " * 1000, {"number": i})

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are born deaf to it
encoder = SimpleNamespace(**vars(made.MODEL), encode_passages=encode_passages)
with Index.open(sys.argv[1], encoder) as index:
    with index.transaction():
        index.add(documents(int(sys.argv[2])))
        print("added", flush=True)
"""


@pytest.fixture
def stream(made, made_index):
    """Starts a process that adds so many documents to `made_index`, one after another, and prints its memory."""
    started = []

    def start(n: int) -> subprocess.Popen:
        made_index.close()
        command = [sys.executable, "-c", STREAM, str(made_index.folder), str(n)]
        folder = Path(made.__file__).parent
        process = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("made_index", ["exact"], indirect=True)
@pytest.mark.parametrize("n", [10_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_memory_stays_flat_while_documents_stream_in(n, stream, made_index):
    process = stream(n)
    out, err = process.communicate()
    assert process.returncode == 0, err
    *lines, last = out.splitlines()
    assert last == "added"
    memory = [float(line) for line in lines]
    assert max(memory) - memory[1] < 10  # MiB; the texts alone are 4 or 40 times that
    with Index.open(made_index.folder) as index:
        assert len(index) == 20 + n


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_leaves_what_was_committed(stream, made_index, made):
    expected = made_index.search(made.embeddings_of({"query": 0}), k=50)
    process = stream(10**9)
    process.stdout.readline()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)  # some thousands of documents are written
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in err
    with Index.open(made_index.folder) as index:
        assert index.search(made.embeddings_of({"query": 0}), k=50) == expected
        assert index.check() == (20, ())
        index.upsert(made.documents_of({"after": 0}), embeddings=made.embeddings_of({"after": 0}))


def test_progress_shows_for_each_thing_that_takes_long(made, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("m3edge.index.dense.AUTO_NUMBERS", 50 * made.DIM)  # the index becomes large on the way
    versions = {f"d{i}": 0 for i in range(100)}
    with Index.create(tmp_path / "index", made.MODEL) as index:
        index.add(made.documents_of(versions), embeddings=made.embeddings_of(versions), progress=True)
        shown = capsys.readouterr().err
        assert all(job in shown for job in ("adding: 100%", "indexing", "building the graph: 100%"))
        index.compact(progress=True)
        assert "compacting: 100%" in capsys.readouterr().err
        index.check(progress=True)
        assert "checking: 100%" in capsys.readouterr().err
    (graph,) = (tmp_path / "index").glob("dense-*.hnsw")
    graph.unlink()
    with pytest.warns(RuntimeWarning, match=f"{graph.name}: missing; it is made again"):
        Index.open(tmp_path / "index", progress=True).close()
    assert "building the graph: 100%" in capsys.readouterr().err
    Index.open(tmp_path / "index", progress=True).close()  # it was kept
    assert capsys.readouterr().err == ""
    assert json.loads((tmp_path / "index" / "derived.json").read_text())["generation"] == 2
