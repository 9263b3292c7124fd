"""Filters: what passes is what their definition says, written here once more in plain Python, document by document."""

import operator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3edge.index.columns import MetadataColumns
from m3edge.index.filters import parse_filter

# The definition, as one would write it without a thought for speed


def values(thing, path):
    """Every value a dotted path leads to, lists taken apart; a key may itself hold dots."""
    if isinstance(thing, list):
        return [value for part in thing for value in values(part, path)]
    if not isinstance(thing, dict):
        return []
    found = []
    for key, part in thing.items():
        if key == path:
            found += scalars(part)
        elif path.startswith(key + "."):
            found += values(part, path[len(key) + 1 :])
    return found


def scalars(thing):
    """A list stands for its elements; an object, and an empty list, for `...`: it is there and equals nothing."""
    if isinstance(thing, list):
        return [value for part in thing for value in scalars(part)] or [...]
    return [...] if isinstance(thing, dict) else [thing]


def kind(value):
    return {bool: "bool", int: "number", float: "number", str: "string", type(None): "null"}.get(type(value))


COMPARE = {"$eq": operator.eq, "$gt": operator.gt, "$gte": operator.ge, "$lt": operator.lt, "$lte": operator.le}


def holds_for(found, name, operand):
    if name in COMPARE:
        return any(kind(value) == kind(operand) and COMPARE[name](value, operand) for value in found)
    if name == "$in":
        return any(holds_for(found, "$eq", value) for value in operand)
    if name in ("$ne", "$nin"):
        return not holds_for(found, {"$ne": "$eq", "$nin": "$in"}[name], operand)
    if name == "$exists":
        return bool(found) == operand
    return not all(holds_for(found, inner, value) for inner, value in operand.items())  # $not


def passes(metadata, condition):
    def holds(key, operand):
        if key == "$and":
            return all(passes(metadata, part) for part in operand)
        if key == "$or":
            return any(passes(metadata, part) for part in operand)
        if key == "$not":
            return not passes(metadata, operand)
        operators = operand if isinstance(operand, dict) else {"$eq": operand}
        return all(holds_for(values(metadata, key), name, value) for name, value in operators.items())

    return all(holds(key, operand) for key, operand in condition.items())


# Documents and filters that meet often

NAMES = st.sampled_from(["a", "b", "a.b", "c"])
SCALARS = st.sampled_from(
    [None, True, False, 0, 1, 1.0, -0.0, 2, 1.5, 2**60, 2**60 + 1, -3, "", "1", "a", "b", "ü", "\x00"]
)
METADATA = st.dictionaries(
    NAMES,
    st.recursive(
        SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=2), max_leaves=5
    ),
    max_size=4,
)
FIELDS = st.sampled_from(["a", "b", "a.b", "c", "a.b.c", "a.a", "missing"])
COMPARABLE = SCALARS.filter(lambda value: kind(value) in ("number", "string"))
PLAIN_OPERATORS = st.one_of(
    st.tuples(st.sampled_from(["$eq", "$ne"]), SCALARS),
    st.tuples(st.sampled_from(["$in", "$nin"]), st.lists(SCALARS, max_size=3)),
    st.tuples(st.sampled_from(["$gt", "$gte", "$lt", "$lte"]), COMPARABLE),
    st.tuples(st.just("$exists"), st.booleans()),
)
OPERATORS = st.lists(
    PLAIN_OPERATORS | st.tuples(st.just("$not"), st.lists(PLAIN_OPERATORS, min_size=1, max_size=2).map(dict)),
    min_size=1,
    max_size=2,
).map(dict)
FILTERS = st.recursive(
    st.dictionaries(FIELDS, SCALARS | OPERATORS, max_size=2),
    lambda inner: (
        st.dictionaries(st.sampled_from(["$and", "$or"]), st.lists(inner, min_size=1, max_size=3), max_size=2)
        | st.fixed_dictionaries({"$not": inner})
    ),
    max_leaves=4,
)


class Documents:
    """Stands for the store: metadata by row, some rows gone."""

    def __init__(self, metadata):
        self.by_row = dict(enumerate(metadata, 10))

    @property
    def rows(self):
        return np.array(sorted(self.by_row), np.int64)

    def fetch(self, first, last):
        return iter([(row, self.by_row[row]) for row in self.by_row if first <= row <= last])


@settings(max_examples=400, deadline=None)
@given(st.lists(METADATA, max_size=8), FILTERS, st.integers(0, 8))
def test_what_passes_is_what_the_definition_says_however_documents_were_added(metadata, filter, split):
    documents, columns = Documents(metadata), MetadataColumns()
    condition = parse_filter(filter)
    rows = documents.rows
    for n in (split, len(rows)):
        got = columns.passing(condition, rows[:n], documents.fetch)
        assert got.tolist() == [passes(document, filter) for document in metadata[:n]]


@pytest.mark.parametrize(
    ("filter", "message"),
    [
        ({"$where": "1"}, r"filter\.\$where: unknown operator; here may stand \$and, \$or, \$not or a field"),
        ({"year": {"$near": 1}}, r"filter\.year\.\$near: unknown operator"),
        ({"year": {"gte": 1}}, r"filter\.year\.gte: unknown operator.*written with dots"),
        ({"year": {}}, r"filter\.year: \{\} says nothing"),
        ({"$or": []}, r"filter\.\$or must be a list of filters, not empty"),
        (
            {"$or": [{"a": 1}, {"b": {"$gt": None}}]},
            r"filter\.\$or\[1\]\.b\.\$gt must be a number or a string, got None",
        ),
        ({"a": {"$gt": True}}, "must be a number or a string, got True"),
        ({"a": [1, 2]}, r"filter\.a must be a string, .* got list; use \$in"),
        ({"a": {"$in": "xy"}}, r"filter\.a\.\$in must be a list, got 'xy'"),
        ({"a": {"$in": [1, [2]]}}, r"filter\.a\.\$in\[1\] must be a string"),
        ({"a": {"$in": {"b": 1}}}, r"filter\.a\.\$in must be a list, got dict"),
        ({"a": {"$in": b"xy"}}, r"filter\.a\.\$in must be a list, got bytes"),
        ({"a": {"$in": 5}}, r"filter\.a\.\$in must be a list, got 5"),
        ({"a": np.array([1, 2])}, r"filter\.a must be a string, .* got ndarray; use \$in"),
        ({"a": np.datetime64("2020-01-01", "ns")}, r"filter\.a must be a string, .* got datetime64"),
        ({"a": {"$gt": np.True_}}, "must be a number or a string, got True"),
        ({"a": {"$exists": 1}}, r"filter\.a\.\$exists must be True or False, got 1"),
        ({"a": {"$not": 1}}, r"filter\.a\.\$not must hold operators"),
        ({"a": float("nan")}, r"filter\.a must be finite, got nan"),
        ({"a": np.float32("inf")}, r"filter\.a must be finite, got inf"),
        ({1: 2}, "its keys must be strings, got 1"),
        ({"$and": [1]}, r"filter\.\$and\[0\] must be a mapping, got 1"),
    ],
)
def test_what_has_no_meaning_is_refused_with_its_place(filter, message):
    with pytest.raises(ValueError, match=message):
        parse_filter(filter)


@pytest.mark.parametrize(
    ("numpys", "pythons"),
    [
        (np.int64(3), 3),
        (np.uint8(3), 3),
        (np.float64(0.5), 0.5),
        (np.float32(0.5), 0.5),
        (np.str_("de"), "de"),
        (np.True_, True),
        ({"$gt": np.float64(0.5)}, {"$gt": 0.5}),
        ({"$exists": np.False_}, {"$exists": False}),
        ({"$not": {"$lte": np.int32(3)}}, {"$not": {"$lte": 3}}),
        ({"$in": np.array([1, 2])}, {"$in": [1, 2]}),
        ({"$nin": np.array(["a", "b"])}, {"$nin": ["a", "b"]}),
        ({"$in": {"a": 1, "b": 2}.keys()}, {"$in": ["a", "b"]}),
        ({"$in": (letter for letter in "ab")}, {"$in": ["a", "b"]}),
    ],
)
def test_numpys_values_and_any_iterable_mean_what_pythons_mean(numpys, pythons):
    assert parse_filter({"a": numpys}) == parse_filter({"a": pythons})


def test_a_filter_that_is_no_mapping_is_a_type_error():
    with pytest.raises(TypeError, match="filter must be a mapping, got list"):
        parse_filter([("a", 1)])


def test_a_filter_within_itself_is_refused():
    endless = {"a": 1}
    endless["$or"] = [endless]
    with pytest.raises(ValueError, match="nested"):
        parse_filter(endless)


def test_rows_that_are_gone_pass_as_documents_without_metadata():
    documents, columns = Documents([{"a": 1}] * 4), MetadataColumns()
    rows = documents.rows
    del documents.by_row[11]
    assert columns.passing(parse_filter({"a": 1}), rows, documents.fetch).tolist() == [True, False, True, True]


def test_a_result_is_kept_until_documents_are_added():
    documents, columns = Documents([{"a": 1}] * 3), MetadataColumns()
    condition = parse_filter({"a": 1})
    first = columns.passing(condition, documents.rows, documents.fetch)
    assert columns.passing(parse_filter({"a": 1.0}), documents.rows, documents.fetch) is first
    assert not first.flags.writeable
    documents.by_row[99] = {"a": 1}
    assert columns.passing(condition, documents.rows, documents.fetch).tolist() == [True] * 4


def test_many_small_additions_leave_few_segments():
    documents, columns = Documents([{"i": i, "s": str(i % 7)} for i in range(300)]), MetadataColumns()
    rows = documents.rows
    for n in range(1, 301):
        got = columns.passing(parse_filter({"i": {"$gte": 100}, "s": {"$in": ["1", "2"]}}), rows[:n], documents.fetch)
    assert got.tolist() == [i >= 100 and i % 7 in (1, 2) for i in range(300)]
    assert len(columns._segments) < 12
