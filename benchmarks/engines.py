"""One model on every engine: onnxruntime on the fp32 and the int8 graph, OpenVINO on the fp32 and the static int8 one.

    python benchmarks/engines.py models/mini-fp32 models/mini-int8 --out benchmarks/results/engines-mini.json

--nncf FOLDER adds OpenVINO called directly on the int8 model that NNCF makes of the same fp32 graph; where the folder
is not there, NNCF is installed in an environment of its own beside it and makes it, on the export's calibration texts.

Each round runs every engine once, in turn, so that a noisy machine disturbs all alike; medians are reported, and beside
each speed how near the engine's vectors are to fp32's on texts in twelve languages (the XQuAD folders of shared/data).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from m3edge_export.calibrate import calibration_texts
from m3edge_export.report import fidelity
from machine import ROOT, describe_machine

from m3edge import Encoder
from m3edge.files import write_atomically
from m3edge.jsonl import joined_text, read_jsonl
from m3edge.model_folder import DENSE_OUTPUT, GRAPH, INPUTS, SPARSE_OUTPUT, TOKENIZER, TOKENS_OUTPUT
from m3edge.session import Session, available_cpus, open_session

SHAPES = {"8x128": (8, 128), "1x512": (1, 512), "1x16": (1, 16)}
LANGUAGES = ("ar", "de", "el", "en", "es", "hi", "ro", "ru", "th", "tr", "vi", "zh")
DATA = ROOT.parent / "shared" / "data" / "beir"
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


# NNCF's own recommendation for transformers, SmoothQuant included; argv: graph, tokenizer, prefix, out. Texts on stdin.
NNCF = ("nncf==3.4.0", "openvino==2026.4.1", "tokenizers")
_NNCF_SCRIPT = """
import json, sys
import nncf, numpy as np, openvino
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file(sys.argv[2])
tokenizer.no_padding()
def inputs(text):
    ids = np.array([tokenizer.encode(sys.argv[3] + text).ids[:512]], np.int64)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}
texts = json.load(sys.stdin)
model = nncf.quantize(
    openvino.Core().read_model(sys.argv[1]), nncf.Dataset(texts, inputs), subset_size=len(texts),
    model_type=nncf.ModelType.TRANSFORMER, preset=nncf.QuantizationPreset.MIXED,
)
openvino.save_model(model, sys.argv[4], compress_to_fp16=False)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fp32", type=Path, help="model folder in fp32")
    parser.add_argument("int8", type=Path, help="the same model in int8")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=min(2, available_cpus()))
    parser.add_argument("--texts", type=int, default=84, help="texts of each language (%(default)s); 0: no quality")
    parser.add_argument("--nncf", type=Path, metavar="FOLDER", help="where NNCF's model is, or is to be")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    engines = {
        "onnxruntime fp32": (options.fp32, "cpu"),
        "onnxruntime int8": (options.int8, "cpu"),
        "openvino fp32": (options.fp32, "openvino"),
        "openvino static int8": (options.int8, "openvino"),
    }
    sessions = {name: open_session(folder, provider, options.threads) for name, (folder, provider) in engines.items()}
    if options.nncf is not None:
        sessions["openvino itself, NNCF's int8"] = NncfSession(nncf_model(options), options.threads)
    report: dict[str, Any] = {"machine": describe_machine(), "threads": options.threads, "rounds": options.rounds}
    report["speed"] = {name: measure(sessions, *shape, options.rounds) for name, shape in SHAPES.items()}
    del sessions
    report["start_seconds"] = measure_start(options.int8)
    if options.texts:
        texts = [
            joined_text(where, entry)
            for language in LANGUAGES
            for where, entry in list(read_jsonl(DATA / f"xquad-{language}" / "corpus.jsonl"))[: options.texts]
        ][:1000]
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
    if options.out:
        write_atomically(options.out, text.encode() + b"\n")


class NncfSession:
    """OpenVINO on NNCF's model as its own documentation has it: compiled, called, its outputs taken as they are."""

    provider = "openvino itself"

    def __init__(self, model: Path, n_threads: int) -> None:
        import openvino

        self.n_threads = n_threads
        properties = {"INFERENCE_NUM_THREADS": n_threads, "PERFORMANCE_HINT": "LATENCY", "ENABLE_CPU_PINNING": False}
        self._compiled = openvino.Core().compile_model(str(model), "CPU", properties | {"ENABLE_HYPER_THREADING": True})

    def run(self, input_ids: np.ndarray, attention_mask: np.ndarray, outputs: Sequence[str]) -> list[np.ndarray]:
        results = self._compiled(dict(zip(INPUTS, (input_ids, attention_mask), strict=True)))
        return [results[name] for name in outputs]


def nncf_model(options: argparse.Namespace) -> Path:
    """NNCF's int8 model, made where it is not there yet."""
    folder: Path = options.nncf
    model = folder / "model.xml"
    if not model.exists():
        folder.mkdir(parents=True, exist_ok=True)
        environment = folder.with_name(f"{folder.name}-environment")
        if not environment.exists():
            subprocess.run([sys.executable, "-m", "venv", environment], check=True)
            subprocess.run([environment / "bin" / "pip", "install", "--quiet", *NNCF], check=True)
        prefix = Encoder.load(options.fp32, "cpu", verify=False).info.passage_prefix
        command = [environment / "bin" / "python", "-c", _NNCF_SCRIPT, options.fp32 / GRAPH, options.fp32 / TOKENIZER]
        texts = json.dumps(calibration_texts())
        subprocess.run([*map(str, command), prefix, str(model)], input=texts, text=True, check=True)
    return model


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
    with tempfile.TemporaryDirectory() as cache:
        cases = {"onnxruntime": ("cpu", ""), "openvino": ("openvino", ""), "openvino, cached": ("openvino", cache)}
        times: dict[str, list[float]] = {name: [] for name in cases}
        for number in range(6):
            for name, arguments in cases.items():
                command = [sys.executable, "-c", _START, str(folder), *arguments]
                seconds = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
                if number:  # the first one fills the cache
                    times[name].append(seconds)
    return {name: round(statistics.median(values), 3) for name, values in times.items()}


if __name__ == "__main__":
    main()
