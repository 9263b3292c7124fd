"""Retrieval quality of a model on data in the BEIR layout: nDCG@10, Recall@100 and MRR@10 for each way of scoring.

The rankings come from corpus.py, the metrics from ir-measures.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from m3edge.corpus import MODES, Corpus, EncodedCorpus, query_parts
from m3edge.embeddings import Embeddings
from m3edge.encoder import Encoder
from m3edge.errors import FormatError
from m3edge.jsonl import joined_text, read_jsonl, required_string
from m3edge.progress import progress_bar

METRICS = ("nDCG@10", "R@100", "RR@10")  # as ir-measures names them; the mean of RR@10 is MRR@10

# Each has a value for every query, and ir-measures counts it in this process: of others some start perl or divide by 0,
# and a cut-off of 0 aborts Python. Only 100 documents are ranked, so that nothing can be said of a deeper cut-off.
_CUTOFF, _REL = "@([1-9][0-9]?|100)", r"(\(rel=[1-9][0-9]?\))?"  # rel: the judgement from which a document is relevant
_METRIC = re.compile(
    f"(P|Precision|R|Recall|Success){_REL}{_CUTOFF}|(AP|MAP|RR|MRR){_REL}({_CUTOFF})?|(nDCG|NDCG)({_CUTOFF})?"
    f"|(Rprec|RPrec|Bpref|BPref){_REL}"
)
_QRELS_HEADER = "query-id\tcorpus-id\tscore"


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


def read_beir(
    folder: Path | str, *, split: str = "test", n_queries: int | None = None, n_documents: int | None = None
) -> BeirDataset:
    """Read `corpus.jsonl`, `queries.jsonl` and `qrels/SPLIT.tsv`.

    n_queries:   take only the first so many judged queries, in the order of the file
    n_documents: take only so many documents: those judged for these queries, all of them, then the file's first
    Raises FormatError naming file and line for what is missing or malformed.
    """
    folder = Path(folder)
    corpus = {id_: joined_text(where, entry) for where, id_, entry in _read_entries(folder / "corpus.jsonl")}
    qrels: dict[str, dict[str, int]] = {}
    for query, document, relevance in _read_qrels(folder / "qrels" / f"{split}.tsv"):
        qrels.setdefault(query, {})[document] = relevance
    queries = {
        id_: required_string(where, entry, "text")
        for where, id_, entry in _read_entries(folder / "queries.jsonl")
        if id_ in qrels
    }
    chosen = list(queries)[:n_queries]
    if not corpus or not chosen:
        raise FormatError(f"{folder}: has no {'judged queries' if corpus else 'documents'}; expected the BEIR layout")
    if n_documents is not None:
        judged = {document for id_ in chosen for document in qrels[id_]}
        others = [id_ for id_ in corpus if id_ not in judged][: max(0, n_documents - len(judged))]
        kept = judged.union(others)
        corpus = {id_: text for id_, text in corpus.items() if id_ in kept}
    return BeirDataset(
        folder.resolve().name, corpus, {id_: queries[id_] for id_ in chosen}, {id_: qrels[id_] for id_ in chosen}
    )


def evaluate(
    encoder: Encoder, dataset: BeirDataset, *, token_codec: str = "int8", progress: bool | None = False
) -> Evaluation:
    """Rank the corpus for every query in every mode and measure it.

    "dense", "sparse", "sparse-idf" and "bm25" rank the whole corpus; the candidates of the others are the union of the
    best 200 by dense and the best 200 by sparse score. "-idf" and "-bm25" name the lexical part, see PostingIndex.

    token_codec: how token vectors are kept, as in an Index, which may also keep none
    """
    import_ir_measures()  # rather now than after all is encoded
    texts = list(dataset.corpus.values())
    with EncodedCorpus(encoder, texts, token_codec=token_codec, progress=progress) as corpus:
        queries = encoder.encode_queries(list(dataset.queries.values()), progress=progress)
        return evaluate_encoded(corpus, queries, dataset, progress=progress)


def evaluate_encoded(
    corpus: Corpus,
    queries: Embeddings,
    dataset: BeirDataset,
    *,
    documents: Sequence[str] | None = None,
    metrics: Sequence[str] = METRICS,
    progress: bool | None = False,
) -> Evaluation:
    """As `evaluate`, for a corpus and queries that are encoded already, each in the order of the data set.

    documents: for a corpus of passages, the id of the document that each is part of; a document's score is its best
        passage's
    metrics:   as ir-measures names them, see `parse_metric`
    Raises ValueError for a metric that cannot be counted.
    """
    measures = [parse_metric(name, "metrics") for name in metrics]
    ir_measures = import_ir_measures()
    document_ids = np.array(list(dataset.corpus) if documents is None else documents)
    runs: dict[str, dict[str, dict[str, float]]] = {mode: {} for mode in MODES}
    with progress_bar(len(queries), "query", "searching", progress) as bar:
        for i, query_id in enumerate(dataset.queries):
            rankings = corpus.rank(*query_parts(queries[i]))
            for mode, (positions, scores) in rankings.items():
                best_last = zip(document_ids[positions[::-1]].tolist(), scores[::-1].tolist(), strict=True)
                runs[mode][query_id] = dict(best_last)  # of a document's passages the best one stays
            bar.update()
    modes = {}
    for mode, run in runs.items():
        values = ir_measures.calc_aggregate(measures, dataset.qrels, run)
        modes[mode] = {str(measure): round(float(values[measure]), 5) for measure in measures}
    return Evaluation(dataset.name, len(dataset.corpus), len(dataset.queries), modes)


def parse_metric(metric: str, argument: str = "metric") -> Any:
    """ir-measures' object for a metric: P, R and Success with a cut-off, AP, RR and nDCG with or without, Rprec, Bpref.

    Raises ValueError, naming the argument, for anything else and for a cut-off that is not from 1 to 100.
    """
    if not isinstance(metric, str) or not _METRIC.fullmatch(metric):
        raise ValueError(
            f"{argument} must be such as nDCG@10, R@100, RR@10, P@3 or AP, with a cut-off from 1 to 100, got {metric!r}"
        )
    return import_ir_measures().parse_measure(metric)


def _read_entries(path: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """The place, the id and the object of each line. Raises FormatError for an id that came before."""
    seen = set()
    for where, entry in read_jsonl(path):
        id_ = required_string(where, entry, "_id")
        if id_ in seen:
            raise FormatError(f"{where}: _id {id_!r} came twice; every line needs one of its own")
        seen.add(id_)
        yield where, id_, entry


def _read_qrels(path: Path) -> Iterator[tuple[str, str, int]]:
    if not path.is_file():
        raise FormatError(f"{path}: no such file")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: not UTF-8 text ({error})") from error
    for number, line in enumerate(lines, 1):
        fields = line.split("\t")
        if not line.strip() or (number == 1 and fields[-1].strip() == "score"):
            continue
        try:
            query, document, score = fields
            relevance = _whole_number(score)
        except ValueError as error:
            header = f", or the header {_QRELS_HEADER!r}" if number == 1 else ""
            raise FormatError(
                f"{path}:{number}: expected query-id, corpus-id and score, a whole number, with tabs between{header}, "
                f"got {line!r}"
            ) from error
        yield query, document, relevance


def _whole_number(written: str) -> int:
    """Of 1 or 1.0, for some programs write every score with a point. Raises ValueError for anything else."""
    value = float(written)
    if not value.is_integer():
        raise ValueError(f"expected a whole number, got {written!r}")
    return int(value)


def import_ir_measures() -> Any:
    """The module ir_measures, which is not part of a plain installation."""
    try:
        import ir_measures
    except ImportError as error:
        raise ImportError("evaluation needs ir-measures: pip install 'm3edge[eval]'") from error
    return ir_measures
