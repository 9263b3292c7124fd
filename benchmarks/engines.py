"""One model on every engine: our own on int8, onnxruntime on the fp32 and the int8 graph, OpenVINO on the fp32 and the
static int8 one, each also in bfloat16 where the CPU has it.

    python benchmarks/engines.py models/mini-fp32 models/mini-int8

Each round runs every engine once, in turn, so that a noisy machine disturbs all alike; medians are reported, and beside
each speed how near the engine's vectors are to fp32's, on the texts of fidelity.py. Starts are those of fresh
processes, beside OpenVINO's own: called directly on the static graph, with its own cache, nothing tokenized or checked.
Writes benchmarks/results/engines-MODEL.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from fidelity import DATA, LANGUAGES, read_texts
from fresh_process import fresh_process
from m3edge_export.report import fidelity
from machine import RESULTS, describe_machine

from m3edge import Encoder
from m3edge.cpu import available_cpus
from m3edge.files import write_atomically
from m3edge.model_folder import DENSE_OUTPUT, SPARSE_OUTPUT, STATIC_GRAPH, TOKENS_OUTPUT, read_model_folder
from m3edge.openvino_engine import has_bfloat16, import_openvino
from m3edge.session import Session, open_session

SHAPES = {"8x128": (8, 128), "1x512": (1, 512), "1x16": (1, 16)}
STARTS = 5  # timed processes of each engine
_OUTPUTS = (DENSE_OUTPUT, SPARSE_OUTPUT, TOKENS_OUTPUT)

# From before m3edge is imported to the first vector, in a process of its own; argv: folder, provider, cache or "".
_START = """
import sys, time
start = time.perf_counter()
from m3edge import Encoder
encoder = Encoder.load(sys.argv[1], sys.argv[2], verify=False, cache=sys.argv[3] or None)
encoder.encode_queries("one short query")
print(time.perf_counter() - start)
"""
_DIRECT_START = """
import sys, time
start = time.perf_counter()
import numpy, openvino
core = openvino.Core()
core.set_property({"CACHE_DIR": sys.argv[2]})
ids = numpy.full((1, 8), 5)
core.compile_model(sys.argv[1], "CPU")({"input_ids": ids, "attention_mask": numpy.ones_like(ids)})
print(time.perf_counter() - start)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fp32", type=Path, help="model folder in fp32")
    parser.add_argument("int8", type=Path, help="the same model in int8")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=min(2, available_cpus()))
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--texts", type=int, default=84, help="texts of each language (%(default)s); 0: no quality")
    parser.add_argument("--out", type=Path, help="by default results/engines-MODEL.json")
    options = parser.parse_args()
    engines = {
        "native int8": (options.int8, "native"),
        "onnxruntime fp32": (options.fp32, "cpu"),
        "onnxruntime int8": (options.int8, "cpu"),
        "openvino fp32": (options.fp32, "openvino"),
        "openvino static int8": (options.int8, "openvino"),
    }
    if has_bfloat16(import_openvino().Core()):
        engines["openvino fp32 in bfloat16"] = (options.fp32, "openvino:bf16")
        engines["openvino static int8, the rest in bfloat16"] = (options.int8, "openvino:bf16")
    sessions = {name: open_session(folder, provider, options.threads) for name, (folder, provider) in engines.items()}
    report: dict[str, Any] = {"machine": describe_machine(), "threads": options.threads, "rounds": options.rounds}
    report["speed"] = {name: measure(sessions, *shape, options.rounds) for name, shape in SHAPES.items()}
    del sessions
    report["start_seconds"] = measure_start(options.int8)
    if options.texts:
        every = read_texts(options.data)
        texts = every[:: max(1, len(every) // (len(LANGUAGES) * options.texts))]
        reference = Encoder.load(options.fp32, "cpu", verify=False).encode_passages(texts, progress=None)
        report["texts"] = len(texts)
        report["quality"] = {
            name: fidelity(
                reference, Encoder.load(folder, provider, verify=False).encode_passages(texts, progress=None)
            )._asdict()
            for name, (folder, provider) in engines.items()
            if not name.endswith("fp32")
        }
    text = json.dumps(report, indent=1)
    print(text)
    out = options.out or RESULTS / f"engines-{read_model_folder(options.int8).name}.json"
    write_atomically(out, text.encode() + b"\n")


def measure(sessions: dict[str, Session], batch: int, length: int, rounds: int) -> dict[str, Any]:
    """Median milliseconds of a batch without padding, all three outputs; tokens a second; the ratio to each other."""
    ids = np.random.default_rng(0).integers(4, 200_000, (batch, length))
    mask = np.ones_like(ids)
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for number in range(rounds + 2):
        for name, session in sessions.items():
            start = time.perf_counter()
            session.run(ids, mask, _OUTPUTS)
            if number > 1:  # two rounds warm up
                times[name].append(1000 * (time.perf_counter() - start))
    slowest = times["onnxruntime fp32"]
    return {
        name: {
            "ms": round(statistics.median(values), 2),
            "tokens_per_second": round(1000 * batch * length / statistics.median(values)),
            "speed_over_fp32": round(statistics.median(a / b for a, b in zip(slowest, values, strict=True)), 2),
        }
        for name, values in times.items()
    }


def measure_start(folder: Path) -> dict[str, float]:
    """Median seconds from before the import to the first vector: each engine, OpenVINO also with a warm cache."""
    with tempfile.TemporaryDirectory() as cache, tempfile.TemporaryDirectory() as its_own:
        cases = {
            "native": (_START, folder, "native", ""),
            "onnxruntime": (_START, folder, "cpu", ""),
            "openvino": (_START, folder, "openvino", ""),
            "openvino, cached": (_START, folder, "openvino", cache),
            "openvino directly, cached": (_DIRECT_START, folder / STATIC_GRAPH, its_own),
        }
        times: dict[str, list[float]] = {name: [] for name in cases}
        for number in range(STARTS + 1):
            for name, arguments in cases.items():
                seconds = float(fresh_process(*arguments))
                if number:  # the first one fills the caches
                    times[name].append(seconds)
    return {name: round(statistics.median(values), 3) for name, values in times.items()}


if __name__ == "__main__":
    main()
