"""Documents: what is added to an index, once it was checked, and what comes out of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

_DEEPEST = 64  # levels of metadata: how many json can read again depends on how deep Python's stack is by then


@dataclasses.dataclass(frozen=True)
class Document:
    """What one adds to an index. id: unique, not empty; metadata: anything that is a JSON object."""

    id: str
    text: str
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def checked_documents(documents: Iterable[Document | Mapping[str, Any]]) -> Iterator[Document]:
    """The documents one after another, each checked when its turn comes. Raises TypeError or ValueError naming it."""
    if isinstance(documents, (str, Mapping, Document)):
        raise TypeError(f"documents must be several Documents, got one {type(documents).__name__}; put it in a list")
    for position, item in enumerate(documents):
        where = f"documents[{position}]"
        if isinstance(item, Document):
            document = item
        elif isinstance(item, Mapping):
            unknown = set(item) - {"id", "text", "metadata"}
            if unknown or "id" not in item or "text" not in item:
                raise ValueError(f"{where} must have 'id', 'text' and at most 'metadata', got {list(item)}")
            document = Document(item["id"], item["text"], item.get("metadata") or {})
        else:
            raise TypeError(f"{where} must be a Document or a mapping, got {type(item).__name__}")
        check_document(where, document)
        yield document


def blocks(documents: Iterator[Document], size: int) -> Iterator[list[Document]]:
    """The documents in lists of `size`, the last one shorter."""
    while block := list(islice(documents, size)):
        yield block


def check_document(where: str, document: Document) -> None:
    """Raise TypeError or ValueError, beginning with `where`, when the document cannot be added to an index."""
    for name, value in (("id", document.id), ("text", document.text)):
        if not isinstance(value, str):
            raise TypeError(f"{where}: {name} must be a string, got {type(value).__name__}")
    if not document.id:
        raise ValueError(f"{where}: id must not be empty")
    try:
        document.id.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where}: id must be valid Unicode, got {document.id!r}") from error
    if not isinstance(document.metadata, Mapping):
        raise TypeError(f"{where}: metadata must be a mapping, got {type(document.metadata).__name__}")
    try:
        _check_nested(document.metadata, _DEEPEST)
        json.dumps(dict(document.metadata), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: metadata must be a JSON object ({error})") from error


def _check_nested(value: Any, levels: int) -> None:
    """Raise ValueError for keys that JSON would make strings of, of 1 and "1" the same one, or for too many levels."""
    if not isinstance(value, (Mapping, list, tuple)):
        return
    if levels == 0:
        raise ValueError(f"more than {_DEEPEST} levels deep")
    if isinstance(value, Mapping):
        if (wrong := next((key for key in value if not isinstance(key, str)), None)) is not None:
            raise ValueError(f"its keys must be strings, got {wrong!r}")
        value = list(value.values())
    for each in value:
        _check_nested(each, levels - 1)
