"""Our int8, on the native engine and on OpenVINO, beside NNCF's of the same checkpoint: speed, and how near to fp32.

    python benchmarks/nncf_static.py models/mini models/mini-fp32 models/mini-int8-openvino

NNCF, in an environment of its own in build/peers, takes the graph as it is traced from the checkpoint and quantizes it
after training, for transformers (SmoothQuant included), on our calibration texts. Its model is called as anyone would
call OpenVINO: compiled once, one infer request, one batch after the other. What is not int8 OpenVINO then computes in
bfloat16 where the CPU has it, so our static graph does too; `--float32` keeps both from it, as a CPU without it would.
What is timed of ours is all of `encode_passages` but the tokenisation; NNCF's model gets the very batches this makes.
Texts are fidelity.py's, fp32 is the reference. Writes benchmarks/results/nncf-static-MODEL.json.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fidelity import DATA, read_texts
from m3edge_export.calibrate import calibration_texts
from m3edge_export.checkpoint import load_checkpoint
from m3edge_export.graph import export_graph
from m3edge_export.report import fidelity
from machine import RESULTS, ROOT, describe_machine

from m3edge import Encoder
from m3edge.cpu import available_cpus
from m3edge.encoder import HEADS
from m3edge.files import write_atomically
from m3edge.model_folder import GRAPH, INPUTS, ModelInfo
from m3edge.native_engine import NAME
from m3edge.openvino_engine import BFLOAT16, OpenVinoSession, import_openvino
from m3edge.session import Session
from m3edge.tokenization import TokenizedText, Tokenizer

PACKAGES = ["nncf==3.4.0", "openvino==2026.4.1"]
ENVIRONMENT = ROOT / "build" / "peers" / "nncf"
_LONGEST = 512  # tokens of a calibration text, as in m3edge_export.calibrate
_OUTPUTS = tuple(HEADS.values())

# Run by NNCF's own Python; argv: the traced graph, the texts' ids, the model to write.
_SCRIPT = """
import sys, time
import numpy, nncf, openvino
graph, ids, out = sys.argv[1:]
with numpy.load(ids) as file:
    rows = [file[name][None] for name in file.files]
inputs = [{"input_ids": row, "attention_mask": numpy.ones_like(row)} for row in rows]
start = time.perf_counter()
model = nncf.quantize(
    openvino.Core().read_model(graph),
    nncf.Dataset(inputs),
    model_type=nncf.ModelType.TRANSFORMER,
    subset_size=len(inputs),
)
openvino.save_model(model, out, compress_to_fp16=False)
print(time.perf_counter() - start)
"""


class _Tokenized:
    """A tokenizer that has seen the texts before: what it takes is not part of any time."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._seen: dict[str, TokenizedText] = {}

    def tokenize(self, texts: Sequence[str], **settings: Any) -> list[TokenizedText]:
        new = [text for text in texts if text not in self._seen]
        self._seen |= zip(new, self._tokenizer.tokenize(new, **settings), strict=True)
        return [self._seen[text] for text in texts]


class _Recorder:
    """A session that keeps the batches it is given."""

    def __init__(self, session: Session) -> None:
        self.provider, self.n_threads = session.provider, session.n_threads
        self.batches: list[tuple[np.ndarray, np.ndarray]] = []
        self._session = session

    def run(self, input_ids: np.ndarray, attention_mask: np.ndarray, outputs: Sequence[str]) -> list[np.ndarray]:
        self.batches.append((input_ids, attention_mask))
        return self._session.run(input_ids, attention_mask, outputs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("fp32", type=Path, help="model folder in fp32")
    parser.add_argument("int8", type=Path, help="model folder with a static graph")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--step", type=int, default=1, help="take every so many of the 1,008 texts")
    parser.add_argument("--timed", type=int, default=96, help="texts that are timed")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=min(2, available_cpus()))
    parser.add_argument("--float32", action="store_true", help="nothing in bfloat16")
    parser.add_argument("--theirs", type=Path, default=ROOT / "build" / "peers" / "nncf-mini", help="kept when there")
    parser.add_argument("--out", type=Path, help="by default results/nncf-static-MODEL.json")
    options = parser.parse_args()
    reference = Encoder.load(options.fp32, "cpu", n_threads=options.threads)
    info, tokenizer = reference.info, _Tokenized(reference.tokenizer)
    report: dict[str, Any] = {"machine": describe_machine(), "packages": PACKAGES, "threads": options.threads}
    report["quantized"] = quantize(options.checkpoint, options.theirs, info, reference.tokenizer)
    compiled = compile_as_anyone_would(options.theirs / "model.xml", options.threads, options.float32)
    report["precision"] = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    openvino = "openvino:bf16" if report["precision"] == BFLOAT16 else "openvino"
    ours = {
        name: Encoder.load(options.int8, provider, n_threads=options.threads).session
        for name, provider in (("m3edge native", NAME), ("m3edge static on OpenVINO", openvino))
    }
    sessions: dict[str, Session] = {**ours, "NNCF": OpenVinoSession(compiled, openvino, options.threads)}
    encoders = {name: Encoder(info, session, tokenizer) for name, session in sessions.items()}
    texts = read_texts(options.data)[:: options.step]
    expected = Encoder(info, reference.session, tokenizer).encode_passages(texts)
    report["texts"] = len(texts)
    report["quality"] = {
        name: fidelity(expected, encoder.encode_passages(texts))._asdict() for name, encoder in encoders.items()
    }
    timed = texts[:: max(1, len(texts) // options.timed)][: options.timed]
    report["speed"] = measure({name: encoders[name] for name in ours}, compiled, timed, options.rounds)
    write_atomically(
        options.out or RESULTS / f"nncf-static-{info.name}.json", json.dumps(report, indent=1).encode() + b"\n"
    )
    print(json.dumps({name: report[name] for name in ("speed", "quality")}, indent=1))


def quantize(checkpoint: Path, out: Path, info: ModelInfo, tokenizer: Tokenizer) -> dict[str, Any]:
    """Make NNCF's model, unless it is there; returns how many texts and seconds it took."""
    if not (out / "about.json").exists():
        out.mkdir(parents=True, exist_ok=True)
        if not (ENVIRONMENT / "done").exists():
            subprocess.run([sys.executable, "-m", "venv", "--clear", ENVIRONMENT], check=True)
            subprocess.run([ENVIRONMENT / "bin" / "pip", "install", "--quiet", *PACKAGES], check=True)
            (ENVIRONMENT / "done").touch()
        prefixes = list(dict.fromkeys([info.query_prefix, info.passage_prefix, ""]))
        rows = {
            f"{number:04}": tokenizer.tokenize([text], prefix=prefixes[number % len(prefixes)], max_length=_LONGEST)[
                0
            ].ids
            for number, text in enumerate(calibration_texts())
        }
        with tempfile.TemporaryDirectory(dir=out) as scratch:
            export_graph(load_checkpoint(checkpoint).model, Path(scratch))
            np.savez(Path(scratch) / "ids.npz", **rows)
            command = [ENVIRONMENT / "bin" / "python", "-c", _SCRIPT]
            command += [Path(scratch) / GRAPH, Path(scratch) / "ids.npz", out / "model.xml"]
            printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        about = {"texts": len(rows), "seconds": round(float(printed.split()[-1]))}
        write_atomically(out / "about.json", json.dumps(about).encode())
    result: dict[str, Any] = json.loads((out / "about.json").read_bytes())
    return result


def compile_as_anyone_would(path: Path, threads: int, float32: bool) -> Any:
    """With the number of threads, and free to use them: by default OpenVINO takes one for two of a core's threads."""
    precision = {"INFERENCE_PRECISION_HINT": "f32"} if float32 else {}
    properties = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_HYPER_THREADING": True,
        "ENABLE_CPU_PINNING": False,
        **precision,
    }
    core = import_openvino().Core()
    return core.compile_model(core.read_model(str(path)), "CPU", properties)


def measure(ours: dict[str, Encoder], compiled: Any, texts: list[str], rounds: int) -> dict[str, Any]:
    """Medians of the milliseconds that one text (the shortest, again and again) and all texts take, and of the rounds'
    ratios, NNCF's over each of ours."""
    request = compiled.create_infer_request()

    def direct(batches: list[tuple[np.ndarray, np.ndarray]]) -> None:
        for batch in batches:
            request.infer(dict(zip(INPUTS, batch, strict=True)))
            for name in _OUTPUTS:
                np.array(request.get_tensor(name).data)

    result = {}
    for name, chosen, repeats in (("bulk", texts, 1), ("one short text", [min(texts, key=len)], 10)):
        batches = batches_of(next(iter(ours.values())), chosen)
        contestants: dict[str, Callable[[], object]] = {
            name: functools.partial(encoder.encode_passages, chosen) for name, encoder in ours.items()
        }
        contestants["NNCF"] = functools.partial(direct, batches)
        times: dict[str, list[float]] = {contestant: [] for contestant in contestants}
        for number in range(rounds + 2):
            for contestant, run in contestants.items():
                start = time.perf_counter()
                for _ in range(repeats):
                    run()
                if number > 1:  # two rounds warm up
                    times[contestant].append(1000 * (time.perf_counter() - start) / repeats)
        result[name] = {
            "texts": len(chosen),
            "padded_tokens": sum(ids.size for ids, _ in batches),
            "ms": {contestant: round(statistics.median(values), 2) for contestant, values in times.items()},
            "times_as_fast": {name: round(times_as_fast(times["NNCF"], times[name]), 3) for name in ours},
        }
    return result


def batches_of(encoder: Encoder, texts: list[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    recorder = _Recorder(encoder.session)
    Encoder(encoder.info, recorder, encoder.tokenizer).encode_passages(texts)
    return recorder.batches


def times_as_fast(theirs: list[float], ours: list[float]) -> float:
    return statistics.median(their / our for their, our in zip(theirs, ours, strict=True))


if __name__ == "__main__":
    main()
