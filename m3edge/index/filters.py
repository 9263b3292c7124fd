"""Filters over metadata: what may be written, and what it means. How it is found fast is said in columns.py.

A filter is a mapping; a document passes when all of its entries hold:

    {"lang": "de", "year": {"$gte": 2020, "$lt": 2025}, "$or": [{"tags": "new"}, {"rating": {"$exists": False}}]}

field: value        the same as field: {"$eq": value}
$eq $ne $in $nin    a string, a finite number, True, False or None; $in and $nin: a list, or another iterable, of them
$gt $gte $lt $lte   a number or a string
$exists             True or False
$not                within a field: its operators; outside: a filter
$and $or            a list of filters, not empty

A field is a key of the metadata, or keys joined by dots: "author.name" finds {"author": {"name": …}}. A list stands for
its elements, and a test holds when it holds for one of them. Numbers are compared with numbers (1 is 1.0), strings with
strings, by code point, and true, false and None are only themselves: True is not 1. Where nothing fits a test, it does
not hold, and $ne, $nin and $not are what $eq, $in and their operators are not: a missing field passes these three and
{"$exists": False}, and no other. A field that is there with None, {} or [] exists.

A document's id is no metadata: {"id": "d7"} asks for a field of that name. A key that begins with $ can be stored, but
no filter can ask for it. NumPy's numbers, strings and booleans count as Python's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

_MAX_DEPTH = 32  # of filters within filters

Scalar: TypeAlias = "str | int | float | bool | None"

_NULL, _BOOL, _NUMBER, _STRING = range(4)
_KINDS = {type(None): _NULL, bool: _BOOL, int: _NUMBER, float: _NUMBER, str: _STRING}


@dataclass(frozen=True)
class Value:
    """A scalar that equals only those of its kind: True is not 1."""

    kind: int
    value: Scalar


@dataclass(frozen=True)
class Equals:
    """One of the field's values is one of these."""

    field: str
    values: frozenset[Value]


@dataclass(frozen=True)
class Compares:
    """One of the field's values, of the bound's kind, is $gt, $gte, $lt or $lte it."""

    field: str
    operator: str
    bound: Value


@dataclass(frozen=True)
class Exists:
    """The field is there."""

    field: str


@dataclass(frozen=True)
class Not:
    condition: Condition


@dataclass(frozen=True)
class All:
    conditions: tuple[Condition, ...]


@dataclass(frozen=True)
class Some:
    conditions: tuple[Condition, ...]


Condition: TypeAlias = "Equals | Compares | Exists | Not | All | Some"


def parse_filter(filter: Mapping[str, Any]) -> Condition:
    """The condition that a filter says.

    Raises TypeError when it is no mapping, ValueError, naming the place in it, for what has no meaning.
    """
    if not isinstance(filter, Mapping):
        raise TypeError(f"filter must be a mapping, got {type(filter).__name__}")
    return _parse("filter", filter, 0)


def kind_of(value: Any) -> int | None:
    """Which values a value can be compared with; None for a list, an object, or what JSON does not know."""
    return _KINDS.get(type(value))


def _parse(place: str, filter: Any, depth: int) -> Condition:
    if not isinstance(filter, Mapping):
        raise ValueError(f"{place} must be a mapping, got {_shown(filter)}")
    if depth > _MAX_DEPTH:
        raise ValueError(f"{place}: filters may be nested {_MAX_DEPTH} deep")
    conditions: list[Condition] = []
    for key, operand in filter.items():
        if not isinstance(key, str):
            raise ValueError(f"{place}: its keys must be strings, got {_shown(key)}")
        here = f"{place}.{key}"
        if key in ("$and", "$or"):
            if not isinstance(operand, (list, tuple)) or not operand:
                raise ValueError(f"{here} must be a list of filters, not empty, got {_shown(operand)}")
            parts = tuple(_parse(f"{here}[{i}]", part, depth + 1) for i, part in enumerate(operand))
            conditions.append(All(parts) if key == "$and" else Some(parts))
        elif key == "$not":
            conditions.append(Not(_parse(here, operand, depth + 1)))
        elif key.startswith("$"):
            raise ValueError(f"{here}: unknown operator; here may stand $and, $or, $not or a field")
        elif isinstance(operand, Mapping):
            conditions.append(_parse_operators(here, key, operand, depth + 1))
        else:
            conditions.append(Equals(key, frozenset({_scalar(here, operand)})))
    return conditions[0] if len(conditions) == 1 else All(tuple(conditions))


def _parse_operators(place: str, field: str, operators: Mapping[Any, Any], depth: int) -> Condition:
    if depth > _MAX_DEPTH:
        raise ValueError(f"{place}: filters may be nested {_MAX_DEPTH} deep")
    if not operators:
        raise ValueError(f"{place}: {{}} says nothing; expected a value or operators such as {{'$gte': 2020}}")
    conditions = [_parse_operator(f"{place}.{name}", field, name, value, depth) for name, value in operators.items()]
    return conditions[0] if len(conditions) == 1 else All(tuple(conditions))


def _parse_operator(place: str, field: str, name: Any, operand: Any, depth: int) -> Condition:
    if name in ("$eq", "$ne"):
        equals = Equals(field, frozenset({_scalar(place, operand)}))
        return equals if name == "$eq" else Not(equals)
    if name in ("$in", "$nin"):
        if not _holds_several(operand):
            raise ValueError(f"{place} must be a list, got {_shown(operand)}")
        equals = Equals(field, frozenset(_scalar(f"{place}[{i}]", value) for i, value in enumerate(operand)))
        return equals if name == "$in" else Not(equals)
    if name in ("$gt", "$gte", "$lt", "$lte"):
        bound = _scalar(place, operand)
        if bound.kind not in (_NUMBER, _STRING):
            raise ValueError(f"{place} must be a number or a string, got {_shown(bound.value)}")
        return Compares(field, name, bound)
    if name == "$exists":
        operand = _plain(operand)
        if not isinstance(operand, bool):
            raise ValueError(f"{place} must be True or False, got {_shown(operand)}")
        return Exists(field) if operand else Not(Exists(field))
    if name == "$not":
        if not isinstance(operand, Mapping):
            raise ValueError(f"{place} must hold operators such as {{'$gte': 2020}}, got {_shown(operand)}")
        return Not(_parse_operators(place, field, operand, depth + 1))
    known = "$eq, $ne, $in, $nin, $gt, $gte, $lt, $lte, $exists and $not"
    raise ValueError(f"{place}: unknown operator; a field knows {known}, and its parts are written with dots")


def _scalar(place: str, value: Any) -> Value:
    value = _plain(value)
    kind = kind_of(value)
    if kind is None:
        hint = "; use $in for several values" if _holds_several(value) else ""
        raise ValueError(f"{place} must be a string, a number, True, False or None, got {_shown(value)}{hint}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{place} must be finite, got {value}")
    return Value(kind, value)


def _plain(value: Any) -> Any:
    """A NumPy scalar as Python's own; not a date, of which a number might come."""
    return value.item() if isinstance(value, np.generic) and value.dtype.kind in "biufU" else value


def _holds_several(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping))


def _shown(value: Any) -> str:
    """A value in an error, in a length that can be read."""
    if kind_of(value) is None:
        return type(value).__name__
    try:
        shown = repr(value)
    except ValueError:  # an integer of thousands of digits
        return type(value).__name__
    return shown if len(shown) <= 60 else shown[:57] + "..."
