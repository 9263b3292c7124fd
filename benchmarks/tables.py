"""The paper's three tables in small (arXiv 2402.03216): many languages, across languages, long documents.

    python benchmarks/tables.py models/mini-int8 ../shared/data/beir --queries 200

Tables 1 and 2 take aligned data sets, which share their queries' ids, as XQuAD's do: the queries of each language with
the passages of the same one (table 1), and the queries of English with the passages of all others and back (table 2).
Table 3 takes sets of long documents, each twice: cut at what the model reads, and split into passages (m3edge.passages)
of which the best one counts; with --mcls, for models that pool by their first token, cut and read with MCLS too.

Writes benchmarks/results/tables-MODEL.json after each corpus (an interrupted run goes on where it was) and prints the
tables in the paper's layout: a row for each method, a column for each language or set.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from machine import RESULTS
from reports import resumed, save

from m3edge import Encoder
from m3edge.bench.report import table
from m3edge.embeddings import Embeddings
from m3edge.evaluation import BeirDataset, EncodedCorpus, evaluate_encoded, read_beir
from m3edge.passages import split_passages

METHODS = ("bm25", "dense", "sparse", "tokens", "dense+sparse", "all", "all-long")
LONG = ("narrativeqa-en", "qmsum-en", "reactdocs-en", "reactdocs-fr", "reactdocs-ko", "reactdocs-zh")
PIVOT = "en"
METRICS = ("nDCG@10", "R@10", "R@100")
CUT, CUT_MCLS, BEST_PASSAGE = "document", "document, MCLS", "best passage"  # what is ranked of a long document

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="model folder")
    parser.add_argument("data", type=Path, help="folder of BEIR folders")
    parser.add_argument("--queries", type=int, help="only the first so many judged queries of each set")
    parser.add_argument("--aligned", default="xquad-", help="how the aligned sets' names begin; default: %(default)s")
    parser.add_argument("--long", nargs="*", default=list(LONG), help="sets of long documents; default: %(default)s")
    parser.add_argument("--long-queries", type=int, help="of each set of long documents; default: as --queries")
    parser.add_argument("--long-documents", type=int, help="of each set of long documents; default: all")
    parser.add_argument("--mcls", type=int, metavar="N", help="read long documents with MCLS every N tokens too")
    parser.add_argument("--out", type=Path, help="result file; default: benchmarks/results/tables-MODEL.json")
    options = parser.parse_args()

    encoder = Encoder.load(options.model)
    encoders = {CUT: encoder}
    if options.mcls:
        encoders[CUT_MCLS] = Encoder(encoder.info, encoder.session, encoder.tokenizer, mcls_interval=options.mcls)
    out = options.out or RESULTS / f"tables-{options.model.resolve().name}.json"
    settings = {
        "model": encoder.info.name,
        "precision": encoder.info.precision,
        "provider": encoder.provider,
        "fingerprint": encoder.info.fingerprint,
        "queries": options.queries,
        "long_queries": options.long_queries,
        "long_documents": options.long_documents,
        **({"mcls": options.mcls} if options.mcls else {}),
    }
    report = resumed(out, settings, rows=[])

    def keep(rows: list[Row]) -> None:
        report["rows"] += rows
        save(out, report)

    folders = sorted(options.data.glob(f"{options.aligned}*"))
    measure_aligned(encoder, folders, options.queries, report["rows"], keep)
    for name in options.long:
        if not any(row["passages"] == name for row in report["rows"]):
            n_queries = options.long_queries or options.queries
            dataset = read_beir(options.data / name, n_queries=n_queries, n_documents=options.long_documents)
            keep(measure_long(encoders, dataset))
            print(f"{name}: done", file=sys.stderr, flush=True)
    print(tables(report["rows"], options.aligned))


def measure_aligned(
    encoder: Encoder, folders: list[Path], n_queries: int | None, done: list[Row], keep: Callable[[list[Row]], None]
) -> None:
    """Each language's passages with its own queries and with the pivot's, the pivot's with all queries; `keep` gets the
    rows of one corpus after another."""
    datasets = [read_beir(folder, n_queries=n_queries) for folder in folders]
    queries: dict[str, Embeddings] = {}
    for target in datasets:
        if any(row["passages"] == target.name for row in done):
            continue
        with EncodedCorpus(encoder, list(target.corpus.values())) as corpus:
            rows = []
            for source in datasets:
                if source is not target and not any(name.endswith(f"-{PIVOT}") for name in (source.name, target.name)):
                    continue
                if list(source.queries) != list(target.queries):
                    raise ValueError(f"{source.name} and {target.name} have different queries: they are not aligned")
                if source.name not in queries:
                    queries[source.name] = encoder.encode_queries(list(source.queries.values()))
                rows.append(_row(corpus, source.name, queries[source.name], target._replace(queries=source.queries)))
            keep(rows)
        print(f"{target.name}: done", file=sys.stderr, flush=True)


def measure_long(encoders: dict[str, Encoder], dataset: BeirDataset) -> list[Row]:
    """One data set with its documents cut, by each encoder, and which share of them that is; then with each one's best
    passage.

    encoders: CUT -> the model as it is, and perhaps CUT_MCLS -> the same with MCLS
    """
    encoder = encoders[CUT]
    queries = encoder.encode_queries(list(dataset.queries.values()))
    passages, documents = [], []
    for document, text in dataset.corpus.items():
        spans = split_passages(text, encoder)
        passages += [text[start:end] for start, end in spans]
        documents += [document] * len(spans)
    n_cut = len([document for document in dataset.corpus if documents.count(document) > 1])
    rows = []
    for unit, reader in encoders.items():
        with EncodedCorpus(reader, list(dataset.corpus.values())) as corpus:
            rows.append({**_row(corpus, dataset.name, queries, dataset), "unit": unit})
    with EncodedCorpus(encoder, passages) as corpus:
        split = _row(corpus, dataset.name, queries, dataset, documents)
    rows[0]["cut"] = round(n_cut / len(dataset.corpus), 3)
    return [*rows, {**split, "unit": BEST_PASSAGE, "n_passages": len(passages)}]


def tables(rows: list[Row], aligned: str) -> str:
    """All three as Markdown."""
    own = [row for row in rows if row["passages"].startswith(aligned)]
    monolingual = [row for row in own if row["queries"] == row["passages"]]
    to_pivot = [row for row in own if row["passages"] == aligned + PIVOT and row["queries"] != row["passages"]]
    from_pivot = [row for row in own if row["queries"] == aligned + PIVOT and row["queries"] != row["passages"]]
    long = [row for row in rows if "unit" in row]
    sections = []
    if monolingual:
        sections += ["Table 1: queries and passages of one language", layout(monolingual, aligned)]
    if to_pivot:
        sections += [f"Table 2: queries of other languages, passages in {PIVOT}", layout(to_pivot, aligned, "R@10")]
        sections += [
            f"Queries in {PIVOT}, passages of other languages",
            layout(from_pivot, aligned, "R@10", "passages"),
        ]
    titles = {
        CUT: "Table 3: long documents, cut at what the model reads",
        CUT_MCLS: "The same with MCLS",
        BEST_PASSAGE: "The same by their best passage",
    }
    for unit, title in titles.items():
        if some := [row for row in long if row["unit"] == unit]:
            sections += [title, layout(some, aligned)]
    return "\n\n".join(sections)


def layout(rows: list[Row], aligned: str, metric: str = "nDCG@10", columns: str = "queries") -> str:
    """A row for each method; the mean, then each row's queries' or passages' name."""
    names = [row[columns].removeprefix(aligned) for row in rows]
    lines = []
    for method in METHODS:
        values = [row[metric][method] for row in rows]
        lines.append([method, f"**{np.mean(values):.3f}**", *(f"{value:.3f}" for value in values)])
    return table([metric, "mean", *names], lines)


def _row(
    corpus: EncodedCorpus, name: str, queries: Embeddings, dataset: BeirDataset, documents: Sequence[str] | None = None
) -> Row:
    modes = evaluate_encoded(corpus, queries, dataset, documents=documents, metrics=METRICS).modes
    return {
        "queries": name,
        "passages": dataset.name,
        "documents": len(dataset.corpus),
        "n_queries": len(dataset.queries),
        **{metric: {method: modes[method][metric] for method in METHODS} for metric in METRICS},
    }


if __name__ == "__main__":
    main()
