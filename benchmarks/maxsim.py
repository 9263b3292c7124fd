"""MaxSim of one query with 100 documents: int8 records in a mapped file beside numpy and torch on whole vectors.

    python benchmarks/maxsim.py

Writes benchmarks/results/maxsim.json: each one's median milliseconds, in turn with the others and when it runs again
and again, and how many times as fast as numpy's fp32 it is, the median of the rounds' ratios. "chip" is what the
multiplications alone take at the rate of onnxruntime's large products, by which two machines can be compared.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from chip import Product, seconds
from machine import describe_machine

from m3edge import kernels
from m3edge.cpu import available_cpus
from m3edge.embeddings import TokenRows, offsets_of
from m3edge.files import write_atomically
from m3edge.index.tokens import TokenStore
from m3edge.scoring import maxsim

RESULTS = Path(__file__).parent / "results"
N_QUERY, N_DOCUMENTS, N_TOKENS = 32, 100, 17_742
REPEATS = 31
REST_SECONDS = 0.1
WARM_UP = 3  # runs before each that counts: after a rest the first ones wait for the clock, and for AMX, to come up
NUMPY = "numpy fp32"
Name = tuple[str, int]  # what scores, and on how many threads


def main() -> None:
    rows = [row for dim in (1024, 384) for row in measure(dim)]
    report = {"machine": describe_machine(), "kernels": kernels.DESCRIPTION, "rows": rows}
    RESULTS.mkdir(exist_ok=True)
    write_atomically(RESULTS / "maxsim.json", json.dumps(report, indent=1).encode() + b"\n")
    print("| dim | what | threads | median ms | on end | times numpy fp32 | largest error |")
    print("|--:|---|--:|--:|--:|--:|--:|")
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
    all_threads = available_cpus()
    contestants: dict[Name, Callable[[], np.ndarray]] = {(NUMPY, all_threads): lambda: maxsim(query, passages)}
    products = {(f"chip {kind}", all_threads): Product(kind, all_threads) for kind in ("int8", "fp32")}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as opened:
        for codec in ("fp16", "int8", "int4", "binary"):
            store = TokenStore(Path(folder), dim, codec)
            store.write(0, vectors)
            store.map_rows(N_TOKENS)
            opened.callback(store.close)
            for threads in sorted({1, all_threads}) if codec == "int8" else [all_threads]:
                contestants[f"store {codec}", threads] = lambda s=store, n=threads: s.scores(
                    query, offsets[:-1], counts, n
                )
        try:
            import torch
        except ImportError:
            pass
        else:
            longest = int(counts.max())
            padded = torch.zeros(N_DOCUMENTS, longest, dim)
            for i, count in enumerate(counts.tolist()):
                padded[i, :count] = torch.from_numpy(vectors[offsets[i] : offsets[i + 1]])
            tensor = torch.from_numpy(query)
            contestants["torch, padded", all_threads] = lambda: (
                torch.einsum("qd,ntd->nqt", tensor, padded).amax(2).mean(1).numpy()
            )
        exact = maxsim(query, passages)
        errors = {name: float(np.abs(score() - exact).max()) for name, score in contestants.items()}
        everyone = {**contestants, **{name: product.seconds for name, product in products.items()}}
        times, on_end = time_in_turn(everyone), time_on_end(everyone)
    for name, product in products.items():
        share = 2 * N_QUERY * N_TOKENS * dim / product.operations
        times[name] = [share * ms for ms in times[name]]
        on_end[name] *= share
    numpy_ms = times[NUMPY, all_threads]
    return [
        {
            "dim": dim,
            "what": what,
            "threads": threads,
            "median_ms": round(statistics.median(ms), 3),
            "on_end_ms": round(on_end[what, threads], 3),
            "times_numpy_fp32": round(statistics.median(a / b for a, b in zip(numpy_ms, ms, strict=True)), 2),
            "largest_error": float(f"{errors[what, threads]:.1g}") if (what, threads) in errors else None,
        }
        for (what, threads), ms in times.items()
    ]


def time_in_turn(contestants: dict[Name, Callable[[], Any]]) -> dict[Name, list[float]]:
    """Milliseconds of every round; each round runs all, so that a noisy machine disturbs all alike, and times the last
    of a few runs, which finds its data warm. Before them, all rest: OpenBLAS's and OpenMP's threads wait awake for tens
    of milliseconds, on the cores that the next one needs."""
    times: dict[Name, list[float]] = {name: [] for name in contestants}
    for _ in range(REPEATS):
        for name, work in contestants.items():
            time.sleep(REST_SECONDS)
            for _ in range(WARM_UP):
                work()
            times[name].append(1000 * seconds(work))
    return times


def time_on_end(contestants: dict[Name, Callable[[], Any]]) -> dict[Name, float]:
    """Median milliseconds of each when it runs again and again: caches hold what they can of its data."""
    medians = {}
    for name, work in contestants.items():
        time.sleep(REST_SECONDS)
        medians[name] = statistics.median([1000 * seconds(work) for _ in range(2 * REPEATS)][REPEATS:])
    return medians


if __name__ == "__main__":
    main()
