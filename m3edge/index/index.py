"""Index: documents that can be searched, in a folder of their own. Joins the store, the token file and the state.

index.sqlite   the truth: documents, metadata, dense vectors, sparse rows, what was deleted
tokens.i8      the token vectors; the ending names the codec
dense.hnsw     derived: the dense graph       } each with a stamp beside it; made again from the truth
postings.npz   derived: the posting arrays    } when older or damaged
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from m3edge.embeddings import Embeddings
from m3edge.encoder import Encoder
from m3edge.errors import CancelledError, FormatError, ModelMismatchError
from m3edge.files import new_folder
from m3edge.index.dense import HnswConfig
from m3edge.index.explain import Explanation, explain
from m3edge.index.pooling import pool_tokens
from m3edge.index.search import Ranking, needed_heads, search
from m3edge.index.sparse import LEXICAL
from m3edge.index.state import SearchState
from m3edge.index.store import Document, Store, damaged
from m3edge.index.tokens import CODECS, TokenStore
from m3edge.model_folder import PRESETS
from m3edge.progress import progress_bar
from m3edge.scoring import Weights, resolve_weights

_ADD_BLOCK = 256  # documents encoded and written together: bounds an add's memory
_MODEL_KEYS = ("name", "fingerprint", "precision", "dense_dim", "token_dim")


class PartScores(NamedTuple):
    """The three parts of a hit's score, before weighting; None where the part's weight was 0."""

    dense: float | None
    sparse: float | None
    tokens: float | None


class Hit(NamedTuple):
    """One found document; score: the weighted sum of the parts, higher is better."""

    id: str
    score: float
    text: str
    metadata: Mapping[str, Any]
    scores: PartScores
    explanation: Explanation | None = None


class AddReport(NamedTuple):
    """added: how many documents; truncated: ids of those longer than the model reads, whose end cannot be found."""

    added: int
    truncated: tuple[str, ...]


class Index:
    """A searchable collection of documents. Safe to call from several threads; close it, or use it in a `with`."""

    def __init__(self, folder: Path, store: Store, encoder: Encoder | None) -> None:
        self.folder = folder
        self.encoder = encoder
        self._store = store
        self._model = store.meta("model")
        self.token_codec: str = store.meta("token_codec", "fp16")
        self.token_pooling: int = store.meta("token_pooling", 1)
        self._tokens = TokenStore(folder, self._model["token_dim"], self.token_codec)
        n_threads = encoder.session.n_threads if encoder is not None else 1
        self._n_threads = n_threads
        config = HnswConfig(**store.meta("hnsw"))
        self._state = SearchState.load(folder, store, self._model["dense_dim"], config, n_threads)
        self._saved_generation = self._state.stamp.generation
        self._state_lock = threading.Lock()

    @classmethod
    def create(
        cls,
        folder: Path | str,
        encoder: Encoder,
        *,
        hnsw: HnswConfig | None = None,
        token_codec: str = "int8",
        token_pooling: int = 1,
    ) -> Index:
        """Make an empty index for this encoder's model.

        token_codec:   how token vectors are stored: "int8" (a byte a dimension), "fp16" (two), "int4" (a half) or
            "binary" (an eighth: signs only)
        token_pooling: 2 or 3 merge a passage's token vectors into a half or a third as many; 1 keeps them all
        Raises FileExistsError when the folder is there and not empty.
        """
        if token_codec not in CODECS:
            raise ValueError(f"token_codec must be one of {', '.join(CODECS)}, got {token_codec!r}")
        if token_pooling not in (1, 2, 3):
            raise ValueError(f"token_pooling must be 1, 2 or 3, got {token_pooling!r}")
        folder = Path(folder)
        model = {key: getattr(encoder.info, key) for key in _MODEL_KEYS}
        with new_folder(folder) as staging:
            settings = {"token_codec": token_codec, "token_pooling": token_pooling}
            Store.create(staging, {"model": model, "hnsw": asdict(hnsw or HnswConfig()), **settings})
        return cls.open(folder, encoder)

    @classmethod
    def open(cls, folder: Path | str, encoder: Encoder | None = None, *, progress: bool | None = False) -> Index:
        """Open an index.

        encoder:  of the model the index was built with, in any precision; without one, searches take Embeddings only
        progress: a bar while derived files are brought up to date: True, or None for terminals only
        Raises FormatError when the folder is no index or is damaged, ModelMismatchError for another model.
        """
        folder = Path(folder)
        store = Store.open(folder)
        try:
            _check_model(folder, store.meta("model"), encoder)
            index = cls(folder, store, encoder)
            index.refresh(progress=progress)
        except sqlite3.DatabaseError as error:
            store.close()
            raise damaged(store.path, error) from error
        except BaseException:
            store.close()
            raise
        return index

    def close(self) -> None:
        """Save the derived files if they are older than the documents, and let go of the folder."""
        with self._state_lock:
            if self._state.stamp.generation != self._saved_generation and os.access(self.folder, os.W_OK):
                self._state.save(self.folder)
                self._saved_generation = self._state.stamp.generation
            self._tokens.close()
            self._store.close()

    def __enter__(self) -> Index:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Documents

    def __len__(self) -> int:
        return self._store.count()

    def __contains__(self, id_: str) -> bool:
        return self._store.document(id_) is not None

    def get(self, id_: str) -> Document | None:
        """The document with this id, or None."""
        return self._store.document(id_)

    def note(self, key: str) -> Any:
        """What `set_note` left under this key, or None."""
        return self._store.note(key)

    def set_note(self, key: str, value: Any) -> None:
        """Keep a JSON value with the index: where its model lies, when it was crawled. Searches do not see it."""
        with self._store.transaction():
            self._store.set_note(key, value)
        self.refresh()

    @property
    def model(self) -> Mapping[str, Any]:
        """The model the index was built with: its name, fingerprint, precision and widths."""
        return dict(self._model)

    def add(
        self,
        documents: Iterable[Document | Mapping[str, Any]],
        *,
        progress: bool | None = False,
        cancel: threading.Event | None = None,
    ) -> AddReport:
        """Add documents whose ids are new: all of them or, when anything goes wrong, none.

        documents: Documents, or mappings with "id", "text" and, if wanted, "metadata"; taken one block at a time, so a
            generator of any length needs no more memory than a short list
        Raises ValueError for an id that is in the index or came twice, TypeError or ValueError for a document that is
        none; CancelledError when `cancel` was set.
        """
        return self._write(documents, replace=False, progress=progress, cancel=cancel)

    def upsert(
        self,
        documents: Iterable[Document | Mapping[str, Any]],
        *,
        progress: bool | None = False,
        cancel: threading.Event | None = None,
    ) -> AddReport:
        """As `add`, but a document whose id is in the index takes the old one's place."""
        return self._write(documents, replace=True, progress=progress, cancel=cancel)

    def delete(self, ids: str | Iterable[str]) -> int:
        """Remove documents; returns how many of the ids were there."""
        wanted = [ids] if isinstance(ids, str) else list(dict.fromkeys(ids))
        with self._store.transaction():
            deleted = self._store.delete(wanted)
        self.refresh()
        return deleted

    def refresh(self, *, progress: bool | None = False) -> None:
        """Take over what other processes committed since; an Index sees its own writes without it."""
        with self._state_lock:
            self._tokens.map_rows(self._store.token_rows)
            self._state.catch_up(self._store, progress=progress)

    def check(self) -> None:
        """Compare all token vectors with their checksums; reads the whole token file.

        Raises FormatError that names the damaged part and its documents; upsert these again, their texts are whole.
        """
        with self._state_lock:
            for start, count, crc32 in self._store.token_blocks():
                ids = self._store.ids_in_tokens(start, count)
                if ids and self._tokens.checksum(start, count) != crc32:  # without documents nobody reads it
                    raise FormatError(
                        f"{self._tokens.path}: token vectors {start} to {start + count} are damaged; upsert their "
                        f"{len(ids)} documents again, from {ids[:1]} to {ids[-1:]}, or restore a backup"
                    )

    # Searching

    def search(
        self,
        query: str | Embeddings,
        k: int = 10,
        *,
        weights: str | Sequence[float] = "general",
        candidates: int = 100,
        lexical: str = "m3",
        explain: bool = False,
    ) -> list[Hit]:
        """The k best documents, best first; fewer when the index holds fewer.

        query:      a text, or the embeddings of one text (n = 1) made with `encode_queries`
        weights:    of the dense, sparse and token scores: a preset's name ("general", "long", "flagembedding") or three
            numbers; a part with weight 0 is not computed
        candidates: documents the dense and the sparse part each put forward to be scored by all parts
        lexical:    how the sparse part scores, nothing encoded anew: "m3", the paper's way; "m3-idf", a query's weights
            times how rare their tokens are in this index; "bm25", no learned weights at all
        explain:    add to each hit which tokens made it score; needs a text
        """
        _check_count("k", k)
        _check_count("candidates", candidates)
        presets = self.encoder.info.presets if self.encoder is not None else PRESETS
        resolved = resolve_weights(weights, presets)
        if lexical not in LEXICAL:
            raise ValueError(f"lexical must be one of {', '.join(LEXICAL)}, got {lexical!r}")
        if explain and not isinstance(query, str):
            raise ValueError("explain needs the query as a text, got Embeddings")
        embeddings = self._embed(query, resolved, explain)
        with self._state_lock:
            ranking = search(self._state, self._tokens, embeddings, k, resolved, candidates, lexical, self._n_threads)
            hits = self._hits(ranking)
        if explain:
            assert isinstance(query, str)
            hits = [hit._replace(explanation=self._explain(query, embeddings, hit, lexical)) for hit in hits]
        return hits

    def _embed(self, query: str | Embeddings, weights: Weights, explain: bool) -> Embeddings:
        heads = ("dense", "sparse", "tokens") if explain else needed_heads(weights)
        if isinstance(query, str):
            return self._need_encoder("search for a text").encode_queries(query, heads=heads)
        if not isinstance(query, Embeddings):
            raise TypeError(f"query must be a string or Embeddings, got {type(query).__name__}")
        if len(query) != 1:
            raise ValueError(f"query must be the embeddings of one text, got {len(query)}")
        missing = [head for head in heads if getattr(query, head) is None]
        if missing:
            raise ValueError(f"query has no {' and no '.join(missing)} part, which weights {tuple(weights)} need")
        for head, vectors, dim in (
            ("dense", query.dense, self._model["dense_dim"]),
            ("tokens", query.tokens and query.tokens.vectors, self._model["token_dim"]),
        ):
            if head in heads and vectors is not None and vectors.shape[1] != dim:
                raise ModelMismatchError(f"query's {head} vectors are {vectors.shape[1]} wide, the index's {dim}")
        return query

    def _hits(self, ranking: Ranking) -> list[Hit]:
        documents = self._store.documents(ranking.rows.tolist())
        hits = []
        for i, row in enumerate(ranking.rows.tolist()):
            if row in documents:  # gone when another process deleted it and this one has not refreshed
                document = documents[row]
                parts = (None if part is None else float(part[i]) for part in ranking[2:])
                hits.append(
                    Hit(document.id, float(ranking.scores[i]), document.text, document.metadata, PartScores(*parts))
                )
        return hits

    def _explain(self, query: str, embeddings: Embeddings, hit: Hit, lexical: str) -> Explanation:
        encoder = self._need_encoder("explain a hit")
        info, tokenizer = encoder.info, encoder.tokenizer
        (query_text,) = tokenizer.tokenize([query], prefix=info.query_prefix, max_length=info.max_length)
        (passage_text,) = tokenizer.tokenize(
            [hit.text], prefix=info.passage_prefix, max_length=info.max_length, mcls_interval=encoder.mcls_interval
        )
        passage = encoder.encode_passages(hit.text, heads=("sparse", "tokens"))
        assert embeddings.sparse is not None
        assert passage.sparse is not None
        with self._state_lock:
            postings = self._state.postings
            query_weights = postings.query_weights(embeddings.sparse, lexical)
            passage_weights = postings.passage_weights(passage.sparse, lexical)
        return explain(tokenizer, query_text, embeddings, passage_text, passage, query_weights, passage_weights)

    # Writing

    def _write(
        self,
        documents: Iterable[Document | Mapping[str, Any]],
        *,
        replace: bool,
        progress: bool | None,
        cancel: threading.Event | None,
    ) -> AddReport:
        encoder = self._need_encoder("add documents")
        total = len(documents) if isinstance(documents, Sequence) else None
        seen: set[str] = set()
        truncated: list[str] = []
        with (
            progress_bar(total, "document", "adding", progress) as bar,
            self._store.transaction(),
        ):
            for block in _blocks(_checked_documents(documents), _ADD_BLOCK):
                if cancel is not None and cancel.is_set():
                    raise CancelledError(f"adding was cancelled after {len(seen)} documents; none of them was added")
                ids = [document.id for document in block]
                _refuse_duplicates(ids, seen)
                if replace:
                    self._store.delete(ids)
                elif known := self._store.existing(ids):
                    raise ValueError(f"documents: id {known[0]!r} is already in the index; use upsert to replace it")
                embeddings = encoder.encode_passages([document.text for document in block], cancel=cancel)
                assert embeddings.dense is not None
                assert embeddings.sparse is not None
                assert embeddings.tokens is not None
                tokens = pool_tokens(embeddings.tokens, self.token_pooling)
                start = self._store.token_rows
                checksum = self._tokens.write(start, tokens.vectors)
                self._store.insert_token_block(start, len(tokens.vectors), checksum)
                lengths = tokens.offsets[1:] - tokens.offsets[:-1]
                self._store.insert(block, embeddings.dense, embeddings.sparse, lengths)
                truncated += [id_ for id_, cut in zip(ids, embeddings.truncated, strict=True) if cut]
                bar.update(len(block))
        self.refresh(progress=progress)
        return AddReport(len(seen), tuple(truncated))

    def _need_encoder(self, purpose: str) -> Encoder:
        if self.encoder is None:
            raise ValueError(f"to {purpose}, open the index with its encoder: Index.open(folder, encoder)")
        return self.encoder


def _check_model(folder: Path, model: Mapping[str, Any], encoder: Encoder | None) -> None:
    if encoder is not None and encoder.info.fingerprint != model["fingerprint"]:
        raise ModelMismatchError(
            f"{folder}: built with model {model['name']!r} (fingerprint {model['fingerprint'][:12]}), the encoder is "
            f"{encoder.info.name!r} ({encoder.info.fingerprint[:12]}); open it with that model or build a new index"
        )


def _check_count(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def _checked_documents(documents: Iterable[Document | Mapping[str, Any]]) -> Iterator[Document]:
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
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: metadata must be a JSON object ({error})") from error


def _refuse_duplicates(ids: list[str], seen: set[str]) -> None:
    for id_ in ids:
        if id_ in seen:
            raise ValueError(f"documents: id {id_!r} came twice in one call")
        seen.add(id_)


def _blocks(documents: Iterator[Document], size: int) -> Iterator[list[Document]]:
    while block := list(islice(documents, size)):
        yield block
