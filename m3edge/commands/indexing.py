"""`m3edge index`: text files, folders and .jsonl files, cut into passages and added to an index."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from m3edge.commands.options import DEFAULT, add_session_options, load_encoder
from m3edge.encoder import Encoder
from m3edge.errors import FormatError
from m3edge.index import Document, Index
from m3edge.index.tokens import CODECS
from m3edge.jsonl import joined_text, read_jsonl, required_string
from m3edge.passages import split_passages
from m3edge.progress import progress_bar

_COMMIT_PASSAGES = 256  # what a kill can cost, at most
_TEXT_ENDINGS = frozenset({".txt", ".md", ".rst", ".text", ".adoc", ".tex", ".html", ".htm", ".csv", ".log"})


def add_commands(commands: Any) -> None:
    """Add `index` to the subparsers of the `m3edge` command."""
    index = commands.add_parser("index", help="add text files, folders and .jsonl files to an index")
    index.add_argument("index", type=Path, metavar="INDEX", help="index folder; made when it is not there")
    index.add_argument("--model", type=Path, required=True, metavar="MODEL", help="model folder")
    index.add_argument(
        "paths", nargs="+", type=Path, metavar="PATH", help="text file, folder, or .jsonl with _id, text"
    )
    index.add_argument("--passage-tokens", type=int, metavar="N", help="longest passage; by default the model's limit")
    index.add_argument(
        "--token-codec", choices=CODECS, default="int8", help=f"how a new index keeps token vectors; {DEFAULT}"
    )
    index.add_argument(
        "--token-pooling",
        type=int,
        choices=(1, 2, 3),
        default=1,
        help=f"a new index merges a passage's token vectors into a half or a third as many; {DEFAULT}",
    )
    add_session_options(index)
    index.set_defaults(run=_index)


class _FileDocument(NamedTuple):
    """A document of the files to be indexed, cut into passages."""

    id: str
    passages: list[Document]


def _index(options: argparse.Namespace) -> None:
    for path in options.paths:
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
    encoder = load_encoder(options, options.model)
    is_new = not options.index.exists() or not any(options.index.iterdir())
    index = (
        Index.create(options.index, encoder, token_codec=options.token_codec, token_pooling=options.token_pooling)
        if is_new
        else Index.open(options.index, encoder, progress=None)
    )
    try:
        with index, progress_bar(None, "passage", "indexing", None) as bar:
            if index.note("model_folder") != str(options.model.resolve()):
                index.set_note("model_folder", str(options.model.resolve()))  # so that `search` finds it
            added = seen = 0
            for batch in _batches(_read_documents(options.paths, encoder, options.passage_tokens)):
                passages = [passage for document in batch for passage in document.passages]
                new = [passage for passage in passages if index.get(passage.id) != passage]
                left_over = [id_ for document in batch for id_ in _left_over_passages(index, document)]
                if new or left_over:
                    with index.transaction():
                        added += index.upsert(new).added
                        index.delete(left_over)
                seen += len(passages)
                bar.update(len(passages))
            unchanged = f", {seen - added} unchanged" if seen > added else ""
            print(f"{added} passages added{unchanged}, {len(index)} in the index {options.index}")
    except BaseException:
        if is_new and _is_empty(options.index):
            shutil.rmtree(options.index)
        raise


def _is_empty(folder: Path) -> bool:
    with Index.open(folder) as index:
        return len(index) == 0


def _batches(documents: Iterator[_FileDocument]) -> Iterator[list[_FileDocument]]:
    """Whole documents, until a batch has enough passages to be committed. Raises ValueError for an id that came twice:
    of two documents only one can have it."""
    batch: list[_FileDocument] = []
    seen: set[str] = set()
    for document in documents:
        if document.id in seen:
            raise ValueError(f"id {document.id!r} came twice; every document needs an _id, or a path, of its own")
        seen.add(document.id)
        batch.append(document)
        if sum(len(document.passages) for document in batch) >= _COMMIT_PASSAGES:
            yield batch
            batch = []
    if batch:
        yield batch


def _read_documents(paths: Sequence[Path], encoder: Encoder, passage_tokens: int | None) -> Iterator[_FileDocument]:
    """Every document under the paths, in order; its passages' metadata say where in it they stand."""
    for path in paths:
        for id_, text, metadata in _read_path(path):
            places = split_passages(text, encoder, passage_tokens)
            passages = []
            for number, (start, end) in enumerate(places):
                place = {"document": id_, "start": start, "end": end, "line": text.count("\n", 0, start) + 1}
                passages.append(Document(_passage_id(id_, number, len(places)), text[start:end], {**metadata, **place}))
            yield _FileDocument(id_, passages)


def _passage_id(id_: str, number: int, count: int) -> str:
    return id_ if count == 1 else f"{id_}#{number}"


def _left_over_passages(index: Index, document: _FileDocument) -> list[str]:
    """Ids of passages that a document had when it was indexed before, and no longer has."""
    count = len(document.passages)
    left_over = [document.id] if count > 1 and document.id in index else []
    number = count if count > 1 else 0
    while (passage_id := f"{document.id}#{number}") in index:
        left_over.append(passage_id)
        number += 1
    return left_over


def _read_path(path: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    if path.is_dir():
        for child in sorted(path.rglob("*")):
            if child.is_file() and (child.suffix.lower() in _TEXT_ENDINGS or child.suffix == ".jsonl"):
                yield from _read_path(child)
    elif path.suffix == ".jsonl":
        for where, entry in read_jsonl(path):
            known = ("_id", "title", "text", "metadata")
            extra = {key: value for key, value in entry.items() if key not in known}
            metadata = entry.get("metadata") or {}
            if not isinstance(metadata, dict):
                raise FormatError(f"{where}: expected an object 'metadata', got {metadata!r}")
            title = {"title": entry["title"]} if entry.get("title") else {}
            yield required_string(where, entry, "_id"), joined_text(where, entry), {**title, **extra, **metadata}
    else:
        # A byte that is no UTF-8 must not cost the rest of a folder: it becomes U+FFFD.
        text = path.read_text(encoding="utf-8-sig", errors="replace")
        if text.strip():
            yield str(path), text, {}
