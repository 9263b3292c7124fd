"""Cross-lingual retrieval on aligned data sets: queries of one language, passages of another.

    python benchmarks/cross_lingual.py models/mini-int8 ../shared/data/beir/xquad-* --queries 200

The sets must share their queries' ids, as XQuAD's do: a query's judgements are those of the passages' language. Writes
benchmarks/results/cross-lingual-MODEL.json and prints, for each language of the queries, the mean nDCG@10 over the
other languages' passages.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from machine import describe_machine

from m3edge import Encoder
from m3edge.evaluation import EncodedCorpus, evaluate_encoded, read_beir
from m3edge.files import write_atomically

RESULTS = Path(__file__).parent / "results"
MODES = ("dense", "sparse", "tokens", "dense+sparse", "all", "bm25")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="model folder")
    parser.add_argument("data", type=Path, nargs="+", help="BEIR folders, one for each language")
    parser.add_argument("--queries", type=int, help="only the first so many judged queries")
    options = parser.parse_args()

    encoder = Encoder.load(options.model)
    datasets = [read_beir(folder, n_queries=options.queries) for folder in options.data]
    queries = [encoder.encode_queries(list(dataset.queries.values())) for dataset in datasets]
    rows = []
    for target in datasets:
        with EncodedCorpus(encoder, list(target.corpus.values())) as corpus:
            for source, embeddings in zip(datasets, queries, strict=True):
                if list(source.queries) != list(target.queries):
                    parser.error(f"{source.name} and {target.name} have different queries: they are not aligned")
                result = evaluate_encoded(corpus, embeddings, target._replace(queries=source.queries))
                scores = {mode: result.modes[mode]["nDCG@10"] for mode in MODES}
                rows.append({"queries": source.name, "passages": target.name, "nDCG@10": scores})
        print(f"{target.name}: done", file=sys.stderr)
    out = RESULTS / f"cross-lingual-{options.model.resolve().name}.json"
    report = {
        "model": encoder.info.name,
        "precision": encoder.info.precision,
        "fingerprint": encoder.info.fingerprint,
        "queries": options.queries,
        "machine": describe_machine(),
        "rows": rows,
    }
    write_atomically(out, json.dumps(report, indent=1).encode() + b"\n")
    print(table(rows))


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table: for each language of the queries the mean over the passages of the others; their mean last."""
    lines = ["| queries | " + " | ".join(MODES) + " |", "|---|" + "--:|" * len(MODES)]
    across = [row for row in rows if row["queries"] != row["passages"]]
    for name in dict.fromkeys(row["queries"] for row in across):
        lines.append(_line(name, [row for row in across if row["queries"] == name]))
    return "\n".join([*lines, _line("**mean**", across)])


def _line(name: str, rows: list[dict[str, Any]]) -> str:
    means = (sum(row["nDCG@10"][mode] for row in rows) / len(rows) for mode in MODES)
    return f"| {name} | " + " | ".join(f"{mean:.3f}" for mean in means) + " |"


if __name__ == "__main__":
    main()
