"""What each kind of lexical score is worth, alone and with how much weight beside the others.

    python benchmarks/lexical.py models/mini-int8 DATA/arcd-ar DATA/xquad-zh DATA/piaf-fr --queries 150

Every text is encoded once; each kind and weight only changes the search. All documents are scored by all parts, so that
no choice of candidates comes between. Writes benchmarks/results/lexical.json and prints nDCG@10 as Markdown.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ir_measures
import numpy as np
from machine import describe_machine

from m3edge import Encoder
from m3edge.evaluation import BeirDataset, read_beir
from m3edge.files import write_atomically
from m3edge.index.sparse import LEXICAL, PostingIndex
from m3edge.scoring import maxsim

RESULTS = Path(__file__).parent / "results"
WEIGHTS = (0.15, 0.3, 0.45, 0.6, 0.9, 1.2)
NDCG = ir_measures.parse_measure("nDCG@10")
DEPTH = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="model folder")
    parser.add_argument("data", type=Path, nargs="+", help="BEIR folders")
    parser.add_argument("--queries", type=int, help="only the first so many judged queries of each set")
    options = parser.parse_args()

    encoder = Encoder.load(options.model)
    rows = [row for folder in options.data for row in measure(encoder, read_beir(folder, n_queries=options.queries))]
    report = {
        "model": encoder.info.name,
        "fingerprint": encoder.info.fingerprint,
        "precision": encoder.info.precision,
        "queries": options.queries,
        "machine": describe_machine(),
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    write_atomically(RESULTS / "lexical.json", json.dumps(report, indent=1).encode() + b"\n")
    print(table(rows))


def measure(encoder: Encoder, dataset: BeirDataset) -> Iterator[dict[str, Any]]:
    """One row for each kind of lexical score: alone, beside the dense part, and beside the dense and the token part."""
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
            "dense+": {str(weight): ndcg(dataset, dense + weight * lexical) for weight in WEIGHTS},
            "all": {str(weight): ndcg(dataset, dense + weight * lexical + tokens) for weight in WEIGHTS},
        }


def ndcg(dataset: BeirDataset, scores: np.ndarray) -> float:
    """scores: float32 [n_queries, n_documents]"""
    ids = list(dataset.corpus)
    run = {
        query: {ids[i]: float(row[i]) for i in np.argsort(-row, kind="stable")[:DEPTH]}
        for query, row in zip(dataset.queries, scores, strict=True)
    }
    return round(float(ir_measures.calc_aggregate([NDCG], dataset.qrels, run)[NDCG]), 5)


def table(rows: list[dict[str, Any]]) -> str:
    """Means over the data sets; the columns with numbers: dense, lexical with this weight, tokens."""
    lines = ["| lexical | best score | alone | " + " | ".join(map(str, WEIGHTS)) + " |"]
    lines.append("|---|" + "--:|" * (2 + len(WEIGHTS)))
    for kind in LEXICAL:
        own = [row for row in rows if row["lexical"] == kind]
        values = [np.mean([row["best_score_median"] for row in own]), np.mean([row["alone"] for row in own])]
        values += [np.mean([row["all"][str(weight)] for row in own]) for weight in WEIGHTS]
        lines.append(f"| {kind} | " + " | ".join(f"{value:.3f}" for value in values) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
