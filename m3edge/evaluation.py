"""Retrieval quality of a model on a data set in the BEIR layout: nDCG@10 and Recall@100 for each way of scoring.

The scores come from the parts an index searches with, run exactly; the metrics come from ir-measures.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from m3edge.embeddings import SparseRows, offsets_of
from m3edge.encoder import Encoder
from m3edge.errors import FormatError
from m3edge.index.search import top
from m3edge.index.sparse import PostingIndex
from m3edge.index.tokens import TokenStore
from m3edge.jsonl import joined_text, read_jsonl, required_string
from m3edge.progress import progress_bar
from m3edge.scoring import Weights, hybrid_scores, maxsim, resolve_weights

MODES = ("dense", "sparse", "tokens", "dense+sparse", "all", "all-long", "bm25")
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


def evaluate(encoder: Encoder, dataset: BeirDataset, *, progress: bool | None = False) -> Evaluation:
    """Rank the corpus for every query in every mode and measure it.

    The candidates of "tokens", "dense+sparse", "all" and "all-long" are the union of the best 200 by dense and the best
    200 by sparse score; "dense", "sparse" and "bm25" rank the whole corpus.
    """
    ir_measures = _import_ir_measures()
    document_ids = np.array(list(dataset.corpus))
    runs: dict[str, dict[str, dict[str, float]]] = {mode: {} for mode in MODES}
    with tempfile.TemporaryDirectory(prefix="m3edge-eval-") as folder:
        corpus = _EncodedCorpus(encoder, list(dataset.corpus.values()), Path(folder), progress)
        queries = encoder.encode_queries(list(dataset.queries.values()), progress=progress)
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
        corpus.close()
    measures = [ir_measures.parse_measure(name) for name in METRICS]
    modes = {}
    for mode, run in runs.items():
        values = ir_measures.calc_aggregate(measures, dataset.qrels, run)
        modes[mode] = {str(measure): round(float(values[measure]), 5) for measure in measures}
    return Evaluation(dataset.name, len(dataset.corpus), len(dataset.queries), modes)


class _EncodedCorpus:
    """All documents' vectors: dense and postings in memory, token vectors in a mapped file."""

    def __init__(self, encoder: Encoder, texts: list[str], folder: Path, progress: bool | None) -> None:
        self._tokens = TokenStore(folder, encoder.info.token_dim, "fp16")
        self._postings = PostingIndex()
        self._weights = {
            "dense+sparse": resolve_weights("general", encoder.info.presets)._replace(tokens=0.0),
            "all": resolve_weights("general", encoder.info.presets),
            "all-long": resolve_weights("long", encoder.info.presets),
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
        sparse = self._postings.scores(sparse_query)
        bm25 = self._postings.bm25_scores(sparse_query)
        candidates = np.union1d(_best(dense, _CANDIDATES), top(sparse, _CANDIDATES))
        tokens = maxsim(token_query, self._tokens.read(self._starts[candidates], self._counts[candidates]))
        rankings = {
            "dense": _best(dense, _DEPTH),
            "sparse": top(sparse, _DEPTH),
            "bm25": top(bm25, _DEPTH),
        }
        whole = {"dense": dense, "sparse": sparse, "bm25": bm25}
        result = {mode: (positions, whole[mode][positions]) for mode, positions in rankings.items()}
        mixes = {"tokens": Weights(0, 0, 1), **self._weights}
        for mode, weights in mixes.items():
            scores = hybrid_scores(dense[candidates], sparse[candidates], tokens, weights)
            order = _best(scores, _DEPTH)
            result[mode] = (candidates[order], scores[order])
        return result

    def close(self) -> None:
        self._tokens.close()


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
