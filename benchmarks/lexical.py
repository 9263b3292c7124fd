"""What each kind of lexical score is worth, alone and with how much weight beside the others.

    python benchmarks/lexical.py models/mini-int8 --choose DATA/arcd-ar DATA/piaf-fr --confirm DATA/xquad-de

A preset's sparse weight was found for learned weights; here each kind is tried with multiples of it. The sets of
--choose say which multiple is best, those of --confirm whether it holds on data that had no part in the choice. Every
text is encoded once; each kind and weight only changes the search. All documents are scored by all parts, so that no
choice of candidates comes between. Writes benchmarks/results/lexical.json and prints nDCG@10 as Markdown.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ir_measures
import numpy as np
from machine import RESULTS, describe_machine

from m3edge import Encoder
from m3edge.evaluation import BeirDataset, read_beir
from m3edge.files import write_atomically
from m3edge.index.sparse import LEXICAL, PostingIndex
from m3edge.model_folder import PRESETS
from m3edge.scoring import maxsim

FACTORS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)  # times the preset's sparse weight
NDCG = ir_measures.parse_measure("nDCG@10")
DEPTH = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="model folder")
    parser.add_argument("--choose", type=Path, nargs="+", required=True, help="BEIR folders")
    parser.add_argument("--confirm", type=Path, nargs="+", default=[], help="other BEIR folders")
    parser.add_argument("--queries", type=int, help="only the first so many judged queries of each set")
    parser.add_argument("--out", type=Path, default=RESULTS / "lexical.json")
    options = parser.parse_args()

    encoder = Encoder.load(options.model)
    rows = [
        {"part": part, **row}
        for part, folders in (("choose", options.choose), ("confirm", options.confirm))
        for folder in folders
        for row in measure(encoder, read_beir(folder, n_queries=options.queries))
    ]
    report = {
        "model": encoder.info.name,
        "fingerprint": encoder.info.fingerprint,
        "precision": encoder.info.precision,
        "queries": options.queries,
        "machine": describe_machine(),
        "rows": rows,
    }
    write_atomically(options.out, json.dumps(report, indent=1).encode() + b"\n")
    print(table(rows))


def measure(encoder: Encoder, dataset: BeirDataset) -> Iterator[dict[str, Any]]:
    """One row for each kind of lexical score: alone, and with multiples of each preset's sparse weight."""
    passages = encoder.encode_passages(list(dataset.corpus.values()))
    queries = encoder.encode_queries(list(dataset.queries.values()))
    assert queries.dense is not None
    assert passages.dense is not None
    assert passages.sparse is not None
    postings = PostingIndex()
    postings.add(passages.sparse)
    dense = queries.dense @ passages.dense.T
    tokens = np.array([maxsim(queries[i].tokens.vectors, passages.tokens) for i in range(len(queries))])
    everything = np.arange(len(passages))
    for kind in LEXICAL:
        ready = [postings.query(queries[i].sparse, kind) for i in range(len(queries))]
        lexical = np.array([postings.scores(query, everything) for query in ready])
        yield {
            "dataset": dataset.name,
            "lexical": kind,
            "best_score_median": round(float(np.median(lexical.max(axis=1))), 3),
            "alone": ndcg(dataset, lexical),
            "presets": {
                name: {f"{x:g}": ndcg(dataset, w[0] * dense + x * w[1] * lexical + w[2] * tokens) for x in FACTORS}
                for name, w in PRESETS.items()
            },
        }


def ndcg(dataset: BeirDataset, scores: np.ndarray) -> float:
    """scores: float32 [n_queries, n_documents]"""
    ids = list(dataset.corpus)
    run = {
        query: {ids[i]: float(row[i]) for i in np.argsort(-row, kind="stable")[:DEPTH]}
        for query, row in zip(dataset.queries, scores, strict=True)
    }
    return round(float(ir_measures.calc_aggregate([NDCG], dataset.qrels, run)[NDCG]), 5)


def mean(rows: list[dict[str, Any]], part: str, kind: str, preset: str | None = None, factor: float = 1.0) -> float:
    """nDCG@10 over a part's data sets; without a preset: of the lexical score alone."""
    own = [row for row in rows if row["part"] == part and row["lexical"] == kind]
    return float(np.mean([row["presets"][preset][f"{factor:g}"] if preset else row["alone"] for row in own]))


def table(rows: list[dict[str, Any]]) -> str:
    """Means over the data sets; the columns with numbers: times a preset's sparse weight."""
    lines = ["| | preset | lexical | alone | " + " | ".join(f"× {x:g}" for x in FACTORS) + " |"]
    lines.append("|---|---|---|--:|" + "--:|" * len(FACTORS))
    for part in dict.fromkeys(row["part"] for row in rows):
        for preset in PRESETS:
            for kind in LEXICAL:
                values = [mean(rows, part, kind), *(mean(rows, part, kind, preset, x) for x in FACTORS)]
                cells = " | ".join(f"{value:.4f}" for value in values)
                lines.append(f"| {part} | `{preset}` | `{kind}` | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
