"""Makes, joins, saves and loads the blocks of a posting index; what they score, the kernels know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from m3edge._postings_numpy import bitmap_words, unpacked_documents
from m3edge.embeddings import SparseRows, offsets_of

BLOCK_DOCUMENTS = 65536  # a document's number in its block takes 16 bits
WEIGHT_BITS = 16
_LARGE_COUNT = 15  # a count takes 4 bits; from here on it stands in a list of its own


class BlockArrays(NamedTuple):
    """The arguments of `kernels.PostingBlock`, which describes them."""

    n_documents: int
    tokens: np.ndarray
    starts: np.ndarray
    packed_documents: np.ndarray
    weights: np.ndarray
    counts: np.ndarray
    large_at: np.ndarray
    large_counts: np.ndarray


def block_of_rows(rows: SparseRows, start: int, stop: int, exponent: int) -> BlockArrays:
    """The postings of the documents start:stop, their weights in steps of 2 ** (exponent - 16), rounded down.

    Every weight must be below 2 ** exponent.
    """
    entries = slice(int(rows.offsets[start]), int(rows.offsets[stop]))
    documents = np.repeat(np.arange(stop - start), np.diff(rows.offsets[start : stop + 1]))
    # A whole number of steps, and a power of two: the product is exact, and so is dropping its fraction.
    weights = (rows.weights[entries] * np.float32(2.0 ** (WEIGHT_BITS - exponent))).astype(np.uint16)
    return _sorted_block(stop - start, rows.ids[entries].astype(np.uint32), documents, weights, rows.counts[entries])


def join(first: BlockArrays, second: BlockArrays) -> list[BlockArrays]:
    """Both blocks' documents in one block or, when they are more than 65,536, in a full one and a second."""
    n = first.n_documents + second.n_documents
    tokens = np.concatenate([_posting_tokens(first), _posting_tokens(second)])
    documents = np.concatenate([_documents(first), _documents(second) + first.n_documents])
    weights = np.concatenate([first.weights, second.weights])
    counts = np.concatenate([_unpacked_counts(first), _unpacked_counts(second)])
    if n <= BLOCK_DOCUMENTS:
        return [_sorted_block(n, tokens, documents, weights, counts)]
    fits = documents < BLOCK_DOCUMENTS
    rest = ~fits
    return [
        _sorted_block(BLOCK_DOCUMENTS, tokens[fits], documents[fits], weights[fits], counts[fits]),
        _sorted_block(
            n - BLOCK_DOCUMENTS, tokens[rest], documents[rest] - BLOCK_DOCUMENTS, weights[rest], counts[rest]
        ),
    ]


def coarser(block: BlockArrays, bits: int) -> BlockArrays:
    """The block with weights in steps 2 ** bits as large. Rounded down twice is rounded down once: nothing is lost
    that the larger steps would have kept."""
    return block._replace(weights=block.weights >> np.uint16(bits))


def blocks_to_arrays(blocks: Sequence[BlockArrays]) -> dict[str, np.ndarray]:
    """The blocks' arrays, one after another, and `block_NAME`, where each block's begin: int64 [n_blocks + 1]."""
    arrays = {"block_documents_held": np.array([block.n_documents for block in blocks], np.int64)}
    for field in BlockArrays._fields[1:]:
        parts = [getattr(block, field) for block in blocks]
        arrays[field] = np.concatenate(parts) if parts else np.empty(0, np.uint8)
        arrays[f"block_{field}"] = offsets_of([len(part) for part in parts])
    return arrays


def blocks_from_arrays(arrays: Mapping[str, np.ndarray]) -> list[BlockArrays]:
    """The blocks that gave these arrays; KeyError when one is missing."""
    # An .npz reads its file at every access: once for each array, not for each block
    flat = {field: (arrays[field], arrays[f"block_{field}"]) for field in BlockArrays._fields[1:]}
    return [
        BlockArrays(n, *(np.ascontiguousarray(array[starts[i] : starts[i + 1]]) for array, starts in flat.values()))
        for i, n in enumerate(arrays["block_documents_held"].tolist())
    ]


def _sorted_block(
    n_documents: int, tokens: np.ndarray, documents: np.ndarray, weights: np.ndarray, counts: np.ndarray
) -> BlockArrays:
    """tokens: uint32, documents: any integer, weights: uint16, counts: int32, all [n], each token's by document"""
    order = np.argsort(tokens, kind="stable")  # stable: a token's documents stay in ascending order
    tokens, counts = tokens[order], counts[order]
    begins = np.flatnonzero(np.concatenate([[True], tokens[1:] != tokens[:-1]]))[: len(tokens)]
    large_at = np.flatnonzero(counts >= _LARGE_COUNT).astype(np.uint32)
    starts = np.append(begins, len(tokens)).astype(np.uint32)
    return BlockArrays(
        n_documents,
        tokens[begins],
        starts,
        _packed_documents(n_documents, starts, documents[order].astype(np.uint16)),
        weights[order],
        _packed_counts(counts),
        large_at,
        counts[large_at].astype(np.int32),
    )


def _posting_tokens(block: BlockArrays) -> np.ndarray:
    return np.repeat(block.tokens, np.diff(block.starts))


def _documents(block: BlockArrays) -> np.ndarray:
    return unpacked_documents(block.n_documents, block.starts, block.packed_documents).astype(np.int32)


def _packed_documents(n_documents: int, starts: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """documents: uint16, of each posting; returns a block's `packed_documents`"""
    sizes = np.diff(starts)
    words = bitmap_words(n_documents)
    is_bitmap = sizes > words
    packed = np.empty(int(np.minimum(sizes, words).sum()), np.uint16)
    at = np.repeat(is_bitmap, np.minimum(sizes, words))
    packed[~at] = documents[np.repeat(~is_bitmap, sizes)]
    bitmaps = np.zeros((np.count_nonzero(is_bitmap), 16 * words), bool)
    numbers = np.repeat(np.cumsum(is_bitmap) - 1, sizes)
    bits = np.repeat(is_bitmap, sizes)
    bitmaps[numbers[bits], documents[bits]] = True
    packed[at] = np.packbits(bitmaps, axis=1, bitorder="little").view("<u2").reshape(-1)
    return packed


def _packed_counts(counts: np.ndarray) -> np.ndarray:
    codes = np.minimum(counts, _LARGE_COUNT).astype(np.uint8)
    if len(codes) % 2:
        codes = np.append(codes, np.uint8(0))
    return codes[::2] | codes[1::2] << 4


def _unpacked_counts(block: BlockArrays) -> np.ndarray:
    counts = np.empty(2 * len(block.counts), np.int32)
    counts[::2], counts[1::2] = block.counts & 15, block.counts >> 4
    counts[block.large_at] = block.large_counts
    return counts[: len(block.weights)]
