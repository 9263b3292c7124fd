"""Opening an SQLite file, and saying what its errors mean: damage, a full disk, a folder that cannot be written."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from m3edge.errors import FormatError

_BUSY_S = 30  # SQLite's own locks are held for moments: another process opening, recovering or checkpointing

# How SQLite words what is no damage. Its error codes would be plainer, but Python 3.10 does not hand them on.
_NO_DAMAGE = (
    "disk i/o error",
    "database or disk is full",
    "readonly database",
    "unable to open database file",
    "database is locked",
    "out of memory",
)


def connect(path: Path, *, create: bool = False) -> sqlite3.Connection:
    """A connection whose commits are on the disk when they return; a read-only one where the folder is."""
    mode = "rwc" if create else "rw"
    if not os.access(path.parent, os.W_OK):
        # Without the right to make a -shm file SQLite reads a closed database only when told that nobody writes to it.
        mode = "ro" if path.with_name(path.name + "-wal").exists() else "ro&immutable=1"
    uri = f"{path.resolve().as_uri()}?mode={mode}"
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=_BUSY_S)
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
    except sqlite3.ProgrammingError as error:
        raise ValueError(f"{path.parent}: this index is closed; open it again") from error
    except sqlite3.DataError as error:
        raise ValueError(f"{path}: a document is larger than SQLite can store ({error})") from error
    except sqlite3.OperationalError as error:
        if any(words in str(error).lower() for words in _NO_DAMAGE):
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
