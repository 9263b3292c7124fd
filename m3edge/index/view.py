"""What an Index searches: one snapshot of its folder with the token file and the state that belong to it.

Searches run side by side. The next snapshot is made ready beside the one in use, and takes its place between two
searches; whatever is committed meanwhile, by this process or another, stays unseen until then.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import NamedTuple

from m3edge.errors import FormatError, IndexLockedError, ModelMismatchError
from m3edge.index.derived import Stamp, read_derived, remove_leftovers
from m3edge.index.graph import HnswConfig
from m3edge.index.shared_lock import SharedLock
from m3edge.index.snapshot import Snapshot
from m3edge.index.state import SearchState, warn_of_damage
from m3edge.index.store import Store
from m3edge.index.tokens import TokenStore
from m3edge.index.writer_lock import writer_lock
from m3edge.index.writing import open_tokens, settle

_LARGE_WAL_BYTES = 16 << 20  # SQLite's own limit is 4 MB, but our snapshot keeps it from starting over by itself
_ATTEMPTS = 3  # to open an index that is being compacted, or whose folder another one takes
_OUTDATED = (FormatError, FileNotFoundError)  # what a file that was removed or replaced meanwhile may raise

# What an open index relies on, and what it is in indexes that are older than the setting.
_FIXED_SETTINGS = {"model": None, "dense": "hnsw", "token_codec": "fp16", "token_pooling": 1}


class Current(NamedTuple):
    """Three things that belong to one generation of the index."""

    snapshot: Snapshot
    tokens: TokenStore
    state: SearchState


class View:
    """Safe to call from several threads."""

    def __init__(self, store: Store, n_threads: int, *, progress: bool | None) -> None:
        """Raises FormatError when the token file, or what has to be read of the documents, is damaged."""
        self._store = store
        self._folder = store.path.parent
        self._n_threads = n_threads
        self._lock = SharedLock()  # shared: searching; exclusive: changing the graph or what is current
        self._refresh_lock = threading.Lock()
        self._closed = False
        self._file, self._current = self._load(progress)

    @contextmanager
    def reading(self) -> Iterator[Current]:
        """While the block runs, what it is given stays as it is. Raises ValueError after `close`. Do not nest."""
        with self._lock.shared():
            if self._closed:
                raise ValueError(f"{self._folder}: this index is closed; open it again")
            yield self._current

    def refresh(self, *, progress: bool | None) -> None:
        """Turn to what is committed now. When it raises, searches go on with what they had."""
        with self._refresh_lock:
            with self.reading() as current:
                pass
            found = self._newer(current, progress)
            if found is None:
                return
            file, new = found
            try:
                with self._lock.exclusive():
                    new.state.take_over()
                    self._file, self._current = file, new
            except BaseException:
                if self._current is not new:
                    new.snapshot.close()
                raise
            current.snapshot.close()

    def make_ready_to_write(self, *, progress: bool | None) -> None:
        """Before a transaction: turn to the index that it will write to, where another took this one's place, and let
        the write-ahead log begin anew: after it, those who refresh later still have older snapshots."""
        if self._store.file() != self._file:
            self.refresh(progress=progress)
        with suppress(OSError):  # a disk that is full says so when it is written to
            self.trim_wal()

    def trim_wal(self, at_least: int = _LARGE_WAL_BYTES) -> None:
        """Let SQLite begin its write-ahead log anew once it is so large: our own snapshot would prevent it for ever.

        Others' snapshots prevent it, too, until they refresh. Searches go on meanwhile. Raises OSError when there is no
        room for what is in the log.
        """
        with self._refresh_lock:
            if self._closed or self._store.wal_bytes() < at_least:
                return
            self._renew_snapshot()  # a file that was written anew lies behind ours, in the same generation
            if self._store.checkpoint():
                self._renew_snapshot()
                self._store.empty_wal()

    def save_derived(self) -> None:
        """Save the state, unless what is saved is as new, or it has nothing, or it is no longer the newest.

        The caller holds the writer's lock.
        """
        with self.reading() as current:
            self._save(current)

    def remove_leftovers(self) -> None:
        """Remove files that no committed state refers to. The caller holds the writer's lock."""
        settle(self._store)
        with closing(self._store.snapshot()) as snapshot:
            used = open_tokens(self._folder, snapshot).path.name
        remove_leftovers(self._folder, used)

    def close(self) -> None:
        """Wait for searches and let go of the folder. Saves what is derived, unless somebody is writing and will save
        what is newer. Raises OSError when there is no room for it; closed it is all the same."""
        with self._refresh_lock, self._lock.exclusive():
            if self._closed:
                return
            self._closed = True
            try:
                if os.access(self._folder, os.W_OK):
                    with writer_lock(self._folder, wait_s=0):
                        self._save(self._current)
            except IndexLockedError:
                pass
            finally:
                self._current.state.close()
                self._current.tokens.close()
                self._current.snapshot.close()

    def _save(self, current: Current) -> None:
        try:
            saved = read_derived(self._folder, verify=False)
        except FormatError:
            saved = None
        state = current.state
        is_new = saved is None or saved.stamp < state.stamp or (saved.stamp == state.stamp and state.wants_saving)
        if state.stamp.generation and is_new and not self._is_outdated(self._file, current.snapshot):
            state.save(self._folder, current.snapshot)
            self.remove_leftovers()

    def _renew_snapshot(self) -> None:
        """The same generation in a new snapshot, which needs no older pages; nothing where another is committed."""
        snapshot = self._store.snapshot()
        try:
            if self._store.file() != self._file or snapshot.generation != self._current.snapshot.generation:
                snapshot.close()
                return
            with self._lock.exclusive():
                old, self._current = self._current.snapshot, self._current._replace(snapshot=snapshot)
        except BaseException:
            if self._current.snapshot is not snapshot:
                snapshot.close()
            raise
        old.close()

    def _newer(self, current: Current, progress: bool | None) -> tuple[tuple[int, int], Current] | None:
        """What is committed now, and in which file; None where that is what is current."""
        file = self._store.file()
        with ExitStack() as unused:
            snapshot = unused.enter_context(closing(self._store.snapshot()))
            if file != self._file:
                self._check_successor(current.snapshot, snapshot)
            elif snapshot.generation == current.snapshot.generation and self._store.file() == file:
                return None
            elif snapshot.epoch == current.snapshot.epoch:
                try:
                    new = self._up_to(file, snapshot, current.state, progress)
                    unused.pop_all()
                    return file, new
                except _OUTDATED:
                    if not self._is_outdated(file, snapshot):
                        raise
        return self._load(progress)

    def _check_successor(self, ours: Snapshot, theirs: Snapshot) -> None:
        """Refuse another index in this one's folder that is not searched in the same way."""
        Store(self._folder)  # raises FormatError for a newer version
        for key, default in _FIXED_SETTINGS.items():
            if ours.meta(key, default) != theirs.meta(key, default):
                raise ModelMismatchError(
                    f"{self._folder}: another index took its place, with another {key.replace('_', ' ')}; open it again"
                )

    def _load(self, progress: bool | None) -> tuple[tuple[int, int], Current]:
        """The newest snapshot with all it needs, and its file: from derived files as far as they go, else from the
        documents."""
        for attempt in range(_ATTEMPTS):
            file = self._store.file()
            snapshot = self._store.snapshot()
            dim, config = snapshot.meta("model")["dense_dim"], HnswConfig(**snapshot.meta("hnsw"))
            dense_mode = snapshot.meta("dense", "hnsw")  # older indexes all had a graph
            newest = Stamp(snapshot.epoch, snapshot.generation, snapshot.last_row)
            snapshot.close()
            state = SearchState.load(self._folder, dim, config, self._n_threads, dense_mode, newest, progress=progress)
            snapshot = self._store.snapshot()  # later than what is derived, unless an older file was put back
            if state.stamp.epoch != snapshot.epoch or state.stamp.generation > snapshot.generation:
                state.close()
                state = SearchState(dim, config, self._n_threads, dense_mode, snapshot.epoch)
            elif state.token_rows > snapshot.token_rows:
                warn_of_damage(self._folder, ValueError("they name token vectors that are not there"))
                state.close()
                state = SearchState(dim, config, self._n_threads, dense_mode, snapshot.epoch)
                state.is_mended = True
            try:
                current = self._up_to(file, snapshot, state, progress)
                current.state.take_over()
                return file, current
            except _OUTDATED:
                snapshot.close()
                if attempt + 1 == _ATTEMPTS or not self._is_outdated(file, snapshot):
                    raise
                # else it was compacted meanwhile, and its token file is gone, or another index took its place
            except BaseException:
                snapshot.close()
                raise
        raise AssertionError("the last attempt returns or raises")

    def _up_to(self, file: tuple[int, int], snapshot: Snapshot, state: SearchState, progress: bool | None) -> Current:
        tokens = open_tokens(self._folder, snapshot)
        tokens.map_rows(snapshot.token_rows)
        if state.stamp.generation != snapshot.generation:
            state = state.successor(snapshot, self._lock, progress=progress)
        if self._store.file() != file:
            raise FormatError(f"{self._folder}: another index took its place while it was read; open it again")
        return Current(snapshot, tokens, state)

    def _is_outdated(self, file: tuple[int, int], snapshot: Snapshot) -> bool:
        """Whether something was committed since this snapshot of this file, or another file took its place."""
        with closing(self._store.snapshot()) as newest:
            return self._store.file() != file or newest.generation != snapshot.generation
