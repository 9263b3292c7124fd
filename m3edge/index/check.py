"""Looking at every byte of an index folder, and mending what can be mended without a backup."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from m3edge.encoder import Encoder
from m3edge.errors import FormatError
from m3edge.index.derived import MANIFEST, forget_damaged, read_derived
from m3edge.index.snapshot import NO_CRC32, Snapshot, problem_of_document
from m3edge.index.store import Store
from m3edge.index.tokens import TokenStore
from m3edge.index.writer_lock import writer_lock
from m3edge.index.writing import open_tokens, open_writing
from m3edge.progress import progress_bar

_BLOCK_ROWS = 500

# What mends a problem
REBUILD = "rebuild"  # derived files are made again from the documents
ENCODE = "encode"  # the documents' texts are whole: they are encoded again
BACKUP = "backup"  # nothing but a backup, or the documents from where they came


class Problem(NamedTuple):
    """file: the damaged file; what: what is wrong with it; documents: ids of those concerned, where that is known;
    remedy: "rebuild" and "encode", which `repair` does, or "backup"."""

    file: str
    what: str
    remedy: str
    documents: tuple[str, ...] = ()


class CheckReport(NamedTuple):
    """documents: how many are committed; problems: all that were found."""

    documents: int
    problems: tuple[Problem, ...]

    @property
    def sound(self) -> bool:
        return not self.problems


def check_index(folder: Path, *, progress: bool | None = False) -> CheckReport:
    """Compare all files of an index with their checksums; works on an index too damaged to be opened."""
    path = None
    try:
        store = Store(folder)
        path = store.path
        with closing(store.snapshot()) as snapshot:
            problems = [*_problems(folder, snapshot, progress)]
            return CheckReport(snapshot.n_documents, tuple(problems))
    except FormatError as error:
        return CheckReport(0, (Problem(str(path or folder), str(error), BACKUP),))


def repair_truth(store: Store, encoder: Encoder | None, *, progress: bool | None = False) -> None:
    """Encode documents with damaged vectors again, if there is an encoder, and drop damaged derived files.

    Opening the index makes the derived files again. Holds the writer's lock.
    """
    folder = store.path.parent
    with writer_lock(folder):
        problems = check_index(folder).problems
        if any(problem.remedy == REBUILD for problem in problems):
            forget_damaged(folder)
        ids = list(dict.fromkeys(id_ for problem in problems if problem.remedy == ENCODE for id_ in problem.documents))
        if ids and encoder is not None:
            with open_writing(store, encoder) as writing:
                documents = (document for id_ in ids if (document := writing.transaction.document(id_)) is not None)
                writing.add(documents, None, replace=True, progress=progress, cancel=None)


def unsound_tokens(snapshot: Snapshot, tokens: TokenStore, places: np.ndarray) -> np.ndarray:
    """int64 [n]: the rows of documents whose token vectors differ from their checksums.

    places: as `Snapshot.places` gives them; as many token rows as the file has must be mapped
    """
    rows, starts, counts, crc32s = places.T
    wrong = ~tokens.sound(starts, counts, crc32s)
    unknown = np.flatnonzero(crc32s == NO_CRC32)
    wrong[unknown] = starts[unknown] + counts[unknown] > tokens.n_rows
    for start, count, crc32 in snapshot.token_blocks() if len(unknown) else ():
        if not tokens.sound(np.array([start]), np.array([count]), np.array([crc32]))[0]:
            wrong[unknown] |= (starts[unknown] < start + count) & (starts[unknown] + counts[unknown] > start)
    return rows[wrong]


def _problems(folder: Path, snapshot: Snapshot, progress: bool | None) -> Iterator[Problem]:
    path = str(snapshot.path)
    for text in snapshot.integrity():
        yield Problem(path, f"SQLite: {text}", BACKUP)
    with progress_bar(2 * snapshot.n_documents, "row", "checking", progress) as bar:
        rows: set[int] = set()
        for entry in _entries(snapshot.document_entries, bar):
            rows.add(entry[0])
            if (problem := problem_of_document(*entry)) is not None:
                yield Problem(path, f"document in row {entry[0]}: {problem}", BACKUP, (str(entry[1]),))
        broken = []
        with_vectors: set[int] = set()
        for entry in _entries(snapshot.vector_entries, bar):
            with_vectors.add(entry[0])
            if (problem := snapshot.problem_of_vectors(entry)) is not None:
                broken.append(entry[0])
                yield _vectors_problem(snapshot, path, f"vectors in row {entry[0]}: {problem}", [entry[0]])
    if missing := sorted(rows - with_vectors):
        yield _vectors_problem(snapshot, path, "vectors are missing", missing)
    if len(rows) != snapshot.n_documents:
        yield Problem(path, f"holds {len(rows)} documents, expected {snapshot.n_documents}", BACKUP)
    yield from _token_problems(folder, snapshot, broken)
    try:
        derived = read_derived(folder)
    except FormatError as error:
        yield Problem(str(folder / MANIFEST), str(error), REBUILD)
    else:
        for problem in derived.damaged.values() if derived is not None else ():
            yield Problem(problem.split(": ")[0], problem, REBUILD)


def _token_problems(folder: Path, snapshot: Snapshot, broken: Sequence[int]) -> Iterator[Problem]:
    """broken: rows whose place in the token file means nothing"""
    tokens = open_tokens(folder, snapshot)
    tokens.map_rows(min(snapshot.token_rows, tokens.rows_on_disk()))
    places = snapshot.places()
    places = places[~np.isin(places[:, 0], broken)]
    if len(rows := unsound_tokens(snapshot, tokens, places)):
        yield _vectors_problem(snapshot, str(tokens.path), "token vectors differ from their checksums", rows.tolist())


def _vectors_problem(snapshot: Snapshot, file: str, what: str, rows: Sequence[int]) -> Problem:
    try:
        ids = tuple(document.id for document in snapshot.documents(rows).values())
    except FormatError:  # a text among them is damaged, too: reported with the documents
        ids = ()
    return Problem(file, what, ENCODE if len(ids) == len(rows) else BACKUP, ids)


def _entries(read: Callable[[int, int], list[tuple[Any, ...]]], bar: Any) -> Iterator[tuple[Any, ...]]:
    row = 0
    while found := read(row, _BLOCK_ROWS):
        yield from found
        row = found[-1][0]
        bar.update(len(found))
