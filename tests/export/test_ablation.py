"""benchmarks/ablation.py on a tiny model: what it trains and measures, and that it goes on where it was."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

SCRIPT = Path(__file__).parent.parent.parent / "benchmarks" / "ablation.py"
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight")


def test_an_ablation_measures_each_variant_and_goes_on_where_it_was(
    tiny_source: Path, small_beir: Path, tmp_path: Path
) -> None:
    train, work = tmp_path / "train", tmp_path / "work"
    train.mkdir()
    with gzip.open(train / "numbers.jsonl.gz", "wt") as file:
        for number in NUMBERS:
            print(json.dumps({"query": number, "positive": f"the file {number}"}), file=file)

    def run(*variants: str) -> tuple[str, dict[str, Any]]:
        command = [sys.executable, SCRIPT, tiny_source, train, small_beir.parent, "--sets", small_beir.name]
        command += ["--passages", 5, "--held-out", 3, "--queries", 3, "--documents", 6, "--steps", 2]
        command += ["--work", work, "--out", tmp_path / "result.json", "--variants", *variants]
        made = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        assert made.returncode == 0, made.stderr
        return made.stdout, json.loads((tmp_path / "result.json").read_bytes())

    _, first = run("as shipped", "self-distillation")
    states = {path: path.stat().st_mtime_ns for path in (work / "states").iterdir()}
    printed, second = run("as shipped", "self-distillation", "no self-distillation", "mined negatives")
    assert {path: path.stat().st_mtime_ns for path in (work / "states").iterdir()} == states
    assert second["rows"][:4] == first["rows"]
    variants = ["as shipped", "self-distillation", "no self-distillation", "mined negatives"]
    assert [row["variant"] for row in second["rows"]] == [name for name in variants for _ in range(2)]
    assert {row["dataset"] for row in second["rows"]} == {"held out: numbers", small_beir.name}
    trainings = {name: made["config"] for name, made in second["trainings"].items()}
    assert {name: made["objective"]["distillation"] for name, made in trainings.items()} == {
        "self-distillation": True, "no self-distillation": False, "mined negatives": True,
    }  # fmt: skip
    assert [name for name, made in trainings.items() if made["negatives"]] == ["mined negatives"]
    own = [row for row in second["rows"] if row["dataset"] == small_beir.name]
    assert len({row["nDCG@10"]["dense"] for row in own}) == 1  # the encoder is frozen
    assert printed.count("| no self-distillation |") == 2
