"""What each way of storing token vectors costs in quality: every codec with every pooling, from one encoding.

    python benchmarks/token_store.py models/mini-int8 DATA/xquad-zh DATA/arcd-ar DATA/xquad-en --queries 150

All documents are scored by all parts, so that no choice of candidates comes between. Writes
benchmarks/results/token-store.json and prints, as Markdown, the points of nDCG@10 lost against fp16 without pooling.
A set that is in the file already is kept, so that sets can be measured in several calls.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ir_measures
import numpy as np
from machine import describe_machine

from m3edge import Encoder
from m3edge.embeddings import Embeddings
from m3edge.evaluation import BeirDataset, read_beir
from m3edge.files import write_atomically
from m3edge.index.pooling import pool_tokens
from m3edge.index.tokens import TokenStore
from m3edge.scoring import lexical_scores

RESULTS = Path(__file__).parent / "results" / "token-store.json"
CODECS = ("fp16", "int8", "int4", "binary")  # the first, without pooling, is what the others are measured by
POOLINGS = (1, 2, 3)
WEIGHTS = (1.0, 0.3, 1.0)  # the preset "general"
NDCG = ir_measures.parse_measure("nDCG@10")
DEPTH = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="model folder")
    parser.add_argument("data", type=Path, nargs="+", help="BEIR folders")
    parser.add_argument("--queries", type=int, help="only the first so many judged queries of each set")
    options = parser.parse_args()

    encoder = Encoder.load(options.model)
    key = {"model": encoder.info.name, "fingerprint": encoder.info.fingerprint, "precision": encoder.info.precision}
    old = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    rows = old["rows"] if {name: old.get(name) for name in key} == key else []
    for folder in options.data:
        dataset = read_beir(folder, n_queries=options.queries)
        rows = [row for row in rows if row["dataset"] != dataset.name] + list(measure(encoder, dataset))
        report = {**key, "machine": describe_machine(), "rows": rows}
        RESULTS.parent.mkdir(exist_ok=True)
        write_atomically(RESULTS, json.dumps(report, indent=1).encode() + b"\n")
    print(table(rows))


def measure(encoder: Encoder, dataset: BeirDataset) -> Iterator[dict[str, Any]]:
    """One row for each codec and pooling."""
    passages = encoder.encode_passages(list(dataset.corpus.values()), progress=None)
    queries = encoder.encode_queries(list(dataset.queries.values()), progress=None)
    assert passages.dense is not None
    assert passages.sparse is not None
    assert passages.tokens is not None
    assert queries.dense is not None
    others = WEIGHTS[0] * (queries.dense @ passages.dense.T)
    others += WEIGHTS[1] * np.array([lexical_scores(queries[i].sparse, passages.sparse) for i in range(len(queries))])
    for pooling in POOLINGS:
        pooled = pool_tokens(passages.tokens, pooling)
        for codec in CODECS:
            with tempfile.TemporaryDirectory() as folder:
                store = TokenStore(Path(folder), encoder.info.token_dim, codec)
                store.write(0, pooled.vectors)
                store.map_rows(len(pooled.vectors))
                tokens = scored(store, queries, pooled.offsets, encoder.session.n_threads)
                size = store.bytes_per_token * len(pooled.vectors) / len(passages.tokens.vectors)
                store.close()
            yield {
                "dataset": dataset.name,
                "documents": len(passages),
                "queries": len(queries),
                "codec": codec,
                "pooling": pooling,
                "bytes_a_token": round(size, 1),
                "tokens": ndcg(dataset, tokens),
                "all": ndcg(dataset, others + WEIGHTS[2] * tokens),
            }


def scored(store: TokenStore, queries: Embeddings, offsets: np.ndarray, n_threads: int) -> np.ndarray:
    """MaxSim of every query with every document: float32 [n_queries, n_documents]."""
    starts, counts = offsets[:-1], np.diff(offsets)
    rows = []
    for i in range(len(queries)):
        query = queries[i].tokens
        assert query is not None
        rows.append(store.scores(query.vectors, starts, counts, n_threads))
    return np.array(rows)


def ndcg(dataset: BeirDataset, scores: np.ndarray) -> float:
    """nDCG@10 of a ranking by scores, [n_queries, n_documents]."""
    documents = np.array(list(dataset.corpus))
    run = {}
    for query, row in zip(dataset.queries, scores, strict=True):
        best = np.argsort(-row, kind="stable")[:DEPTH]
        run[query] = dict(zip(documents[best].tolist(), row[best].tolist(), strict=True))
    return round(float(ir_measures.calc_aggregate([NDCG], dataset.qrels, run)[NDCG]), 5)


def table(rows: list[dict[str, Any]]) -> str:
    """Means over the sets; what is lost, in points, positive when it is worse than fp16 without pooling."""
    sets = sorted({row["dataset"] for row in rows})
    value = {(row["dataset"], row["codec"], row["pooling"]): row for row in rows}
    lines = ["| codec | pooling | bytes a token | tokens: points lost | all: points lost |", "|---|--:|--:|--:|--:|"]
    for codec in CODECS:
        for pooling in POOLINGS:
            size = np.mean([value[name, codec, pooling]["bytes_a_token"] for name in sets])
            cells = [f"{codec} | {pooling} | {size:.0f}"]
            for mode in ("tokens", "all"):
                lost = [value[name, CODECS[0], 1][mode] - value[name, codec, pooling][mode] for name in sets]
                cells.append(f"{100 * np.mean(lost):.2f}")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f"Means of {', '.join(sets)}."])


if __name__ == "__main__":
    main()
