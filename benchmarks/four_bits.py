"""What int4 loses on a model whose weights were never in 4 bits, by the way of rounding.

    m3edge-export onnx CHECKPOINT build/lora-fp32 --precision fp32
    python benchmarks/four_bits.py build/lora-fp32

The mini model's encoder came in 4 bits, so int4 costs it little; CHECKPOINT is one that was trained since, such as the
mini model with merged adapters. Rounds its fp32 folder to int4 three times: to the nearest value, with the best of some
scales for each block, and, the one that ships, that for tables and GPTQ for products. Texts are XQuAD's in twelve
languages, none of them a calibration text. Writes benchmarks/results/four-bits.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from fidelity import DATA, read_texts
from m3edge_export import quantize
from m3edge_export.calibrate import calibrate, calibration_texts
from m3edge_export.four_bits import BLOCK, _pack, _round, quantize_product, quantize_table
from m3edge_export.report import fidelity as compare
from m3edge_export.weights import WeightReader, WeightWriter
from machine import RESULTS, ROOT, describe_machine
from tokenizers import Tokenizer

from m3edge import Encoder
from m3edge.evaluation import evaluate, read_beir
from m3edge.files import write_atomically
from m3edge.model_folder import GRAPH, TOKENIZER, VOCABULARY, read_model_folder, write_manifest

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
    parser.add_argument("model", type=Path, help="model folder in fp32")
    parser.add_argument("data", type=Path, nargs="*", help="BEIR folders for nDCG@10")
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--texts", type=Path, default=DATA, help="folder of XQuAD's data sets")
    parser.add_argument("--each", type=int, default=20, help="passages, and half as many questions, of each language")
    options = parser.parse_args()
    texts = read_texts(options.texts, options.each, options.each // 2)
    datasets = [read_beir(folder, n_queries=options.queries) for folder in options.data]
    info = read_model_folder(options.model)
    report: dict[str, Any] = {
        "machine": describe_machine(), "model": info.name, "texts": len(texts),
        "datasets": [folder.name for folder in options.data], "queries": options.queries, "roundings": {},
    }  # fmt: skip
    reference = Encoder.load(options.model, "cpu")
    expected = reference.encode_passages(texts)
    report["fp32"] = {"ndcg": _ndcg(reference, datasets)}
    fused = onnx.load(options.model / GRAPH, load_external_data=False)
    prefixes = (info.query_prefix, info.passage_prefix)
    names = quantize.product_inputs(fused)
    tokenizer = Tokenizer.from_file(str(options.model / TOKENIZER))
    start = time.perf_counter()
    statistics = calibrate(
        fused, options.model, names, tokenizer, calibration_texts(), prefixes, info.max_length, names
    )
    report["calibration_s"] = round(time.perf_counter() - start, 1)
    for name, (table, product) in ROUNDINGS.items():
        quantize.quantize_table, quantize.quantize_product = table, product
        with tempfile.TemporaryDirectory(dir=ROOT / "build") as scratch:
            folder = Path(scratch)
            start = time.perf_counter()
            model = onnx.ModelProto.FromString(fused.SerializeToString())
            with WeightWriter(folder) as writer:
                quantize.write_int4(model, WeightReader(fused.graph, options.model), writer, statistics)
            seconds = round(time.perf_counter() - start, 1)
            onnx.save(model, folder / GRAPH)
            for part in (TOKENIZER, VOCABULARY):
                shutil.copyfile(options.model / part, folder / part)
            write_manifest(folder, replace(info, precision="int4"))
            encoder = Encoder.load(folder, "cpu")
            row = compare(expected, encoder.encode_passages(texts))._asdict()
            report["roundings"][name] = {**row, "rounding_s": seconds, "ndcg": _ndcg(encoder, datasets)}
        print(name, json.dumps(report["roundings"][name]), file=sys.stderr, flush=True)
        write_atomically(RESULTS / "four-bits.json", json.dumps(report, indent=1).encode() + b"\n")


def _ndcg(encoder: Encoder, datasets: list[Any]) -> dict[str, float]:
    """The means over the data sets."""
    modes = [evaluate(encoder, dataset, progress=None).modes for dataset in datasets]
    return {mode: float(np.mean([m[mode]["nDCG@10"] for m in modes])) for mode in MODES} if modes else {}


if __name__ == "__main__":
    main()
