"""What may be added to an index: documents and, where they were computed already, their embeddings; both checked."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from m3edge.embeddings import Embeddings, SparseRows, TokenRows
from m3edge.errors import ModelMismatchError

_UNIT = 0.01  # how far from 1 the length of a vector may be: half precision and 8 bits round
_LARGEST_INT32 = 2**31 - 1
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


def checked_embeddings(embeddings: Embeddings, documents: Sequence[Any], dense_dim: int, token_dim: int) -> Embeddings:
    """The embeddings in the types an index keeps, once it is known that they are of these documents and a model of
    these widths.

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
    dense, vectors = _unit_vectors("dense", dense, dense_dim), _unit_vectors("tokens", tokens.vectors, token_dim)
    if len(dense) != len(documents):
        raise ValueError(f"embeddings' dense part must have {len(documents)} rows, got {len(dense)}")
    _check_offsets("tokens", tokens.offsets, len(documents), len(vectors))
    return dataclasses.replace(
        embeddings,
        dense=dense,
        sparse=_sparse_rows(sparse, len(documents)),
        tokens=TokenRows(vectors, tokens.offsets),
    )


def _sparse_rows(sparse: SparseRows, n: int) -> SparseRows:
    """ids and counts int32, weights float32"""
    ids, counts = _int32("sparse ids", sparse.ids, least=0), _int32("sparse counts", sparse.counts, least=1)
    weights = _float32("sparse weights", sparse.weights)
    _check_offsets("sparse", sparse.offsets, n, len(ids))
    if not len(ids) == len(weights) == len(counts):
        raise ValueError("embeddings' sparse part must have as many ids as weights and counts")
    within = np.ones(len(ids), bool)
    within[sparse.offsets[:-1][sparse.offsets[:-1] < len(within)]] = False  # a row's first id follows nothing
    if (np.diff(ids, prepend=-1)[within] <= 0).any():
        raise ValueError("embeddings' sparse ids must ascend within a row")
    if weights.min(initial=0) < 0:
        raise ValueError("embeddings' sparse weights must be at least 0")
    return SparseRows(ids, weights, counts, sparse.offsets)


def _unit_vectors(name: str, vectors: np.ndarray, dim: int) -> np.ndarray:
    """float32 [n, dim]"""
    if vectors.ndim != 2 or vectors.shape[1] != dim:
        raise ModelMismatchError(f"embeddings' {name} vectors must be {dim} wide, got shape {vectors.shape}")
    vectors = _float32(f"{name} vectors", vectors)
    with np.errstate(over="ignore"):
        lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    wrong = np.flatnonzero(~(np.abs(lengths - 1) <= _UNIT))
    if len(wrong):
        raise ValueError(
            f"embeddings' {name} vectors must have length 1, got {lengths[wrong[0]]:.3g} in row {wrong[0]}"
        )
    return vectors


def _float32(name: str, values: np.ndarray) -> np.ndarray:
    if values.dtype.kind not in "fiu":
        raise TypeError(f"embeddings' {name} must be real numbers, got {values.dtype}")
    with np.errstate(over="ignore"):
        narrow = np.ascontiguousarray(values, np.float32)
    if not np.isfinite(narrow).all():
        raise ValueError(f"embeddings' {name} must be finite in float32")
    return narrow


def _int32(name: str, values: np.ndarray, *, least: int) -> np.ndarray:
    if values.dtype.kind not in "iu":
        raise TypeError(f"embeddings' {name} must be integers, got {values.dtype}")
    if len(values) and not least <= int(values.min()) <= int(values.max()) <= _LARGEST_INT32:
        raise ValueError(
            f"embeddings' {name} must be from {least} to {_LARGEST_INT32}, got {values.min()} to {values.max()}"
        )
    return np.ascontiguousarray(values, np.int32)


def _check_offsets(name: str, offsets: np.ndarray, n: int, total: int) -> None:
    if not isinstance(offsets, np.ndarray) or offsets.dtype.kind not in "iu":
        raise TypeError(f"embeddings' {name} offsets must be an array of integers, got {offsets!r}")
    if len(offsets) != n + 1 or offsets[0] != 0 or offsets[-1] != total or (np.diff(offsets) < 0).any():
        raise ValueError(f"embeddings' {name} offsets must be {n + 1} ascending numbers from 0 to {total}")


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
