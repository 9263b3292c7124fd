"""The next state of the store, written: documents and vectors in, documents out, all of it durable at once or never."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from m3edge.embeddings import SparseRows, offsets_of
from m3edge.index.documents import Document
from m3edge.index.snapshot import Snapshot
from m3edge.index.sqlite_file import explained
from m3edge.index.stored_rows import document_crc32, is_unicode, meta_crc32, vectors_crc32

FORMAT_VERSION = 3  # 2 had no checksum for each document and no compaction; 1 had no checksums at all

_COUNTERS = ("generation", "epoch", "token_rows", "last_row", "documents")


class Transaction(Snapshot):
    """Writes; reads what was committed and what it wrote itself. For one thread; made by Store.transaction."""

    _BEGIN = "BEGIN IMMEDIATE"

    def insert(
        self,
        documents: Sequence[Document],
        dense: np.ndarray,
        sparse: SparseRows,
        token_counts: np.ndarray,
        token_crc32s: Sequence[int],
    ) -> None:
        """Add documents whose token vectors go, in this order, to the end of the token file."""
        token_starts = self.token_rows + offsets_of(token_counts)
        first_row = self.last_row + 1
        texts, vectors = [], []
        for i, document in enumerate(documents):
            row = first_row + i
            text, metadata = _storable(document.text), json.dumps(dict(document.metadata), allow_nan=False)
            texts.append((row, document.id, text, metadata, document_crc32(row, document.id, text, metadata)))
            entries = slice(sparse.offsets[i], sparse.offsets[i + 1])
            blobs = (
                dense[i].astype("<f4").tobytes(),
                sparse.ids[entries].astype("<i4").tobytes(),
                sparse.weights[entries].astype("<f4").tobytes(),
                sparse.counts[entries].astype("<i4").tobytes(),
            )
            place = (int(token_starts[i]), int(token_counts[i]))
            vectors.append((row, *place, *blobs, int(token_crc32s[i]), vectors_crc32(row, *blobs)))
        self._write_many("INSERT INTO documents (row, id, text, metadata, crc32) VALUES (?, ?, ?, ?, ?)", texts)
        self._write_many(
            "INSERT INTO vectors (row, token_start, token_count, dense, sparse_ids, sparse_weights, sparse_counts, "
            "token_crc32, crc32) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            vectors,
        )
        self._meta["token_rows"] = int(token_starts[-1])
        self._meta["last_row"] = first_row + len(documents) - 1
        self._meta["documents"] += len(documents)

    def delete(self, ids: Sequence[str]) -> int:
        """Remove the documents of these ids that are there; returns how many were."""
        rows = [(row,) for row in self.rows_of(ids).values()]
        generation = self.generation + 1
        self._write_many("DELETE FROM documents WHERE row = ?", rows)
        self._write_many("DELETE FROM vectors WHERE row = ?", rows)
        self._write_many("INSERT INTO deletions VALUES (?, ?)", [(*row, generation) for row in rows])
        self._meta["documents"] -= len(rows)
        return len(rows)

    def set_note(self, key: str, value: Any) -> None:
        """Keep a JSON value beside the documents, for the program that uses the index."""
        if not is_unicode(key):
            raise ValueError(f"key must be valid Unicode, got {key!r}")
        self._write_many("INSERT OR REPLACE INTO notes VALUES (?, ?)", [(key, json.dumps(value, allow_nan=False))])

    def move_tokens(self, rows: np.ndarray, starts: np.ndarray, crc32s: Sequence[int]) -> None:
        """Say where the token vectors of some rows lie in the token file of the epoch that `begin_epoch` begins."""
        moved = zip(starts.tolist(), crc32s, rows.tolist(), strict=True)
        self._write_many("UPDATE vectors SET token_start = ?, token_crc32 = ? WHERE row = ?", list(moved))

    def set_token_rows(self, count: int) -> None:
        """Say how many rows of the token file are in use."""
        self._meta["token_rows"] = count

    def begin_epoch(self) -> None:
        """Turn to the next token file, and forget what only the files derived before need: which rows were deleted."""
        self._execute("DELETE FROM deletions")
        self._execute("DROP TABLE IF EXISTS token_blocks")
        self._meta["epoch"] += 1

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """Undo what the block wrote when it raises; the transaction goes on."""
        meta = dict(self._meta)
        self._execute("SAVEPOINT part")
        try:
            yield
        except BaseException:
            self._meta = meta
            if self._connection.in_transaction:  # SQLite itself rolls all back when the disk is full
                self._execute("ROLLBACK TO part")
            raise
        finally:
            if self._connection.in_transaction:
                self._execute("RELEASE part")

    def upgrade(self) -> None:
        """Before the first change: make what the store lacks. One of an older version is read only by this version and
        later from then on. The index is for `deletions_since`, which finds the same without it."""
        self._execute("CREATE INDEX IF NOT EXISTS deletions_by_generation ON deletions (generation)")
        if self.version == FORMAT_VERSION:
            return
        for column in ("documents ADD COLUMN crc32", "vectors ADD COLUMN token_crc32", "vectors ADD COLUMN crc32"):
            self._execute(f"ALTER TABLE {column} INTEGER")
        self._execute(f"PRAGMA user_version = {FORMAT_VERSION}")
        self.version = FORMAT_VERSION

    def commit(self) -> None:
        """Make it durable: when this returns, it is on the disk."""
        self._meta["generation"] += 1
        texts = {key: json.dumps(value) for key, value in self._meta.items()}
        changed = {key: texts[key] for key in _COUNTERS} | {"crc32": str(meta_crc32(texts))}
        self._write_many("INSERT OR REPLACE INTO meta VALUES (?, ?)", list(changed.items()))
        self._execute("COMMIT")

    def _execute(self, statement: str) -> None:
        self._refuse_without_transaction()
        with explained(self.path):
            self._connection.execute(statement)

    def _write_many(self, statement: str, values: Sequence[Sequence[Any]]) -> None:
        self._refuse_without_transaction()
        with explained(self.path):
            self._connection.executemany(statement, values)

    def _refuse_without_transaction(self) -> None:
        """After some failures SQLite undoes all by itself, and would commit each later statement at once."""
        if not self._connection.in_transaction:
            raise OSError(f"{self.path}: an earlier write failed and undid the whole transaction; begin it again")


def first_meta(settings: Mapping[str, Any]) -> dict[str, str]:
    """The settings of a new store, as they are stored."""
    texts = {key: json.dumps(value) for key, value in {**settings, **dict.fromkeys(_COUNTERS, 0)}.items()}
    return {**texts, "crc32": str(meta_crc32(texts))}


def _storable(text: str) -> str | bytes:
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
    return text
