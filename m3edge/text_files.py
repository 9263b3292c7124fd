"""Texts on a disk: text files, folders of them, and .jsonl files with an object a line."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from m3edge.errors import FormatError
from m3edge.jsonl import joined_text, read_jsonl, required_string

TEXT_ENDINGS = (".txt", ".text", ".md", ".markdown", ".rst", ".adoc", ".tex", ".csv", ".log")
JSONL_ENDING = ".jsonl"
_OTHERS = ("node_modules", "__pycache__")  # folders of what other programs made; hidden ones are passed over too


class FoundText(NamedTuple):
    """A text and where it stands.

    id:       a line's `_id`, or the path of a text file
    metadata: a line's other fields
    file:     the file's absolute path
    where:    for messages: the path and, of a line, its number
    """

    id: str
    text: str
    metadata: dict[str, Any]
    file: Path
    where: str


class TextFiles:
    """The texts under some paths, in order; afterwards, what was passed over."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Raises FileNotFoundError for a path that is not there."""
        for path in paths:
            if not path.exists():
                raise FileNotFoundError(f"{path}: no such file or folder")
        self._paths = paths
        self.passed_over: list[Path] = []  # files in folders that are no texts, by their endings or their bytes

    def __iter__(self) -> Iterator[FoundText]:
        """Raises FormatError for a file that was named and is no text, and for a line that is not as it must be."""
        for path in self._paths:
            if path.is_dir():
                yield from self._in_folder(path)
            elif is_jsonl(path):
                yield from _read_lines(path)
            elif (found := _read_file(path)) is not None:
                yield found
            else:
                raise FormatError(f"{path}: not a text file; make one of it first, or of all a {JSONL_ENDING} file")

    def _in_folder(self, folder: Path) -> Iterator[FoundText]:
        for path in sorted(folder.rglob("*")):
            between = path.relative_to(folder).parts
            if any(part.startswith(".") or part in _OTHERS for part in between) or not path.is_file():
                continue
            if is_jsonl(path):
                yield from _read_lines(path)
            elif path.suffix.lower() in TEXT_ENDINGS and (found := _read_file(path)) is not None:
                yield found
            else:
                self.passed_over.append(path)


def is_jsonl(path: Path) -> bool:
    """Whether a file has a text on each line, by its ending."""
    return path.suffix.lower() == JSONL_ENDING


def _read_file(path: Path) -> FoundText | None:
    """A text file; None for one that has zero bytes, as no text in UTF-8 has and nearly every other file."""
    data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = data.decode("utf-16", errors="replace")
    elif b"\0" in data:
        return None
    else:  # a byte that is no UTF-8 must not cost the rest of a text: it becomes U+FFFD
        text = data.decode("utf-8-sig", errors="replace")
    return FoundText(str(path), text.replace("\r\n", "\n").replace("\r", "\n"), {}, path.resolve(), str(path))


def _read_lines(path: Path) -> Iterator[FoundText]:
    file = path.resolve()
    for where, entry in read_jsonl(path):
        extra = {key: value for key, value in entry.items() if key not in ("_id", "title", "text", "metadata")}
        metadata = entry.get("metadata") or {}
        if not isinstance(metadata, dict):
            raise FormatError(f"{where}: expected an object 'metadata', got {metadata!r}")
        title = {"title": entry["title"]} if entry.get("title") else {}
        id_, text = required_string(where, entry, "_id"), joined_text(where, entry)
        yield FoundText(id_, text, {**title, **extra, **metadata}, file, where)
