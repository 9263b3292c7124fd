"""A process that writes is killed, or its writes fail, at any instant: what was committed is there and nothing else."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from m3edge import Index


@pytest.fixture
def forks(made):
    """Starts writers: takes what a line of writer_process says and returns the process that forks them."""
    process = subprocess.Popen(
        [sys.executable, made.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    yield process
    process.stdin.close()
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize("kills", [12, pytest.param(200, marks=pytest.mark.slow)])
def test_a_killed_writer_leaves_exactly_what_it_committed(kills, forks, made, tmp_path):
    dice = random.Random(kills)
    folder, log = tmp_path / "index", tmp_path / "log"
    Index.create(folder, made.MODEL, dense="hnsw").close()
    content: dict[str, int] = {}
    done_before_kills = 0
    for seed in range(kills):
        print(folder, log, seed, sep="\t", file=forks.stdin, flush=True)
        child = int(forks.stdout.readline())
        wait_for_lines(log, "done", dice.choice([0, 0, 1, 3]))
        time.sleep(dice.choice([0.01, 0.1, 0.3]) * dice.random())
        os.kill(child, signal.SIGKILL)
        assert int(forks.stdout.readline()) == -signal.SIGKILL, "the writer ended by itself: it must have failed"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        begun, done = (sum(line.startswith(word) for line in lines) for word in ("begun", "done"))
        states = [content]
        for (_, after), _ in zip(made.operations(seed, content), range(begun), strict=False):
            states.append(after)
        content = assert_is_one_of(states[done : begun + 1], folder, made)
        done_before_kills += done
    assert done_before_kills > kills // 4  # they did get to work


def wait_for_lines(log: Path, word: str, n: int) -> None:
    """Until the writer has done so much: how long that takes, the machine decides."""
    end = time.monotonic() + 60
    while n and not (log.exists() and log.read_text().count(word) >= n):
        assert time.monotonic() < end, "the writer does nothing"
        time.sleep(0.002)


def assert_is_one_of(states: list[dict[str, int]], folder: Path, made) -> dict[str, int]:
    """The index holds one of these contents, all its files are sound, and it finds what a new index of it finds."""
    with Index.open(folder) as index:
        content = made.content_of(index)
        assert content in states
        assert len(index) == len(content)
        assert_searches_like_a_new_one(index, content, made)
        assert index.check().problems == ()
    return content


def assert_searches_like_a_new_one(index: Index, content: dict[str, int], made) -> None:
    new_folder = index.folder.with_name("new")
    with Index.create(new_folder, made.MODEL, dense="hnsw") as new:
        new.add(made.documents_of(content), embeddings=made.embeddings_of(content))
        for query in ("a", "b"):
            embeddings = made.embeddings_of({query: 0})
            for lexical in ("m3", "bm25"):
                found, expected = (
                    {hit.id: (hit.text, pytest.approx(hit.score, abs=1e-5)) for hit in hits}
                    for hits in (x.search(embeddings, k=100, lexical=lexical) for x in (index, new))
                )
                assert found == expected
    shutil.rmtree(new_folder)


def write_until_it_fails(folder: Path, made, seed: int, content: dict[str, int]) -> list[dict[str, int]]:
    """A few operations; returns the contents that may be there now: the last one done, and the one that failed."""
    states = [content]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # derived files not saved
        try:
            with Index.open(folder) as index:
                for (steps, after), _ in zip(made.operations(seed, content), range(4), strict=False):
                    states.append(after)
                    made.perform(index, steps)
                    states = [after]
        except OSError as error:
            is_ours = error.errno in (errno.EFBIG, errno.ENOSPC) or "could not be read or written" in str(error)
            if not (is_ours and str(folder) in str(error)):
                raise
    return states


@pytest.mark.parametrize("step", [8192, pytest.param(512, marks=pytest.mark.slow)])
def test_writes_that_fail_leave_what_was_committed(step, largest_file, made, tmp_path):
    folder = tmp_path / "index"
    Index.create(folder, made.MODEL, dense="hnsw").close()
    content: dict[str, int] = {}
    failed = 0
    for seed, size in enumerate(range(0, 150_000, step)):
        with largest_file(size):
            states = write_until_it_fails(folder, made, seed, content)
        failed += len(states) > 1
        content = assert_is_one_of(states, folder, made)
    assert failed > 3


@pytest.fixture
def failing_writes(made, tmp_path):
    """The environment of a process that can let its own writes fail."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs Linux and a C compiler")
    here = Path(made.__file__).parent
    shim = tmp_path / "failing_writes.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", shim, here / "failing_writes.c", "-ldl"], check=True)
    return {**os.environ, "LD_PRELOAD": str(shim)}


@pytest.fixture
def failing(made, failing_writes):
    """Runs failing_process's work in a folder while the n-th call that writes, and maybe all after it, fail."""
    process = subprocess.Popen(
        [sys.executable, Path(made.__file__).parent / "failing_process.py"], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True, bufsize=1, env=failing_writes,
    )  # fmt: skip

    def run(folder: Path, first: int, once: bool) -> tuple[int, str]:
        print(folder, first, int(once), sep="\t", file=process.stdin, flush=True)
        calls, _, outcome = process.stdout.readline().rstrip("\n").partition("\t")
        return int(calls), outcome

    yield run
    process.stdin.close()
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize("once", [False, True], ids=["from-there-on", "once"])
@pytest.mark.parametrize("step", [19, pytest.param(1, marks=pytest.mark.slow)])
def test_wherever_writing_fails_what_was_committed_is_left(step, once, failing, made, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(made.__file__).parent))
    import failing_process

    before = {f"d{i}": 0 for i in range(12)}
    source = tmp_path / "source"
    with Index.create(source, made.MODEL, dense="hnsw") as index:
        index.add(made.documents_of(before), embeddings=made.embeddings_of(before))
    shutil.copytree(source, tmp_path / "index")
    n_calls, outcome = failing(tmp_path / "index", 0, False)
    assert outcome == "done"
    assert n_calls > 50
    refused = 0
    for first in range(1, n_calls + 1, step):
        folder = tmp_path / "index"
        shutil.rmtree(folder)
        shutil.copytree(source, folder)
        _, outcome = failing(folder, first, once)
        assert outcome in ("done", "refused"), f"call {first} of {n_calls}"
        refused += outcome == "refused"
        assert_is_one_of(failing_process.contents(before), folder, made)
    assert refused > n_calls / step / 4


@pytest.mark.parametrize("work", ["compact", "add"])
def test_a_commit_that_failed_and_comes_back_finds_its_token_vectors(work, failing_writes, made, tmp_path):
    """Its frames are in the log, only their sync failed: no process sees it before all are gone, and then it counts."""
    before = {f"d{i}": 0 for i in range(12)}
    folder = tmp_path / "index"
    with Index.create(folder, made.MODEL, dense="exact") as index:
        index.add(made.documents_of(before), embeddings=made.embeddings_of(before))
        index.delete("d3")
    command = [sys.executable, Path(made.__file__).parent / "failed_commit.py", folder, work]
    subprocess.run(command, env=failing_writes, check=True, timeout=60)
    del before["d3"], before["d0"]
    states = [before, {**before, "first": 1}]
    assert_is_one_of(states, folder, made)


def test_a_full_disk_leaves_what_was_committed(made, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk is not allowed here")
    try:
        folder, filler = disk / "index", disk / "filler"
        Index.create(folder, made.MODEL, dense="hnsw").close()
        content: dict[str, int] = {}
        failed = 0
        for seed, free in enumerate(range(0, 200_000, 16_384)):
            with filler.open("wb") as file:
                file.write(b"\0" * max(0, shutil.disk_usage(disk).free - free))
            states = write_until_it_fails(folder, made, seed, content)
            filler.unlink()
            failed += len(states) > 1
            content = assert_is_one_of(states, folder, made)
        assert failed > 3
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
