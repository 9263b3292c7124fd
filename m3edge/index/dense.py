"""The dense part of an index: the nearest documents by inner product, exactly or, in large indexes, by a graph.

"exact"  scans codes of all vectors (scan.py): nothing to build, never misses, time grows with the documents
"hnsw"   asks a graph, which hnswlib builds (graph.py) and its own kernel searches once it was saved (code_graph.py); a
         filter that few documents pass is answered by scanning these
"auto"   is exact up to AUTO_NUMBERS, a graph from there on where hnswlib is installed

Documents are positions 0, 1, 2 … in the order of their rows; the graph knows the rows.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np

from m3edge import kernels
from m3edge._hybrid_numpy import DensePart, GraphPart
from m3edge.errors import FormatError
from m3edge.index import graph_file
from m3edge.index.code_graph import CodeGraph
from m3edge.index.graph import HnswConfig, HnswGraph, hnswlib_is_installed
from m3edge.index.growing import GrowingArray
from m3edge.index.late_graph import HeldFile, LateGraph
from m3edge.index.scan import DenseScan
from m3edge.index.shared_lock import SharedLock
from m3edge.progress import progress_bar

MODES = ("auto", "exact", "hnsw")
GRAPH_FILE = "dense.hnsw"
VECTORS_FILE = "dense.npy"

# Documents times dimensions: 52,000 of 384 or 20,000 of 1,024, scanned in 2 ms on one thread of a 2.8 GHz Xeon
# (benchmarks/dense.py). A graph of as many answers in a half, after 10 s of building, and misses some.
AUTO_NUMBERS = 20_000_000

# What a result costs that a graph is asked for by codes, in numbers scanned: a filtered search takes whichever is
# cheaper (benchmarks/filters.py at 100,000 documents: 2.5 us a result, for which a dozen vectors are looked at; twice
# as much with hnswlib; 10 numbers a nanosecond).
NUMBERS_A_GRAPH_RESULT = 25_000
_LOOKS_A_RESULT = 12

# Documents behind those of the saved graph are scanned, as long as this costs less than the saved graph saves
# (benchmarks/dense.py: .3 ms).
_MOST_NUMBERS_BEHIND = 2_000_000

_BLOCK_ROWS = 10_000
_GRAPH_ROWS = 32  # rows the graph takes at once: bounds how long a search waits, some 10 ms
_BUILD_ROWS = 1000  # the same where nobody waits but for the progress bar, and for Ctrl-C


class DenseIndex:
    """The dense vectors of an index's documents, in the order of their rows, and which of them are alive.

    `successor` makes one for the next state of the index, which shares the graph with this one.
    """

    def __init__(self, dim: int, config: HnswConfig, n_threads: int, mode: str = "auto") -> None:
        self._dim = dim
        self._config = config
        self._n_threads = n_threads
        self._mode = mode
        self._rows = GrowingArray(np.empty(0, np.int64))
        self._alive = np.empty(0, bool)
        self._n_alive = 0
        # The graph holds the vectors as well, but takes 15 us to hand one out.
        self._vectors = GrowingArray(np.empty((0, dim), np.float32))
        self._vectors_file: Path | None = None
        self._graph: LateGraph | None = None
        self._scan: DenseScan | None = None  # made by the first search that wants it
        self._making_scan = threading.Lock()
        self._to_hide = np.empty(0, np.int64)  # deleted rows that the graph does not know of yet

    def __len__(self) -> int:
        """How many documents there are, deleted ones included."""
        return len(self._rows.array)

    @property
    def wants_graph(self) -> bool:
        """Whether so many documents are searched with a graph."""
        if self._mode == "auto":
            return len(self) * self._dim > AUTO_NUMBERS and hnswlib_is_installed()
        return self._mode == "hnsw"

    def successor(self) -> DenseIndex:
        """One that goes on from here. This one can be searched as before, whatever is added to its successor."""
        other = copy.copy(self)
        other._rows, other._vectors = self._rows.successor(), self._vectors.successor()
        other._scan = None if self._scan is None else self._scan.successor()
        return other

    def add(
        self,
        rows: np.ndarray,
        vectors: np.ndarray,
        lock: SharedLock | None = None,
        *,
        progress: bool | None = False,
    ) -> None:
        """rows: int64 [n], above all known ones, ascending; vectors: float32 [n, dim]

        lock: held exclusively while the graph takes rows, in small portions, where others may be searching it
        progress: a bar where this makes the graph of all that was there before
        """
        self._rows.append(rows)
        self._alive = np.concatenate([self._alive, np.ones(len(rows), bool)])
        self._n_alive += len(rows)
        self._vectors.append(vectors)
        if self._scan is not None:
            self._scan.add(vectors, self._n_threads)
        if self._graph is None:
            if self.wants_graph:
                self.build_graph(progress=progress)
            return
        graph = self._graph.get()
        # It may know some from an interrupted attempt, or all where it alone was read from a file.
        first = int(np.searchsorted(rows, graph.last_row, "right"))
        for start in range(first, len(rows), _GRAPH_ROWS):
            with lock.exclusive() if lock is not None else nullcontext():
                graph.add(rows[start : start + _GRAPH_ROWS], vectors[start : start + _GRAPH_ROWS])

    def delete(self, positions: np.ndarray) -> None:
        """Leave these documents out of every later search. positions: int64 [n]"""
        gone = np.unique(positions)
        gone = gone[self._alive[gone]]
        self._alive = self._alive.copy()
        self._alive[gone] = False
        self._n_alive -= len(gone)
        self._to_hide = np.concatenate([self._to_hide, self._rows.array[gone]])

    def hide_deleted(self) -> None:
        """Spare the graph's searches the deleted documents, once nobody searches a state in which they are alive."""
        if self._graph is not None and len(self._to_hide):
            self._graph.hide(self._to_hide)
        self._to_hide = np.empty(0, np.int64)

    def search(self, query: np.ndarray, k: int, allowed: np.ndarray | None = None, n_threads: int = 1) -> np.ndarray:
        """The positions of the k nearest live documents: int64 [at most k], best first.

        query: float32 [dim]; allowed: bool [n], the documents that may be found; by default all
        """
        n_allowed = self._n_alive
        if allowed is None:
            allowed = self._alive
        else:
            allowed = allowed & self._alive
            n_allowed = int(np.count_nonzero(allowed))
        k = min(k, n_allowed)
        if k == 0:
            return np.empty(0, np.int64)
        if self._graph is not None and (found := self._by_graph(self._graph, query, k, allowed, n_allowed)) is not None:
            return found
        return self._whole_scan().top(query, k, allowed, partial(self.scores, query), n_threads)

    def part(self, query: np.ndarray) -> DensePart:
        """What a hybrid search takes for `scores`. query: float32 [dim]"""
        return DensePart(np.ascontiguousarray(query, np.float32), self._vectors.array)

    def graph_part(self, k: int, allowed: np.ndarray | None = None) -> GraphPart | None:
        """What a hybrid search takes for `search`; None where that has to be asked, or has less work."""
        n_allowed = self._n_alive if allowed is None else int(np.count_nonzero(allowed & self._alive))
        k = min(k, n_allowed)
        links = None if self._graph is None or k == 0 else self._graph.links(self._rows.array)
        if links is None or len(links) < len(self) or (way := self._way(links, k, n_allowed)) is None:
            return None
        scan = self._whole_scan()
        return GraphPart(links.links, scan.codes, scan.scales, k, *way)

    def vectors(self, positions: np.ndarray) -> np.ndarray:
        """The vectors of some documents: float32 [n, dim]. positions: int64 [n]"""
        return self._vectors.array[positions]

    def scores(self, query: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """⟨query, vector⟩ of some documents: float32 [n]. query: float32 [dim]; positions: int64 [n]"""
        return kernels.dense_scores(np.ascontiguousarray(query, np.float32), self._vectors.array, positions)

    # The derived files

    def writers(self) -> dict[str, Callable[[Path], None]]:
        """The files that keep all this but the rows and which of them are alive, and what writes each."""
        return {VECTORS_FILE: self._save_vectors, **({GRAPH_FILE: self._save_graph} if self._graph is not None else {})}

    @property
    def graph_is_rebuilt(self) -> bool:
        """Whether the graph's file was found to be of no use, and should be written again."""
        return self._graph is not None and self._graph.is_rebuilt

    def close(self) -> None:
        """Let go of files that are open or mapped; it must not be asked for anything any more."""
        if self._graph is not None:
            self._graph.close()
            self._graph = None  # what would build it has the vectors, too
        self._vectors = GrowingArray(np.empty((0, self._dim), np.float32))

    def load_vectors(self, path: Path, rows: np.ndarray, alive: np.ndarray) -> None:
        """Take what was saved, before anything is added; vectors are mapped and not read.

        rows: int64 [n]; alive: bool [n]. Raises ValueError for a file of another shape.
        """
        # As a plain array, which is still mapped: an np.memmap takes some 50 us for every row that is asked of it.
        vectors = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
        if vectors.shape != (len(rows), self._dim) or vectors.dtype != np.float32:
            raise ValueError(f"{path}: holds {vectors.dtype} {vectors.shape}, expected float32 {len(rows), self._dim}")
        self._rows, self._alive, self._vectors = GrowingArray(rows), alive, GrowingArray(vectors)
        self._n_alive = int(np.count_nonzero(alive))
        self._vectors_file = path

    def load_graph(self, path: Path) -> None:
        """Take the graph that was saved with the vectors, which were loaded before or are added afterwards. It is read
        when it is first asked for. Raises OSError when it cannot be opened."""
        if self._mode == "auto" and not hnswlib_is_installed():
            return
        self._graph = self._late_graph(HeldFile(path), progress=None)

    def build_graph(self, *, progress: bool | None = False) -> None:
        """Make the graph from the vectors."""
        self._graph = self._late_graph(None, progress=progress)
        self._to_hide = np.empty(0, np.int64)

    def _late_graph(self, file: HeldFile | None, progress: bool | None) -> LateGraph:
        rows, vectors, alive = self._rows.array, self._vectors.array, self._alive  # the graph outlives this state
        empty = partial(HnswGraph, self._dim, self._config, self._n_threads)

        def read(path: Path) -> HnswGraph:
            graph = empty(path)
            graph.restore_deleted(rows[~alive])
            return graph

        def build() -> HnswGraph:
            graph = empty()
            with progress_bar(len(rows), "document", "building the graph", progress) as bar:
                for start in range(0, len(rows), _BUILD_ROWS):
                    graph.add(rows[start : start + _BUILD_ROWS], vectors[start : start + _BUILD_ROWS])
                    bar.update(len(rows[start : start + _BUILD_ROWS]))
            graph.delete(rows[~alive])
            return graph

        read_links = partial(
            graph_file.read_links, dim=self._dim, m=self._config.m, ef_construction=self._config.ef_construction
        )
        return LateGraph(file, read, read_links, build)

    def _save_graph(self, path: Path) -> None:
        assert self._graph is not None
        self._graph.get().save(path)
        self._graph.is_rebuilt = False

    def _save_vectors(self, path: Path) -> None:
        with path.open("wb") as file:  # np.save would add its own ending to a bare path
            np.save(file, self._vectors.array, allow_pickle=False)

    # Ways to search

    def _by_graph(
        self, graph: LateGraph, query: np.ndarray, k: int, allowed: np.ndarray, n_allowed: int
    ) -> np.ndarray | None:
        """The k nearest that are allowed, from the graph; None where scanning is less work, or it finds too few."""
        links = graph.links(self._rows.array)
        if links is None or (len(self) - len(links)) * self._dim > _MOST_NUMBERS_BEHIND:
            return self._by_hnswlib(graph, query, k, allowed, n_allowed)
        return self._by_links(links, query, k, allowed, n_allowed)

    def _by_links(
        self, links: CodeGraph, query: np.ndarray, k: int, allowed: np.ndarray, n_allowed: int
    ) -> np.ndarray | None:
        way = self._way(links, k, n_allowed)
        if way is None:
            return None
        scan = self._whole_scan()
        found = links.near(query, scan, allowed, *way)
        if found is None or (len(found) < k and len(found) < np.count_nonzero(allowed[: len(links)])):
            return None
        if len(links) < len(self):
            behind = scan.top(query, k, allowed, partial(self.scores, query), first=len(links))
            found = np.concatenate([found, behind])
        return found[np.lexsort((found, -self.scores(query, found)))[:k]]

    def _way(self, links: CodeGraph, k: int, n_allowed: int) -> tuple[int, int] | None:
        """How many documents to keep in view for k of those that are allowed, and how many to look at, at most; None
        where scanning them is less work."""
        effort = max(k + k // 8, self._config.ef_search)  # more than are wanted: codes do not tell quite who is best
        most = len(links)
        if n_allowed < self._n_alive:
            numbers = n_allowed * self._dim  # to scan
            if effort * self._n_alive / n_allowed * NUMBERS_A_GRAPH_RESULT >= numbers:
                return None
            # Further on it has cost as much as scanning them: what is allowed lies far from the query.
            most = min(most, 1 + _LOOKS_A_RESULT * numbers // max(1, NUMBERS_A_GRAPH_RESULT))
        return effort, most

    def _by_hnswlib(
        self, graph: LateGraph, query: np.ndarray, k: int, allowed: np.ndarray, n_allowed: int
    ) -> np.ndarray | None:
        """It is asked for so many that k of them should be allowed. It may also know rows that are being added for the
        next state, deleted ones not hidden yet, and ones of an interrupted attempt that were deleted since.
        """
        n_live = self._n_alive
        wanted = k if n_allowed == n_live else int(1.5 * k * n_live / n_allowed) + 10
        while n_allowed == n_live or 2 * wanted * NUMBERS_A_GRAPH_RESULT < n_allowed * self._dim:
            rows = graph.get().search(query, wanted)
            if rows is None:
                return None
            positions = self._positions(rows)
            found = positions[allowed[positions]]
            if len(found) >= k:
                return found[:k]
            if len(rows) < wanted:
                return None
            wanted *= 2  # what is allowed lies far from the query
        return None

    def _whole_scan(self) -> DenseScan:
        with self._making_scan:
            if self._scan is None:
                scan = DenseScan(self._dim)
                try:
                    for start in range(0, len(self), _BLOCK_ROWS):
                        scan.add(self._vectors.array[start : start + _BLOCK_ROWS], self._n_threads)
                except ValueError as error:
                    raise FormatError(
                        f"{self._vectors_file}: damaged ({error}); remove it, and it is made again from the documents"
                    ) from error
                self._scan = scan
            return self._scan

    def _positions(self, rows: np.ndarray) -> np.ndarray:
        """Where those of these rows stand that are known; int64 [at most n], in their order."""
        known = self._rows.array
        if len(known) and known[-1] - known[0] == len(known) - 1:  # none is missing: nothing to look for
            positions = rows - known[0]
            return positions[(positions >= 0) & (positions < len(known))]
        positions = np.searchsorted(known, rows)
        positions[positions == len(known)] = 0
        return positions[known[positions] == rows]
