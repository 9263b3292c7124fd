"""MaxSim of one query with 100 documents: int8 records in a mapped file beside numpy and torch on whole vectors.

    python benchmarks/maxsim.py

Writes benchmarks/results/maxsim.json: the median of each in milliseconds, and how many times numpy's fp32 it is.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe_machine

from m3edge import kernels
from m3edge.embeddings import TokenRows, offsets_of
from m3edge.files import write_atomically
from m3edge.index.tokens import TokenStore
from m3edge.scoring import maxsim
from m3edge.session import available_cpus

RESULTS = Path(__file__).parent / "results"
N_QUERY, N_DOCUMENTS, N_TOKENS = 32, 100, 17_742
REPEATS = 15


def main() -> None:
    rows = [row for dim in (1024, 384) for row in measure(dim)]
    report = {"machine": describe_machine(), "kernels": kernels.DESCRIPTION, "rows": rows}
    RESULTS.mkdir(exist_ok=True)
    write_atomically(RESULTS / "maxsim.json", json.dumps(report, indent=1).encode() + b"\n")
    print("| dim | what | threads | median ms | times numpy fp32 | largest error |\n|--:|---|--:|--:|--:|--:|")
    for row in rows:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")


def measure(dim: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    counts = rng.multinomial(N_TOKENS, np.full(N_DOCUMENTS, 1 / N_DOCUMENTS)).astype(np.int64)
    offsets = offsets_of(counts)
    query, vectors = (rng.standard_normal((n, dim)).astype(np.float32) for n in (N_QUERY, N_TOKENS))
    query /= np.linalg.norm(query, axis=1, keepdims=True)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    passages = TokenRows(vectors, offsets)
    exact = maxsim(query, passages)
    all_threads = available_cpus()
    rows: list[dict[str, Any]] = []

    def note(what: str, threads: int, score: Callable[[], np.ndarray]) -> None:
        error = float(np.abs(score() - exact).max())
        time_ms = median_ms(score)
        numpy_ms = rows[0]["median_ms"] if rows else time_ms
        rows.append({"dim": dim, "what": what, "threads": threads, "median_ms": round(time_ms, 3)})
        rows[-1] |= {"times_numpy_fp32": round(numpy_ms / time_ms, 2), "largest_error": float(f"{error:.1g}")}

    with tempfile.TemporaryDirectory() as folder:
        note("numpy fp32", all_threads, lambda: maxsim(query, passages))
        for codec in ("fp16", "int8", "int4", "binary"):
            store = TokenStore(Path(folder), dim, codec)
            store.write(0, vectors)
            store.map_rows(N_TOKENS)
            for threads in {1, all_threads} if codec == "int8" else {all_threads}:
                note(f"store {codec}", threads, lambda s=store, n=threads: s.scores(query, offsets[:-1], counts, n))
            store.close()
    try:
        import torch
    except ImportError:
        return rows
    longest = int(counts.max())
    padded = torch.zeros(N_DOCUMENTS, longest, dim)
    for i, count in enumerate(counts.tolist()):
        padded[i, :count] = torch.from_numpy(vectors[offsets[i] : offsets[i + 1]])
    tensor = torch.from_numpy(query)
    note("torch, padded", all_threads, lambda: torch.einsum("qd,ntd->nqt", tensor, padded).amax(2).mean(1).numpy())
    return rows


def median_ms(work: Callable[[], Any]) -> float:
    work()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000


if __name__ == "__main__":
    main()
