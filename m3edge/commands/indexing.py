"""`m3edge index` and `delete`: texts cut into passages and added to an index, and taken out again."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from m3edge.commands.options import add_session_options, load_encoder, positive
from m3edge.encoder import Encoder
from m3edge.index import Document, Index
from m3edge.index.dense import MODES
from m3edge.index.documents import check_document
from m3edge.index.tokens import CODECS
from m3edge.passages import PLACE, place_of, split_passages
from m3edge.progress import progress_bar
from m3edge.text_files import JSONL_ENDING, TEXT_ENDINGS, TextFiles, is_jsonl

_COMMIT_PASSAGES = 256  # what a kill can cost, at most
_MODEL, _PASSAGE_TOKENS = "model_folder", "passage_tokens"  # notes in the index
_ONCE = ("dense", "token_codec", "token_pooling")  # what is chosen when an index is made


def add_commands(commands: Any) -> None:
    """Add both to the subparsers of the `m3edge` command."""
    endings = " ".join((*TEXT_ENDINGS, JSONL_ENDING))
    index = commands.add_parser(
        "index",
        help="add text files, folders and .jsonl files to an index",
        description=f"Of a folder it takes files that end in {endings}, and passes over hidden ones. Run again, it "
        "encodes only what is new or changed.",
    )
    index.add_argument("index", type=Path, metavar="INDEX", help="index folder; made when it is not there")
    index.add_argument("--model", type=Path, required=True, metavar="MODEL", help="model folder")
    index.add_argument(
        "paths", nargs="+", type=Path, metavar="PATH", help="text file, folder, or .jsonl with _id, text"
    )
    index.add_argument(
        "--passage-tokens",
        type=positive,
        metavar="N",
        help="longest passage; by default as the last time, at first the model's limit",
    )
    index.add_argument(
        "--prune", action="store_true", help="delete passages of files and lines under the PATHs that are gone"
    )
    index.add_argument("--dense", choices=MODES, help="how a new index finds dense vectors; default: auto")
    index.add_argument("--token-codec", choices=CODECS, help="how a new index keeps token vectors; default: int8")
    index.add_argument(
        "--token-pooling",
        type=int,
        choices=(1, 2, 3),
        help="a new index merges a passage's token vectors into a half or a third as many; default: 1",
    )
    add_session_options(index)
    index.set_defaults(run=_index)

    delete = commands.add_parser("delete", help="delete documents from an index")
    delete.add_argument("index", type=Path, metavar="INDEX", help="index folder")
    delete.add_argument("ids", nargs="+", metavar="ID", help="a document's _id or path: all its passages")
    delete.set_defaults(run=_delete)


class _CutDocument(NamedTuple):
    """A document cut into passages; none of a text file that is empty. where: for messages"""

    id: str
    passages: list[Document]
    where: str


class _Stored:
    """Which passages of which document an index holds, kept up to date while documents come in."""

    def __init__(self, index: Index | None) -> None:
        self.passages: dict[str, set[str]] = {}  # by the document's id
        self.document_of: dict[str, str] = {}  # by the passage's id
        self.file_of: dict[str, str] = {}  # by the document's id
        self.text_of: dict[str, str] = {}  # by the path of a text file: its document's id
        for passage in index or ():
            place = place_of(passage.id, passage.metadata)
            document, file = str(place["document"]), place.get("file")
            self.passages.setdefault(document, set()).add(passage.id)
            self.document_of[passage.id] = document
            if isinstance(file, str):
                self.file_of[document] = file
                if not is_jsonl(Path(file)):
                    self.text_of[file] = document

    def take(self, document: _CutDocument) -> list[str]:
        """Note the document's passages. Returns the ids of those it had and no longer has.

        Raises ValueError when a passage would take the place of another document's.
        """
        ids = {passage.id for passage in document.passages}
        gone = self.passages.get(document.id, set()) - ids
        for id_ in sorted(ids):
            other = self.document_of.setdefault(id_, document.id)
            if other != document.id:
                raise ValueError(
                    f"{document.where}: passage {id_!r} of document {document.id!r} has the id of one of document "
                    f"{other!r}; give one of the two another _id"
                )
        for id_ in gone:
            del self.document_of[id_]
        self.passages[document.id] = ids
        return sorted(gone)


def _index(options: argparse.Namespace) -> None:
    texts = TextFiles(options.paths)
    if options.index.exists() and not options.index.is_dir():
        raise NotADirectoryError(f"{options.index}: expected the folder of an index, or none; this is a file")
    encoder = load_encoder(options, options.model)
    with ExitStack() as opened, progress_bar(None, "passage", "indexing", None) as bar:
        index = None
        if options.index.exists() and any(options.index.iterdir()):
            index = opened.enter_context(Index.open(options.index, encoder, progress=None))
            _refuse_other_settings(options, index)
        passage_tokens = options.passage_tokens or (index.note(_PASSAGE_TOKENS) if index is not None else None)
        stored, seen = _Stored(index), set[str]()
        added = removed = unchanged = truncated = 0
        for batch in _batches(_cut(texts, encoder, passage_tokens, stored.text_of), seen):
            gone = [id_ for document in batch for id_ in stored.take(document)]
            if index is None:  # not before: texts that cannot be read leave no empty index behind
                index = opened.enter_context(_create(options, encoder))
            passages = [passage for document in batch for passage in document.passages]
            new = [passage for passage in passages if index.get(passage.id) != passage]
            _take_notes(index, options)
            if gone or new:  # a transaction that changes nothing is a commit, too
                with index.transaction():
                    removed += index.delete(gone)
                    report = index.upsert(new)
                added += report.added
                truncated += len(report.truncated)
            unchanged += len(passages) - len(new)
            bar.update(len(passages))
        if index is None:
            raise ValueError(
                f"{', '.join(map(str, options.paths))}: no texts; of a folder, files that end in "
                f"{', '.join((*TEXT_ENDINGS, JSONL_ENDING))} are taken"
            )
        lost = _lost(stored, seen, options.paths)
        if lost and options.prune:
            removed += index.delete(lost)
        counts = [f"{added} passages added"]
        counts += [f"{unchanged} unchanged"] if unchanged else []
        counts += [f"{removed} removed"] if removed else []
        counts += [f"{truncated} longer than the model reads"] if truncated else []
        print(f"{', '.join(counts)}, {len(index)} in the index {options.index}")
        if texts.passed_over:
            print(f"{len(texts.passed_over)} files passed over, such as {texts.passed_over[0]}")
        if lost and not options.prune:
            print(f"{len(lost)} passages are of files or lines that are gone; --prune deletes them")


def _create(options: argparse.Namespace, encoder: Encoder) -> Index:
    chosen = {name: getattr(options, name) for name in _ONCE if getattr(options, name) is not None}
    return Index.create(options.index, encoder, **chosen)


def _refuse_other_settings(options: argparse.Namespace, index: Index) -> None:
    for name, here in zip(_ONCE, (index.dense_mode, index.token_codec, index.token_pooling), strict=True):
        wanted = getattr(options, name)
        if wanted not in (None, here):
            option = f"--{name.replace('_', '-')}"
            raise ValueError(
                f"{option} is {here} in {options.index} and cannot be changed, got {wanted}; make a new index"
            )


def _take_notes(index: Index, options: argparse.Namespace) -> None:
    """What later commands go by: where the model is, how long passages are."""
    notes = {_MODEL: str(options.model.resolve()), _PASSAGE_TOKENS: options.passage_tokens}
    for key, value in notes.items():
        if value not in (None, index.note(key)):
            index.set_note(key, value)


def _cut(
    texts: TextFiles, encoder: Encoder, passage_tokens: int | None, ids: Mapping[str, str]
) -> Iterator[_CutDocument]:
    """Every text as a document whose passages' metadata say where in it they stand.

    ids: the id that a text file has in the index, by its path: named in another way, it is the same document
    Raises ValueError, beginning with the file and the line, for a text that cannot be indexed.
    """
    for found in texts:
        is_file = not is_jsonl(found.file)
        id_ = ids.get(str(found.file), found.id) if is_file else found.id
        if PLACE in found.metadata:
            raise ValueError(f"{found.where}: the field {PLACE!r} is for m3edge to fill; give yours another name")
        check_document(found.where, Document(id_, found.text, found.metadata))
        places = split_passages(found.text, encoder, passage_tokens) if found.text.strip() or not is_file else []
        passages = []
        for number, (start, end) in enumerate(places):
            place = {
                "document": id_,
                "file": str(found.file),
                "start": start,
                "end": end,
                "line": found.text.count("\n", 0, start) + 1,
            }
            metadata = {**found.metadata, PLACE: place}
            passage_id = id_ if len(places) == 1 else f"{id_}#{number}"
            passages.append(Document(passage_id, found.text[start:end], metadata))
        yield _CutDocument(id_, passages, found.where)


def _batches(documents: Iterator[_CutDocument], seen: set[str]) -> Iterator[list[_CutDocument]]:
    """Whole documents, until a batch has enough passages to be committed; their ids go into `seen`. Raises ValueError
    for an id that came twice: of two documents only one can have it."""
    batch: list[_CutDocument] = []
    for document in documents:
        if document.id in seen:
            raise ValueError(
                f"{document.where}: id {document.id!r} came twice; every document needs an _id, or a path, of its own"
            )
        seen.add(document.id)
        batch.append(document)
        if sum(len(document.passages) for document in batch) >= _COMMIT_PASSAGES:
            yield batch
            batch = []
    if batch:
        yield batch


def _lost(stored: _Stored, seen: set[str], paths: list[Path]) -> list[str]:
    """Passages of documents that were in one of the files, or under one of the folders, and did not come again."""
    roots = {path.resolve() for path in paths}
    lost = []
    for document, passages in stored.passages.items():
        file = stored.file_of.get(document)
        if document not in seen and file is not None and roots.intersection((Path(file), *Path(file).parents)):
            lost += sorted(passages)
    return lost


def _delete(options: argparse.Namespace) -> None:
    with Index.open(options.index, progress=None) as index:
        stored = _Stored(index)
        unknown = [id_ for id_ in options.ids if id_ not in stored.passages]
        if unknown:
            raise ValueError(f"{options.index}: no document {unknown[0]!r}; nothing was deleted")
        n_deleted = index.delete(passage for id_ in options.ids for passage in stored.passages[id_])
        print(f"{n_deleted} passages deleted, {len(index)} in the index {options.index}")
