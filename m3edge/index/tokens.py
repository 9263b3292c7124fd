"""The token file: every document's token vectors, one after another, in a codec, append-only, mapped and not read.

A row of the file is one token: a record as `m3edge._kernels_numpy.pack_records` lays it out.
"""

from __future__ import annotations

import os
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np

from m3edge._hybrid_numpy import TokenPart
from m3edge._maxsim_numpy import pack_records, record_bytes
from m3edge.errors import FormatError
from m3edge.files import flush_to_disk, naming
from m3edge.kernels import crc32, maxsim_records

# Each codec's file, and the bits of a number in it. "binary" keeps signs and one size a token, and is scored as such;
# "none" keeps nothing: documents have no rows, and there is no file.
FILE_NAMES = {
    "int8": "tokens.i8",
    "fp16": "tokens.f16",
    "int4": "tokens.i4",
    "binary": "tokens.b1",
    "none": "tokens.none",
}
_BITS = {"int8": 8, "fp16": 16, "int4": 4, "binary": 1, "none": 0}
CODECS = tuple(FILE_NAMES)


def token_file(codec: str, epoch: int) -> str:
    """The file's name: "tokens.i8", and "tokens-1.i8" after the first compaction."""
    stem, ending = FILE_NAMES[codec].split(".")
    return f"{stem}-{epoch}.{ending}" if epoch else f"{stem}.{ending}"


def crc32s_of(rows: np.ndarray, offsets: np.ndarray) -> list[int]:
    """The CRC-32 of each document's rows; rows: uint8 [n_tokens, bytes_per_token], offsets: int64 [n + 1]"""
    return [crc32(rows[start:stop].data) for start, stop in pairwise(offsets.tolist())]


class TokenStore:
    """Reads and extends a token file; which of its rows belong to whom, and how many count, the SQLite store knows."""

    def __init__(self, folder: Path, dim: int, codec: str, epoch: int = 0) -> None:
        """epoch: how often the index was compacted; each time the file gets a new name."""
        self.path = folder / token_file(codec, epoch)
        self._dim = dim
        self._bits = _BITS[codec]
        self._map = np.empty((0, self.bytes_per_token), np.uint8)

    @property
    def bytes_per_token(self) -> int:
        return record_bytes(self._dim, self._bits) if self._bits else 0

    def write(self, start: int, vectors: np.ndarray) -> np.ndarray:
        """Put vectors, float32 [n, dim], at row `start`, over whatever an interrupted job left there.

        Returns them as written, uint8 [n, bytes_per_token]. On the disk they are after `sync`.
        """
        if self._bits == 0:
            return np.empty((0, 0), np.uint8)
        rows = pack_records(vectors, self._bits)
        self.write_rows(start, rows)
        return rows

    def write_rows(self, start: int, rows: np.ndarray) -> None:
        """As `write`, for rows as they stand in a token file: uint8 [n, bytes_per_token]."""
        if not len(rows):
            return
        with naming(self.path), self.path.open("r+b" if self.path.exists() else "w+b") as file:
            file.seek(start * self.bytes_per_token)
            file.write(np.ascontiguousarray(rows).data)

    def sync(self) -> None:
        """Return when all that was written is on the disk."""
        if self.path.exists():
            flush_to_disk(self.path)

    def map_rows(self, n_rows: int) -> None:
        """Make the first n_rows readable. Raises FormatError when the file is shorter, or not there."""
        if n_rows == len(self._map):
            return
        size = self.path.stat().st_size if self.path.exists() else 0
        if size < n_rows * self.bytes_per_token:
            raise FormatError(
                f"{self.path}: has {size} bytes, expected at least {n_rows * self.bytes_per_token}; "
                f"`m3edge check --repair {self.path.parent}` encodes its documents again, or restore a backup"
            )
        shape = (n_rows, self.bytes_per_token)
        self._map = np.memmap(self.path, np.uint8, "r", shape=shape) if n_rows else self._map[:0]

    @property
    def n_rows(self) -> int:
        """How many rows are mapped."""
        return len(self._map)

    def rows_on_disk(self) -> int:
        """How many whole rows the file has."""
        return self.path.stat().st_size // self.bytes_per_token if self.path.exists() else 0

    def cut(self, n_rows: int) -> None:
        """Take off what lies behind the first n_rows, unless the system refuses (Windows, while a reader maps it)."""
        with suppress(OSError):
            os.truncate(self.path, n_rows * self.bytes_per_token)

    def rows(self, start: int, count: int) -> np.ndarray:
        """Mapped rows as they stand in the file: uint8 [count, bytes_per_token]; fewer where the map ends."""
        return np.asarray(self._map[start : start + count])

    def sound(self, starts: np.ndarray, counts: np.ndarray, crc32s: np.ndarray) -> np.ndarray:
        """bool [n]: which documents' rows match their checksums (int64 [n], as `crc32s_of` gave them)."""
        pairs = zip(starts.tolist(), counts.tolist(), crc32s.tolist(), strict=True)
        return np.array(
            [crc32(self._map[start : start + count].data) == expected for start, count, expected in pairs], bool
        )

    def scores(self, query: np.ndarray, starts: np.ndarray, counts: np.ndarray, n_threads: int) -> np.ndarray:
        """MaxSim of a query's token vectors, float32 [n_tokens, dim], with some documents, as they are stored.

        starts, counts: int64 [n]; returns float32 [n]
        """
        query = np.ascontiguousarray(query, np.float32)
        starts, counts = np.ascontiguousarray(starts, np.int64), np.ascontiguousarray(counts, np.int64)
        return maxsim_records(query, np.asarray(self._map), self._bits, starts, counts, n_threads)

    def part(
        self, query: np.ndarray, starts: np.ndarray, counts: np.ndarray, crc32s: np.ndarray, sound: np.ndarray
    ) -> TokenPart:
        """What a hybrid search takes for `sound` and `scores`.

        starts, counts, crc32s: int64 [n]; sound: bool [n], who was found so before; of all documents
        """
        rows = np.asarray(self._map)
        return TokenPart(np.ascontiguousarray(query, np.float32), rows, self._bits, starts, counts, crc32s, sound)

    def close(self) -> None:
        """Let go of the file."""
        self._map = np.empty((0, self.bytes_per_token), np.uint8)
