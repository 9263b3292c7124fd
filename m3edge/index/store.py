"""The index's truth: one SQLite file with every document, its dense vector and its sparse row, and what was deleted.

A document is known by its row number, which grows with each addition and is never used again; everything derived
(the graph, the postings) speaks of rows. The token vectors lie in a file of their own (tokens.py); this one says where.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from m3edge.embeddings import SparseRows, offsets_of
from m3edge.errors import FormatError

FILE_NAME = "index.sqlite"
FORMAT_VERSION = 2  # 1 had float16 token vectors only, and no checksums of them
_APPLICATION_ID = 0x4D334544  # "M3ED": marks the SQLite file as ours
_MAPPED_BYTES = 2**31 - 65536  # SQLite's limit; a search's 10 texts take .1 ms from the map, .5 by reads (hybrid.py)
_BLOCK_ROWS = 10_000  # rows fetched at once: bounds the memory
_SQL_VARIABLES = 500  # ids in one statement, well under SQLite's limit

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE documents (
    row INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    text BLOB NOT NULL,      -- TEXT; UTF-8 bytes where it holds lone surrogates
    metadata TEXT NOT NULL   -- a JSON object
);
CREATE TABLE vectors (
    row INTEGER PRIMARY KEY,
    token_start INTEGER NOT NULL,  -- first row in the token file
    token_count INTEGER NOT NULL,
    dense BLOB NOT NULL,           -- float32
    sparse_ids BLOB NOT NULL,      -- int32, ascending
    sparse_weights BLOB NOT NULL,  -- float32
    sparse_counts BLOB NOT NULL    -- int32
);
CREATE TABLE token_blocks (
    token_start INTEGER PRIMARY KEY,  -- first row in the token file
    token_count INTEGER NOT NULL,
    crc32 INTEGER NOT NULL            -- of the block's bytes
);
CREATE TABLE notes (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE deletions (row INTEGER PRIMARY KEY, generation INTEGER NOT NULL);
"""


class Document(NamedTuple):
    """What one adds to an index. id: unique, not empty; metadata: anything that is a JSON object."""

    id: str
    text: str
    metadata: Mapping[str, Any] = {}


class StoredVectors(NamedTuple):
    """The vectors of some rows.

    rows: int64 [n], ascending; dense: float32 [n, dim]; sparse: n rows;
    token_starts, token_counts: int64 [n], where their token vectors lie in the token file
    """

    rows: np.ndarray
    dense: np.ndarray
    sparse: SparseRows
    token_starts: np.ndarray
    token_counts: np.ndarray


class Store:
    """An open SQLite file. Safe to call from several threads: what one thread writes, the others see once committed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writer = _connect(path)
        self._reader = _connect(path)
        self._reader.execute(f"PRAGMA mmap_size = {_MAPPED_BYTES}")
        self._write_lock = threading.RLock()
        self._read_lock = threading.Lock()
        self._writing_thread: int | None = None

    @classmethod
    def create(cls, folder: Path, meta: Mapping[str, Any]) -> None:
        """Make an empty store with these settings; `open` opens it."""
        with closing(_connect(folder / FILE_NAME)) as connection:
            connection.executescript(
                f"PRAGMA journal_mode = WAL; PRAGMA application_id = {_APPLICATION_ID};"
                f"PRAGMA user_version = {FORMAT_VERSION};" + _SCHEMA
            )
            rows = [(key, json.dumps(value)) for key, value in {**meta, "generation": 0, "token_rows": 0}.items()]
            connection.executemany("INSERT INTO meta VALUES (?, ?)", rows)

    @classmethod
    def open(cls, folder: Path) -> Store:
        """Open an existing store. Raises FormatError when it is none, damaged, or from a newer m3edge."""
        path = folder / FILE_NAME
        if not path.is_file():
            raise FormatError(f"{folder}: not an m3edge index, it has no {FILE_NAME}; create one with Index.create")
        try:
            store = cls(path)
        except sqlite3.DatabaseError as error:
            raise damaged(path, error) from error
        try:
            application_id = store._fetch("PRAGMA application_id")[0][0]
            version = store._fetch("PRAGMA user_version")[0][0]
            if application_id != _APPLICATION_ID:
                raise FormatError(f"{path}: an SQLite file, but not of an m3edge index; open the right folder")
            if version > FORMAT_VERSION:
                raise FormatError(
                    f"{path}: format version {version} is newer than this m3edge reads ({FORMAT_VERSION}); "
                    "upgrade m3edge"
                )
        except sqlite3.DatabaseError as error:
            store.close()
            raise damaged(path, error) from error
        except FormatError:
            store.close()
            raise
        return store

    def close(self) -> None:
        with self._write_lock, self._read_lock:
            self._writer.close()
            self._reader.close()

    # Writing: only inside `transaction`

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make all writes of the block durable together, or none of them; other writers, in any process, wait."""
        with self._write_lock:
            self._writer.execute("BEGIN IMMEDIATE")
            self._writing_thread = threading.get_ident()
            try:
                self._upgrade()
                yield
                self._writer.execute("UPDATE meta SET value = value + 1 WHERE key = 'generation'")
                self._writer.execute("COMMIT")
            except BaseException:
                self._writer.execute("ROLLBACK")
                raise
            finally:
                self._writing_thread = None

    def insert(
        self, documents: Sequence[Document], dense: np.ndarray, sparse: SparseRows, token_counts: np.ndarray
    ) -> None:
        """Add documents whose token vectors go, in this order, to the end of the token file."""
        token_starts = self.token_rows + offsets_of(token_counts)
        self._writer.execute("UPDATE meta SET value = ? WHERE key = 'token_rows'", (str(int(token_starts[-1])),))
        for i, document in enumerate(documents):
            entries = slice(sparse.offsets[i], sparse.offsets[i + 1])
            cursor = self._writer.execute(
                "INSERT INTO documents (id, text, metadata) VALUES (?, ?, ?)",
                (document.id, _storable(document.text), json.dumps(dict(document.metadata), allow_nan=False)),
            )
            self._writer.execute(
                "INSERT INTO vectors VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    cursor.lastrowid,
                    int(token_starts[i]),
                    int(token_counts[i]),
                    dense[i].astype("<f4").tobytes(),
                    sparse.ids[entries].astype("<i4").tobytes(),
                    sparse.weights[entries].astype("<f4").tobytes(),
                    sparse.counts[entries].astype("<i4").tobytes(),
                ),
            )

    def insert_token_block(self, start: int, count: int, crc32: int) -> None:
        """Keep the checksum of rows of the token file that were written together."""
        if count:
            self._writer.execute("INSERT INTO token_blocks VALUES (?, ?, ?)", (start, count, crc32))

    def delete(self, ids: Sequence[str]) -> int:
        """Remove the documents of these ids that are there; returns how many were."""
        rows = [row for (row,) in self._fetch_in("SELECT row FROM documents WHERE id IN", ids)]
        generation = self.generation + 1
        for row in rows:
            self._writer.execute("DELETE FROM documents WHERE row = ?", (row,))
            self._writer.execute("DELETE FROM vectors WHERE row = ?", (row,))
            self._writer.execute("INSERT INTO deletions VALUES (?, ?)", (row, generation))
        return len(rows)

    def set_note(self, key: str, value: Any) -> None:
        """Keep a JSON value beside the documents, for the program that uses the index."""
        self._writer.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (key, json.dumps(value, allow_nan=False)))

    # Reading

    @property
    def generation(self) -> int:
        """How often the index was changed."""
        return int(self.meta("generation"))

    @property
    def token_rows(self) -> int:
        """How many rows of the token file are in use; what lies behind them was never committed."""
        return int(self.meta("token_rows"))

    def meta(self, key: str, default: Any = None) -> Any:
        """One of the settings the store was created with; default, where given: of stores older than the setting."""
        found = self._fetch("SELECT value FROM meta WHERE key = ?", (key,))
        if not found and default is not None:
            return default
        if not found:
            raise FormatError(f"{self.path}: has no setting {key!r}; build the index again")
        return json.loads(found[0][0])

    def note(self, key: str) -> Any:
        """What `set_note` left under this key, or None."""
        found = self._fetch("SELECT value FROM notes WHERE key = ?", (key,))
        return json.loads(found[0][0]) if found else None

    def token_blocks(self) -> list[tuple[int, int, int]]:
        """First row, number of rows and CRC-32 of each block of the token file; none for what version 1 wrote."""
        if self._version() < 2:
            return []
        return self._fetch("SELECT * FROM token_blocks ORDER BY token_start")

    def ids_in_tokens(self, start: int, count: int) -> list[str]:
        """The documents with token vectors in these rows of the token file."""
        statement = (
            "SELECT id FROM documents JOIN vectors USING (row) "
            "WHERE token_start < ? AND token_start + token_count > ? ORDER BY row"
        )
        return [id_ for (id_,) in self._fetch(statement, (start + count, start))]

    def count(self) -> int:
        """How many documents there are."""
        return self._fetch("SELECT count(*) FROM documents")[0][0]

    def existing(self, ids: Sequence[str]) -> list[str]:
        """Those of these ids that the index holds."""
        return [id_ for (id_,) in self._fetch_in("SELECT id FROM documents WHERE id IN", ids)]

    def documents(self, rows: Sequence[int]) -> dict[int, Document]:
        """The documents of these rows, by row; a row that is gone is left out."""
        found = self._fetch_in("SELECT row, id, text, metadata FROM documents WHERE row IN", rows)
        return {row: Document(id_, _readable(text), json.loads(metadata)) for row, id_, text, metadata in found}

    def metadata(self, first: int, last: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """The metadata of the documents with rows from first to last, ascending; a row that is gone is left out."""
        while first <= last:
            statement = "SELECT row, metadata FROM documents WHERE row BETWEEN ? AND ? ORDER BY row LIMIT ?"
            found = self._fetch(statement, (first, last, _BLOCK_ROWS))
            for row, metadata in found:
                try:
                    yield row, json.loads(metadata)
                except ValueError as error:
                    raise FormatError(
                        f"{self.path}: damaged metadata in row {row} of documents ({error}); restore it from a backup "
                        "or build the index again"
                    ) from error
            if len(found) < _BLOCK_ROWS:
                return
            first = found[-1][0] + 1

    def document(self, id_: str) -> Document | None:
        """The document with this id."""
        rows = [row for (row,) in self._fetch("SELECT row FROM documents WHERE id = ?", (id_,))]
        return next(iter(self.documents(rows).values()), None)

    def deletions_since(self, generation: int) -> np.ndarray:
        """int64, the rows deleted after this generation."""
        found = self._fetch("SELECT row FROM deletions WHERE generation > ?", (generation,))
        return np.array([row for (row,) in found], np.int64)

    def vectors_after(self, row: int, limit: int) -> StoredVectors:
        """The vectors of the first `limit` rows behind `row`."""
        found = self._fetch("SELECT * FROM vectors WHERE row > ? ORDER BY row LIMIT ?", (row, limit))
        rows, starts, n_tokens, dense, ids, weights, counts = zip(*found, strict=True) if found else ((),) * 7
        return StoredVectors(
            rows=np.array(rows, np.int64),
            dense=np.frombuffer(b"".join(dense), "<f4").reshape(len(rows), -1) if rows else np.empty((0, 0), "<f4"),
            sparse=SparseRows(
                np.frombuffer(b"".join(ids), "<i4").astype(np.int64),
                np.frombuffer(b"".join(weights), "<f4"),
                np.frombuffer(b"".join(counts), "<i4"),
                offsets_of([len(blob) // 4 for blob in ids]),
            ),
            token_starts=np.array(starts, np.int64),
            token_counts=np.array(n_tokens, np.int64),
        )

    def _version(self) -> int:
        return int(self._fetch("PRAGMA user_version")[0][0])

    def _upgrade(self) -> None:
        """Before the first change to a store of version 1: from then on only this version and later ones read it."""
        if self._version() < FORMAT_VERSION:
            start = _SCHEMA.index("CREATE TABLE token_blocks")
            self._writer.execute(_SCHEMA[start : _SCHEMA.index(";", start)])
            self._writer.execute(f"PRAGMA user_version = {FORMAT_VERSION}")

    def _fetch(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Read: within a transaction what it wrote so far, elsewhere what is committed."""
        if self._writing_thread == threading.get_ident():
            return self._writer.execute(statement, values).fetchall()
        with self._read_lock:
            return self._reader.execute(statement, values).fetchall()

    def _fetch_in(self, statement: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        """`_fetch` with `values` as the statement's IN list, in pieces."""
        found: list[tuple[Any, ...]] = []
        for start in range(0, len(values), _SQL_VARIABLES):
            part = list(values[start : start + _SQL_VARIABLES])
            found += self._fetch(f"{statement} ({','.join('?' * len(part))})", part)
        return found


def damaged(path: Path, error: sqlite3.DatabaseError) -> FormatError:
    """What to tell when SQLite cannot read its file."""
    return FormatError(f"{path}: damaged ({error}); restore it from a backup or build the index again")


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=60)
    try:
        connection.execute("PRAGMA synchronous = FULL")  # a commit is on the disk when it returns
    except sqlite3.DatabaseError:
        connection.close()
        raise
    return connection


def _storable(text: str) -> str | bytes:
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
    return text


def _readable(text: str | bytes) -> str:
    return text if isinstance(text, str) else text.decode("utf-8", "surrogatepass")
