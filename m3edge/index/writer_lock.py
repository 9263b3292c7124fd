"""The right to write to an index: one process at a time has it, and loses it with its life."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from m3edge.errors import IndexLockedError
from m3edge.files import naming

LOCK_FILE = "writer.lock"
PID_FILE = "writer.pid"  # apart from the lock: on Windows a locked file cannot be read
WAIT_S = 1.0  # two programs that add a document at the same moment should not notice each other


@contextmanager
def writer_lock(folder: Path, wait_s: float = WAIT_S) -> Iterator[None]:
    """Hold the lock while the block runs. Raises IndexLockedError, naming the holder, when it is not free in time."""
    from filelock import FileLock, Timeout  # late: who only reads has no use for it, and it takes as long as sqlite3

    lock = FileLock(folder / LOCK_FILE, timeout=wait_s, thread_local=False)
    try:
        try:
            lock.acquire()
        except Timeout as error:
            holder = _holder(folder)
            who, remedy = f"process {holder}", "end it"
            if holder == str(os.getpid()):
                who, remedy = f"another Index object of this process ({holder})", "let all threads share one"
            raise IndexLockedError(
                f"{folder}: {who} is writing to this index; wait until it is done, or {remedy}"
            ) from error
        with naming(folder / PID_FILE):
            (folder / PID_FILE).write_text(str(os.getpid()))
        yield
    finally:
        try:
            lock.release(force=True)
        except BaseException:  # Ctrl-C before it or within it: this process would lock itself out
            lock.release(force=True)
            raise


def _holder(folder: Path) -> str:
    try:
        return str(int((folder / PID_FILE).read_text()))
    except (OSError, ValueError):
        return "(unknown)"
