"""One committed state of the store, read: documents, vectors, settings; what is damaged is refused by its name."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from m3edge.errors import FormatError
from m3edge.index.documents import Document
from m3edge.index.settings import problem_of_settings
from m3edge.index.sqlite_file import damaged, explained
from m3edge.index.stored_rows import (
    NO_CRC32,
    TOO_DEEP,
    StoredVectors,
    is_unicode,
    meta_crc32,
    problem_of_vectors,
    read_document,
    read_vectors,
)

_BLOCK_ROWS = 1000  # documents read at once: bounds the memory
_SQL_VARIABLES = 500  # ids in one statement, well under SQLite's limit


class Snapshot:
    """Reads what was committed when it was made, whatever is committed later, until it is closed.

    It holds an SQLite read transaction: the pages it may read are kept, so a snapshot held for long makes the
    write-ahead log (index.sqlite-wal) grow by what is written meanwhile. Safe to call from several threads.
    """

    _BEGIN = "BEGIN"

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        """Takes the connection over, and closes it when reading fails."""
        self.path = path
        self._connection = connection
        self._lock = threading.Lock()
        try:
            with explained(path):
                connection.execute(self._BEGIN)
                self.version = int(connection.execute("PRAGMA user_version").fetchone()[0])
            self._meta = self._read_meta()
        except BaseException:
            connection.close()
            raise

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    # Settings

    @property
    def generation(self) -> int:
        """How often the index was changed."""
        return self._number("generation")

    @property
    def epoch(self) -> int:
        """How often the index was compacted: part of the token file's name."""
        return self._number("epoch")

    @property
    def token_rows(self) -> int:
        """How many rows of the token file are in use; what lies behind them was never committed."""
        return self._number("token_rows")

    @property
    def last_row(self) -> int:
        """The newest document's row, deleted or not."""
        return self._number("last_row")

    @property
    def n_documents(self) -> int:
        return self._number("documents")

    def meta(self, key: str, default: Any = None) -> Any:
        """One of the settings the store was created with; default, where given: of stores older than the setting."""
        if key not in self._meta and default is not None:
            return default
        if key not in self._meta:
            raise damaged(self.path, f"it has no setting {key!r}")
        return self._meta[key]

    def note(self, key: str) -> Any:
        """What was left under this key, or None."""
        found = self._fetch("SELECT value FROM notes WHERE key = ?", (key,)) if is_unicode(key) else []
        try:
            return json.loads(found[0][0]) if found else None
        except (ValueError, TypeError, RecursionError) as error:
            raise damaged(self.path, f"note {key!r}: {error}") from error

    # Documents

    def rows_of(self, ids: Sequence[str]) -> dict[str, int]:
        """The rows of those of these ids that are there."""
        possible = [id_ for id_ in ids if is_unicode(id_)]
        return dict(self._fetch_in("SELECT id, row FROM documents WHERE id IN", possible))

    def documents(self, rows: Sequence[int]) -> dict[int, Document]:
        """The documents of these rows, by row; a row that is gone is left out."""
        crc32 = "crc32" if self.version >= 3 else "NULL"
        found = self._fetch_in(f"SELECT row, id, text, metadata, {crc32} FROM documents WHERE row IN", rows)
        return {row: self._document(row, *rest) for row, *rest in found}

    def document(self, id_: str) -> Document | None:
        """The document with this id."""
        rows = self.rows_of([id_])
        return self.documents(list(rows.values()))[rows[id_]] if rows else None

    def document_entries(self, row: int, limit: int) -> list[tuple[Any, ...]]:
        """The first `limit` rows behind `row` of the table `documents`, as they stand there."""
        crc32 = "crc32" if self.version >= 3 else "NULL"
        statement = f"SELECT row, id, text, metadata, {crc32} FROM documents WHERE row > ? ORDER BY row LIMIT ?"
        return self._fetch(statement, (row, limit))

    def documents_after(self, row: int) -> list[tuple[int, Document]]:
        """The next documents behind `row`, each with its row, as many as are read at once; none at the end."""
        return [(row, self._document(row, *entry)) for row, *entry in self.document_entries(row, _BLOCK_ROWS)]

    def metadata(self, first: int, last: int) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """The metadata of the documents with rows from first to last, ascending; a row that is gone is left out."""
        behind = first - 1
        while found := self.documents_after(behind):
            for row, document in found:
                if row > last:
                    return
                yield row, document.metadata
            behind = found[-1][0]

    def deletions_since(self, generation: int) -> np.ndarray:
        """int64, the rows deleted after this generation and since the last compaction."""
        found = self._fetch("SELECT row FROM deletions WHERE generation > ?", (generation,))
        return np.array([row for (row,) in found], np.int64)

    # Vectors

    def vectors_after(self, row: int, limit: int) -> StoredVectors:
        """The vectors of the first `limit` rows behind `row`. Raises FormatError for a row that is damaged."""
        found = self.vector_entries(row, limit)
        for entry in found:
            if (problem := self.problem_of_vectors(entry)) is not None:
                raise damaged(self.path, f"vectors of {self._name(entry[0])}: {problem}")
        return read_vectors(found)

    def vector_entries(self, row: int, limit: int) -> list[tuple[Any, ...]]:
        """The first `limit` rows behind `row` of the table `vectors`, as they stand there."""
        crc32s = "token_crc32, crc32" if self.version >= 3 else "NULL, NULL"
        return self._fetch(
            "SELECT row, token_start, token_count, dense, sparse_ids, sparse_weights, sparse_counts, "
            f"{crc32s} FROM vectors WHERE row > ? ORDER BY row LIMIT ?",
            (row, limit),
        )

    def problem_of_vectors(self, entry: Sequence[Any]) -> str | None:
        """What is wrong with a row of the table `vectors`, as `vector_entries` gives it; None when it is sound."""
        return problem_of_vectors(entry, self.token_rows, self.meta("model")["dense_dim"])

    def places(self) -> np.ndarray:
        """int64 [n, 4], by row: each document's row, first row and number of rows in the token file, and CRC-32."""
        crc32 = f"ifnull(token_crc32, {NO_CRC32})" if self.version >= 3 else NO_CRC32
        columns = ", ".join(f"ifnull(CAST({column} AS INTEGER), 0)" for column in ("token_start", "token_count", crc32))
        found = self._fetch(f"SELECT row, {columns} FROM vectors ORDER BY row")
        return np.array(found, np.int64).reshape(-1, 4)

    def token_blocks(self) -> list[tuple[int, int, int]]:
        """First row, number of rows and CRC-32 of each block of the token file that version 2 wrote."""
        if not self._fetch("SELECT 1 FROM sqlite_master WHERE name = 'token_blocks'"):
            return []
        return self._fetch("SELECT token_start, token_count, crc32 FROM token_blocks ORDER BY token_start")

    def integrity(self) -> list[str]:
        """What SQLite finds wrong with its file; nothing when it is sound."""
        return [text for (text,) in self._fetch("PRAGMA integrity_check(10)") if text != "ok"]

    # Helpers

    def _read_meta(self) -> dict[str, Any]:
        texts = dict(self._fetch("SELECT key, value FROM meta"))
        try:
            if self.version >= 3 and int(texts.pop("crc32", -1)) != meta_crc32(texts):
                raise ValueError("checksum differs")
            values = {key: json.loads(text) for key, text in texts.items()}
            if (problem := problem_of_settings(values)) is not None:
                raise ValueError(problem)
        except (ValueError, TypeError, RecursionError) as error:
            raise damaged(self.path, f"settings: {error}") from error
        if self.version < 3:
            values["epoch"] = 0
            values["documents"] = self._fetch("SELECT count(*) FROM documents")[0][0]
            last = self._fetch("SELECT seq FROM sqlite_sequence WHERE name = 'documents'")
            values["last_row"] = last[0][0] if last else 0
        return values

    def _number(self, key: str) -> int:
        value = self.meta(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise damaged(self.path, f"setting {key!r} is {value!r}, expected a number")
        return value

    def _document(self, row: int, id_: Any, text: Any, metadata: Any, crc32: int | None) -> Document:
        try:
            return read_document(row, id_, text, metadata, crc32)
        except ValueError as problem:
            raise damaged(self.path, f"document {id_!r}, row {row}: {problem}") from problem
        except RecursionError as error:
            raise FormatError(f"{self.path}: document {id_!r}, row {row}: {TOO_DEEP}") from error

    def _name(self, row: int) -> str:
        found = self._fetch("SELECT id FROM documents WHERE row = ?", (row,))
        return f"document {found[0][0]!r}, row {row}" if found else f"row {row}"

    def _fetch(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._lock, explained(self.path):
            return self._connection.execute(statement, values).fetchall()

    def _fetch_in(self, statement: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        """`_fetch` with `values` as the statement's IN list, in pieces."""
        found: list[tuple[Any, ...]] = []
        for start in range(0, len(values), _SQL_VARIABLES):
            part = list(values[start : start + _SQL_VARIABLES])
            found += self._fetch(f"{statement} ({','.join('?' * len(part))})", part)
        return found


def require_documents(found: Mapping[int, Document], rows: Sequence[int], path: Path) -> None:
    """Raise FormatError when a row that must be there is not."""
    missing = [row for row in rows if row not in found]
    if missing:
        raise damaged(path, f"document of row {missing[0]} is missing")
