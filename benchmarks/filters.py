"""Filtered dense search: time and recall at 100,000 documents by the share that passes, with a graph and without.

    python benchmarks/filters.py FOLDER [--documents 100000]

Takes the synthetic index of hybrid.py in FOLDER, or makes it. For each share it says how long 10 hits take by dense
score alone (everything included but the encoding), by all scores, and for a filter that was never asked before; and,
for a graph, what each way of answering costs: asking the graph for more, or scanning what passes. Writes
results/filters.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe_machine
from synthetic import SyntheticEncoder, add_graph, open_or_build_index

from m3edge import kernels
from m3edge.embeddings import Embeddings
from m3edge.files import write_atomically
from m3edge.index import Index, dense
from m3edge.index.filters import parse_filter

RESULTS = Path(__file__).parent / "results"
DIM, TOKENS, QUERIES, K = 384, 60, 300, 10
SHARES = (0.5, 0.1, 0.01, 0.001)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--documents", type=int, default=100_000)
    options = parser.parse_args()
    encoder = SyntheticEncoder(DIM, TOKENS)
    with open_or_build_index(options.folder, encoder, options.documents) as index:
        queries = [
            encoder.encode_queries(f"query {number}")
            for number in np.random.default_rng(2).integers(0, len(index), QUERIES)
        ]
        start = time.perf_counter()
        index.search(queries[0], filter={"share": {"$lt": 0.5}})
        first_s = time.perf_counter() - start
        rows = [row for share in SHARES for row in measure(index, queries, share, "exact")]
        add_graph(index)
        rows += [row for share in SHARES for row in measure(index, queries, share, "hnsw")]
    report = {
        "machine": describe_machine(),
        "kernels": kernels.DESCRIPTION,
        "documents": options.documents,
        "first_filter_s": round(first_s, 2),
    }
    RESULTS.mkdir(exist_ok=True)
    write_atomically(RESULTS / "filters.json", json.dumps({**report, "rows": rows}, indent=1).encode() + b"\n")
    print(f"the first filter of all, which reads the saved columns: {first_s:.2f} s")
    print("| dense | share | way | recall@10 | dense ms | p99 | all parts ms | new filter ms |")
    print("|---|--:|---|--:|--:|--:|--:|--:|")
    for row in rows:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")


def measure(index: Index, queries: list[Embeddings], share: float, kind: str) -> list[dict[str, Any]]:
    """One row for the way that a search takes by itself and, with a graph, one for each way it might."""
    ways = {"chosen": dense.NUMBERS_A_GRAPH_RESULT}  # replaced to force one: the rows show whether the choice is right
    if kind == "hnsw":
        ways |= {"graph": 0, "scan": 10**12}
    condition = {"share": {"$lt": share}}
    with index.view.reading() as (snapshot, _, state):
        passing = np.flatnonzero(state.columns.passing(parse_filter(condition), state.rows, snapshot.metadata))
        vectors = state.dense.vectors(passing)
    exact = [set(passing[np.argsort(-(vectors @ query.dense[0]))[:K]].tolist()) for query in queries]  # type: ignore[index]
    rows = []
    before = dense.NUMBERS_A_GRAPH_RESULT
    for way, cost in ways.items():
        dense.NUMBERS_A_GRAPH_RESULT = cost
        hits = 0
        for query, expected in zip(queries, exact, strict=True):
            found = index.search(query, K, weights=(1, 0, 0), filter=condition)
            hits += len({int(hit.id[1:]) for hit in found} & expected)
        alone = times(queries, lambda query: index.search(query, K, weights=(1, 0, 0), filter=condition))
        whole = times(queries, lambda query: index.search(query, K, filter=condition))
        others = ({"share": {"$lt": float(share + step)}} for step in np.arange(1, len(queries) + 1) * 1e-9)
        new = times(
            queries, lambda query, others=others: index.search(query, K, weights=(1, 0, 0), filter=next(others))
        )
        rows.append(
            {
                "dense": kind,
                "share": share,
                "way": way,
                "recall@10": round(hits / (K * len(queries)), 4),
                "dense_ms": round(statistics.median(alone), 2),
                "dense_p99_ms": round(alone[int(0.99 * len(alone))], 2),
                "all_ms": round(statistics.median(whole), 2),
                "new_filter_ms": round(statistics.median(new), 2),
            }
        )
    dense.NUMBERS_A_GRAPH_RESULT = before
    return rows


def times(queries: list[Embeddings], search: Callable[[Embeddings], Any]) -> list[float]:
    """Milliseconds of each, sorted."""
    found = []
    for query in queries:
        start = time.perf_counter()
        search(query)
        found.append((time.perf_counter() - start) * 1000)
    return sorted(found)


if __name__ == "__main__":
    main()
