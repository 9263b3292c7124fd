"""One benchmark run: which steps there are, which are done already, and their results put together.

OUT/steps/MODEL/STEP.json holds what a finished step found and the settings it found it under: an interrupted run goes
on after the last finished one, and what was measured under other settings is measured again.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from m3edge.bench.machine import cpu_name, describe_machine
from m3edge.bench.stopwatch import PARTS
from m3edge.cpu import available_cpus
from m3edge.errors import M3EdgeError
from m3edge.evaluation import import_ir_measures, read_beir
from m3edge.files import sha256_file, write_atomically
from m3edge.index.tokens import CODECS
from m3edge.model_folder import MANIFEST, read_model_folder


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """What is measured on what.

    queries, documents: take only so many of the data set; None: all
    rounds: how often speed is measured, the models taking turns
    """

    data: Path
    split: str = "test"
    queries: int | None = None
    documents: int | None = None
    rounds: int = 3
    provider: str = "auto"
    threads: int | None = None
    token_codec: str = "int8"

    def __post_init__(self) -> None:
        for name in ("queries", "documents", "rounds", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.token_codec not in CODECS:
            raise ValueError(f"token_codec must be one of {', '.join(CODECS)}, got {self.token_codec!r}")


def bench(
    models: Sequence[Path | str],
    settings: BenchSettings,
    out: Path | str,
    *,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure model folders and return the report, which is also OUT/bench.json.

    out: folder for results; given again, finished steps are not repeated
    say: called with a line before each step
    Raises NotADirectoryError when OUT cannot be a folder, FormatError for a model folder or data that are not what they
    should be, M3EdgeError when a step fails.
    """
    import_ir_measures()  # rather now than after the index is built
    out = Path(out)
    for path in (out, *out.parents):
        if path.exists() and not path.is_dir():
            raise NotADirectoryError(f"{path}: expected a folder for results, or none; this is a file")
    dataset = read_beir(settings.data, split=settings.split, n_queries=settings.queries, n_documents=settings.documents)
    runs = [_ModelRun(name, folder, out, settings) for name, folder in _named(models).items()]
    first_query = next(iter(dataset.queries.values()))
    for run in runs:
        run.step("index", say)
        run.step("quality", say)
    for number in range(1, settings.rounds + 1):
        for run in runs:  # in turn, so that whatever else the machine does disturbs all alike
            run.step(f"round-{number}", say, {"first_query": first_query})
    report = {
        "dataset": dataset.name,
        "documents": len(dataset.corpus),
        "queries": len(dataset.queries),
        "settings": {**asdict(settings), "data": dataset.name, "threads": settings.threads or available_cpus()},
        "machine": describe_machine(),
        "models": [run.report() for run in runs],
    }
    write_atomically(out / "bench.json", json.dumps(report, indent=1, ensure_ascii=False).encode() + b"\n")
    return report


class _ModelRun:
    """One model's steps: their files, and what they say together."""

    def __init__(self, name: str, folder: Path, out: Path, settings: BenchSettings) -> None:
        self.name = name
        self.info = read_model_folder(folder)
        self._folder = folder
        self._place = out / "steps" / name
        self._place.mkdir(parents=True, exist_ok=True)
        self._n_rounds = settings.rounds
        self._conditions = {
            "m3edge": version("m3edge"),
            "cpu": cpu_name(),
            "model": sha256_file(folder / MANIFEST),
            "data": _fingerprint(settings.data, settings.split),
            "split": settings.split,
            "queries": settings.queries,
            "documents": settings.documents,
            "provider": settings.provider,
            "threads": settings.threads,
            "token_codec": settings.token_codec,
        }
        self._job = {
            **self._conditions,
            "model": str(folder),
            "data": str(settings.data),
            "index": str(self._place / "index"),
        }
        self._results: dict[str, Any] = {}

    def step(self, name: str, say: Callable[[str], None], extra: dict[str, Any] | None = None) -> None:
        """Take the step's result from its file if it was found under these conditions; else from a new process."""
        path = self._place / f"{name}.json"
        kept = json.loads(path.read_bytes()) if path.exists() else {}
        if kept.get("conditions") == self._conditions and (self._place / "index").is_dir():
            self._results[name] = kept["result"]
            return
        say(f"{self.name}: {name}")
        result = self._run(name.partition("-")[0], {**self._job, **(extra or {})})
        content = {"conditions": self._conditions, "result": result}
        write_atomically(path, json.dumps(content).encode())
        self._results[name] = result

    def _run(self, step: str, job: dict[str, Any]) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(dir=self._place) as scratch:
            job_file, result_file = Path(scratch, "job.json"), Path(scratch, "result.json")
            job_file.write_text(json.dumps({**job, "started": time.time()}))
            command = [sys.executable, "-m", "m3edge.bench.steps", step, str(job_file), str(result_file)]
            process = subprocess.run(command, stderr=subprocess.PIPE, text=True, encoding="utf-8", errors="replace")
            if process.returncode != 0:
                last = (process.stderr.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
                raise M3EdgeError(f"{self._folder}: the benchmark's step {step!r} failed: {last}")
            result: dict[str, Any] = json.loads(result_file.read_bytes())
            return result

    def report(self) -> dict[str, Any]:
        """Medians over the rounds, the rounds themselves, and the rest as the steps found it."""
        index, quality = self._results["index"], self._results["quality"]
        rounds = [self._results[f"round-{number}"] for number in range(1, self._n_rounds + 1)]
        latency = {
            f"p{percent}": _median([np.percentile(result["latency_ms"]["total"], percent) for result in rounds])
            for percent in (50, 95, 99)
        }
        parts = {part: _median([np.median(result["latency_ms"][part]) for result in rounds]) for part in PARTS}
        start = {name: _median([result["start_s"][name] for result in rounds]) for name in rounds[0]["start_s"]}
        return {
            "name": self.name,
            "precision": self.info.precision,
            "provider": index["provider"],
            "fingerprint": self.info.fingerprint,
            "size_bytes": sum(path.stat().st_size for path in self._folder.iterdir() if path.is_file()),
            "quality": quality["modes"],
            "latency_ms": latency,
            "parts_ms": parts,
            "documents_per_s": _median([result["documents_per_s"] for result in rounds]),
            "tokens_per_s": _median([result["tokens_per_s"] for result in rounds]),
            "start_s": start,
            "query_peak_mb": _median([result["query_peak_mb"] for result in rounds]),
            "encode_peak_mb": _median([result["encode_peak_mb"] for result in rounds]),
            "index": index,
            "rounds": [
                {
                    "p50_ms": round(float(np.median(result["latency_ms"]["total"])), 3),
                    "tokens_per_s": result["tokens_per_s"],
                    "start_s": result["start_s"]["total"],
                }
                for result in rounds
            ],
        }


def _named(models: Sequence[Path | str]) -> dict[str, Path]:
    """Each folder under its own name, with a number where two are called alike."""
    if isinstance(models, (str, Path)) or not models:
        raise TypeError(f"models must be one or more model folders in a list, got {models!r}")
    named: dict[str, Path] = {}
    for model in models:
        folder = Path(model).resolve()
        name, number = folder.name, 2
        while name in named:
            name, number = f"{folder.name}-{number}", number + 1
        named[name] = folder
    return named


def _fingerprint(data: Path, split: str) -> str:
    """SHA-256 over the files of a data set."""
    files = (data / "corpus.jsonl", data / "queries.jsonl", data / "qrels" / f"{split}.tsv")
    return hashlib.sha256("".join(sha256_file(path) for path in files).encode()).hexdigest()


def _median(values: Sequence[Any]) -> float:
    return round(float(np.median(values)), 3)
