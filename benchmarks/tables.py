"""The paper's three tables in small (arXiv 2402.03216): many languages, across languages, long documents.

    python benchmarks/tables.py models/mini-int8 ../shared/data/beir --queries 100

Tables 1 and 2 take aligned data sets, which share their queries' ids, as XQuAD's do: the queries of each language with
the passages of the same one (table 1) and of English and all others (table 2). Table 3 takes sets of long documents.
Writes benchmarks/results/tables-MODEL.json after each corpus (an interrupted run goes on where it was) and prints the
tables in the paper's layout: a row for each method, a column for each language or data set, nDCG@10.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from machine import RESULTS, describe_machine

from m3edge import Encoder
from m3edge.bench.report import table
from m3edge.embeddings import Embeddings
from m3edge.evaluation import BeirDataset, EncodedCorpus, evaluate_encoded, read_beir
from m3edge.files import write_atomically

METHODS = ("bm25", "dense", "sparse", "tokens", "dense+sparse", "all", "all-long")
LONG = ("narrativeqa-en", "qmsum-en", "reactdocs-en", "reactdocs-fr", "reactdocs-ko", "reactdocs-zh")
PIVOT = "en"

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="model folder")
    parser.add_argument("data", type=Path, help="folder of BEIR folders")
    parser.add_argument("--queries", type=int, help="only the first so many judged queries of each set")
    parser.add_argument("--aligned", default="xquad-", help="how the aligned sets' names begin; default: %(default)s")
    parser.add_argument("--long", nargs="*", default=list(LONG), help="sets of long documents; default: %(default)s")
    parser.add_argument("--out", type=Path, help="result file; default: benchmarks/results/tables-MODEL.json")
    options = parser.parse_args()

    encoder = Encoder.load(options.model)
    out = options.out or RESULTS / f"tables-{options.model.resolve().name}.json"
    report = _earlier(out, encoder, options.queries)

    def keep(rows: list[Row]) -> None:
        report["rows"] += rows
        write_atomically(out, json.dumps(report, indent=1).encode() + b"\n")

    folders = sorted(options.data.glob(f"{options.aligned}*"))
    measure_aligned(encoder, folders, options.queries, report["rows"], keep)
    for name in options.long:
        if not any(row["passages"] == name for row in report["rows"]):
            keep([measure_long(encoder, read_beir(options.data / name, n_queries=options.queries))])
            print(f"{name}: done", file=sys.stderr, flush=True)
    print(tables(report["rows"], options.aligned))


def measure_aligned(
    encoder: Encoder, folders: list[Path], n_queries: int | None, done: list[Row], keep: Callable[[list[Row]], None]
) -> None:
    """Every language's queries with every language's passages; `keep` gets the rows of one corpus after another."""
    datasets = [read_beir(folder, n_queries=n_queries) for folder in folders]
    missing = [target for target in datasets if not any(row["passages"] == target.name for row in done)]
    if not missing:
        return
    queries = {dataset.name: encoder.encode_queries(list(dataset.queries.values())) for dataset in datasets}
    for target in missing:
        with EncodedCorpus(encoder, list(target.corpus.values())) as corpus:
            rows = []
            for source in datasets:
                if list(source.queries) != list(target.queries):
                    raise ValueError(f"{source.name} and {target.name} have different queries: they are not aligned")
                rows.append(_row(corpus, source.name, queries[source.name], target._replace(queries=source.queries)))
            keep(rows)
        print(f"{target.name}: done", file=sys.stderr, flush=True)


def measure_long(encoder: Encoder, dataset: BeirDataset) -> Row:
    """One data set alone, and which share of its documents is longer than the model reads."""
    queries = encoder.encode_queries(list(dataset.queries.values()))
    texts = list(dataset.corpus.values())
    limit = encoder.info.max_length
    tokenized = encoder.tokenizer.tokenize(texts, prefix=encoder.info.passage_prefix, max_length=limit)
    with EncodedCorpus(encoder, texts) as corpus:
        row = _row(corpus, dataset.name, queries, dataset)
    return {**row, "cut": round(float(np.mean([text.truncated for text in tokenized])), 3)}


def tables(rows: list[Row], aligned: str) -> str:
    """All three as Markdown."""
    own = [row for row in rows if row["passages"].startswith(aligned)]
    monolingual = [row for row in own if row["queries"] == row["passages"]]
    to_pivot = [row for row in own if row["passages"] == aligned + PIVOT and row["queries"] != row["passages"]]
    across = [row for row in own if row["queries"] != row["passages"]]
    long = [row for row in rows if not row["passages"].startswith(aligned)]
    sections = []
    if monolingual:
        sections += ["Table 1: queries and passages of one language", layout(monolingual, aligned)]
    if to_pivot:
        sections += [f"Table 2: queries of other languages, passages in {PIVOT}", layout(to_pivot, aligned)]
        sections += [f"The mean over all {len(across)} pairs of two languages", _means(across)]
    if long:
        sections += ["Table 3: long documents", layout(long, aligned)]
    return "\n\n".join(sections)


def layout(rows: list[Row], aligned: str) -> str:
    """A row for each method; the mean, then each row's queries' name."""
    names = [row["queries"].removeprefix(aligned) for row in rows]
    lines = []
    for method in METHODS:
        values = [row["nDCG@10"][method] for row in rows]
        lines.append([method, f"**{np.mean(values):.3f}**", *(f"{value:.3f}" for value in values)])
    return table(["nDCG@10", "mean", *names], lines)


def _means(rows: list[Row]) -> str:
    values = [f"{np.mean([row['nDCG@10'][method] for row in rows]):.3f}" for method in METHODS]
    return table(["nDCG@10", *METHODS], [["mean", *values]])


def _row(corpus: EncodedCorpus, name: str, queries: Embeddings, dataset: BeirDataset) -> Row:
    modes = evaluate_encoded(corpus, queries, dataset).modes
    return {
        "queries": name,
        "passages": dataset.name,
        "documents": len(dataset.corpus),
        "n_queries": len(dataset.queries),
        "nDCG@10": {method: modes[method]["nDCG@10"] for method in METHODS},
        "R@100": {method: modes[method]["R@100"] for method in METHODS},
    }


def _earlier(out: Path, encoder: Encoder, queries: int | None) -> dict[str, Any]:
    """The unfinished report of the same model and settings, or a new one."""
    settings = {
        "model": encoder.info.name,
        "precision": encoder.info.precision,
        "fingerprint": encoder.info.fingerprint,
        "queries": queries,
    }
    if out.exists():
        report: dict[str, Any] = json.loads(out.read_bytes())
        if {key: report.get(key) for key in settings} == settings:
            return report
    return {**settings, "machine": describe_machine(), "rows": []}


if __name__ == "__main__":
    main()
