"""Graphs of dense vectors: the same vectors, the same links and candidates a node, one thread; time beside recall."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from timing import run_contestant, seconds, times_ms

M, EF_CONSTRUCTION, EF, K = 16, 200, 64, 10


def measure(
    data: Path,
    build: Callable[[np.ndarray], Any],
    search: Callable[[Any, np.ndarray], np.ndarray],
    version: str,
) -> dict[str, Any]:
    """search: index and one query to the ids of its K nearest"""
    arrays = np.load(data / "dense.npz")
    vectors, queries, nearest = arrays["vectors"], arrays["queries"], arrays["nearest"]
    build_s, index = seconds(lambda: build(vectors))
    query_ms = times_ms([lambda query=query: search(index, query) for query in queries])
    found = [search(index, query) for query in queries]
    hits = [len(np.intersect1d(ids, exact)) for ids, exact in zip(found, nearest, strict=True)]
    return {
        "version": version,
        "build_s": build_s,
        "query_ms": float(np.median(query_ms)),
        "recall": float(np.mean(hits)) / K,
    }


def m3edge(data: Path) -> dict[str, Any]:
    """hnswlib, as an Index uses it."""
    import m3edge
    from m3edge.index.dense import DenseIndex, HnswConfig

    def build(vectors: np.ndarray) -> DenseIndex:
        index = DenseIndex(vectors.shape[1], HnswConfig(m=M, ef_construction=EF_CONSTRUCTION, ef_search=EF), 1)
        index.add(np.arange(len(vectors)), vectors)
        return index

    return measure(data, build, lambda index, query: index.search(query, K), m3edge.__version__)


def faiss(data: Path) -> dict[str, Any]:
    import faiss as package

    package.omp_set_num_threads(1)

    def build(vectors: np.ndarray) -> Any:
        index = package.IndexHNSWFlat(vectors.shape[1], M, package.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction, index.hnsw.efSearch = EF_CONSTRUCTION, EF
        index.add(vectors)
        return index

    return measure(data, build, lambda index, query: index.search(query[None], K)[1][0], package.__version__)


def usearch(data: Path) -> dict[str, Any]:
    from importlib.metadata import version

    from usearch.index import Index

    def build(vectors: np.ndarray) -> Index:
        index = Index(
            ndim=vectors.shape[1], metric="ip", dtype="f32", connectivity=M, expansion_add=EF_CONSTRUCTION,
            expansion_search=EF,
        )  # fmt: skip
        index.add(np.arange(len(vectors)), vectors, threads=1)
        return index

    return measure(data, build, lambda index, query: index.search(query, K, threads=1).keys, version("usearch"))


if __name__ == "__main__":
    run_contestant({"m3edge (hnswlib)": m3edge, "faiss HNSW": faiss, "usearch": usearch})
