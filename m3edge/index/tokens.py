"""The token file: every document's token vectors, one after another, float16, append-only, mapped and not read."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from m3edge.embeddings import TokenRows, offsets_of
from m3edge.errors import FormatError

FILE_NAME = "tokens.f16"
_DTYPE = np.dtype("<f2")


class TokenStore:
    """Reads and extends a token file; which of its rows belong to whom, and how many count, the SQLite store knows."""

    def __init__(self, path: Path, dim: int) -> None:
        self._path = path
        self._dim = dim
        self._map = np.empty((0, dim), _DTYPE)

    @property
    def bytes_per_token(self) -> int:
        return self._dim * _DTYPE.itemsize

    def write(self, start: int, vectors: np.ndarray) -> None:
        """Put vectors, float [n, dim], at row `start`, over whatever an interrupted job left there, and on the disk."""
        mode = "r+b" if self._path.exists() else "w+b"
        with self._path.open(mode) as file:
            file.seek(start * self.bytes_per_token)
            file.write(np.ascontiguousarray(vectors, _DTYPE).tobytes())
            file.flush()
            os.fsync(file.fileno())

    def map_rows(self, n_rows: int) -> None:
        """Make the first n_rows readable. Raises FormatError when the file is shorter."""
        if n_rows == len(self._map):
            return
        size = self._path.stat().st_size if self._path.exists() else 0
        if size < n_rows * self.bytes_per_token:
            raise FormatError(
                f"{self._path}: has {size} bytes, expected at least {n_rows * self.bytes_per_token}; "
                "restore it from a backup or build the index again"
            )
        self._map = np.memmap(self._path, _DTYPE, "r", shape=(n_rows, self._dim)) if n_rows else self._map[:0]

    def read(self, starts: np.ndarray, counts: np.ndarray) -> TokenRows:
        """The token vectors of some documents as float32; starts, counts: int64 [n]."""
        offsets = offsets_of(counts)
        vectors = np.empty((int(offsets[-1]), self._dim), np.float32)
        for i, (start, count) in enumerate(zip(starts.tolist(), counts.tolist(), strict=True)):
            vectors[offsets[i] : offsets[i + 1]] = self._map[start : start + count]
        return TokenRows(vectors, offsets)

    def close(self) -> None:
        """Let go of the file."""
        self._map = np.empty((0, self._dim), _DTYPE)
