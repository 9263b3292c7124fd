"""A whole hybrid search without the encoding: candidates, all scores, fusion, fetching 10 texts; and where time goes.

    python benchmarks/hybrid.py FOLDER [--documents 100000]

Makes an index of synthetic documents (60 tokens each, 384 wide) in FOLDER, or takes the one that is there; 100 dense
and 100 sparse candidates, weights 1, .3, 1; first with exact dense search, then with a graph. Writes
results/hybrid.json.
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
from chip import rates
from machine import describe_machine
from synthetic import SyntheticEncoder, add_graph, open_or_build_index

from m3edge import kernels
from m3edge.embeddings import Embeddings
from m3edge.files import write_atomically
from m3edge.index import Index

RESULTS = Path(__file__).parent / "results"
DIM, TOKENS, QUERIES = 384, 60, 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--documents", type=int, default=100_000)
    options = parser.parse_args()
    encoder = SyntheticEncoder(DIM, TOKENS)
    with open_or_build_index(options.folder, encoder, options.documents) as index:
        first = first_searches(index, encoder)
        rows = [{"dense": "exact", **first, **measure(index, encoder)}]
        start = time.perf_counter()
        add_graph(index)
        rows.append({"dense": "hnsw", "build_s": round(time.perf_counter() - start, 1), **measure(index, encoder)})
    report = {
        "machine": describe_machine(),
        "kernels": kernels.DESCRIPTION,
        "chip": rates(encoder.session.n_threads),
        "documents": options.documents,
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    write_atomically(RESULTS / "hybrid.json", json.dumps(report, indent=1).encode() + b"\n")
    for row in rows:
        print(json.dumps(row, indent=1))


def measure(index: Index, encoder: SyntheticEncoder) -> dict[str, Any]:
    """Times in ms over QUERIES queries, after as many to warm up; the parts are measured alone, by weights of 0."""
    numbers = np.random.default_rng(2).integers(0, len(index), QUERIES)
    queries = [encoder.encode_queries(f"query {number}") for number in numbers]

    def times(search: Callable[..., Any]) -> list[float]:
        found = []
        for query in queries:
            start = time.perf_counter()
            search(query)
            found.append((time.perf_counter() - start) * 1000)
        return sorted(found)

    times(index.search)
    whole = times(index.search)
    parts = {
        name: round(statistics.median(times(lambda query, weights=weights: index.search(query, weights=weights))), 3)
        for name, weights in (("dense", (1, 0, 0)), ("sparse", (0, 1, 0)), ("dense+sparse", (1, 1, 0)))
    }
    batch = encoder.encode_queries([f"query {number}" for number in numbers])
    start = time.perf_counter()
    index.search_batch(batch)
    seconds = time.perf_counter() - start
    return {
        "median_ms": round(statistics.median(whole), 3),
        "p99_ms": round(whole[int(0.99 * len(whole))], 3),
        "parts_median_ms": parts,
        "stages_median_ms": stages(index, queries, encoder.session.n_threads),
        "batch_queries_a_second": round(QUERIES / seconds),
        "single_queries_a_second": round(1000 / statistics.mean(whole)),
        "threads": encoder.session.n_threads,
    }


def first_searches(index: Index, encoder: SyntheticEncoder) -> dict[str, float]:
    """Medians in ms of the first searches after an index was opened, but the very first, and of the same ones again:
    token vectors are compared with their checksums, and their pages asked for, when they are first read."""
    queries = [encoder.encode_queries(f"query {number}") for number in range(0, len(index), max(1, len(index) // 21))]
    index.search(queries[0])
    taken = []
    for _ in range(2):
        for query in queries[1:21]:
            start = time.perf_counter()
            index.search(query)
            taken.append((time.perf_counter() - start) * 1000)
    return {
        "first_20_median_ms": round(statistics.median(taken[:20]), 3),
        "again_median_ms": round(statistics.median(taken[20:]), 3),
    }


def stages(index: Index, queries: list[Embeddings], n_threads: int) -> dict[str, float]:
    """What a search does, one after another, each timed over all queries in turn; the rest of a search is Python."""
    taken: dict[str, list[float]] = {}

    def timed(stage: str, work: Callable[..., Any], *arguments: Any) -> Any:
        start = time.perf_counter()
        result = work(*arguments)
        taken.setdefault(stage, []).append((time.perf_counter() - start) * 1000)
        return result

    with index.view.reading() as (snapshot, tokens, state):
        for query in queries:
            assert query.dense is not None
            assert query.tokens is not None
            vector = query.dense[0]
            dense = timed("dense candidates", state.dense.search, vector, 100, None, n_threads)
            lexical = timed("lexical query", state.postings.query, query.sparse)
            found = timed("sparse candidates", state.postings.top, lexical, 100).positions
            both = timed("union", lambda *each: np.unique(np.concatenate(each)), dense, found)
            timed("dense scores", state.dense.scores, vector, both)
            timed("sparse scores", state.postings.scores, lexical, both)
            starts, counts = state.token_starts[both], state.token_counts[both]
            timed("token scores", tokens.scores, query.tokens.vectors, starts, counts, n_threads)
            timed("fetching 10 texts", snapshot.documents, state.rows[both[:10]].tolist())
    return {stage: round(statistics.median(each), 3) for stage, each in taken.items()}


if __name__ == "__main__":
    main()
