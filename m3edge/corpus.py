"""A corpus whose vectors are there already, ranked exactly for a query in every mode, for evaluation and tuning.

The vectors come from encoding texts (EncodedCorpus) or out of an index (IndexedCorpus). The scores come from the parts
that an index searches with; only the approximate graph is left out.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from m3edge.embeddings import Embeddings, SparseRows, offsets_of
from m3edge.encoder import Encoder
from m3edge.index import Index
from m3edge.index.sparse import LEXICAL, PostingIndex
from m3edge.index.tokens import CODECS, TokenStore
from m3edge.passages import place_of
from m3edge.progress import progress_bar
from m3edge.scoring import Weights, hybrid_scores, resolve_weights

MODES = ("dense", "sparse", "sparse-idf", "bm25", "tokens", "dense+sparse", "all", "all-idf", "all-bm25", "all-long")

_CANDIDATES = 200  # documents the dense and the sparse part each put forward; the paper reranks 200
_DEPTH = 100  # documents ranked for a query: what Recall@100 looks at
_BLOCK_TEXTS = 512
_CODECS = tuple(codec for codec in CODECS if codec != "none")


class Candidates(NamedTuple):
    """The documents that the dense or the sparse part put forward for a query, each with all its scores.

    positions: int64 [n], ascending; of_dense, of_sparse: bool [n], which part put it forward
    dense, sparse, tokens: float32 [n]
    """

    positions: np.ndarray
    of_dense: np.ndarray
    of_sparse: np.ndarray
    dense: np.ndarray
    sparse: np.ndarray
    tokens: np.ndarray


class Corpus:
    """Documents at positions 0, 1, 2 …; made by one of the classes below."""

    def __init__(
        self,
        dense: np.ndarray,
        postings: PostingIndex,
        tokens: TokenStore,
        starts: np.ndarray,
        counts: np.ndarray,
        presets: Mapping[str, Sequence[float]],
        n_threads: int,
    ) -> None:
        """dense: float32 [n, dim]; starts, counts: int64 [n], where a document's rows lie in the token store"""
        self._dense = dense
        self._postings = postings
        self._tokens = tokens
        self._starts = starts
        self._counts = counts
        self._n_threads = n_threads
        general, long = (resolve_weights(name, presets) for name in ("general", "long"))
        self._mixes = {
            "tokens": (Weights(0, 0, 1), "m3"),
            "dense+sparse": (general._replace(tokens=0.0), "m3"),
            "all": (general, "m3"),
            "all-idf": (general, "m3-idf"),
            "all-bm25": (general, "bm25"),
            "all-long": (long, "m3"),
        }

    def rank(
        self, dense_query: np.ndarray, sparse_query: SparseRows, token_query: np.ndarray
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """For each of MODES the best documents' positions and scores, best first."""
        dense = self._dense_scores(dense_query)
        lexical = {kind: self._postings.query(sparse_query, kind) for kind in LEXICAL}
        best_dense = self._best_dense(dense, _DEPTH)
        result: dict[str, tuple[np.ndarray, np.ndarray]] = {"dense": (best_dense, dense[best_dense])}
        for mode, kind in (("sparse", "m3"), ("sparse-idf", "m3-idf"), ("bm25", "bm25")):
            result[mode] = self._postings.top(lexical[kind], _DEPTH)
        found = self._postings.top(lexical["m3"], _CANDIDATES).positions
        candidates = np.union1d(self._best_dense(dense, _CANDIDATES), found)
        sparse = {kind: self._postings.scores(query, candidates) for kind, query in lexical.items()}
        tokens = self._token_scores(token_query, candidates)
        for mode, (weights, kind) in self._mixes.items():
            scores = hybrid_scores(dense[candidates], sparse[kind], tokens, weights)
            order = _best(scores, _DEPTH)
            result[mode] = (candidates[order], scores[order])
        return result

    def candidates(
        self, dense_query: np.ndarray, sparse_query: SparseRows, token_query: np.ndarray, *, n: int, lexical: str
    ) -> Candidates:
        """What `Index.search(candidates=n, lexical=lexical)` would choose from, before any weights."""
        dense = self._dense_scores(dense_query)
        query = self._postings.query(sparse_query, lexical)
        by_dense, by_sparse = self._best_dense(dense, n), self._postings.top(query, n).positions
        positions = np.union1d(by_dense, by_sparse)
        return Candidates(
            positions,
            np.isin(positions, by_dense),
            np.isin(positions, by_sparse),
            dense[positions],
            self._postings.scores(query, positions),
            self._token_scores(token_query, positions),
        )

    def _dense_scores(self, query: np.ndarray) -> np.ndarray:
        return self._dense @ query

    def _best_dense(self, scores: np.ndarray, n: int) -> np.ndarray:
        alive = self._postings.alive
        if alive.all():
            return _best(scores, n)
        return _best(np.where(alive, scores, -np.inf), min(n, int(alive.sum())))

    def _token_scores(self, query: np.ndarray, positions: np.ndarray) -> np.ndarray:
        return self._tokens.scores(query, self._starts[positions], self._counts[positions], self._n_threads)


class EncodedCorpus(Corpus):
    """All documents' vectors: dense and postings in memory, token vectors in a mapped file. Close it, or use `with`."""

    def __init__(
        self, encoder: Encoder, texts: list[str], *, token_codec: str = "int8", progress: bool | None = False
    ) -> None:
        """token_codec: as for an Index, but for "none": every mode is measured, those with token vectors, too"""
        if token_codec not in _CODECS:
            raise ValueError(f"token_codec must be one of {', '.join(_CODECS)}, got {token_codec!r}")
        self._folder = tempfile.TemporaryDirectory(prefix="m3edge-eval-")
        store = TokenStore(Path(self._folder.name), encoder.info.token_dim, token_codec)
        postings = PostingIndex()
        dense, counts = [np.empty((0, encoder.info.dense_dim), np.float32)], [np.empty(0, np.int64)]
        written = 0
        with progress_bar(len(texts), "document", "encoding", progress) as bar:
            for start in range(0, len(texts), _BLOCK_TEXTS):
                block = encoder.encode_passages(texts[start : start + _BLOCK_TEXTS])
                assert block.dense is not None
                assert block.sparse is not None
                assert block.tokens is not None
                dense.append(block.dense)
                postings.add(block.sparse)
                store.write(written, block.tokens.vectors)
                counts.append(np.diff(block.tokens.offsets))
                written += len(block.tokens.vectors)
                bar.update(len(block))
        store.map_rows(written)
        lengths = np.concatenate(counts)
        super().__init__(
            np.concatenate(dense),
            postings,
            store,
            offsets_of(lengths)[:-1],
            lengths,
            encoder.info.presets,
            encoder.session.n_threads,
        )

    def close(self) -> None:
        """Remove the file."""
        self._tokens.close()
        self._folder.cleanup()

    def __enter__(self) -> EncodedCorpus:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class IndexedCorpus(Corpus):
    """An open index's vectors, nothing encoded anew. Valid until the index is written to or closed.

    ids: the documents' ids by position, "" for a deleted one
    documents: by position, which document a passage is part of, as `m3edge index` notes it; elsewhere the same as ids
    """

    def __init__(self, index: Index) -> None:
        if index.encoder is None:
            raise ValueError("index must be opened with its encoder")
        if index.token_codec == "none":
            raise ValueError("index must hold token vectors, this one was made with token_codec='none'")
        info = index.encoder.info
        with index.view.reading() as (snapshot, tokens, state):
            alive = state.postings.alive
            dense = np.zeros((len(state.rows), info.dense_dim), np.float32)
            dense[alive] = state.dense.vectors(np.flatnonzero(alive))
            stored = snapshot.documents(state.rows[alive].tolist())
            state.compare_tokens(tokens, np.flatnonzero(alive))
        self.ids = [stored[row].id if row in stored else "" for row in state.rows.tolist()]
        self.documents = [
            str(place_of(stored[row].id, stored[row].metadata)["document"]) if row in stored else ""
            for row in state.rows.tolist()
        ]
        super().__init__(
            dense,
            state.postings,
            tokens,
            state.token_starts,
            state.token_counts,
            info.presets,
            index.encoder.session.n_threads,
        )


def query_parts(query: Embeddings) -> tuple[np.ndarray, SparseRows, np.ndarray]:
    """The embeddings of one text as `Corpus.rank` takes them; all three heads must be there."""
    assert query.dense is not None
    assert query.sparse is not None
    assert query.tokens is not None
    return query.dense[0], query.sparse, query.tokens.vectors


def _best(scores: np.ndarray, n: int) -> np.ndarray:
    """Positions of the n largest scores of any sign, best first."""
    return np.argsort(-scores, kind="stable")[:n]
