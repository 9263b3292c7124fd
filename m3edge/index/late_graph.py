"""A graph that is read when it is first asked for: an index opens without waiting for what no search has wanted yet.

The file was compared with its checksum when the index was opened. It is held open from then on, so that a writer may
replace and remove it meanwhile; where the system cannot open anew what is held but has no name any more (all but
Linux), the graph is read at once.
"""

from __future__ import annotations

import os
import threading
import warnings
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from m3edge.index.code_graph import CodeGraph
from m3edge.index.graph import HnswGraph
from m3edge.index.graph_file import StoredLinks

_DAMAGED = (OSError, RuntimeError, ValueError)


class HeldFile:
    """A file that can be read later, whatever has become of its name. Raises OSError when it cannot be opened."""

    def __init__(self, path: Path) -> None:
        self.name = path
        handle = os.open(path, os.O_RDONLY)
        self.close = weakref.finalize(self, os.close, handle)
        by_handle = Path(f"/proc/self/fd/{handle}")
        self.can_wait = by_handle.exists()
        self.path = by_handle if self.can_wait else path
        self._opened = self._state()

    @property
    def has_changed(self) -> bool:
        """Whether somebody wrote to it since it was opened."""
        return self._state() != self._opened

    def _state(self) -> tuple[int, int]:
        found = self.path.stat()
        return found.st_size, found.st_mtime_ns


class LateGraph:
    """One graph, shared by the states of an index that follow each other. Safe to ask from several threads.

    hnswlib is wanted where the graph grows, and where there is no file. To be searched, and where documents are
    deleted, the file's links are enough.
    """

    def __init__(
        self,
        file: HeldFile | None,
        read: Callable[[Path], HnswGraph],
        read_links: Callable[[Path], StoredLinks],
        build: Callable[[], HnswGraph],
    ) -> None:
        """read:  makes it of its file; raises OSError, RuntimeError or ValueError where that is damaged
        read_links: reads the file's links; the same
        build: makes it where there is no file, or of a damaged one, which is a RuntimeWarning"""
        self._file, self._read, self._read_links, self._build = file, read, read_links, build
        self._graph: HnswGraph | None = None
        self._stored: StoredLinks | None = None  # what was read of them, until a search wants them
        self._links: CodeGraph | None = None
        self._hidden: list[np.ndarray] = []  # rows that hnswlib is to hide once it has the graph
        self._has_links = file is not None
        self._lock = threading.RLock()
        self.is_rebuilt = False  # whether another file should take the place of a damaged one
        if file is None:
            self.get()
        elif not file.can_wait:
            self._take_links()
            self.get()
            self._let_go()

    def get(self) -> HnswGraph:
        """The graph in hnswlib's hands; waits while it is read."""
        with self._lock:
            if self._graph is None:
                graph = self._made()
                for rows in self._hidden:
                    graph.delete(rows)
                self._graph, self._hidden = graph, []
            return self._graph

    def hide(self, rows: np.ndarray) -> None:
        """Spare hnswlib's searches these rows, int64 [n], which were deleted; those along the links are told each time
        who may be found."""
        with self._lock:
            if self._graph is None:
                self._hidden.append(rows)
            else:
                self._graph.delete(rows)

    def links(self, rows: np.ndarray) -> CodeGraph | None:
        """The links that its file has, if these are between the first of these rows, int64 [n], and nothing is wrong
        with the file; waits while they are read. None: `get` knows more."""
        if self._links is not None:  # whoever reads the graph for hnswlib has the lock for long
            return self._links
        with self._lock:
            if self._has_links and self._links is None:
                self._take_links()
                with suppress(ValueError):
                    self._links = CodeGraph(self._stored, rows) if self._stored is not None else None
                self._has_links, self._stored = self._links is not None, None
            return self._links

    def close(self) -> None:
        """Let go of the file; the graph must not be asked for any more."""
        with self._lock:
            self._let_go()

    def _take_links(self) -> None:
        if self._file is not None and self._stored is None:
            try:
                self._refuse_changes(self._file)
                self._stored = self._read_links(self._file.path)
            except _DAMAGED:
                self.get()  # which warns, if nobody was warned yet, and makes the graph again

    def _made(self) -> HnswGraph:
        if self._file is None:
            return self._build()
        try:
            self._refuse_changes(self._file)
            return self._read(self._file.path)
        except _DAMAGED as error:
            message = f"{self._file.name}: damaged ({error}); it is made again from the documents"
            warnings.warn(message, RuntimeWarning, stacklevel=2)
            self.is_rebuilt = True
            self._let_go()
            return self._build()

    @staticmethod
    def _refuse_changes(file: HeldFile) -> None:
        if file.has_changed:
            raise ValueError("it was written to since the index was opened")

    def _let_go(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
