"""The 100 nearest of many dense vectors: the exact scan, numpy's float32 product and an HNSW graph, side by side.

    python benchmarks/dense.py

Synthetic vectors with an encoder's structure (synthetic.py), queries near some of them. A graph is built of 30,000
vectors, as large as those that are searched without one by default. Writes results/dense.json.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from machine import describe_machine
from synthetic import SyntheticVectors

from m3edge import kernels
from m3edge.cpu import available_cpus
from m3edge.files import write_atomically
from m3edge.index.dense import GRAPH_FILE, DenseIndex
from m3edge.index.graph import HnswConfig, HnswGraph
from m3edge.index.scan import DenseScan

RESULTS = Path(__file__).parent / "results"
SIZES = ((10_000, 384), (30_000, 384), (100_000, 384), (10_000, 1024), (100_000, 1024))
GRAPH_SIZE = (30_000, 384)
K, QUERIES = 100, 40


def main() -> None:
    rows = [row for n, dim in SIZES for row in measure(n, dim)]
    RESULTS.mkdir(exist_ok=True)
    report = {"machine": describe_machine(), "kernels": kernels.DESCRIPTION, "rows": rows}
    write_atomically(RESULTS / "dense.json", json.dumps(report, indent=1).encode() + b"\n")
    print("| documents | dim | what | threads | median ms | p95 ms | recall@100 | made in s |")
    print("|--:|--:|---|--:|--:|--:|--:|--:|")
    for row in rows:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")


def measure(n: int, dim: int) -> list[dict[str, Any]]:
    source = SyntheticVectors(dim)
    vectors = np.concatenate([source.dense(range(start, min(start + 1000, n))) for start in range(0, n, 1000)])
    queries = source.dense(range(0, n, n // QUERIES), noise=0.35)
    exact = [np.argsort(-(vectors @ query), kind="stable")[:K] for query in queries]
    everything = np.ones(n, bool)
    rows = []

    def note(what: str, n_threads: int, made_s: float, search: Callable[[np.ndarray], np.ndarray]) -> None:
        times, hits = [], 0
        for i, query in enumerate(queries):
            search(query)
            start = time.perf_counter()
            found = search(query)
            times.append(1000 * (time.perf_counter() - start))
            hits += len(set(found.tolist()) & set(exact[i].tolist()))
        times.sort()
        row = {"documents": n, "dim": dim, "what": what, "threads": n_threads}
        row |= {"median_ms": round(statistics.median(times), 2), "p95_ms": round(times[int(0.95 * len(times))], 2)}
        rows.append(row | {"recall": round(hits / (K * len(queries)), 4), "made_s": round(made_s, 2)})

    start = time.perf_counter()
    scan = DenseScan(dim)
    scan.add(vectors)
    made_s = time.perf_counter() - start
    for n_threads in (1, available_cpus()):
        note(
            "exact scan",
            n_threads,
            made_s,
            lambda query, n_threads=n_threads: scan.top(
                query, K, everything, partial(kernels.dense_scores, query, vectors), n_threads
            ),
        )
    note("numpy float32", available_cpus(), 0, lambda query: np.argpartition(-(vectors @ query), K)[:K])
    if (n, dim) == GRAPH_SIZE:
        start = time.perf_counter()
        graph = HnswGraph(dim, HnswConfig(), available_cpus())
        graph.add(np.arange(n), vectors)
        note("hnswlib", 1, time.perf_counter() - start, lambda query: graph.search(query, K))
        with TemporaryDirectory() as folder:
            graph.save(Path(folder) / GRAPH_FILE)
            start = time.perf_counter()
            index = DenseIndex(dim, HnswConfig(), available_cpus(), "hnsw")
            index.load_graph(Path(folder) / GRAPH_FILE)
            index.add(np.arange(n), vectors)
            index.search(queries[0], K)
            note("hnswlib's graph by codes", 1, time.perf_counter() - start, lambda query: index.search(query, K))
    return rows


if __name__ == "__main__":
    main()
