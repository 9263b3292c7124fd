"""Retrieval quality of a model on a data set in the BEIR layout: nDCG@10 and Recall@100 for each way of scoring.

The scores come from the parts an index searches with, run exactly; the metrics come from ir-measures.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from m3edge.embeddings import Embeddings, SparseRows, offsets_of
from m3edge.encoder import Encoder
from m3edge.errors import FormatError
from m3edge.index.sparse import LEXICAL, PostingIndex
from m3edge.index.tokens import TokenStore
from m3edge.jsonl import joined_text, read_jsonl, required_string
from m3edge.progress import progress_bar
from m3edge.scoring import Weights, hybrid_scores, resolve_weights

MODES = ("dense", "sparse", "sparse-idf", "bm25", "tokens", "dense+sparse", "all", "all-idf", "all-bm25", "all-long")
METRICS = ("nDCG@10", "R@100")

_CANDIDATES = 200  # documents the dense and the sparse part each put forward; the paper reranks 200
_DEPTH = 100  # documents ranked for a query: what Recall@100 looks at
_BLOCK_TEXTS = 512


class BeirDataset(NamedTuple):
    """corpus, queries: text by id (a document's title and text joined); qrels: query id -> document id -> relevance."""

    name: str
    corpus: dict[str, str]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]


class Evaluation(NamedTuple):
    """modes: for each of MODES, each of METRICS, averaged over the queries."""

    dataset: str
    documents: int
    queries: int
    modes: dict[str, dict[str, float]]

    def to_json(self) -> dict[str, Any]:
        return self._asdict()


def read_beir(folder: Path | str, *, split: str = "test", n_queries: int | None = None) -> BeirDataset:
    """Read `corpus.jsonl`, `queries.jsonl` and `qrels/SPLIT.tsv`.

    n_queries: take only the first so many judged queries, in the order of the file
    Raises FormatError naming file and line for what is missing or malformed.
    """
    folder = Path(folder)
    corpus = {}
    for where, entry in read_jsonl(folder / "corpus.jsonl"):
        corpus[required_string(where, entry, "_id")] = joined_text(where, entry)
    qrels: dict[str, dict[str, int]] = {}
    for query, document, relevance in _read_qrels(folder / "qrels" / f"{split}.tsv"):
        qrels.setdefault(query, {})[document] = relevance
    queries = {}
    for where, entry in read_jsonl(folder / "queries.jsonl"):
        id_ = required_string(where, entry, "_id")
        if id_ in qrels:
            queries[id_] = required_string(where, entry, "text")
    chosen = list(queries)[:n_queries]
    if not corpus or not chosen:
        raise FormatError(f"{folder}: has no {'judged queries' if corpus else 'documents'}; expected the BEIR layout")
    return BeirDataset(
        folder.resolve().name, corpus, {id_: queries[id_] for id_ in chosen}, {id_: qrels[id_] for id_ in chosen}
    )


def evaluate(
    encoder: Encoder, dataset: BeirDataset, *, token_codec: str = "int8", progress: bool | None = False
) -> Evaluation:
    """Rank the corpus for every query in every mode and measure it.

    "dense", "sparse", "sparse-idf" and "bm25" rank the whole corpus; the candidates of the others are the union of the
    best 200 by dense and the best 200 by sparse score. "-idf" and "-bm25" name the lexical part, see PostingIndex.

    token_codec: how token vectors are kept, as in an Index
    """
    texts = list(dataset.corpus.values())
    with EncodedCorpus(encoder, texts, token_codec=token_codec, progress=progress) as corpus:
        queries = encoder.encode_queries(list(dataset.queries.values()), progress=progress)
        return evaluate_encoded(corpus, queries, dataset, progress=progress)


def evaluate_encoded(
    corpus: EncodedCorpus, queries: Embeddings, dataset: BeirDataset, *, progress: bool | None = False
) -> Evaluation:
    """As `evaluate`, for a corpus and queries that are encoded already, each in the order of the data set."""
    ir_measures = _import_ir_measures()
    document_ids = np.array(list(dataset.corpus))
    runs: dict[str, dict[str, dict[str, float]]] = {mode: {} for mode in MODES}
    with progress_bar(len(queries), "query", "searching", progress) as bar:
        for i, query_id in enumerate(dataset.queries):
            query = queries[i]
            assert query.dense is not None
            assert query.sparse is not None
            assert query.tokens is not None
            rankings = corpus.rank(query.dense[0], query.sparse, query.tokens.vectors)
            for mode, (positions, scores) in rankings.items():
                found = document_ids[positions].tolist()
                runs[mode][query_id] = dict(zip(found, scores.tolist(), strict=True))
            bar.update()
    measures = [ir_measures.parse_measure(name) for name in METRICS]
    modes = {}
    for mode, run in runs.items():
        values = ir_measures.calc_aggregate(measures, dataset.qrels, run)
        modes[mode] = {str(measure): round(float(values[measure]), 5) for measure in measures}
    return Evaluation(dataset.name, len(dataset.corpus), len(dataset.queries), modes)


class EncodedCorpus:
    """All documents' vectors: dense and postings in memory, token vectors in a mapped file. Close it, or use `with`."""

    def __init__(
        self, encoder: Encoder, texts: list[str], *, token_codec: str = "int8", progress: bool | None = False
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="m3edge-eval-")
        self._tokens = TokenStore(Path(self._folder.name), encoder.info.token_dim, token_codec)
        self._n_threads = encoder.session.n_threads
        self._postings = PostingIndex()
        general, long = (resolve_weights(name, encoder.info.presets) for name in ("general", "long"))
        self._mixes = {
            "tokens": (Weights(0, 0, 1), "m3"),
            "dense+sparse": (general._replace(tokens=0.0), "m3"),
            "all": (general, "m3"),
            "all-idf": (general, "m3-idf"),
            "all-bm25": (general, "bm25"),
            "all-long": (long, "m3"),
        }
        dense, counts = [], []
        written = 0
        with progress_bar(len(texts), "document", "encoding", progress) as bar:
            for start in range(0, len(texts), _BLOCK_TEXTS):
                block = encoder.encode_passages(texts[start : start + _BLOCK_TEXTS])
                assert block.dense is not None
                assert block.sparse is not None
                assert block.tokens is not None
                dense.append(block.dense)
                self._postings.add(block.sparse)
                self._tokens.write(written, block.tokens.vectors)
                counts.append(np.diff(block.tokens.offsets))
                written += len(block.tokens.vectors)
                bar.update(len(block))
        self._dense = np.concatenate(dense)
        self._counts = np.concatenate(counts)
        self._starts = offsets_of(self._counts)[:-1]
        self._tokens.map_rows(written)

    def rank(
        self, dense_query: np.ndarray, sparse_query: SparseRows, token_query: np.ndarray
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """For each of MODES the best documents' positions and scores, best first."""
        dense = self._dense @ dense_query
        lexical = {kind: self._postings.query(sparse_query, kind) for kind in LEXICAL}
        best_dense = _best(dense, _DEPTH)
        result: dict[str, tuple[np.ndarray, np.ndarray]] = {"dense": (best_dense, dense[best_dense])}
        for mode, kind in (("sparse", "m3"), ("sparse-idf", "m3-idf"), ("bm25", "bm25")):
            result[mode] = self._postings.top(lexical[kind], _DEPTH)
        found = self._postings.top(lexical["m3"], _CANDIDATES).positions
        candidates = np.union1d(_best(dense, _CANDIDATES), found)
        sparse = {kind: self._postings.scores(query, candidates) for kind, query in lexical.items()}
        tokens = self._tokens.scores(token_query, self._starts[candidates], self._counts[candidates], self._n_threads)
        for mode, (weights, kind) in self._mixes.items():
            scores = hybrid_scores(dense[candidates], sparse[kind], tokens, weights)
            order = _best(scores, _DEPTH)
            result[mode] = (candidates[order], scores[order])
        return result

    def close(self) -> None:
        """Remove the file."""
        self._tokens.close()
        self._folder.cleanup()

    def __enter__(self) -> EncodedCorpus:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _best(scores: np.ndarray, n: int) -> np.ndarray:
    """Positions of the n largest scores of any sign, best first."""
    return np.argsort(-scores, kind="stable")[:n]


def _read_qrels(path: Path) -> Iterator[tuple[str, str, int]]:
    if not path.is_file():
        raise FormatError(f"{path}: no such file")
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        fields = line.split("\t")
        if number == 1 and fields[-1].strip() == "score":
            continue
        try:
            query, document, relevance = fields
            yield query, document, int(relevance)
        except ValueError as error:
            raise FormatError(f"{path}:{number}: expected query-id, corpus-id and score, got {line!r}") from error


def _import_ir_measures() -> Any:
    try:
        import ir_measures
    except ImportError as error:
        raise ImportError("evaluation needs ir-measures: pip install 'm3edge[eval]'") from error
    return ir_measures
