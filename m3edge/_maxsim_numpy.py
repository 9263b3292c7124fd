"""MaxSim in numpy, over token vectors as they are stored (see _kernels_numpy.py)."""

from __future__ import annotations

import numpy as np

from m3edge._shared_numpy import check_array, quantize_rows


def maxsim_records(
    query: np.ndarray, records: np.ndarray, bits: int, starts: np.ndarray, counts: np.ndarray, n_threads: int
) -> np.ndarray:
    """Late-interaction scores of one query with documents whose token vectors are stored as records.

    query:   float32 [n_query_tokens, dim], finite; each row is quantized to 8 bits first (`quantize_rows`), unless
             records have 16 bits
    records: uint8 [n_records, record_bytes], one for each token: `pack_records` says what is in it
    bits:    16, 8, 4 or 1, of one number
    starts, counts: int64 [n]; document i owns the records starts[i]:starts[i] + counts[i]
    n_threads: at most so many threads work on it; the twin leaves that to numpy
    returns float32 [n], the mean over the query's tokens of the best product; 0 for a document or a query without any
    Raises TypeError for an array of another type or not C-contiguous, ValueError for shapes that do not fit.
    """
    check_array("query", query, np.float32, 2)
    check_array("records", records, np.uint8, 2)
    check_array("starts", starts, np.int64, 1)
    check_array("counts", counts, np.int64, 1)
    if bits not in (16, 8, 4, 1):
        raise ValueError(f"bits must be 16, 8, 4 or 1, got {bits}")
    dim = query.shape[1]
    if records.shape[1] != record_bytes(dim, bits):
        raise ValueError(
            f"records must be {record_bytes(dim, bits)} bytes wide for {dim} dimensions in {bits} bits, "
            f"got {records.shape[1]}"
        )
    if len(starts) != len(counts):
        raise ValueError(f"starts and counts must be of one length, got {len(starts)} and {len(counts)}")
    outside = (starts < 0) | (counts < 0) | (starts > len(records) - counts)
    if outside.any():
        start, count = starts[outside][0], counts[outside][0]
        raise ValueError(
            f"starts and counts must lie within the {len(records)} records, got start {start}, count {count}"
        )
    if not np.isfinite(query).all():
        raise ValueError("query must be finite, got an infinity or a NaN")
    if n_threads < 1:
        raise ValueError(f"n_threads must be at least 1, got {n_threads}")

    codes, scales = (query, np.float32(1)) if bits == 16 else quantize_rows(query, 127)
    scores = np.zeros(len(starts), np.float32)
    for i, (start, count) in enumerate(zip(starts.tolist(), counts.tolist(), strict=True)):
        if count and len(query):
            document, document_scales = unpack_records(records[start : start + count], bits, dim)
            products = codes.astype(np.float32) @ document.astype(np.float32).T  # whole numbers, exact up to 2 ** 24
            best = (products * document_scales).max(axis=1) * scales
            scores[i] = best.mean(dtype=np.float64)
    return scores


# What lies in a record


def record_bytes(dim: int, bits: int) -> int:
    """The size of a token's record: a float32 scale and the codes, filled up to a multiple of four bytes; with 16 bits
    neither scale nor filling."""
    code_bytes = -(-dim * bits // 8)
    return code_bytes if bits == 16 else 4 + -(-code_bytes // 4) * 4


def pack_records(vectors: np.ndarray, bits: int) -> np.ndarray:
    """Vectors, float32 [n, dim], as records, uint8 [n, record_bytes], quantized each with a scale of its own.

    With 16 bits a record is the vector in half precision, little-endian. With fewer it is the scale, float32,
    little-endian, then the codes. With w bytes of codes and p = 8 / bits codes a byte, bits i * bits … of byte j hold
    the code of dimension i * w + j; dimensions behind the last are 0.
    8 bits: the code itself, -127 … 127, and value = code * scale; 4 bits: the code, -7 … 7, plus 8;
    1 bit: 1 for a value that is at least 0, else 0, and value = ±scale, scale = mean of the absolute values
    """
    n, dim = vectors.shape
    if bits == 16:
        return np.ascontiguousarray(vectors, "<f2").view(np.uint8).reshape(n, 2 * dim)
    if bits == 1:
        codes = (vectors >= 0).astype(np.uint8)
        scales = np.abs(vectors).mean(axis=1, dtype=np.float32) if dim else np.zeros(n, np.float32)
    else:
        signed, scales = quantize_rows(vectors, 2 ** (bits - 1) - 1)
        codes = signed.view(np.uint8) if bits == 8 else (signed + 8).astype(np.uint8)
    width, planes = record_bytes(dim, bits) - 4, 8 // bits
    filled = np.full((n, planes * width), 8 if bits == 4 else 0, np.uint8)
    filled[:, :dim] = codes
    packed = np.zeros((n, width), np.uint8)
    for i in range(planes):
        packed |= filled[:, i * width : (i + 1) * width] << np.uint8(i * bits)
    return np.concatenate([scales.astype("<f4")[:, None].view(np.uint8), packed], axis=1)


def unpack_records(records: np.ndarray, bits: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """The codes, int8 [n, dim], and scales, float32 [n], in records: values are codes * scales[:, None].

    With 16 bits the codes are the values, float32, and the scales 1.
    """
    if bits == 16:
        values = np.ascontiguousarray(records).view("<f2").reshape(len(records), dim)
        return values.astype(np.float32), np.ones(len(records), np.float32)
    scales = np.ascontiguousarray(records[:, :4]).view("<f4")[:, 0]
    packed = records[:, 4:]
    mask = np.uint8(2**bits - 1)
    codes = np.concatenate([packed >> np.uint8(i * bits) & mask for i in range(8 // bits)], axis=1)[:, :dim]
    if bits == 8:
        return codes.view(np.int8), scales
    return (codes.astype(np.int8) - 8 if bits == 4 else codes.astype(np.int8) * 2 - 1), scales
