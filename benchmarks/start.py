"""From nothing to the first vector: what a command line search, or a program that starts, waits for.

    python benchmarks/start.py models/mini-int8 --rounds 7

Each round is a fresh process with a warm file cache; medians. The engine is that of `auto`, whose import, where it
needs one, is part of `session`. The parts are those of `Encoder.load`, one after the other; `first vector` is the
whole, with the weights' checksums on a thread of their own. `parsed` is the whole without vocabulary.bin. Writes
benchmarks/results/start-MODEL-PRECISION.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from fresh_process import fresh_process
from machine import RESULTS, describe_machine

from m3edge import Encoder
from m3edge.files import write_atomically
from m3edge.model_folder import TOKENIZER, VOCABULARY, read_model_folder, write_manifest

# Each prints a JSON object of milliseconds and, last, the memory it took.
_HEAD = """
import json, sys, time
from pathlib import Path
times, last = {}, time.perf_counter()
def part(name):
    global last
    now = time.perf_counter()
    times[name] = 1000 * (now - last)
    last = now
folder = Path(sys.argv[1])
"""
_TAIL = """
from m3edge.bench.memory import peak_memory_mb
print(json.dumps({**times, "peak_mb": peak_memory_mb()}))
"""
_PARTS = (
    _HEAD
    + """
import numpy
part("import numpy")
import m3edge
part("import m3edge")
import tokenizers
part("import tokenizers")
from m3edge.model_folder import TOKENIZER, VOCABULARY, read_model_folder
info = read_model_folder(folder)
part("checksums")
from m3edge.session import open_session
session = open_session(folder)
part("session")
from m3edge.tokenization import Tokenizer
tokenizer = Tokenizer(folder / TOKENIZER, folder / VOCABULARY)
part("vocabulary")
encoder = m3edge.Encoder(info, session, tokenizer)
encoder.encode_queries("one short query")
part("first run")
encoder.encode_queries("one short query")
part("second run")
"""
    + _TAIL
)
_WHOLE = (
    _HEAD
    + """
from m3edge import Encoder
encoder = Encoder.load(folder)
encoder.encode_queries("one short query")
part("first vector")
"""
    + _TAIL
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="model folder")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    info = read_model_folder(options.model)
    with tempfile.TemporaryDirectory() as scratch:
        without = _without_vocabulary(options.model, Path(scratch))
        contestants = {"parts": (_PARTS, options.model), "whole": (_WHOLE, options.model), "parsed": (_WHOLE, without)}
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in contestants}
        for number in range(options.rounds + 1):
            for name, (script, folder) in contestants.items():
                measured = json.loads(fresh_process(script, folder))
                if number:  # the first one fills the caches
                    rounds[name].append(measured)
    report: dict[str, Any] = {"machine": describe_machine(), "model": f"{info.name}, {info.precision}"}
    report["rounds"] = options.rounds
    report["provider"] = Encoder.load(options.model, verify=False).provider
    for name, rows in rounds.items():
        report[name] = {key: round(statistics.median(row[key] for row in rows), 1) for key in rows[0]}
    write_atomically(
        RESULTS / f"start-{info.name}-{info.precision}.json", json.dumps(report, indent=1).encode() + b"\n"
    )
    print(json.dumps(report, indent=1))


def _without_vocabulary(model: Path, scratch: Path) -> Path:
    """The same model folder, its files linked, with a manifest that knows of no vocabulary."""
    for path in model.resolve().iterdir():
        if path.name not in (VOCABULARY, "m3edge.json"):
            (scratch / path.name).symlink_to(path)
    assert (scratch / TOKENIZER).exists()
    write_manifest(scratch, read_model_folder(model, verify=False))
    return scratch


if __name__ == "__main__":
    main()
