"""Checksums, and checks of embeddings, native in every instruction set and in numpy."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3edge.embeddings import offsets_of

LEAST, MOST = 0.98, 1.02


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=400), start=st.integers(0, 2**32 - 1), skipped=st.integers(0, 20))
def test_crc32_is_zlibs(kernels, data, start, skipped):
    assert kernels.crc32(data) == zlib.crc32(data)
    part = memoryview(data)[skipped:]  # begins anywhere
    assert kernels.crc32(part, start) == zlib.crc32(part, start)


def test_crc32_goes_on_from_one_part_to_the_next_and_takes_any_buffer(kernels):
    rows = np.random.default_rng(0).integers(0, 256, (300, 388), np.uint8)
    whole = zlib.crc32(rows.tobytes())
    for cut in (0, 1, 17, 299, 300):
        assert kernels.crc32(rows[cut:].data, kernels.crc32(rows[:cut].data)) == whole
    assert kernels.crc32(bytearray(rows.tobytes())) == whole
    for wrong in ("text", 7, rows[:, ::2]):
        with pytest.raises((TypeError, BufferError, ValueError)):
            kernels.crc32(wrong)


@given(
    row=st.integers(-(2**63), 2**63 - 1),
    parts=st.lists(st.one_of(st.text(st.characters(exclude_categories=["Cs"])), st.binary()), max_size=5),
)
def test_a_rows_checksum_is_of_its_number_the_parts_lengths_and_the_parts(kernels, row, parts):
    data = [part.encode() if isinstance(part, str) else part for part in parts]
    numbers = b"".join(struct.pack("<q", number) for number in (row, *map(len, data)))
    assert kernels.crc32_of_row(row, *parts) == zlib.crc32(numbers + b"".join(data))


def test_what_has_no_checksum_is_refused(kernels):
    with pytest.raises(UnicodeEncodeError):
        kernels.crc32_of_row(1, "a \ud800 surrogate")
    for parts in ((7,), (None,), ("a", 1.5)):
        with pytest.raises((TypeError, AttributeError)):
            kernels.crc32_of_row(1, *parts)


@pytest.mark.parametrize("dim", [1, 3, 16, 40, 1024])
def test_the_first_row_of_another_length_is_found(kernels, dim):
    rng = np.random.default_rng(dim)
    vectors = rng.standard_normal((30, dim))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    assert kernels.row_off_length(vectors, LEAST, MOST) == -1
    assert kernels.row_off_length(vectors[:0], LEAST, MOST) == -1
    for factor in (0, 0.9, 1.1, 1e30, np.inf, np.nan):
        wrong = vectors.copy()
        wrong[[17, 20]] *= np.float32(factor)
        assert kernels.row_off_length(wrong, LEAST, MOST) == 17
    with pytest.raises(TypeError):
        kernels.row_off_length(vectors.astype(np.float64), LEAST, MOST)


def lexical(ids, weights=None, counts=None, offsets=None):
    n = len(ids)
    return (
        np.array(ids, np.int64),
        np.full(n, 0.5, np.float32) if weights is None else np.array(weights, np.float32),
        np.ones(n, np.int32) if counts is None else np.array(counts, np.int32),
        np.array([0, n] if offsets is None else offsets, np.int64),
    )


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (lexical([]), ""),
        (lexical([3, 5, 2**31 - 1]), ""),
        (lexical([3, 5, 1, 2], offsets=[0, 2, 2, 4]), ""),
        (lexical([5, 3, 1], offsets=[0, 1, 2, 3]), ""),
        (lexical([5, 3]), "ids must ascend within a row"),
        (lexical([1, 5, 5], offsets=[0, 1, 3]), "ids must ascend within a row"),
        (lexical([-1]), "ids must be from 0 to 2147483647"),
        (lexical([2**31]), "ids must be from 0 to 2147483647"),
        (lexical([1], counts=[0]), "counts must be from 1 to 2147483647"),
        (lexical([1, 2], offsets=[0, 3]), "offsets must ascend from 0 to 2"),
        (lexical([1, 2], offsets=[1, 2]), "offsets must ascend from 0 to 2"),
        (lexical([1, 2], offsets=[0, 2, 1, 2]), "offsets must ascend from 0 to 2"),
        (lexical([1, 2], offsets=[0, 10**9, 2]), "offsets must ascend from 0 to 2"),
        (lexical([1, 2], weights=[0, -0.1]), "weights must be finite and at least 0"),
        (lexical([1, 2], weights=[np.nan, 0]), "weights must be finite and at least 0"),
        (lexical([1, 2], weights=[0, np.inf]), "weights must be finite and at least 0"),
    ],
)
def test_what_is_wrong_with_lexical_vectors_is_told(kernels, rows, problem):
    assert kernels.lexical_problem(*rows) == problem


def test_arrays_that_do_not_belong_together_are_refused(kernels):
    ids, weights, counts, offsets = lexical([1, 2, 3])
    for wrong in ((ids[:2], weights, counts, offsets), (ids, weights, counts, offsets[:0])):
        with pytest.raises(ValueError, match="there must be"):
            kernels.lexical_problem(*(np.ascontiguousarray(part) for part in wrong))
    with pytest.raises(TypeError):
        kernels.lexical_problem(ids, weights, counts.astype(np.int64), offsets)


@settings(max_examples=50)
@given(n=st.integers(0, 50), seed=st.integers(0, 2**32 - 1))
def test_rows_of_any_lengths_are_sound(kernels, n, seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 5, n)
    ids = [np.sort(rng.choice(100, length, replace=False)) for length in lengths]
    rows = lexical(np.concatenate([*ids, []]).astype(np.int64), offsets=offsets_of(lengths))
    assert kernels.lexical_problem(*rows) == ""
