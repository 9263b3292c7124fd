"""What an Index searches: one snapshot of its folder with the token file and the state that belong to it.

Searches run side by side. The next snapshot is made ready beside the one in use, and takes its place between two
searches; whatever is committed meanwhile, by this process or another, stays unseen until then.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import NamedTuple

from m3edge.errors import FormatError, IndexLockedError
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
_ATTEMPTS = 3  # to open an index that is being compacted


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
        self._current = self._load(progress)

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
            snapshot = self._store.snapshot()
            try:
                if snapshot.generation == current.snapshot.generation:
                    snapshot.close()
                    return
                if snapshot.epoch == current.snapshot.epoch:
                    new = self._up_to(snapshot, current.state, progress)
                else:
                    snapshot.close()
                    new = self._load(progress)
            except BaseException:
                snapshot.close()
                raise
            with self._lock.exclusive():
                new.state.take_over()
                self._current = new
            current.snapshot.close()

    def trim_wal(self, at_least: int = _LARGE_WAL_BYTES) -> None:
        """Let SQLite begin its write-ahead log anew, which our own snapshot would prevent for ever.

        The caller holds the writer's lock, and has refreshed.
        """
        if self._store.wal_bytes() >= at_least:
            with self._refresh_lock, self._lock.exclusive():
                self._current.snapshot.close()
                try:
                    self._store.checkpoint()
                finally:
                    self._current = self._current._replace(snapshot=self._store.snapshot())

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
        if state.stamp.generation and is_new and not _is_older(current.snapshot, self._store):
            state.save(self._folder, current.snapshot)
            self.remove_leftovers()

    def _load(self, progress: bool | None) -> Current:
        """The newest snapshot with all it needs: from derived files as far as they go, else from the documents."""
        for attempt in range(_ATTEMPTS):
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
                current = self._up_to(snapshot, state, progress)
                current.state.take_over()
                return current
            except FormatError:
                snapshot.close()
                if attempt + 1 == _ATTEMPTS or not _is_older(snapshot, self._store):
                    raise
                # else it was compacted meanwhile, and its token file is gone
            except BaseException:
                snapshot.close()
                raise
        raise AssertionError("the last attempt returns or raises")

    def _up_to(self, snapshot: Snapshot, state: SearchState, progress: bool | None) -> Current:
        tokens = open_tokens(self._folder, snapshot)
        tokens.map_rows(snapshot.token_rows)
        if state.stamp.generation != snapshot.generation:
            state = state.successor(snapshot, self._lock, progress=progress)
        return Current(snapshot, tokens, state)


def _is_older(snapshot: Snapshot, store: Store) -> bool:
    """Whether something was committed since this snapshot."""
    newest = store.snapshot()
    newest.close()
    return newest.generation != snapshot.generation
