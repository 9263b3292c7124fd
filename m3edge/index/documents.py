"""What may be added to an index: documents and, where they were computed already, their embeddings; both checked."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from m3edge.embeddings import Embeddings
from m3edge.errors import ModelMismatchError


class Document(NamedTuple):
    """What one adds to an index. id: unique, not empty; metadata: anything that is a JSON object."""

    id: str
    text: str
    metadata: Mapping[str, Any] = {}


def checked_documents(documents: Iterable[Document | Mapping[str, Any]]) -> Iterator[Document]:
    """The documents one after another, each checked when its turn comes. Raises TypeError or ValueError naming it."""
    if isinstance(documents, (str, Mapping, Document)):
        raise TypeError(f"documents must be several Documents, got one {type(documents).__name__}; put it in a list")
    for position, item in enumerate(documents):
        where = f"documents[{position}]"
        if isinstance(item, Document):
            document = item
        elif isinstance(item, Mapping):
            unknown = sorted(set(item) - set(Document._fields))
            if unknown or "id" not in item or "text" not in item:
                raise ValueError(f"{where} must have 'id', 'text' and at most 'metadata', got {sorted(item)}")
            document = Document(item["id"], item["text"], item.get("metadata") or {})
        else:
            raise TypeError(f"{where} must be a Document or a mapping, got {type(item).__name__}")
        _check_document(where, document)
        yield document


def blocks(documents: Iterator[Document], size: int) -> Iterator[list[Document]]:
    """The documents in lists of `size`, the last one shorter."""
    while block := list(islice(documents, size)):
        yield block


def check_embeddings(embeddings: Embeddings, documents: Sequence[Any], dense_dim: int, token_dim: int) -> None:
    """Refuse embeddings that do not belong to these documents or to a model of these widths.

    Raises TypeError or ValueError saying what is wrong, ModelMismatchError for other widths.
    """
    if not isinstance(embeddings, Embeddings):
        raise TypeError(f"embeddings must be Embeddings, got {type(embeddings).__name__}")
    if len(embeddings) != len(documents):
        raise ValueError(f"embeddings must be of the {len(documents)} documents, got {len(embeddings)}")
    dense, sparse, tokens = embeddings.dense, embeddings.sparse, embeddings.tokens
    if dense is None or sparse is None or tokens is None:
        missing = [head for head in ("dense", "sparse", "tokens") if getattr(embeddings, head) is None]
        raise ValueError(f"embeddings must have all three parts, got none of {', '.join(missing)}")
    for name, array, dim in (("dense", dense, dense_dim), ("tokens", tokens.vectors, token_dim)):
        if array.ndim != 2 or array.shape[1] != dim:
            raise ModelMismatchError(f"embeddings' {name} vectors must be {dim} wide, got shape {array.shape}")
        if not np.isfinite(array).all():
            raise ValueError(f"embeddings' {name} vectors must be finite")
    if len(dense) != len(documents):
        raise ValueError(f"embeddings' dense part must have {len(documents)} rows, got {len(dense)}")
    _check_offsets("sparse", sparse.offsets, len(documents), len(sparse.ids))
    _check_offsets("tokens", tokens.offsets, len(documents), len(tokens.vectors))
    if not len(sparse.ids) == len(sparse.weights) == len(sparse.counts):
        raise ValueError("embeddings' sparse part must have as many ids as weights and counts")
    within = np.ones(len(sparse.ids), bool)
    within[sparse.offsets[:-1][sparse.offsets[:-1] < len(within)]] = False  # a row's first id follows nothing
    if len(sparse.ids) and (sparse.ids.min() < 0 or (np.diff(sparse.ids, prepend=-1)[within] <= 0).any()):
        raise ValueError("embeddings' sparse ids must be at least 0 and ascend within a row")
    if not (np.isfinite(sparse.weights).all() and sparse.weights.min(initial=0) >= 0):
        raise ValueError("embeddings' sparse weights must be finite and at least 0")


def _check_offsets(name: str, offsets: np.ndarray, n: int, total: int) -> None:
    if len(offsets) != n + 1 or offsets[0] != 0 or offsets[-1] != total or (np.diff(offsets) < 0).any():
        raise ValueError(f"embeddings' {name} offsets must be {n + 1} ascending numbers from 0 to {total}")


def _check_document(where: str, document: Document) -> None:
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
        json.dumps(dict(document.metadata), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{where}: metadata must be a JSON object ({error})") from error
