"""An array that rows are appended to without copying all of it each time."""

from __future__ import annotations

import numpy as np


class GrowingArray:
    """array: what was given and appended, one after another. Earlier views of it stay as they were."""

    def __init__(self, start: np.ndarray) -> None:
        """start: the first rows; not copied before something is appended, so it may be a mapped file."""
        self.array = start
        self._room = start

    def successor(self) -> GrowingArray:
        """One that goes on from here, in the same room; of this one and all its successors only one may be appended to
        at a time, and what another one appended is lost to it."""
        other = GrowingArray(self.array)
        other._room = self._room
        return other

    def append(self, rows: np.ndarray) -> None:
        """rows: of the array's type and width"""
        n = len(self.array) + len(rows)
        if n > len(self._room):
            room = np.empty((max(n, 2 * len(self.array)), *self.array.shape[1:]), self.array.dtype)
            room[: len(self.array)] = self.array
            self._room = room
        self._room[len(self.array) : n] = rows
        self.array = self._room[:n]
