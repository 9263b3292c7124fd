"""Opening an SQLite file, and saying what its errors mean: damage, a full disk, a folder that cannot be written.

SQLite's locks belong to a process, but what it remembers of them is copied by a fork: a child that went on with its
parent's connections, or opened the same file, would write without any lock. So it is refused both.
"""

from __future__ import annotations

import os
import sqlite3
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from m3edge.errors import FormatError

_BUSY_S = 30  # SQLite's own locks are held for moments: another process opening, recovering or checkpointing

# What is no damage, by the lowest byte of SQLite's error code; the others say more of the same.
_NO_DAMAGE = (
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
)


class _Connection(sqlite3.Connection):
    """Knows its file, and whether this process opened it or the one that this was forked from."""

    def __init__(self, file: Path, mode: str) -> None:
        self.file = file
        self.is_inherited = False
        _open.add(self)  # before it is open: another thread may fork at any instant
        uri = f"{file.as_uri()}?mode={mode}"
        super().__init__(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=_BUSY_S)

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        if self.is_inherited:
            raise _forked(self.file)
        return super().execute(*arguments)

    def executemany(self, *arguments: Any) -> sqlite3.Cursor:
        if self.is_inherited:
            raise _forked(self.file)
        return super().executemany(*arguments)

    def close(self) -> None:
        if not self.is_inherited:
            super().close()
            _open.discard(self)


_open: weakref.WeakSet[_Connection] = weakref.WeakSet()
_inherited: set[_Connection] = set()  # kept for ever: Python would close what nobody uses, and SQLite its files


def connect(path: Path, *, create: bool = False) -> sqlite3.Connection:
    """A connection whose commits are on the disk when they return; a read-only one where the folder is.

    Raises ValueError when a process that this one was forked from had the file open.
    """
    file = path.resolve()
    if any(connection.file == file for connection in _inherited):
        raise _forked(file)
    mode = "rwc" if create else "rw"
    if not os.access(path.parent, os.W_OK):
        # Without the right to make a -shm file SQLite reads a closed database only when told that nobody writes to it.
        mode = "ro" if path.with_name(path.name + "-wal").exists() else "ro&immutable=1"
    connection = _Connection(file, mode)
    try:
        connection.execute("PRAGMA synchronous = FULL")
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into FormatError for damage, OSError for the system's refusals, ValueError for misuse."""
    try:
        yield
    except (sqlite3.ProgrammingError, sqlite3.InterfaceError) as error:
        if "closed" in str(error):
            raise ValueError(f"{path.parent}: this index is closed; open it again") from error
        raise ValueError(f"{path}: a value that SQLite cannot store or look for was refused ({error})") from error
    except sqlite3.DataError as error:
        raise ValueError(f"{path}: a document is larger than SQLite can store ({error})") from error
    except sqlite3.IntegrityError as error:
        if "UNIQUE" in str(error):  # what is written was looked for before: the file hid it
            raise damaged(path, error) from error
        raise ValueError(f"{path}: a value that this file cannot hold was refused ({error})") from error
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in _NO_DAMAGE:  # not there when Python raised it
            raise OSError(
                f"{path}: could not be read or written ({error}); make room, or see to the folder's permissions: what "
                "was committed is safe"
            ) from error
        raise damaged(path, error) from error
    except sqlite3.DatabaseError as error:
        raise damaged(path, error) from error


def damaged(path: Path, why: object) -> FormatError:
    """What to tell when a file with the truth is not what was written."""
    return FormatError(
        f"{path}: damaged ({why}); `m3edge check {path.parent}` says what else is, --repair mends what can be; "
        "otherwise restore a backup or build the index again"
    )


def _forked(file: Path) -> ValueError:
    return ValueError(
        f"{file.parent}: this process was forked from one that has the index open, and cannot use it safely; begin "
        "processes with multiprocessing's 'spawn' method, or open the index after the fork only"
    )


def _after_fork() -> None:
    for connection in list(_open):
        connection.is_inherited = True
        _inherited.add(connection)
    _open.clear()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)
