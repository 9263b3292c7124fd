"""What a search needs in memory, all of it derived from the store: the graph, the postings, and who lives where.

Documents stand at positions 0, 1, 2 … in the order of their rows; a deleted document keeps its position, marked as not
alive. `catch_up` is the only way in: after a write, after another process's write, and when a saved state is older than
the store.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from m3edge.index.columns import MetadataColumns
from m3edge.index.dense import GRAPH_FILE, VECTORS_FILE, DenseIndex
from m3edge.index.derived import Stamp, derived_stamp, save_derived
from m3edge.index.graph import HnswConfig
from m3edge.index.sparse import PostingIndex
from m3edge.index.store import Store
from m3edge.progress import progress_bar

POSTINGS_FILE = "postings.npz"
_BLOCK_ROWS = 1000  # rows taken over at once: bounds the memory, and how long a search waits for its turn


class SearchState:
    """rows: int64 [n], ascending; token_starts, token_counts: int64 [n];
    dense: DenseIndex; postings: PostingIndex, knows which positions are alive; columns: the metadata, for filters."""

    def __init__(self, dim: int, config: HnswConfig, n_threads: int, dense_mode: str) -> None:
        self.stamp = Stamp(generation=0, last_row=0)
        self.rows = np.empty(0, np.int64)
        self.token_starts = np.empty(0, np.int64)
        self.token_counts = np.empty(0, np.int64)
        self.dense = DenseIndex(dim, config, n_threads, dense_mode)
        self.postings = PostingIndex()
        self.columns = MetadataColumns()

    @classmethod
    def load(
        cls, folder: Path, store: Store, dim: int, config: HnswConfig, n_threads: int, dense_mode: str
    ) -> SearchState:
        """The saved state, as old as it may be; an empty one where there is none, or none that is whole."""
        state = cls(dim, config, n_threads, dense_mode)
        stamps = {derived_stamp(folder / name) for name in (VECTORS_FILE, POSTINGS_FILE)}
        stamp = stamps.pop()
        if stamps or stamp is None or stamp.generation > store.generation:
            return state
        with np.load(folder / POSTINGS_FILE, allow_pickle=False) as arrays:
            try:
                postings = PostingIndex.from_arrays(arrays)
            except KeyError:  # an older version's: made again, like one that is missing
                return state
            state.rows, state.postings = arrays["rows"], postings
            state.token_starts, state.token_counts = arrays["token_starts"], arrays["token_counts"]
        state.dense.load_vectors(folder / VECTORS_FILE, state.rows, postings.alive)
        if state.dense.wants_graph:
            if derived_stamp(folder / GRAPH_FILE) == stamp:
                state.dense.load_graph(folder / GRAPH_FILE)
            else:
                state.dense.build_graph()
        state.stamp = stamp
        return state

    def save(self, folder: Path) -> None:
        """Write the state to the folder's derived files."""
        arrays = {
            "rows": self.rows,
            "token_starts": self.token_starts,
            "token_counts": self.token_counts,
            **self.postings.to_arrays(),
        }

        def write_postings(path: Path) -> None:
            with path.open("wb") as file:  # np.savez would add its own ending to a bare path
                np.savez(file, allow_pickle=False, **arrays)

        save_derived(folder / POSTINGS_FILE, self.stamp, write_postings)
        for name, write in self.dense.writers().items():
            save_derived(folder / name, self.stamp, write)

    def catch_up(self, store: Store, *, progress: bool | None = False) -> None:
        """Take over what the store gained and lost since this state's generation."""
        generation = store.generation  # read first: what is committed meanwhile is taken over again next time
        if generation == self.stamp.generation:
            return
        last_row = self.stamp.last_row
        with progress_bar(None, "document", "indexing", progress) as bar:
            while len((vectors := store.vectors_after(last_row, _BLOCK_ROWS)).rows):
                self.rows = np.concatenate([self.rows, vectors.rows])
                self.token_starts = np.concatenate([self.token_starts, vectors.token_starts])
                self.token_counts = np.concatenate([self.token_counts, vectors.token_counts])
                self.dense.add(vectors.rows, vectors.dense)
                self.postings.add(vectors.sparse)
                last_row = int(vectors.rows[-1])
                bar.update(len(vectors.rows))
        gone = store.deletions_since(self.stamp.generation)
        gone = gone[np.isin(gone, self.rows)]
        self.postings.delete(self.positions(gone))
        self.dense.delete(self.positions(gone))
        self.stamp = Stamp(generation, last_row)

    def positions(self, rows: np.ndarray) -> np.ndarray:
        """Where these rows, all of them known, stand: int64 [n]."""
        return np.searchsorted(self.rows, rows)
