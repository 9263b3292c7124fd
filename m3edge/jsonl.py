"""JSON Lines files: one object a line, errors that name the line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from m3edge.errors import FormatError


def read_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each line's place, "PATH:LINE" for messages, and its JSON object; blank lines are passed over."""
    if not path.is_file():
        raise FormatError(f"{path}: no such file")
    with path.open(encoding="utf-8-sig") as file:
        try:
            for number, line in enumerate(file, 1):
                if line.strip():
                    where = f"{path}:{number}"
                    try:
                        entry = json.loads(line)
                    except (ValueError, RecursionError) as error:
                        raise FormatError(f"{where}: not valid JSON ({error})") from error
                    if not isinstance(entry, dict):
                        raise FormatError(f"{where}: expected a JSON object, got {type(entry).__name__}")
                    yield where, entry
        except UnicodeDecodeError as error:
            raise FormatError(f"{path}: not UTF-8 text ({error})") from error


def required_string(where: str, entry: Mapping[str, Any], key: str) -> str:
    """entry[key]; an integer id is taken as its digits. Raises FormatError when it is missing or something else."""
    value = entry.get(key)
    if isinstance(value, int) and not isinstance(value, bool) and key == "_id":
        return str(value)
    if not isinstance(value, str):
        raise FormatError(f"{where}: expected a string {key!r}, got {value!r}")
    return value


def joined_text(where: str, entry: Mapping[str, Any]) -> str:
    """A document's title, if it has one, and its text, as BEIR joins them."""
    title = required_string(where, entry, "title") if entry.get("title") else ""
    text = required_string(where, entry, "text")
    return f"{title} {text}" if title else text
