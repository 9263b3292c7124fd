"""The token file: every document's token vectors, one after another, in a codec, append-only, mapped and not read.

A row of the file is one token: a float16 vector, or a record as `m3edge._kernels_numpy.pack_records` lays it out.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np

from m3edge._kernels_numpy import pack_records, record_bytes, unpack_records
from m3edge.embeddings import TokenRows, offsets_of
from m3edge.errors import FormatError
from m3edge.kernels import maxsim_records
from m3edge.scoring import maxsim

# Each codec's file, and the bits of a number in it. "binary" keeps signs and one size a token, and is scored as such;
# "none" keeps nothing: documents have no rows, and there is no file.
FILE_NAMES = {"int8": "tokens.i8", "fp16": "tokens.f16", "int4": "tokens.i4", "binary": "tokens.b1", "none": "tokens"}
_BITS = {"int8": 8, "fp16": 16, "int4": 4, "binary": 1, "none": 0}
CODECS = tuple(FILE_NAMES)


class TokenStore:
    """Reads and extends a token file; which of its rows belong to whom, and how many count, the SQLite store knows."""

    def __init__(self, folder: Path, dim: int, codec: str) -> None:
        self.path = folder / FILE_NAMES[codec]
        self._dim = dim
        self._bits = _BITS[codec]
        self._map = np.empty((0, self.bytes_per_token), np.uint8)

    @property
    def bytes_per_token(self) -> int:
        if self._bits == 0:
            return 0
        return self._dim * 2 if self._bits == 16 else record_bytes(self._dim, self._bits)

    def write(self, start: int, vectors: np.ndarray) -> int:
        """Put vectors, float32 [n, dim], at row `start`, over whatever an interrupted job left there, and on the disk.

        Returns the CRC-32 of the bytes written.
        """
        if not len(vectors):
            return 0
        if self._bits == 16:
            data = np.ascontiguousarray(vectors, "<f2").tobytes()
        else:
            data = pack_records(vectors, self._bits).tobytes()
        mode = "r+b" if self.path.exists() else "w+b"
        with self.path.open(mode) as file:
            file.seek(start * self.bytes_per_token)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return zlib.crc32(data)

    def map_rows(self, n_rows: int) -> None:
        """Make the first n_rows readable. Raises FormatError when the file is shorter."""
        if n_rows == len(self._map):
            return
        size = self.path.stat().st_size if self.path.exists() else 0
        if size < n_rows * self.bytes_per_token:
            raise FormatError(
                f"{self.path}: has {size} bytes, expected at least {n_rows * self.bytes_per_token}; "
                "restore it from a backup or build the index again"
            )
        shape = (n_rows, self.bytes_per_token)
        self._map = np.memmap(self.path, np.uint8, "r", shape=shape) if n_rows else self._map[:0]

    def checksum(self, start: int, count: int) -> int:
        """The CRC-32 of `count` mapped rows from `start`, as `write` returned it."""
        return zlib.crc32(self._map[start : start + count].tobytes())

    def scores(self, query: np.ndarray, starts: np.ndarray, counts: np.ndarray, n_threads: int) -> np.ndarray:
        """MaxSim of a query's token vectors, float32 [n_tokens, dim], with some documents, as they are stored.

        starts, counts: int64 [n]; returns float32 [n]
        """
        if self._bits == 16:
            return maxsim(query, self.read(starts, counts))
        query = np.ascontiguousarray(query, np.float32)
        starts, counts = np.ascontiguousarray(starts, np.int64), np.ascontiguousarray(counts, np.int64)
        return maxsim_records(query, np.asarray(self._map), self._bits, starts, counts, n_threads)

    def read(self, starts: np.ndarray, counts: np.ndarray) -> TokenRows:
        """The token vectors of some documents as float32; starts, counts: int64 [n]."""
        offsets = offsets_of(counts)
        vectors = np.empty((int(offsets[-1]), self._dim), np.float32)
        for i, (start, count) in enumerate(zip(starts.tolist(), counts.tolist(), strict=True)):
            vectors[offsets[i] : offsets[i + 1]] = self._decoded(self._map[start : start + count])
        return TokenRows(vectors, offsets)

    def close(self) -> None:
        """Let go of the file."""
        self._map = np.empty((0, self.bytes_per_token), np.uint8)

    def _decoded(self, rows: np.ndarray) -> np.ndarray:
        if self._bits == 16:
            return np.ascontiguousarray(rows).view("<f2")
        codes, scales = unpack_records(rows, self._bits, self._dim)
        return codes * scales[:, None]
