"""What stands in the store's tables: documents, vectors and settings, their checksums, and what is wrong with a row."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from m3edge import kernels
from m3edge.embeddings import SparseRows, offsets_of
from m3edge.index.documents import Document

TOO_DEEP = "its metadata are nested too deeply to be read; upsert or delete it, or raise sys.setrecursionlimit()"
_DECODER = json.JSONDecoder()
NO_CRC32 = -1  # in arrays of checksums: written by version 1 or 2, which kept none for each document


class StoredVectors(NamedTuple):
    """The vectors of some rows.

    rows: int64 [n], ascending; dense: float32 [n, dim]; sparse: n rows;
    token_starts, token_counts: int64 [n], where their token vectors lie in the token file;
    token_crc32s: int64 [n], of the bytes there, or NO_CRC32
    """

    rows: np.ndarray
    dense: np.ndarray
    sparse: SparseRows
    token_starts: np.ndarray
    token_counts: np.ndarray
    token_crc32s: np.ndarray


def read_document(row: int, id_: Any, text: Any, metadata: Any, crc32: int | None) -> Document:
    """The document in a row of the table `documents`. Raises ValueError saying what is wrong with it, RecursionError
    for metadata that are whole, but nested deeper than Python's stack allows where it is called."""
    if not (isinstance(id_, str) and isinstance(text, (str, bytes)) and isinstance(metadata, str)):
        raise ValueError("id, text or metadata are of another type")
    if crc32 is not None and crc32 != document_crc32(row, id_, text, metadata):
        raise ValueError("checksum differs")
    value = _decoded(metadata)
    if not isinstance(value, dict):
        raise ValueError("its metadata are no JSON object")
    return Document(id_, _readable(text), value)


def problem_of_document(row: int, id_: Any, text: Any, metadata: Any, crc32: int | None) -> str | None:
    """What is wrong with a row of the table `documents`, or None when it is sound."""
    try:
        read_document(row, id_, text, metadata, crc32)
    except ValueError as problem:
        return str(problem)
    except RecursionError:
        return TOO_DEEP
    return None


def read_vectors(entries: Sequence[Sequence[Any]]) -> StoredVectors:
    """Sound rows of the table `vectors`."""
    columns = zip(*entries, strict=True) if entries else ((),) * 9
    rows, starts, n_tokens, dense, ids, weights, counts, token_crc32s, _ = columns
    return StoredVectors(
        rows=np.array(rows, np.int64),
        dense=np.frombuffer(b"".join(dense), "<f4").reshape(len(rows), -1) if rows else np.empty((0, 0), "<f4"),
        sparse=SparseRows(
            np.frombuffer(b"".join(ids), "<i4").astype(np.int64),
            np.frombuffer(b"".join(weights), "<f4"),
            np.frombuffer(b"".join(counts), "<i4"),
            offsets_of([len(blob) // 4 for blob in ids]),
        ),
        token_starts=np.array(starts, np.int64),
        token_counts=np.array(n_tokens, np.int64),
        token_crc32s=np.array([NO_CRC32 if crc32 is None else crc32 for crc32 in token_crc32s], np.int64),
    )


def problem_of_vectors(entry: Sequence[Any], token_rows: int, dense_dim: int) -> str | None:
    """What is wrong with a row of the table `vectors`, or None when it is sound.

    token_rows: how many rows of the token file are in use
    dense_dim:  how wide the model's dense vectors are
    """
    row, start, count, dense, ids, weights, counts, token_crc32, crc32 = entry
    numbers = [start, count] if token_crc32 is None else [start, count, token_crc32]
    if not all(isinstance(number, int) and number >= 0 for number in numbers):
        return "its place in the token file is no number"
    if start + count > token_rows:
        return f"its token vectors lie behind the {token_rows} that are in use"
    blobs = [dense, ids, weights, counts]
    if not all(isinstance(blob, bytes) for blob in blobs):
        return "no binary data"
    if crc32 is not None and crc32 != vectors_crc32(row, *blobs):
        return "checksum differs"
    if len(dense) != 4 * dense_dim:
        return f"{len(dense) // 4} numbers wide, expected {dense_dim}"
    if len(ids) % 4 or not len(ids) == len(weights) == len(counts):
        return "sparse parts differ in length"
    sparse_ids, sparse_weights = np.frombuffer(ids, "<i4"), np.frombuffer(weights, "<f4")
    if not (np.isfinite(np.frombuffer(dense, "<f4")).all() and np.isfinite(sparse_weights).all()):
        return "numbers that are not finite"
    if sparse_weights.min(initial=0) < 0 or sparse_ids.min(initial=0) < 0 or (np.diff(sparse_ids) <= 0).any():
        return "sparse ids do not ascend, or weights are negative"
    return None


def document_crc32(row: int, id_: str, text: str | bytes, metadata: str) -> int:
    """CRC-32 of a document as it is stored."""
    return kernels.crc32_of_row(row, id_, text, metadata)


def vectors_crc32(row: int, dense: bytes, sparse_ids: bytes, sparse_weights: bytes, sparse_counts: bytes) -> int:
    """CRC-32 of a row of `vectors`, but for its place in the token file, which the token vectors' own proves."""
    return kernels.crc32_of_row(row, dense, sparse_ids, sparse_weights, sparse_counts)


def meta_crc32(texts: Mapping[str, str]) -> int:
    """CRC-32 of the settings, as they are stored, in the order of their names; without `crc32` itself."""
    return zlib.crc32(json.dumps(sorted(texts.items())).encode())


def is_unicode(text: str) -> bool:
    """Whether it can be an id or a key: one with lone surrogates cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _decoded(text: str) -> Any:
    """What json.loads returns or raises; sooner where nothing is to be skipped, as in all that m3edge stores."""
    try:
        value, end = _DECODER.raw_decode(text)
    except ValueError:
        return _DECODER.decode(text)
    return value if end == len(text) else _DECODER.decode(text)


def _readable(text: str | bytes) -> str:
    return text if isinstance(text, str) else text.decode("utf-8", "surrogatepass")
