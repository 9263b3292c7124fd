"""One transaction on an index: documents and their vectors in, documents out. Knows the store and the token file."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from m3edge.embeddings import Embeddings, TokenRows
from m3edge.encoder import Encoder
from m3edge.errors import CancelledError
from m3edge.index.derived import forget_newer
from m3edge.index.documents import Document, blocks, checked_documents
from m3edge.index.given import checked_embeddings
from m3edge.index.pooling import pool_tokens
from m3edge.index.snapshot import Snapshot
from m3edge.index.store import Store
from m3edge.index.tokens import TokenStore, crc32s_of
from m3edge.index.transaction import Transaction
from m3edge.progress import progress_bar

_ADD_BLOCK = 256  # documents encoded and written together: bounds an add's memory


class AddReport(NamedTuple):
    """added: how many documents; truncated: ids of those longer than the model reads, whose end cannot be found."""

    added: int
    truncated: tuple[str, ...]


class Writing:
    """What a transaction may do. For one thread; made by `open_writing`."""

    def __init__(self, transaction: Transaction, tokens: TokenStore, encoder: Encoder | None) -> None:
        self.transaction = transaction
        self._tokens = tokens
        self._encoder = encoder
        self._keeps_tokens = transaction.meta("token_codec", "fp16") != "none"
        self._pooling: int = transaction.meta("token_pooling", 1)
        self._model: Mapping[str, Any] = transaction.meta("model")

    def add(
        self,
        documents: Iterable[Document | Mapping[str, Any]],
        embeddings: Embeddings | None,
        *,
        replace: bool,
        progress: bool | None,
        cancel: threading.Event | None,
    ) -> AddReport:
        """Add documents, those of one block after the other: all of them or, when it raises, none."""
        if embeddings is not None:
            if not isinstance(embeddings, Embeddings):
                raise TypeError(f"embeddings must be Embeddings, got {type(embeddings).__name__}")
            documents = list(documents)
            if len(embeddings) != len(documents):
                raise ValueError(f"embeddings must be of the {len(documents)} documents, got {len(embeddings)}")
            if not self._keeps_tokens:
                embeddings = dataclasses.replace(embeddings, tokens=self._no_tokens(len(embeddings)))
            embeddings = checked_embeddings("embeddings", embeddings, ("dense", "sparse", "tokens"), self._model)
        elif self._encoder is None:
            raise ValueError("to add documents, give their embeddings or open the index with its encoder")
        total = len(documents) if isinstance(documents, Sequence) else None
        truncated: list[str] = []
        added = 0
        last_row_before = self.transaction.last_row
        with progress_bar(total, "document", "adding", progress) as bar, self.transaction.all_or_nothing():
            for block in blocks(checked_documents(documents), _ADD_BLOCK):
                if cancel is not None and cancel.is_set():
                    raise CancelledError(f"adding was cancelled after {added} documents; none of them was added")
                self._make_room([document.id for document in block], last_row_before, replace)
                part = embeddings[added : added + len(block)] if embeddings is not None else self._encode(block, cancel)
                self._insert(block, part)
                truncated += [document.id for document, cut in zip(block, part.truncated, strict=True) if cut]
                added += len(block)
                bar.update(len(block))
        return AddReport(added, tuple(truncated))

    def _make_room(self, ids: Sequence[str], last_row_before: int, replace: bool) -> None:
        """Delete what the block replaces. Raises ValueError for an id that came twice or, if new, must not be there."""
        known = self.transaction.rows_of(ids)
        twice = next((id_ for id_, row in known.items() if row > last_row_before), None)
        if twice is None and len(set(ids)) < len(ids):
            twice = next(id_ for i, id_ in enumerate(ids) if id_ in ids[:i])
        if twice is not None:
            raise ValueError(f"documents: id {twice!r} came twice in one call")
        if known and not replace:
            raise ValueError(f"documents: id {next(iter(known))!r} is already in the index; use upsert to replace it")
        self.transaction.delete(list(known))

    def _encode(self, block: Sequence[Document], cancel: threading.Event | None) -> Embeddings:
        assert self._encoder is not None
        texts = [document.text for document in block]
        if self._keeps_tokens:
            return self._encoder.encode_passages(texts, cancel=cancel)
        embeddings = self._encoder.encode_passages(texts, heads=("dense", "sparse"), cancel=cancel)
        return dataclasses.replace(embeddings, tokens=self._no_tokens(len(block)))

    def _no_tokens(self, n: int) -> TokenRows:
        return TokenRows(np.empty((0, self._model["token_dim"]), np.float32), np.zeros(n + 1, np.int64))

    def _insert(self, block: Sequence[Document], embeddings: Embeddings) -> None:
        assert embeddings.dense is not None
        assert embeddings.sparse is not None
        assert embeddings.tokens is not None
        tokens = pool_tokens(embeddings.tokens, self._pooling)
        rows = self._tokens.write(self.transaction.token_rows, tokens.vectors)
        crc32s = crc32s_of(rows, tokens.offsets)
        self.transaction.insert(block, embeddings.dense, embeddings.sparse, np.diff(tokens.offsets), crc32s)


@contextmanager
def open_writing(store: Store, encoder: Encoder | None) -> Iterator[Writing]:
    """A transaction, durable once the block ends and undone when it raises. The caller holds the writer's lock."""
    settle(store)
    with store.transaction() as transaction:
        tokens = open_tokens(store.path.parent, transaction)
        yield Writing(transaction, tokens, encoder)
        tokens.sync()  # before the commit that speaks of them


def settle(store: Store) -> None:
    """Before anything is written: nothing that counts no more, or not yet, may come to count by what is written next.

    Derived files that are newer than the store belong to generations that it will never have: they are forgotten.

    A commit whose last sync failed may stand whole in the write-ahead log, where no process that is running sees it;
    when all are gone, the log is read anew, and it counts. It speaks of token rows behind those in use, or of the next
    epoch's file. Where there are such, something else is committed, which takes its place in the log, before they are
    written over or removed. The caller holds the writer's lock.
    """
    folder = store.path.parent
    with closing(store.snapshot()) as snapshot:
        forget_newer(folder, snapshot.generation)
        tokens, n_rows = open_tokens(folder, snapshot), snapshot.token_rows
        if tokens.rows_on_disk() <= n_rows and not open_tokens(folder, snapshot, later=1).path.exists():
            return
    with store.transaction():
        pass
    tokens.cut(n_rows)


def open_tokens(folder: Path, snapshot: Snapshot, *, later: int = 0) -> TokenStore:
    """The token file of a snapshot, or that of so many epochs later; nothing of it mapped yet."""
    dim, codec = snapshot.meta("model")["token_dim"], snapshot.meta("token_codec", "fp16")
    return TokenStore(folder, dim, codec, snapshot.epoch + later)
