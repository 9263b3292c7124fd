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
from pathlib import Path

from m3edge.index.graph import HnswGraph


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
    """One graph, shared by the states of an index that follow each other. Safe to ask from several threads."""

    def __init__(
        self, file: HeldFile | None, read: Callable[[Path], HnswGraph], build: Callable[[], HnswGraph]
    ) -> None:
        """read:  makes it of its file; raises OSError, RuntimeError or ValueError where that is damaged
        build: makes it where there is no file, or of a damaged one, which is a RuntimeWarning"""
        self._file, self._read, self._build = file, read, build
        self._graph: HnswGraph | None = None
        self._lock = threading.Lock()
        self.is_rebuilt = False  # whether another file should take the place of a damaged one
        if file is None or not file.can_wait:
            self.get()

    def get(self) -> HnswGraph:
        """The graph; waits while it is read."""
        with self._lock:
            if self._graph is None:
                self._graph = self._made()
                self._let_go()
            return self._graph

    def close(self) -> None:
        """Let go of the file, if it was not read; the graph must not be asked for any more."""
        with self._lock:
            self._let_go()

    def _made(self) -> HnswGraph:
        if self._file is None:
            return self._build()
        try:
            if self._file.has_changed:
                raise ValueError("it was written to since the index was opened")
            return self._read(self._file.path)
        except (OSError, RuntimeError, ValueError) as error:
            message = f"{self._file.name}: damaged ({error}); it is made again from the documents"
            warnings.warn(message, RuntimeWarning, stacklevel=2)
            self.is_rebuilt = True
            return self._build()

    def _let_go(self) -> None:
        if self._file is not None:
            self._file.close()
