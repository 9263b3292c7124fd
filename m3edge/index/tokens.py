"""The token file: every document's token vectors, one record after another, append-only, mapped and not read.

A codec says what a record is:

int8    one byte a dimension and a scale for each token: half of fp16, and what the MaxSim kernel is fastest with
int4    half a byte a dimension
binary  a bit a dimension, its sign
fp16    half precision, the vectors almost as they were
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from m3edge import kernels
from m3edge._kernels_numpy import pack_records, record_bytes, unpack_records
from m3edge.embeddings import TokenRows, offsets_of
from m3edge.errors import FormatError
from m3edge.scoring import maxsim

FILE_NAME = "tokens.bin"
CODECS = ("int8", "int4", "binary", "fp16")
_BITS = {"int8": 8, "int4": 4, "binary": 1}
_HALF = np.dtype("<f2")


class TokenStore:
    """Reads and extends a token file; which of its records belong to whom, and how many count, the store knows."""

    def __init__(self, path: Path, dim: int, codec: str = "int8") -> None:
        """Raises ValueError when `codec` is none of CODECS."""
        if codec not in CODECS:
            raise ValueError(f"token_codec must be one of {', '.join(CODECS)}, got {codec!r}")
        self.codec = codec
        self.bytes_per_token = dim * _HALF.itemsize if codec == "fp16" else record_bytes(dim, _BITS[codec])
        self._path = path
        self._dim = dim
        self._map = np.empty((0, self.bytes_per_token), np.uint8)

    def write(self, start: int, vectors: np.ndarray) -> None:
        """Put vectors, float32 [n, dim], at record `start`, over whatever an interrupted job left there, and on the
        disk."""
        if self.codec == "fp16":
            records = np.ascontiguousarray(vectors, _HALF)
        else:
            records = pack_records(np.ascontiguousarray(vectors, np.float32), _BITS[self.codec])
        mode = "r+b" if self._path.exists() else "w+b"
        with self._path.open(mode) as file:
            file.seek(start * self.bytes_per_token)
            file.write(records.tobytes())
            file.flush()
            os.fsync(file.fileno())

    def map_rows(self, n_rows: int) -> None:
        """Make the first n_rows records readable. Raises FormatError when the file is shorter."""
        if n_rows == len(self._map):
            return
        size = self._path.stat().st_size if self._path.exists() else 0
        if size < n_rows * self.bytes_per_token:
            raise FormatError(
                f"{self._path}: has {size} bytes, expected at least {n_rows * self.bytes_per_token}; "
                "restore it from a backup or build the index again"
            )
        shape = (n_rows, self.bytes_per_token)
        self._map = np.memmap(self._path, np.uint8, "r", shape=shape) if n_rows else self._map[:0]

    def scores(self, query: np.ndarray, starts: np.ndarray, counts: np.ndarray, n_threads: int = 1) -> np.ndarray:
        """MaxSim of one query with some documents: float32 [n].

        query: float32 [n_query_tokens, dim], unit rows, which are quantized to 8 bits unless the codec is fp16
        starts, counts: int64 [n], each document's records
        """
        if self.codec == "fp16":
            return maxsim(query, self.read(starts, counts))
        query = np.ascontiguousarray(query, np.float32)
        return kernels.maxsim_records(query, np.asarray(self._map), _BITS[self.codec], starts, counts, n_threads)

    def read(self, starts: np.ndarray, counts: np.ndarray) -> TokenRows:
        """The token vectors of some documents, as the codec kept them, float32; starts, counts: int64 [n]."""
        offsets = offsets_of(counts)
        records = np.empty((int(offsets[-1]), self.bytes_per_token), np.uint8)
        for i, (start, count) in enumerate(zip(starts.tolist(), counts.tolist(), strict=True)):
            records[offsets[i] : offsets[i + 1]] = self._map[start : start + count]
        if self.codec == "fp16":
            return TokenRows(records.view(_HALF).astype(np.float32), offsets)
        codes, scales = unpack_records(records, _BITS[self.codec], self._dim)
        return TokenRows(codes * scales[:, None], offsets)

    def close(self) -> None:
        """Let go of the file."""
        self._map = np.empty((0, self.bytes_per_token), np.uint8)
