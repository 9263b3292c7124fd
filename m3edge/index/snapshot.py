"""One committed state of the store, read: documents, vectors, settings; every row is compared with its checksum."""

from __future__ import annotations

import json
import sqlite3
import struct
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from m3edge.embeddings import SparseRows, offsets_of
from m3edge.errors import FormatError
from m3edge.index.documents import Document
from m3edge.index.settings import problem_of_settings
from m3edge.index.sqlite_file import damaged, explained

_BLOCK_ROWS = 1000  # documents read at once: bounds the memory
_SQL_VARIABLES = 500  # ids in one statement, well under SQLite's limit
_TOO_DEEP = "its metadata are nested too deeply to be read; upsert or delete it, or raise sys.setrecursionlimit()"
NO_CRC32 = -1  # in arrays of checksums: written by version 1 or 2, which kept none for each document


class StoredVectors(NamedTuple):
    """The vectors of some rows.

    rows: int64 [n], ascending; dense: float32 [n, dim]; sparse: n rows;
    token_starts, token_counts: int64 [n], where their token vectors lie in the token file;
    token_crc32s: int64 [n], of the bytes there, or NO_CRC32
    """

    rows: np.ndarray
    dense: np.ndarray
    sparse: SparseRows
    token_starts: np.ndarray
    token_counts: np.ndarray
    token_crc32s: np.ndarray


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
        columns = zip(*found, strict=True) if found else ((),) * 9
        rows, starts, n_tokens, dense, ids, weights, counts, token_crc32s, _ = columns
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
            token_crc32s=np.array([NO_CRC32 if crc32 is None else crc32 for crc32 in token_crc32s], np.int64),
        )

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
        row, start, count, dense, ids, weights, counts, token_crc32, crc32 = entry
        numbers = [start, count] if token_crc32 is None else [start, count, token_crc32]
        if not all(isinstance(number, int) and number >= 0 for number in numbers):
            return "its place in the token file is no number"
        if start + count > self.token_rows:
            return f"its token vectors lie behind the {self.token_rows} that are in use"
        blobs = [dense, ids, weights, counts]
        if not all(isinstance(blob, bytes) for blob in blobs):
            return "no binary data"
        if crc32 is not None and crc32 != vectors_crc32(row, *blobs):
            return "checksum differs"
        if len(dense) != 4 * self.meta("model")["dense_dim"]:
            return f"{len(dense) // 4} numbers wide, expected {self.meta('model')['dense_dim']}"
        if len(ids) % 4 or not len(ids) == len(weights) == len(counts):
            return "sparse parts differ in length"
        sparse_ids, sparse_weights = np.frombuffer(ids, "<i4"), np.frombuffer(weights, "<f4")
        if not (np.isfinite(np.frombuffer(dense, "<f4")).all() and np.isfinite(sparse_weights).all()):
            return "numbers that are not finite"
        if sparse_weights.min(initial=0) < 0 or sparse_ids.min(initial=0) < 0 or (np.diff(sparse_ids) <= 0).any():
            return "sparse ids do not ascend, or weights are negative"
        return None

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
            return _read_document(row, id_, text, metadata, crc32)
        except ValueError as problem:
            raise damaged(self.path, f"document {id_!r}, row {row}: {problem}") from problem
        except RecursionError as error:
            raise FormatError(f"{self.path}: document {id_!r}, row {row}: {_TOO_DEEP}") from error

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


def problem_of_document(row: int, id_: Any, text: Any, metadata: Any, crc32: int | None) -> str | None:
    """What is wrong with a row of the table `documents`, or None when it is sound."""
    try:
        _read_document(row, id_, text, metadata, crc32)
    except ValueError as problem:
        return str(problem)
    except RecursionError:
        return _TOO_DEEP
    return None


def document_crc32(row: int, id_: str, text: str | bytes, metadata: str) -> int:
    """CRC-32 of a document as it is stored; its lengths count too, so that nothing can move from one to the next."""
    parts = [id_.encode(), text if isinstance(text, bytes) else text.encode(), metadata.encode()]
    return _crc32(row, parts)


def vectors_crc32(row: int, dense: bytes, sparse_ids: bytes, sparse_weights: bytes, sparse_counts: bytes) -> int:
    """CRC-32 of a row of `vectors`, but for its place in the token file, which the token vectors' own proves."""
    return _crc32(row, [dense, sparse_ids, sparse_weights, sparse_counts])


def meta_crc32(texts: Mapping[str, str]) -> int:
    """CRC-32 of the settings, as they are stored, in the order of their names; without `crc32` itself."""
    return zlib.crc32(json.dumps(sorted(texts.items())).encode())


def is_unicode(text: str) -> bool:
    """Whether it can be an id or a key: one with lone surrogates cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def require_documents(found: Mapping[int, Document], rows: Sequence[int], path: Path) -> None:
    """Raise FormatError when a row that must be there is not."""
    missing = [row for row in rows if row not in found]
    if missing:
        raise damaged(path, f"document of row {missing[0]} is missing")


def _read_document(row: int, id_: Any, text: Any, metadata: Any, crc32: int | None) -> Document:
    """The document in a row of the table `documents`. Raises ValueError saying what is wrong with it, RecursionError
    for metadata that are whole, but nested deeper than Python's stack allows where it is called."""
    if not (isinstance(id_, str) and isinstance(text, (str, bytes)) and isinstance(metadata, str)):
        raise ValueError("id, text or metadata are of another type")
    if crc32 is not None and crc32 != document_crc32(row, id_, text, metadata):
        raise ValueError("checksum differs")
    value = json.loads(metadata)
    if not isinstance(value, dict):
        raise ValueError("its metadata are no JSON object")
    return Document(id_, _readable(text), value)


def _crc32(row: int, parts: Sequence[bytes]) -> int:
    crc32 = zlib.crc32(struct.pack(f"<{len(parts) + 1}q", row, *map(len, parts)))
    for part in parts:
        crc32 = zlib.crc32(part, crc32)
    return crc32


def _readable(text: str | bytes) -> str:
    return text if isinstance(text, str) else text.decode("utf-8", "surrogatepass")
