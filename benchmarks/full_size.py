"""Our int8 at BGE-M3's size against the best peer's, bge-m3-lite, and against our fp32; and the memory both need.

    python benchmarks/full_size.py        # about 30 minutes and 15 GB of disk on two cores; 12 minutes when run again

Makes a seeded random checkpoint in BGE-M3's shape, exports it to fp32 and int8, and lets bge-m3-lite, installed in
an environment of its own, fuse and quantize the traced graph of the same checkpoint. Graphs run in this process's
onnxruntime, and int8 on our own engine and on OpenVINO too, round by round in turn, so that a noisy machine disturbs
all alike. Writes benchmarks/results/full-size.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from chip import Product, rates
from fresh_process import fresh_process
from m3edge_export.report import FILES
from machine import ROOT, describe_machine

from m3edge.cpu import available_cpus
from m3edge.files import write_atomically
from m3edge.model_folder import DENSE_OUTPUT, GRAPH, INPUTS, SPARSE_OUTPUT, TOKENS_OUTPUT, WEIGHTS
from m3edge.onnxruntime_engine import session_options
from m3edge.session import open_session

WORK = ROOT / "build" / "full-size"
RESULTS = ROOT / "benchmarks" / "results"
PEER = "bge-m3-lite[quant]==0.6.2"
SHAPES = {"8x128": (8, 128), "1x512": (1, 512), "1x2048": (1, 2048), "1x16": (1, 16)}
LAYERS, HIDDEN, FFN = 24, 1024, 4096
LONGEST = 8192
PRECISIONS = ("fp32", "int8", "int4")
ENGINES = ("native", "openvino")  # beside onnxruntime, for int8's folder
_OURS = ("int8", *ENGINES)
_BYTES = (*_OURS, "peer")  # what multiplies bytes

Run = Callable[[np.ndarray, np.ndarray], object]  # input_ids and attention_mask, int64 [batch, seq] -> all outputs

# Run by the peer's own Python. Without smoothing, whose additional products would only slow the peer down.
_PEER_SCRIPT = """
import sys
from pathlib import Path
from bge_m3_lite.fuse import fuse
from bge_m3_lite.quantize import QuantConfig, quantize
folder = Path(sys.argv[1])
fuse(folder / "model.onnx", attention_chunk=0, basename="whole")
quantize(folder / "whole.onnx", folder / "int8.onnx", QuantConfig(smooth_alpha=None))
for name in ("whole.onnx", "whole.onnx_data"):
    (folder / name).unlink()
"""

# One text of so many tokens in a fresh process.
_MEMORY_SCRIPT = """
import sys
from m3edge import Encoder
from m3edge.bench.memory import peak_memory_mb
encoder = Encoder.load(sys.argv[1], sys.argv[3], verify=False)
text = "file " * int(sys.argv[2])
embeddings = encoder.encode(text, max_length=int(sys.argv[2]))
assert len(embeddings.tokens.vectors) == int(sys.argv[2]) - 1, len(embeddings.tokens.vectors)
print(peak_memory_mb())
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds; each runs every graph once")
    parser.add_argument("--threads", type=int, default=min(2, available_cpus()))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS), help="beside int8")
    parser.add_argument("--only", choices=[*SHAPES, "memory"], nargs="+", help="measure these and keep what is there")
    parser.add_argument("--out", type=Path, default=RESULTS / "full-size.json")
    options = parser.parse_args()
    folders = prepare(sorted({"int8", *options.precisions}))
    report: dict[str, Any] = {"machine": describe_machine(), "threads": options.threads, "chip": rates(options.threads)}
    report["size_mb"] = {
        name: sum((folder / file).stat().st_size for file in FILES[name if name in ENGINES else "cpu"]) / 1e6
        for name, folder in folders.items()
    }
    wanted = options.only or [*SHAPES, "memory"]
    shapes = [name for name in SHAPES if name in wanted]
    report["speed"] = {}
    if shapes:
        report["rounds"] = options.rounds
        report["speed"] = measure_speed(folders, shapes, options.threads, options.rounds)
    if "memory" in wanted:
        report["peak_mb"] = {
            f"{name} {length} tokens": measure_memory(folder, length, name if name in ENGINES else "cpu")
            for name, folder in folders.items()
            if name in (*_OURS, "fp32")
            for length in (LONGEST // 2, LONGEST)
        }
    RESULTS.mkdir(exist_ok=True)
    if options.only and options.out.exists():
        earlier = json.loads(options.out.read_bytes())
        report = {**earlier, **report, "speed": {**earlier["speed"], **report["speed"]}}
    write_atomically(options.out, json.dumps(report, indent=1).encode() + b"\n")
    print(json.dumps(report, indent=1))


def prepare(precisions: list[str]) -> dict[str, Path]:
    """Our model folders by precision and, int8's, by engine; and "peer", the peer's graph in a folder like ours."""
    checkpoint = WORK / "checkpoint"
    if not checkpoint.exists():
        _run("m3edge_export.cli", "random", checkpoint, "--like", "bge-m3")
    for precision in precisions:
        if not (WORK / f"m3-{precision}").exists():
            arguments = ["--precision", precision, *(["--openvino"] if precision == "int8" else [])]
            _run("m3edge_export.cli", "onnx", checkpoint, WORK / f"m3-{precision}", *arguments)
    peer = WORK / "peer"
    if not peer.exists():
        environment = WORK / "peer-environment"
        if not environment.exists():
            subprocess.run([sys.executable, "-m", "venv", environment], check=True)
            subprocess.run([environment / "bin" / "pip", "install", "--quiet", PEER], check=True)
        with tempfile.TemporaryDirectory(dir=WORK) as scratch:
            _trace(checkpoint, Path(scratch))
            subprocess.run([environment / "bin" / "python", "-c", _PEER_SCRIPT, scratch], check=True)
            peer.mkdir()
            model = onnx.load(Path(scratch) / "int8.onnx", load_external_data=False)
            for tensor in model.graph.initializer:
                for item in tensor.external_data:
                    if item.key == "location":
                        item.value = WEIGHTS
            onnx.save(model, peer / GRAPH)
            shutil.move(Path(scratch) / "int8.onnx_data", peer / WEIGHTS)
    folders = {name: WORK / f"m3-{name}" for name in precisions}
    return {**folders, **dict.fromkeys(ENGINES, folders["int8"]), "peer": peer}


def measure_speed(folders: dict[str, Path], shapes: list[str], threads: int, rounds: int) -> dict[str, Any]:
    """For each shape: median milliseconds of each graph, tokens a second, and the median of the rounds' ratios."""
    sessions = {name: _engine(name, folder, threads) for name, folder in folders.items()}
    rng = np.random.default_rng(0)
    result = {}
    for shape_name in shapes:
        batch, length = SHAPES[shape_name]
        ids = rng.integers(4, 200_000, (batch, length))
        mask = np.ones_like(ids)
        products = _Products(batch * length, threads)
        times: dict[str, list[float]] = {name: [] for name in (*sessions, "products")}
        for number in range(rounds + 1):
            for name, run in sessions.items():
                start = time.perf_counter()
                run(ids, mask)
                if number:  # the first round warms up
                    times[name].append(1000 * (time.perf_counter() - start))
            products_ms = products.milliseconds()
            if number:
                times["products"].append(products_ms)
        result[shape_name] = {
            "ms": {name: round(statistics.median(values), 1) for name, values in times.items()},
            "tokens_per_second": {
                name: round(1000 * batch * length / statistics.median(values))
                for name, values in times.items()
                if name != "products"
            },
            **{
                f"{ours}_speed_over": {name: _ratio(times[name], times[ours]) for name in sessions if name != ours}
                for ours in _OURS
            },
            "share_of_products": {name: _ratio(times["products"], times[name]) for name in sessions if name in _BYTES},
        }
        print(shape_name, json.dumps(result[shape_name]), file=sys.stderr, flush=True)
    return result


def measure_memory(folder: Path, length: int, provider: str) -> float:
    """Peak resident megabytes of a fresh process that loads a model and encodes one text of so many tokens."""
    return round(float(fresh_process(_MEMORY_SCRIPT, folder, length, provider)))


class _Products:
    """Nothing but the encoder's integer products: what the chip could do if all else were free."""

    def __init__(self, rows: int, threads: int) -> None:
        weights = ((HIDDEN, HIDDEN, 4), (HIDDEN, FFN, 1), (FFN, HIDDEN, 1))
        self._products = [
            (Product("int8", threads, (rows, inputs, outputs)), count) for inputs, outputs, count in weights
        ]

    def milliseconds(self) -> float:
        """Of one pass through all layers: each product is timed once and counted as often as it occurs."""
        return 1000 * LAYERS * sum(count * product.seconds() for product, count in self._products)


def _ratio(above: list[float], below: list[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(above, below, strict=True)), 3)


def _engine(name: str, folder: Path, threads: int) -> Run:
    if name in ENGINES:
        engine = open_session(folder, name, threads)
        return lambda ids, mask: engine.run(ids, mask, (DENSE_OUTPUT, SPARSE_OUTPUT, TOKENS_OUTPUT))
    options = session_options(onnxruntime, threads)
    session = onnxruntime.InferenceSession(str(folder / GRAPH), options, providers=["CPUExecutionProvider"])
    return lambda ids, mask: session.run(None, dict(zip(INPUTS, (ids, mask), strict=True)))


def _run(module: str, *arguments: str | Path) -> None:
    subprocess.run([sys.executable, "-m", module, *map(str, arguments)], check=True)


def _trace(checkpoint: Path, folder: Path) -> None:
    """The graph as traced, in the opset that onnxruntime's BERT fusion, which the peer uses, knows best."""
    from m3edge_export import graph
    from m3edge_export.checkpoint import load_checkpoint

    graph.OPSET = 17
    graph.export_graph(load_checkpoint(checkpoint).model, folder)


if __name__ == "__main__":
    main()
