"""Metadata in columns, in memory: which documents pass a filter is a few array operations, not a look at each.

Made from the store when a filter is first used or the derived files are saved, with which they are kept, and brought up
to date when documents were added. The values of a field are sorted and numbered, so that a test becomes a range of
numbers. Documents are positions, as everywhere in the state; a deleted one may pass, and is left out by whoever uses
the result.
"""

from __future__ import annotations

import json
import struct
import threading
import warnings
import zlib
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise, repeat
from pathlib import Path
from tokenize import TokenError
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np

from m3edge.index.filters import All, Compares, Condition, Equals, Exists, Not, Some, Value, kind_of

# What reading a .npz of another version, or none, or one that lies, may raise: NumPy evaluates its headers as Python
UNREADABLE = (
    KeyError, ValueError, TypeError, IndexError, EOFError, BadZipFile, AttributeError, OverflowError, MemoryError,
    RuntimeError, SyntaxError, TokenError, zlib.error, struct.error,
)  # fmt: skip

_PORTION = 20_000  # documents taken over at once: bounds the memory
_KEPT_BYTES = 16_000_000  # of results, for filters that come again
_PRESENT, _NULL, _FALSE, _TRUE, _FIRST = range(-1, 4)  # codes; from _FIRST on the numbers, then the strings


class Column(NamedTuple):
    """A field's values in a segment's documents.

    positions: int64 [n], ascending, the same twice for a list; codes: int32 [n];
    numbers, strings: the distinct ones, sorted; _FIRST + i is numbers[i], then come the strings
    """

    positions: np.ndarray
    codes: np.ndarray
    numbers: list[int | float]
    strings: list[str]


class Segment(NamedTuple):
    """Documents that were taken over together: how many, and their columns by field."""

    n_documents: int
    columns: dict[str, Column]


class MetadataColumns:
    """The metadata of all documents. Safe to ask from several threads."""

    def __init__(self, path: Path | None = None) -> None:
        """Of no documents yet, or those that `save` wrote; the file stays open until it is first needed.

        Raises OSError or one of UNREADABLE for a file of another kind.
        """
        self._file: Any = None
        self._path = path
        self.is_rebuilt = False  # whether another file should take the place of a damaged one
        self._segments: list[Segment] = []
        self._n_documents = 0
        if path is not None:
            self._file = np.load(path, allow_pickle=False)
            self._n_documents = int(self._file["documents"][0])
        self._results: OrderedDict[Condition, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def passing(
        self, condition: Condition, rows: np.ndarray, fetch: Callable[[int, int], Iterator[tuple[int, Any]]]
    ) -> np.ndarray:
        """Which documents a condition holds for: bool [n], read-only.

        rows:  int64 [n], all documents' rows; those known before stay in front
        fetch: fetch(first, last) gives the metadata of these rows and those between, ascending; some may be gone
        """
        with self._lock:
            self._take_over(rows, fetch)
            found = self._results.pop(condition, None)
            if found is None:
                parts = [_passing(condition, segment) for segment in self._segments]
                found = np.concatenate([np.empty(0, bool), *parts])
                found.flags.writeable = False
            self._results[condition] = found
            while len(self._results) > 1 and sum(mask.nbytes for mask in self._results.values()) > _KEPT_BYTES:
                self._results.popitem(last=False)
            return found

    def __len__(self) -> int:
        """How many documents were taken over."""
        return self._n_documents

    def take_over(self, rows: np.ndarray, fetch: Callable[[int, int], Iterator[tuple[int, Any]]]) -> None:
        """Read the documents that are not known yet; the arguments are those of `passing`."""
        with self._lock:
            if self._n_documents < len(rows):
                self._take_over(rows, fetch)

    def save(self, path: Path) -> None:
        """Write all there is to a file."""
        with self._lock:
            self._read_file()
            arrays = {"documents": np.array([self._n_documents])}
            fields = []
            for s, segment in enumerate(self._segments):
                fields.append([[name, column.numbers, column.strings] for name, column in segment.columns.items()])
                for c, column in enumerate(segment.columns.values()):
                    arrays |= {f"positions-{s}-{c}": column.positions, f"codes-{s}-{c}": column.codes}
            arrays["segments"] = np.array([segment.n_documents for segment in self._segments], np.int64)
            arrays["fields"] = np.frombuffer(json.dumps(fields).encode(), np.uint8)
            with path.open("wb") as file:  # np.savez would add its own ending to a bare path
                np.savez(file, allow_pickle=False, **arrays)

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            if self._file is not None:
                self._file.close()

    def _take_over(self, rows: np.ndarray, fetch: Callable[[int, int], Iterator[tuple[int, Any]]]) -> None:
        self._read_file()
        while self._n_documents < len(rows):
            portion = rows[self._n_documents : self._n_documents + _PORTION]
            self._append(segment_of(portion, fetch))
            self._n_documents += len(portion)
            self._results.clear()

    def _read_file(self) -> None:
        if self._file is None:
            return
        try:
            with self._file as arrays:
                self._segments = _segments_from(arrays)
            if sum(segment.n_documents for segment in self._segments) != self._n_documents:
                raise ValueError("the segments hold another number of documents")
        except UNREADABLE as error:
            message = f"{self._path}: damaged ({error}); it is made again from the documents"
            warnings.warn(message, RuntimeWarning, stacklevel=2)
            self._segments, self._n_documents, self.is_rebuilt = [], 0, True
        self._file = None

    def _append(self, segment: Segment) -> None:
        """Put a segment at the end, joined with the last ones while these are not much larger: few stay."""
        while self._segments and self._segments[-1].n_documents < 2 * segment.n_documents:
            segment = join(self._segments.pop(), segment)
        self._segments.append(segment)


# Reading columns


def _segments_from(arrays: Mapping[str, np.ndarray]) -> list[Segment]:
    """The segments that `MetadataColumns.save` wrote."""
    segments = []
    fields, sizes = json.loads(arrays["fields"].tobytes()), arrays["segments"]
    if sizes.dtype != np.int64 or sizes.shape != (len(fields),) or (sizes < 0).any():
        raise ValueError("the segments are not those of the fields")
    for s, n_documents in enumerate(sizes.tolist()):
        columns = {}
        for c, (name, numbers, strings) in enumerate(fields[s]):
            column = Column(arrays[f"positions-{s}-{c}"], arrays[f"codes-{s}-{c}"], numbers, strings)
            _check(column, n_documents)
            columns[name] = column
        segments.append(Segment(n_documents, columns))
    return segments


def _check(column: Column, n_documents: int) -> None:
    positions, codes = column.positions, column.codes
    if (positions.dtype, codes.dtype) != (np.int64, np.int32) or positions.ndim != 1 or positions.shape != codes.shape:
        raise ValueError("a column's positions and codes do not belong together")
    if len(positions) and not (0 <= positions.min() <= positions.max() < n_documents):
        raise ValueError("a column knows documents that its segment does not")
    known: list[tuple[list[Any], tuple[type, ...]]] = [(column.numbers, (int, float)), (column.strings, (str,))]
    for values, types in known:
        if type(values) is not list or not all(type(value) in types for value in values):
            raise ValueError("a column has values of another type")
        if not all(first < second for first, second in pairwise(values)):
            raise ValueError("a column's values do not ascend")
    if len(codes) and not (_PRESENT <= codes.min() <= codes.max() < _FIRST + len(column.numbers) + len(column.strings)):
        raise ValueError("a column has codes of no value")


# Making columns


def segment_of(rows: np.ndarray, fetch: Callable[[int, int], Iterator[tuple[int, Any]]]) -> Segment:
    """The columns of the documents of these rows, at positions 0, 1, 2 …; a row that is gone has no fields."""
    fields: dict[str, tuple[list[int], list[Any]]] = {}
    if len(rows):
        position_of = {row: position for position, row in enumerate(rows.tolist())}
        for row, metadata in fetch(int(rows[0]), int(rows[-1])):
            position = position_of.get(row)
            if position is None:
                continue
            for field, value in flat_values(metadata):
                if field not in fields:
                    fields[field] = ([], [])
                positions, values = fields[field]
                positions.append(position)
                values.append(value)
    columns = {field: _encoded(np.array(where, np.int64), values) for field, (where, values) in fields.items()}
    return Segment(len(rows), columns)


def flat_values(metadata: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every field, its keys joined by dots, with every scalar it holds; with `...` for a field that is an object or an
    empty list, of which only can be asked whether it exists."""
    waiting: list[tuple[str, Any]] = list(metadata.items())
    while waiting:
        field, value = waiting.pop()
        if kind_of(value) is not None:
            yield field, value
        elif isinstance(value, dict):
            yield field, ...
            waiting += [(f"{field}.{key}", part) for key, part in value.items()]
        else:
            if not value:
                yield field, ...
            waiting += zip(repeat(field), value)


def _encoded(positions: np.ndarray, values: list[Any]) -> Column:
    numbers = sorted({value for value in values if type(value) in (int, float)})
    strings = sorted({value for value in values if type(value) is str})
    code_of: dict[Any, int] = {value: code for code, value in enumerate([*numbers, *strings], _FIRST)}
    code_of |= {...: _PRESENT, None: _NULL}
    codes = [(_TRUE if value else _FALSE) if type(value) is bool else code_of[value] for value in values]
    return Column(positions, np.array(codes, np.int32), numbers, strings)


def join(first: Segment, second: Segment) -> Segment:
    """One segment, the second's documents behind the first's."""
    columns = dict(first.columns)
    for field, column in second.columns.items():
        shifted = column._replace(positions=column.positions + first.n_documents)
        columns[field] = _joined(columns[field], shifted) if field in columns else shifted
    return Segment(first.n_documents + second.n_documents, columns)


def _joined(first: Column, second: Column) -> Column:
    numbers = _merged(first.numbers, second.numbers)
    strings = _merged(first.strings, second.strings)
    code_of = {value: code for code, value in enumerate([*numbers, *strings], _FIRST)}
    codes = []
    for column in (first, second):
        new = [_NULL, _FALSE, _TRUE, *(code_of[value] for value in [*column.numbers, *column.strings]), _PRESENT]
        codes.append(np.array(new, np.int32)[column.codes])  # _PRESENT, -1, is the last
    return Column(np.concatenate([first.positions, second.positions]), np.concatenate(codes), numbers, strings)


def _merged(first: list[Any], second: list[Any]) -> list[Any]:
    return first if first == second else sorted({*first, *second})


# Asking them


def _passing(condition: Condition, segment: Segment) -> np.ndarray:
    """bool [n_documents]"""
    if isinstance(condition, Not):
        return ~_passing(condition.condition, segment)
    if isinstance(condition, All):
        return _together(np.logical_and, True, condition.conditions, segment)
    if isinstance(condition, Some):
        return _together(np.logical_or, False, condition.conditions, segment)
    passing = np.zeros(segment.n_documents, bool)
    column = segment.columns.get(condition.field)
    if column is not None:
        passing[column.positions[_holding(condition, column)]] = True
    return passing


def _together(operation: np.ufunc, start: bool, conditions: Iterable[Condition], segment: Segment) -> np.ndarray:
    result = np.full(segment.n_documents, start)
    for condition in conditions:
        operation(result, _passing(condition, segment), out=result)
    return result


def _holding(condition: Equals | Compares | Exists, column: Column) -> np.ndarray | slice:
    """Which of a column's entries a test holds for."""
    if isinstance(condition, Exists):
        return slice(None)
    if isinstance(condition, Compares):
        low, high = _range(condition, column)
        return (column.codes >= low) & (column.codes < high)
    wanted = [code for value in condition.values if (code := _code(value, column)) is not None]
    if len(wanted) == 1:
        return column.codes == wanted[0]
    is_wanted = np.zeros(_FIRST + len(column.numbers) + len(column.strings) + 1, bool)  # the last for _PRESENT
    is_wanted[wanted] = True
    return is_wanted[column.codes]


def _code(value: Value, column: Column) -> int | None:
    if value.value is None:
        return _NULL
    if isinstance(value.value, bool):
        return _TRUE if value.value else _FALSE
    known, first = _known(value, column)
    at = bisect_left(known, value.value)
    return first + at if at < len(known) and known[at] == value.value else None


def _range(test: Compares, column: Column) -> tuple[int, int]:
    """The codes that are on the bound's right side: from the first of these to before the second."""
    known, first = _known(test.bound, column)
    if test.operator in ("$gt", "$gte"):
        side = bisect_right if test.operator == "$gt" else bisect_left
        return first + side(known, test.bound.value), first + len(known)
    side = bisect_left if test.operator == "$lt" else bisect_right
    return first, first + side(known, test.bound.value)


def _known(value: Value, column: Column) -> tuple[list[Any], int]:
    """The sorted values that this one is compared with, and the code of the first."""
    if isinstance(value.value, str):
        return column.strings, _FIRST + len(column.numbers)
    return column.numbers, _FIRST
