"""An export or a training on a disk that fills up says so and leaves nothing half-written."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

pytest.importorskip("torch")

from m3edge_export.cli import main

from m3edge.model_folder import read_model_folder

Limit = Callable[[int], AbstractContextManager[None]]


@pytest.mark.parametrize("size_bytes", [500, 5_000, 20_000, 60_000, 100_000])
def test_an_export_leaves_nothing(
    size_bytes: int, largest_file: Limit, tiny_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["onnx", str(tiny_source), str(tmp_path / "model"), "--precision", "int8"]
    with largest_file(size_bytes):
        code = main(command)
    assert code == 1
    assert "File too large" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert main(command) == 0
    assert read_model_folder(tmp_path / "model").precision == "int8"


def test_a_training_goes_on_when_there_is_room_again(
    largest_file: Limit, tiny_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps({"query": f"{i}", "positive": f"file {i}"}) + "\n" for i in range(20)))
    command = ["train", str(tiny_source), str(tmp_path / "out"), "--data", str(data), "--batch", "4"]
    with largest_file(50_000):  # room for the log, none for the model
        code = main(command)
    assert code == 1
    assert "File too large" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(command) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "pairs.jsonl"]
