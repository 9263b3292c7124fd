"""Training pairs: JSON Lines files, plain or gzipped, one {"query", "positive", "lang"} a line.

Bad lines are not silently skipped: they come back with their numbers, for the caller to report.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from m3edge.errors import FormatError


class Pair(NamedTuple):
    """A query and a passage that answers it; source is the file's name without its endings."""

    query: str
    positive: str
    language: str
    source: str


class BadLine(NamedTuple):
    """A line that holds no pair, and why."""

    path: Path
    number: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}:{self.number}: {self.reason}"


class DataFile(NamedTuple):
    """A file of pairs, and of how many of its passages at most: sources differ hundredfold in size."""

    path: Path
    n_passages: int


def read_pairs(path: Path) -> tuple[list[Pair], list[BadLine]]:
    """Every pair in a file, and every line that holds none. Raises FormatError when the file itself cannot be read."""
    source = path.name.split(".")[0]
    pairs: list[Pair] = []
    bad: list[BadLine] = []
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    pairs.append(_parse(line, source))
                except ValueError as error:
                    bad.append(BadLine(path, number, str(error)))
    except (OSError, EOFError) as error:
        raise FormatError(f"{path}: cannot be read ({error}); expected JSON Lines, plain or .gz") from error
    return pairs, bad


def sample_passages(pairs: Sequence[Pair], n_passages: int, seed: int) -> list[Pair]:
    """The pairs of at most `n_passages` distinct passages, drawn by the seed, in the order they came.

    Sources differ hundredfold in size; the same number of passages from each lets none drown the others.
    """
    passages = list(dict.fromkeys(pair.positive for pair in pairs))
    chosen = set(random.Random(seed).sample(passages, min(n_passages, len(passages))))
    return [pair for pair in pairs if pair.positive in chosen]


def describe_bad_lines(bad: Iterable[BadLine], show: int = 5) -> str:
    """One line for people: how many, and where the first few are; "" when there are none."""
    lines = list(bad)
    if not lines:
        return ""
    more = f", and {len(lines) - show} more" if len(lines) > show else ""
    return f"{len(lines)} bad lines left out: " + "; ".join(map(str, lines[:show])) + more


def _parse(line: bytes, source: str) -> Pair:
    entry = json.loads(line.decode("utf-8"))
    if not isinstance(entry, dict):
        raise ValueError(f"expected a JSON object, got {type(entry).__name__}")
    for key in ("query", "positive"):
        if not isinstance(entry.get(key), str) or not entry[key].strip():
            raise ValueError(f"expected a text {key!r}, got {entry.get(key)!r}")
    return Pair(entry["query"], entry["positive"], str(entry.get("lang", "")), source)
