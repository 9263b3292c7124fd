"""The index's truth: one SQLite file with every document, its dense vector and its sparse row, and what was deleted.

A document is known by its row number, which grows with each addition and is never used again; everything derived
(the graph, the postings) speaks of rows. The token vectors lie in a file of their own (tokens.py); this one says where.
docs/format.md describes every table.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from m3edge.errors import FormatError
from m3edge.index.snapshot import Snapshot
from m3edge.index.sqlite_file import connect, explained
from m3edge.index.transaction import FORMAT_VERSION, Transaction, first_meta

FILE_NAME = "index.sqlite"
_MAPPED_BYTES = 2**31 - 65536  # SQLite's limit; a search's 10 texts take .1 ms from the map, .5 by reads (hybrid.py)
_APPLICATION_ID = 0x4D334544  # "M3ED": marks the SQLite file as ours

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE documents (
    row INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    text BLOB NOT NULL,      -- TEXT; UTF-8 bytes where it holds lone surrogates
    metadata TEXT NOT NULL,  -- a JSON object
    crc32 INTEGER
);
CREATE TABLE vectors (
    row INTEGER PRIMARY KEY,
    token_start INTEGER NOT NULL,  -- first row in the token file
    token_count INTEGER NOT NULL,
    dense BLOB NOT NULL,           -- float32
    sparse_ids BLOB NOT NULL,      -- int32, ascending
    sparse_weights BLOB NOT NULL,  -- float32
    sparse_counts BLOB NOT NULL,   -- int32
    token_crc32 INTEGER,           -- of the bytes in the token file
    crc32 INTEGER
);
CREATE TABLE notes (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE deletions (row INTEGER PRIMARY KEY, generation INTEGER NOT NULL);
"""


class Store:
    """An existing SQLite file of ours. Holds no connection: its snapshots and its transaction do."""

    def __init__(self, folder: Path) -> None:
        """Raises FormatError when there is none, or it is damaged, or from a newer m3edge."""
        self.path = folder / FILE_NAME
        if not self.path.is_file():
            raise FormatError(f"{folder}: not an m3edge index, it has no {FILE_NAME}; create one with Index.create")
        with explained(self.path), closing(connect(self.path)) as connection:
            application_id = connection.execute("PRAGMA application_id").fetchone()[0]
            version = connection.execute("PRAGMA user_version").fetchone()[0]
        if application_id != _APPLICATION_ID:
            raise FormatError(f"{self.path}: an SQLite file, but not of an m3edge index; open the right folder")
        if version > FORMAT_VERSION:
            raise FormatError(
                f"{self.path}: format version {version} is newer than this m3edge reads ({FORMAT_VERSION}); "
                "upgrade m3edge"
            )

    @classmethod
    def create(cls, folder: Path, settings: Mapping[str, Any]) -> None:
        """Make an empty store with these settings."""
        path = folder / FILE_NAME
        with explained(path), closing(connect(path, create=True)) as connection:
            connection.executescript(
                f"PRAGMA journal_mode = WAL; PRAGMA application_id = {_APPLICATION_ID};"
                f"PRAGMA user_version = {FORMAT_VERSION}; BEGIN;" + _SCHEMA
            )
            connection.executemany("INSERT INTO meta VALUES (?, ?)", list(first_meta(settings).items()))
            connection.execute("COMMIT")

    def snapshot(self) -> Snapshot:
        """What is committed now; to be closed."""
        with explained(self.path):
            connection = connect(self.path)
            connection.execute(f"PRAGMA mmap_size = {_MAPPED_BYTES}")
        return Snapshot(connection, self.path)

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Make all writes of the block durable together, or none of them. The caller holds the writer's lock."""
        with explained(self.path):
            connection = connect(self.path)
        with closing(connection):
            transaction = Transaction(connection, self.path)
            try:
                transaction.upgrade()
                yield transaction
                transaction.commit()
            except BaseException:
                if connection.in_transaction:  # SQLite itself rolls back when the disk is full
                    connection.execute("ROLLBACK")
                raise

    def wal_bytes(self) -> int:
        """Size of the write-ahead log."""
        try:
            return os.stat(f"{self.path}-wal").st_size
        except FileNotFoundError:
            return 0

    def file(self) -> tuple[int, int]:
        """Which file it is: another one once another folder took this one's place."""
        found = os.stat(self.path)
        return found.st_dev, found.st_ino

    def checkpoint(self) -> bool:
        """Bring what is in the write-ahead log into the file itself, as far as no snapshot needs it as it is.

        Returns whether that was all of it: a snapshot made from now on needs nothing of the log.
        """
        with explained(self.path), closing(connect(self.path)) as connection:
            was_busy, n_pages, n_done = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        return not was_busy and n_pages == n_done

    def empty_wal(self) -> None:
        """Let the write-ahead log begin anew, unless a snapshot needs something of it."""
        with explained(self.path), closing(connect(self.path)) as connection:
            connection.execute("PRAGMA busy_timeout = 0")  # a reader may keep its snapshot for hours
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def vacuum(self) -> None:
        """Write the file anew without the room that deleted documents left. The caller holds the writer's lock."""
        with explained(self.path), closing(connect(self.path)) as connection:
            connection.execute("VACUUM")
