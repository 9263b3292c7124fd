"""MaxSim of one query with 100 documents of different lengths: time beside the largest error of a score."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from timing import run_contestant, times_ms

THREADS = int(os.environ.get("OMP_NUM_THREADS", "2"))
REPEATS = 15
_WRONG = 0.05


def measure(data: Path, score: Callable[[], np.ndarray], version: str) -> dict[str, Any]:
    exact = np.load(data / "tokens.npz")["exact"]
    error = float(np.abs(np.asarray(score(), np.float32) - exact).max())
    if error > _WRONG:
        sys.exit(f"its scores are wrong, by up to {error:.2f} where scores are about {exact.mean():.2f}")
    return {
        "version": version,
        "query_ms": float(np.median(times_ms([score] * REPEATS))),
        "largest_error": error,
    }


def documents(data: Path) -> tuple[np.ndarray, list[np.ndarray]]:
    arrays = np.load(data / "tokens.npz")
    offsets, vectors = arrays["offsets"], arrays["vectors"]
    return arrays["query"], [
        np.ascontiguousarray(vectors[offsets[i] : offsets[i + 1]]) for i in range(len(offsets) - 1)
    ]


def m3edge(codec: str) -> Callable[[Path], dict[str, Any]]:
    """Straight from the mapped file, as an Index keeps token vectors."""

    def run(data: Path) -> dict[str, Any]:
        import m3edge
        from m3edge.index.tokens import TokenStore

        arrays = np.load(data / "tokens.npz")
        offsets = arrays["offsets"]
        with tempfile.TemporaryDirectory() as folder:
            store = TokenStore(Path(folder), arrays["vectors"].shape[1], codec)
            store.write(0, arrays["vectors"])
            store.map_rows(len(arrays["vectors"]))
            counts = np.diff(offsets)
            result = measure(
                data, lambda: store.scores(arrays["query"], offsets[:-1], counts, THREADS), m3edge.__version__
            )
            store.close()
        return result

    return run


def maxsim_cpu(data: Path) -> dict[str, Any]:
    from importlib.metadata import version

    import maxsim_cpu as package

    query, docs = documents(data)
    # it adds up where M3 takes the mean
    return measure(data, lambda: package.maxsim_scores_variable(query, docs) / len(query), version("maxsim-cpu"))


def pylate(data: Path) -> dict[str, Any]:
    from importlib.metadata import version

    import torch
    from pylate import rank

    torch.set_num_threads(THREADS)
    query, docs = documents(data)
    tensors, query_tensor = [torch.from_numpy(doc) for doc in docs], torch.from_numpy(query)
    ids = list(range(len(docs)))

    def score() -> np.ndarray:
        (ranked,) = rank.rerank(
            documents_ids=[ids], queries_embeddings=[query_tensor], documents_embeddings=[tensors], device="cpu"
        )
        scores = np.zeros(len(docs), np.float32)
        for result in ranked:
            scores[result["id"]] = result["score"] / len(query)
        return scores

    return measure(data, score, version("pylate"))


if __name__ == "__main__":
    run_contestant(
        {
            "m3edge int8": m3edge("int8"),
            "m3edge fp16": m3edge("fp16"),
            "maxsim-cpu, fp32": maxsim_cpu,
            "PyLate rerank, torch fp32": pylate,
        }
    )
