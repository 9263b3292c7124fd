"""Model folders on a GPU against fp32 on the CPU: tokens a second, latency, and how near the vectors are.

    python benchmarks/gpu.py models/mini-fp32 models/mini-fp16 [--provider cuda]

Every folder runs on the provider, the first one on the CPU as well, as the reference. Texts of a few words, batches of
--batch-tokens. Writes benchmarks/results/gpu-MODEL.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import RESULTS, describe_machine

from m3edge import Encoder
from m3edge.files import write_atomically

SHAPES = {"1x16": (1, 16), "8x128": (8, 128), "64x128": (64, 128), "16x512": (16, 512)}  # texts x tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", help="model folders of one model")
    parser.add_argument("--provider", default="cuda")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch-tokens", type=int, default=16_384)
    options = parser.parse_args()
    encoders = {"cpu": Encoder.load(options.models[0], "cpu")}
    for folder in options.models:
        encoder = Encoder.load(folder, options.provider)
        encoders[f"{options.provider} {encoder.info.precision}"] = encoder
    report: dict[str, Any] = {"machine": describe_machine(), "batch_tokens": options.batch_tokens, "shapes": {}}
    for shape, (n_texts, length) in SHAPES.items():
        texts = _texts(n_texts, length)
        report["shapes"][shape] = _measure(encoders, texts, length, options.rounds, options.batch_tokens)
        print(shape, json.dumps(report["shapes"][shape]), flush=True)
    out = RESULTS / f"gpu-{encoders['cpu'].info.name}.json"
    write_atomically(out, json.dumps(report, indent=1).encode() + b"\n")


def _measure(
    encoders: dict[str, Encoder], texts: list[str], length: int, rounds: int, batch_tokens: int
) -> dict[str, dict[str, float]]:
    """Median milliseconds and tokens a second of each encoder, in turn, and its worst dense cosine to the first."""
    times: dict[str, list[float]] = {name: [] for name in encoders}
    dense = {}
    for number in range(rounds + 1):
        for name, encoder in encoders.items():
            start = time.perf_counter()
            dense[name] = encoder.encode(texts, max_length=length, batch_tokens=batch_tokens).dense
            if number:  # the first round warms up
                times[name].append(1000 * (time.perf_counter() - start))
    reference = next(iter(dense.values()))
    return {
        name: {
            "ms": round(statistics.median(values), 2),
            "tokens_per_second": round(1000 * len(texts) * length / statistics.median(values)),
            "worst_cosine": round(float((reference * dense[name]).sum(axis=1).min()), 6),
        }
        for name, values in times.items()
    }


def _texts(n_texts: int, length: int) -> list[str]:
    """Texts of at least so many tokens: a few words, again and again, in another order in each."""
    words = np.array(["file", "tea", "zip", "moon"])
    return [" ".join(words[(np.arange(length) + i) % len(words)]) for i in range(n_texts)]


if __name__ == "__main__":
    main()
