"""Index: documents that can be searched, in a folder of their own. Joins the store, the token file and the state.

index.sqlite   the truth: documents, metadata, dense vectors, sparse rows, what was deleted
tokens.i8      the token vectors; the ending names the codec, a number how often the index was compacted
derived.json   names the files of the dense vectors, their graph and the posting arrays: made again from the truth when
               older or damaged

This file is what a user calls; view.py holds what is searched, searching.py what a search does, writing.py what a
transaction does.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from m3edge.embeddings import Embeddings
from m3edge.encoder import Encoder
from m3edge.errors import FormatError, ModelMismatchError
from m3edge.files import new_folder
from m3edge.index.check import CheckReport, check_index, repair_truth
from m3edge.index.compaction import CompactReport, begin_epoch
from m3edge.index.dense import MODES
from m3edge.index.documents import Document
from m3edge.index.graph import HnswConfig
from m3edge.index.searching import Hit, Searcher
from m3edge.index.settings import MODEL_KEYS, TOKEN_POOLING
from m3edge.index.snapshot import Snapshot
from m3edge.index.store import Store
from m3edge.index.tokens import CODECS
from m3edge.index.view import View
from m3edge.index.writer_lock import writer_lock
from m3edge.index.writing import AddReport, Writing, open_writing


class Index:
    """A searchable collection of documents. Safe to call from several threads; close it, or use it in a `with`.

    folder: where it lies; encoder: what texts are encoded with, or None
    dense_mode, token_codec, token_pooling: as it was made, see `create`
    view:   what searches read, for those parts of m3edge that measure; not for programs that search
    """

    def __init__(self, folder: Path, store: Store, encoder: Encoder | None, progress: bool | None) -> None:
        """Index.open and Index.create are the ways in."""
        self.folder = folder
        self.encoder = encoder
        self._store = store
        n_threads = encoder.session.n_threads if encoder is not None else 1
        self.view = View(store, n_threads, progress=progress)
        self._searcher = Searcher(self.view, encoder, n_threads)
        with self.view.reading() as (snapshot, _, _):
            self._model = snapshot.meta("model")
            self.dense_mode: str = snapshot.meta("dense", "hnsw")
            self.token_codec: str = snapshot.meta("token_codec", "fp16")
            self.token_pooling: int = snapshot.meta("token_pooling", 1)
        self._write_lock = threading.Lock()
        self._writer_thread: int | None = None
        self._writing: Writing | None = None

    @classmethod
    def create(
        cls,
        folder: Path | str,
        encoder: Encoder,
        *,
        dense: str = "auto",
        hnsw: HnswConfig | None = None,
        token_codec: str = "int8",
        token_pooling: int = 1,
        exist_ok: bool = False,
    ) -> Index:
        """Make an empty index for this encoder's model.

        dense:         how the nearest dense vectors are found: "exact" (all are scanned: nothing to build, nothing
            missed), "hnsw" (a graph, built as documents are added) or "auto", exact until a scan takes some 2 ms
        hnsw:          how the graph is built and searched
        token_codec:   how token vectors are stored: "int8" (a byte a dimension), "fp16" (two), "int4" (a half),
            "binary" (an eighth: signs only) or "none": a search encodes its candidates' texts anew, which takes as
            long as adding them did
        token_pooling: 2 or 3 merge a passage's token vectors into a half or a third as many; 1 keeps them all
        exist_ok:      open the index that is there, with what is in it and as it was made, instead of raising
        Raises FileExistsError when the folder is there and not empty; with exist_ok what `open` raises.
        """
        if dense not in MODES:
            raise ValueError(f"dense must be one of {', '.join(MODES)}, got {dense!r}")
        if token_codec not in CODECS:
            raise ValueError(f"token_codec must be one of {', '.join(CODECS)}, got {token_codec!r}")
        if token_pooling not in TOKEN_POOLING:
            raise ValueError(f"token_pooling must be 1, 2 or 3, got {token_pooling!r}")
        if token_codec == "none" and token_pooling != 1:
            raise ValueError(f"token_pooling must be 1 when token_codec is 'none', got {token_pooling!r}")
        if hnsw is not None and not isinstance(hnsw, HnswConfig):
            raise TypeError(f"hnsw must be an HnswConfig, got {type(hnsw).__name__}")
        _check_encoder(encoder)
        folder = Path(folder).absolute()  # the working directory may change
        if exist_ok and folder.is_dir() and any(folder.iterdir()):
            return cls.open(folder, encoder)
        model = {key: getattr(encoder.info, key) for key in MODEL_KEYS}
        with new_folder(folder) as staging:
            settings = {"dense": dense, "token_codec": token_codec, "token_pooling": token_pooling}
            Store.create(staging, {"model": model, "hnsw": asdict(hnsw or HnswConfig()), **settings})
        return cls.open(folder, encoder)

    @classmethod
    def open(cls, folder: Path | str, encoder: Encoder | None = None, *, progress: bool | None = False) -> Index:
        """Open an index: derived files are compared with their checksums, and a graph waits for the first search that
        wants it.

        encoder:  of the model the index was built with, in any precision; without one, searches take Embeddings only
        progress: a bar while derived files are brought up to date: True, or None for terminals only
        Raises FormatError when the folder is no index or is damaged, ModelMismatchError for another model.
        """
        folder = Path(folder).absolute()  # the working directory may change
        return cls(folder, _open_store(folder, encoder), encoder, progress)

    @classmethod
    def repair(
        cls, folder: Path | str, encoder: Encoder | None = None, *, progress: bool | None = False
    ) -> CheckReport:
        """Mend what can be mended of a closed index: derived files are made again; with an encoder, documents whose
        vectors are damaged and whose texts are whole are encoded again. Returns what is still wrong afterwards.

        Raises IndexLockedError when somebody is writing, ModelMismatchError for another model's encoder.
        """
        folder = Path(folder).absolute()  # the working directory may change
        with suppress(FormatError):  # what could not be mended is in the report
            repair_truth(_open_store(folder, encoder), encoder, progress=progress)
            cls.open(folder, encoder, progress=progress).close()
        return check_index(folder, progress=progress)

    def close(self) -> None:
        """Save the derived files if they are older than the documents, and let go of the folder.

        Waits for searches and writes of other threads. A disk without room for the derived files is a RuntimeWarning:
        they are made again when the index is opened.
        """
        self._refuse_inside_transaction("close the index")
        with self._write_lock:
            try:
                self.view.close()
            except OSError as error:
                message = f"{self.folder}: derived files not saved ({error}); they are made again when it is opened"
                warnings.warn(message, RuntimeWarning, stacklevel=2)

    def __enter__(self) -> Index:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Index {self.folder}, dense {self.dense_mode}, tokens {self.token_codec}>"

    # Documents. Inside a transaction these see what it wrote; everywhere else, what is committed.

    def __len__(self) -> int:
        with self._documents() as documents:
            return documents.n_documents

    def __contains__(self, id_: str) -> bool:
        return self.get(id_) is not None

    def __iter__(self) -> Iterator[Document]:
        """All documents, in the order they were added. What is added meanwhile comes too, what is deleted does not."""
        row = 0
        while True:
            with self._documents() as documents:
                block = documents.documents_after(row)
            if not block:
                return
            yield from (document for _, document in block)
            row = block[-1][0]

    def get(self, id_: str) -> Document | None:
        """The document with this id, or None."""
        if not isinstance(id_, str):
            raise TypeError(f"id_ must be a string, got {type(id_).__name__}")
        with self._documents() as documents:
            return documents.document(id_)

    def note(self, key: str) -> Any:
        """What `set_note` left under this key, or None."""
        with self._documents() as documents:
            return documents.note(key)

    @property
    def model(self) -> Mapping[str, Any]:
        """The model the index was built with: its name, fingerprint, precision and widths."""
        return dict(self._model)

    # Writing

    @contextmanager
    def transaction(self, *, progress: bool | None = False) -> Iterator[None]:
        """Make all that this thread adds, upserts, deletes and notes in the block durable together.

        Until the block has ended, neither other processes nor searches see anything of it; when it raises, or the
        process is killed, nothing of it happened. Within, a call that raises leaves what the calls before it wrote.

            with index.transaction():
                index.upsert(new_version)
                index.delete(old_ids)

        progress: a bar while the documents become searchable, at the end
        Raises IndexLockedError when another process is writing; another thread waits for its turn.
        """
        self._refuse_inside_transaction("begin another")
        with self._exclusively():
            self.view.make_ready_to_write(progress=progress)
            with open_writing(self._store, self.encoder) as writing:
                self._writing = writing
                try:
                    yield
                finally:
                    self._writing = None
            self.view.refresh(progress=progress)
            try:
                self.view.trim_wal()
            except OSError as error:
                message = (
                    f"{self.folder}: all is written and safe, but SQLite's write-ahead log goes on growing ({error})"
                )
                warnings.warn(message, RuntimeWarning, stacklevel=3)

    def add(
        self,
        documents: Iterable[Document | Mapping[str, Any]],
        *,
        embeddings: Embeddings | None = None,
        progress: bool | None = False,
        cancel: threading.Event | None = None,
    ) -> AddReport:
        """Add documents whose ids are new: all of them or, when anything goes wrong, none.

        documents:  Documents, or mappings with "id", "text" and, if wanted, "metadata"; taken one block at a time, so a
            generator of any length needs no more memory than a short list
        embeddings: of these documents' texts, in their order, where they are computed already (`encode_passages`, on
            whatever machine); without them the index's encoder makes them
        Raises ValueError for an id that is in the index or came twice, TypeError or ValueError for a document that is
        none or embeddings that are not theirs; CancelledError when `cancel` was set, IndexLockedError when another
        process is writing.
        """
        with self._joined(progress) as writing:
            return writing.add(documents, embeddings, replace=False, progress=progress, cancel=cancel)

    def upsert(
        self,
        documents: Iterable[Document | Mapping[str, Any]],
        *,
        embeddings: Embeddings | None = None,
        progress: bool | None = False,
        cancel: threading.Event | None = None,
    ) -> AddReport:
        """As `add`, but a document whose id is in the index takes the old one's place."""
        with self._joined(progress) as writing:
            return writing.add(documents, embeddings, replace=True, progress=progress, cancel=cancel)

    def delete(self, ids: str | Iterable[str]) -> int:
        """Remove documents; returns how many of the ids were there."""
        wanted = [ids] if isinstance(ids, str) else list(dict.fromkeys(ids))
        if (wrong := next((id_ for id_ in wanted if not isinstance(id_, str)), None)) is not None:
            raise TypeError(f"ids must be strings, got {wrong!r}")
        with self._joined() as writing:
            return writing.transaction.delete(wanted)

    def set_note(self, key: str, value: Any) -> None:
        """Keep a JSON value with the index: where its model lies, when it was crawled. Searches do not see it."""
        if not isinstance(key, str):
            raise TypeError(f"key must be a string, got {type(key).__name__}")
        with self._joined() as writing:
            writing.transaction.set_note(key, value)

    def compact(self, *, progress: bool | None = False) -> CompactReport:
        """Give back the room of deleted documents: token file, SQLite file and graph are written anew.

        Needs as much room again while it works. Killed at any instant, it leaves the index as it was or compacted;
        other readers keep their snapshot, and its room, until they refresh or close.
        """
        self._refuse_inside_transaction("compact the index")
        with self._exclusively():
            before = _folder_bytes(self.folder)
            try:
                begin_epoch(self._store, progress=progress)
            except BaseException:
                with suppress(OSError):  # on a disk that fails the new file's beginning stays, for the next writer
                    self.view.remove_leftovers()
                raise
            self.view.refresh(progress=progress)
            self.view.remove_leftovers()
            self.view.save_derived()
            self._store.vacuum()
            self.view.trim_wal(at_least=0)
            return CompactReport(before, _folder_bytes(self.folder))

    # Looking after it

    def refresh(self, *, progress: bool | None = False) -> None:
        """Take over what other processes committed since; an Index sees its own writes without it.

        Where another index took this one's place (built elsewhere, then renamed), it is that one which is searched from
        now on. Raises ModelMismatchError when its model or its other settings differ.
        """
        self.view.refresh(progress=progress)
        with suppress(OSError):  # who only reads need not know of a disk that is full
            self.view.trim_wal()

    def check(self, *, progress: bool | None = False) -> CheckReport:
        """Compare every file with its checksums; reads everything. Index.repair mends what can be mended."""
        return check_index(self.folder, progress=progress)

    # Searching

    def search(
        self,
        query: str | Embeddings,
        k: int = 10,
        *,
        weights: str | Sequence[float] = "general",
        filter: Mapping[str, Any] | None = None,
        candidates: int = 100,
        lexical: str = "m3",
        explain: bool = False,
    ) -> list[Hit]:
        """The k best documents, best first; fewer when the index holds fewer, or fewer pass the filter.

        query:      a text, or the embeddings of one text (n = 1) made with `encode_queries`
        weights:    of the dense, sparse and token scores: a preset's name ("general", "long", "flagembedding") or three
            numbers; a part with weight 0 is not computed
        filter:     what a document's metadata must fulfil, such as {"lang": "de", "year": {"$gte": 2020}}; `filters.py`
            says all that can be written
        candidates: documents the dense and the sparse part each put forward to be scored by all parts
        lexical:    how the sparse part scores, nothing encoded anew: "m3", the paper's way; "m3-idf", a query's weights
            times how rare their tokens are in this index; "bm25", no learned weights at all
        explain:    add to each hit which tokens made it score; needs a text
        """
        options = self._searcher.options(k, weights, filter, candidates, lexical)
        return self._searcher.search(query, options, explain)

    def search_batch(
        self,
        queries: Sequence[str] | Embeddings,
        k: int = 10,
        *,
        weights: str | Sequence[float] = "general",
        filter: Mapping[str, Any] | None = None,
        candidates: int = 100,
        lexical: str = "m3",
        progress: bool | None = False,
        cancel: threading.Event | None = None,
    ) -> list[list[Hit]]:
        """What `search` finds for each of many queries: encoded in batches, then searched on all threads.

        queries: texts, or the embeddings of several made with `encode_queries`; the others are as for `search`
        Raises CancelledError when `cancel` was set.
        """
        options = self._searcher.options(k, weights, filter, candidates, lexical)
        return self._searcher.search_batch(queries, options, progress=progress, cancel=cancel)

    @contextmanager
    def _documents(self) -> Iterator[Snapshot]:
        """The documents as this thread may see them."""
        if self._writer_thread == threading.get_ident() and self._writing is not None:
            yield self._writing.transaction
        else:
            with self.view.reading() as current:
                yield current.snapshot

    @contextmanager
    def _exclusively(self) -> Iterator[None]:
        with self._write_lock, writer_lock(self.folder):
            with self.view.reading():
                pass  # refuses when it is closed
            try:
                self._writer_thread = threading.get_ident()
                yield
            finally:
                self._writer_thread = None

    @contextmanager
    def _joined(self, progress: bool | None = False) -> Iterator[Writing]:
        """The transaction that is open in this thread, or one of its own."""
        if self._writer_thread == threading.get_ident() and self._writing is not None:
            yield self._writing
        else:
            with self.transaction(progress=progress):
                assert self._writing is not None
                yield self._writing

    def _refuse_inside_transaction(self, purpose: str) -> None:
        if self._writer_thread == threading.get_ident():
            raise ValueError(f"to {purpose}, end the transaction that is open in this thread first")


def _open_store(folder: Path, encoder: Encoder | None) -> Store:
    """The folder's store, once it is known to belong to this encoder's model."""
    if encoder is not None:
        _check_encoder(encoder)
    store = Store(folder)
    with closing(store.snapshot()) as snapshot:
        model = snapshot.meta("model")
    if encoder is not None and encoder.info.fingerprint != model["fingerprint"]:
        raise ModelMismatchError(
            f"{folder}: built with model {model['name']!r} (fingerprint {model['fingerprint'][:12]}), the encoder is "
            f"{encoder.info.name!r} ({encoder.info.fingerprint[:12]}); open it with that model or build a new index"
        )
    return store


def _check_encoder(encoder: Encoder) -> None:
    if not hasattr(encoder, "info"):  # a string, most often: the path of a model folder
        raise TypeError(f"encoder must be an Encoder, such as Encoder.load gives, got {type(encoder).__name__}")


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
