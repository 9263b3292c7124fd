"""What int4 loses on a model whose weights were never in 4 bits, by the way of rounding.

    python benchmarks/four_bits.py CHECKPOINT DATA/xquad-de DATA/piaf-fr --queries 100

The mini model's encoder came in 4 bits, so int4 costs it little; CHECKPOINT is one that was trained since, such as the
mini model with merged adapters (benchmarks/README.md, "Precisions"). Exports it to fp32 and, with each rounding, to int4:
to the nearest value, with the best of some scales for each block, and, the one that ships, that for tables and GPTQ for
products. Texts are XQuAD's in twelve languages, none of them a calibration text. Writes
benchmarks/results/four-bits.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fidelity
import numpy as np
from m3edge_export import quantize
from m3edge_export.export import export_precisions
from m3edge_export.four_bits import BLOCK, _pack, _round, quantize_product, quantize_table
from m3edge_export.report import fidelity as compare
from machine import RESULTS, ROOT, describe_machine

from m3edge import Encoder
from m3edge.evaluation import evaluate, read_beir
from m3edge.files import write_atomically

MODES = ("dense", "sparse", "tokens", "all")
Quantized = tuple[np.ndarray, np.ndarray]


def nearest(weight: np.ndarray, moments: np.ndarray | None = None) -> Quantized:
    """The largest value of a block is met exactly, all others are rounded to the nearest."""
    blocks = np.asarray(weight).reshape(len(weight), -1, BLOCK)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=2)[..., None], axis=2)[..., 0]
    return _pack(_round(blocks, largest / -8)), (largest / -8).astype(np.float32)


def searched(weight: np.ndarray, moments: np.ndarray | None = None) -> Quantized:
    return quantize_table(weight)


ROUNDINGS: dict[str, tuple[Callable[..., Quantized], Callable[..., Quantized]]] = {
    "nearest": (nearest, nearest),
    "searched scales": (searched, searched),
    "GPTQ": (quantize_table, quantize_product),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data", type=Path, nargs="*", help="BEIR folders for nDCG@10")
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--each", type=int, default=20, help="passages, and half as many questions, of each language")
    options = parser.parse_args()
    fidelity.PASSAGES, fidelity.QUESTIONS = options.each, options.each // 2
    texts = fidelity.read_texts(ROOT.parent / "shared" / "data" / "beir")
    datasets = [read_beir(folder, n_queries=options.queries) for folder in options.data]
    report: dict[str, Any] = {
        "machine": describe_machine(), "checkpoint": options.checkpoint.name, "texts": len(texts),
        "datasets": [folder.name for folder in options.data], "queries": options.queries, "roundings": {},
    }  # fmt: skip
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as scratch:
        export_precisions(options.checkpoint, {"fp32": Path(scratch) / "fp32"})
        reference = Encoder.load(Path(scratch) / "fp32", "cpu")
        expected = reference.encode_passages(texts)
        report["fp32"] = {"ndcg": _ndcg(reference, datasets)}
        for name, (table, product) in ROUNDINGS.items():
            quantize.quantize_table, quantize.quantize_product = table, product
            start = time.perf_counter()
            export_precisions(options.checkpoint, {"int4": Path(scratch) / name})
            seconds = round(time.perf_counter() - start, 1)
            encoder = Encoder.load(Path(scratch) / name, "cpu")
            row = compare(expected, encoder.encode_passages(texts))._asdict()
            report["roundings"][name] = {**row, "export_seconds": seconds, "ndcg": _ndcg(encoder, datasets)}
            print(name, json.dumps(report["roundings"][name]), file=sys.stderr, flush=True)
            write_atomically(RESULTS / "four-bits.json", json.dumps(report, indent=1).encode() + b"\n")


def _ndcg(encoder: Encoder, datasets: list[Any]) -> dict[str, float]:
    """The means over the data sets."""
    modes = [evaluate(encoder, dataset, progress=None).modes for dataset in datasets]
    return {mode: float(np.mean([m[mode]["nDCG@10"] for m in modes])) for mode in MODES} if modes else {}


if __name__ == "__main__":
    main()
