"""Looking at every byte of an index folder, and mending what can be mended without a backup."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from m3edge.encoder import Encoder
from m3edge.errors import FormatError
from m3edge.index.derived import MANIFEST, Derived, derived_and_problems, forget_damaged
from m3edge.index.snapshot import Snapshot
from m3edge.index.state import saved_places
from m3edge.index.store import FILE_NAME, Store
from m3edge.index.stored_rows import NO_CRC32, problem_of_document
from m3edge.index.tokens import TokenStore
from m3edge.index.writer_lock import writer_lock
from m3edge.index.writing import open_tokens, open_writing
from m3edge.progress import progress_bar

_BLOCK_ROWS = 500
_ATTEMPTS = 3  # to find an index sound that somebody compacts meanwhile

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
    """Compare all files of an index with their checksums; works on an index too damaged to be opened.

    Raises FormatError when the folder is no index.
    """
    for _ in range(_ATTEMPTS):
        report, was_newest = _checked(folder, progress)
        if report.sound or was_newest:  # else files may be missing because nobody needs them any more
            break
    return report


def repair_truth(store: Store, encoder: Encoder | None, *, progress: bool | None = False) -> None:
    """Encode documents with damaged vectors again, if there is an encoder, and drop damaged derived files.

    Opening the index makes the derived files again. Holds the writer's lock.
    """
    folder = store.path.parent
    with writer_lock(folder):
        problems = check_index(folder).problems
        if any(problem.file == str(folder / MANIFEST) for problem in problems):
            (folder / MANIFEST).unlink(missing_ok=True)
        elif any(problem.remedy == REBUILD for problem in problems):
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


def _checked(folder: Path, progress: bool | None) -> tuple[CheckReport, bool]:
    """The report on what is committed now, and whether nothing was committed since."""
    path = folder / FILE_NAME
    try:
        store = Store(folder)
        with closing(store.snapshot()) as snapshot, closing(open_tokens(folder, snapshot)) as tokens:
            with suppress(FormatError, FileNotFoundError):  # removed between two looks at it: nothing is mapped
                tokens.map_rows(min(snapshot.token_rows, tokens.rows_on_disk()))
            problems = [*_problems_of_truth(snapshot, tokens, progress)]
            derived, damaged = derived_and_problems(folder)
            problems += [_problem_of(Path(text.split(": ")[0]), text, REBUILD) for text in damaged]
            if not problems and derived is not None and not _tells_of(snapshot, derived):
                what = "made from other documents than those that are committed; it is made again from these"
                problems.append(Problem(str(folder / MANIFEST), what, REBUILD))
            with closing(store.snapshot()) as newest:
                is_newest = newest.generation == snapshot.generation
            return CheckReport(snapshot.n_documents, tuple(problems)), is_newest
    except FormatError as error:
        if not path.is_file():  # a wrong folder is not damage, and no backup mends it
            raise
        return CheckReport(0, (_problem_of(path, error, BACKUP),)), True


def _problems_of_truth(snapshot: Snapshot, tokens: TokenStore, progress: bool | None) -> Iterator[Problem]:
    """tokens: as many rows as the file has, mapped; a compaction may have removed it since"""
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
    places = snapshot.places()
    places = places[~np.isin(places[:, 0], broken)]  # a broken row's place in the token file means nothing
    if len(unsound := unsound_tokens(snapshot, tokens, places)):
        what = "token vectors differ from their checksums"
        yield _vectors_problem(snapshot, str(tokens.path), what, unsound.tolist())


def _tells_of(snapshot: Snapshot, derived: Derived) -> bool:
    """Whether derived files that claim to be of this generation are: each document's token vectors have a checksum.

    Older ones are brought up to date when the index is opened, newer ones are not used.
    """
    if derived.stamp.generation != snapshot.generation:
        return True
    if derived.stamp.epoch != snapshot.epoch:
        return False
    saved = saved_places(derived)
    return saved is None or np.array_equal(saved, snapshot.places())


def _problem_of(file: Path, message: object, remedy: str) -> Problem:
    """What a message says that begins with the file's name, which a Problem has apart."""
    return Problem(str(file), str(message).removeprefix(f"{file}: "), remedy)


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
