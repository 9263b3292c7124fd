"""What a search needs in memory, all of it derived from the store: the dense part, the postings, and who lives where.

Documents stand at positions 0, 1, 2 … in the order of their rows; a deleted document keeps its position, marked as not
alive. A state belongs to one snapshot of the store and does not change; `successor` makes the next one.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from m3edge._hybrid_numpy import TokenPart
from m3edge.errors import FormatError
from m3edge.index.columns import UNREADABLE, MetadataColumns
from m3edge.index.dense import GRAPH_FILE, VECTORS_FILE, DenseIndex
from m3edge.index.derived import Derived, Stamp, save_derived, usable_derived
from m3edge.index.graph import HnswConfig
from m3edge.index.shared_lock import SharedLock
from m3edge.index.snapshot import Snapshot
from m3edge.index.sparse import PostingIndex
from m3edge.index.sqlite_file import damaged
from m3edge.index.stored_rows import NO_CRC32
from m3edge.index.tokens import TokenStore
from m3edge.progress import progress_bar

POSTINGS_FILE = "postings.npz"
COLUMNS_FILE = "columns.npz"
_MOST_TOKEN_ROWS = 2**62  # of two such numbers the sum is one, too
_BLOCK_ROWS = 1000  # rows read at once: bounds the memory
_OWN_ARRAYS = ("rows", "token_starts", "token_counts", "token_crc32s")


class SearchState:
    """rows: int64 [n], ascending; token_starts, token_counts, token_crc32s: int64 [n];
    dense: DenseIndex; postings: PostingIndex, knows which positions are alive; columns: the metadata, for filters."""

    def __init__(self, dim: int, config: HnswConfig, n_threads: int, dense_mode: str, epoch: int = 0) -> None:
        self.stamp = Stamp(epoch, generation=0, last_row=0)
        self.rows = np.empty(0, np.int64)
        self.token_starts = np.empty(0, np.int64)
        self.token_counts = np.empty(0, np.int64)
        self.token_crc32s = np.empty(0, np.int64)
        self.dense = DenseIndex(dim, config, n_threads, dense_mode)
        self.postings = PostingIndex()
        self.columns = MetadataColumns()  # grows with whichever state asks it: one after the other, never two at once
        self._tokens_compared = np.empty(0, bool)  # whose token vectors were found to match their checksums
        self._files: dict[str, str] = {}  # derived files that say what this state says
        self._columns_saved = 0  # documents that the columns among them know
        self.is_mended = False  # whether derived files were missing or damaged when this was made

    @classmethod
    def load(
        cls,
        folder: Path,
        dim: int,
        config: HnswConfig,
        n_threads: int,
        dense_mode: str,
        newest: Stamp,
        *,
        progress: bool | None = False,
    ) -> SearchState:
        """The saved state, as old as it may be; an empty one where there is none. Of damaged files only what they held
        is made again: a graph here and now, the rest by `successor`.

        newest: what is committed; graphs of a later state, whose truth was replaced by an older one, are not for it
        """
        for _ in range(3):  # a writer may replace the files while we read them
            state = cls(dim, config, n_threads, dense_mode)
            derived = usable_derived(folder)
            if derived is None:
                return state
            try:
                if POSTINGS_FILE in derived.files and VECTORS_FILE in derived.files:
                    try:
                        state._take(derived, progress)
                        return state
                    except UNREADABLE as error:
                        warn_of_damage(folder, error)
                        state = cls(dim, config, n_threads, dense_mode)
                if GRAPH_FILE in derived.files and derived.stamp.epoch == newest.epoch and derived.stamp <= newest:
                    state.dense.load_graph(derived.files[GRAPH_FILE])
            except OSError:
                continue
            break
        else:
            state = cls(dim, config, n_threads, dense_mode)
        state.stamp = Stamp(newest.epoch, 0, 0)
        state.is_mended = True
        return state

    def _take(self, derived: Derived, progress: bool | None) -> None:
        """Take what the files hold."""
        with np.load(derived.files[POSTINGS_FILE], allow_pickle=False) as arrays:
            self.postings = PostingIndex.from_arrays(arrays)
            for name in _OWN_ARRAYS:
                setattr(self, name, arrays[name])
        shapes = {(getattr(self, name).dtype, getattr(self, name).shape) for name in _OWN_ARRAYS}
        if shapes != {(np.dtype(np.int64), self.postings.alive.shape)}:
            raise ValueError("its arrays are not of one length")
        if (np.diff(self.rows, prepend=0, append=derived.stamp.last_row + 1) <= 0).any():
            raise ValueError("its rows do not ascend to the last one")
        places = self.token_starts, self.token_counts
        if any(len(numbers) and not 0 <= numbers.min() <= numbers.max() < _MOST_TOKEN_ROWS for numbers in places):
            raise ValueError("token vectors lie where there is no file")
        self.dense.load_vectors(derived.files[VECTORS_FILE], self.rows, self.postings.alive)
        if COLUMNS_FILE in derived.files:
            try:
                self.columns = MetadataColumns(derived.files[COLUMNS_FILE])
            except UNREADABLE as error:
                warn_of_damage(derived.files[COLUMNS_FILE], error)
                self.columns.is_rebuilt = True
            self._columns_saved = len(self.columns)
        if self.dense.wants_graph:
            if GRAPH_FILE in derived.files:
                self.dense.load_graph(derived.files[GRAPH_FILE])
            else:
                self.dense.build_graph(progress=progress)
        self._tokens_compared = np.zeros(len(self.rows), bool)
        self._files = {name: path.name for name, path in derived.files.items()}
        self.is_mended = not {COLUMNS_FILE, *self.dense.writers()} <= set(derived.files)
        self.stamp = derived.stamp

    def save(self, folder: Path, snapshot: Snapshot) -> None:
        """Write the state to the folder's derived files. The caller holds the writer's lock.

        snapshot: the one that the state belongs to
        """

        def write_postings(path: Path) -> None:
            arrays = {name: getattr(self, name) for name in _OWN_ARRAYS}
            with path.open("wb") as file:  # np.savez would add its own ending to a bare path
                np.savez(file, allow_pickle=False, **arrays, **self.postings.to_arrays())

        with suppress(FormatError):  # damaged metadata: whoever filters is told
            self.columns.take_over(self.rows, snapshot.metadata)
        if self._columns_saved < len(self.columns) or self.columns.is_rebuilt:
            self._files.pop(COLUMNS_FILE, None)
        if self.dense.graph_is_rebuilt:
            self._files.pop(GRAPH_FILE, None)
        parts = {POSTINGS_FILE: write_postings, COLUMNS_FILE: self.columns.save, **self.dense.writers()}
        self._files = save_derived(folder, self.stamp, parts, self._files)
        self._columns_saved = len(self.columns)
        self.columns.is_rebuilt = self.is_mended = False

    @property
    def wants_saving(self) -> bool:
        """Whether derived files of this very state should be written again."""
        return self.is_mended or self.dense.graph_is_rebuilt or self.columns.is_rebuilt

    @property
    def token_rows(self) -> int:
        """How many rows of the token file the documents speak of."""
        return int((self.token_starts + self.token_counts).max(initial=0))

    def close(self) -> None:
        """Let go of files that are open."""
        self.columns.close()
        self.dense.close()

    def successor(self, snapshot: Snapshot, lock: SharedLock, *, progress: bool | None = False) -> SearchState:
        """The state of a later snapshot of the same epoch.

        It shares this one's graph, which takes the new rows in small portions, each of them with `lock` held
        exclusively: searches of this state go on in between and do not see the new rows. Whoever puts it in this one's
        place calls `take_over` with the lock held.
        """
        state = copy.copy(self)
        state.postings = copy.copy(self.postings)  # it replaces its arrays rather than changing them
        state.dense = self.dense.successor()
        columns: dict[str, list[np.ndarray]] = {name: [getattr(self, name)] for name in _OWN_ARRAYS}
        last_row = self.stamp.last_row
        with progress_bar(None, "document", "indexing", progress) as bar:
            while len((vectors := snapshot.vectors_after(last_row, _BLOCK_ROWS)).rows):
                for name, column in columns.items():
                    column.append(getattr(vectors, name))
                state.postings.add(vectors.sparse)
                state.dense.add(vectors.rows, vectors.dense, lock, progress=progress)
                last_row = int(vectors.rows[-1])
                bar.update(len(vectors.rows))
        for name, column in columns.items():
            setattr(state, name, np.concatenate(column))
        deleted = snapshot.deletions_since(self.stamp.generation)
        gone = state.positions(deleted[np.isin(deleted, state.rows)])
        if len(state.rows) > len(self.rows):
            state._files = {name: file for name, file in self._files.items() if name == COLUMNS_FILE}
        elif len(gone):
            state._files = {name: file for name, file in self._files.items() if name != POSTINGS_FILE}
        state.postings.delete(gone)
        state.dense.delete(gone)
        n_alive = int(np.count_nonzero(state.postings.alive))
        if n_alive != snapshot.n_documents:
            raise damaged(snapshot.path, f"holds {n_alive} documents' vectors, expected {snapshot.n_documents}")
        compared = np.zeros(len(state.rows), bool)
        compared[: len(self.rows)] = self._tokens_compared
        state._tokens_compared = compared
        state.stamp = Stamp(snapshot.epoch, snapshot.generation, last_row)
        return state

    def take_over(self) -> None:
        """Hide from the graph what was deleted since the state before."""
        self.dense.hide_deleted()

    def positions(self, rows: np.ndarray) -> np.ndarray:
        """Where these rows, all of them known, stand: int64 [n]."""
        return np.searchsorted(self.rows, rows)

    def token_part(self, tokens: TokenStore, query: np.ndarray) -> TokenPart:
        """What a hybrid search takes for the token vectors. query: float32 [n, dim]"""
        return tokens.part(query, self.token_starts, self.token_counts, self.token_crc32s, self._tokens_compared)

    def note_compared(self, tokens: TokenStore, compared: Sequence[int], damaged: Sequence[int]) -> None:
        """Take what a hybrid search found of token vectors at their first use. Raises FormatError for damaged ones.

        compared, damaged: the positions of documents whose token vectors match their checksums, or do not
        """
        if compared:
            self._tokens_compared[compared] = True
        if damaged:
            raise self._damaged_tokens(tokens, damaged[0])

    def compare_tokens(self, tokens: TokenStore, positions: np.ndarray) -> None:
        """Compare token vectors with their checksums before their first use. Raises FormatError when they differ."""
        new = positions[~self._tokens_compared[positions]]
        if not len(new):
            return
        starts, counts, crc32s = self.token_starts[new], self.token_counts[new], self.token_crc32s[new]
        wrong = new[~(tokens.sound(starts, counts, crc32s) | (crc32s == NO_CRC32))]
        if len(wrong):
            raise self._damaged_tokens(tokens, wrong[0])
        self._tokens_compared[new] = True

    def _damaged_tokens(self, tokens: TokenStore, position: int) -> FormatError:
        start, count = self.token_starts[position], self.token_counts[position]
        return FormatError(
            f"{tokens.path}: token vectors {start} to {start + count}, of the document in row {self.rows[position]}, "
            f"are damaged; `m3edge check --repair {tokens.path.parent}` names them all and encodes them again"
        )


def saved_places(derived: Derived) -> np.ndarray | None:
    """What `Snapshot.places` said when the files were made, int64 [n, 4]; None where they do not tell."""
    if POSTINGS_FILE not in derived.files:
        return None
    try:
        with np.load(derived.files[POSTINGS_FILE], allow_pickle=False) as arrays:
            return np.stack([arrays[name] for name in _OWN_ARRAYS], axis=1)[arrays["alive"]]
    except (OSError, *UNREADABLE):  # whoever opens the index makes them again
        return None


def warn_of_damage(path: Path, error: BaseException) -> None:
    """Say that derived files are damaged; not where one lacks something, being another version's."""
    if not isinstance(error, KeyError):
        message = f"{path}: derived files are damaged ({error}); they are made again from the documents"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
