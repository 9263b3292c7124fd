"""The command m3edge-export: what it prints and how it exits."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

pytest.importorskip("torch")

from m3edge_export import export
from m3edge_export.cli import main

from m3edge.model_folder import read_model_folder


def test_onnx_writes_a_model_folder(tiny_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["onnx", str(tiny_source), str(tmp_path / "out"), "--name", "tiny", "--precision", "fp32"]) == 0
    assert read_model_folder(tmp_path / "out").name == "tiny"
    assert "tiny in fp32, cosine to the PyTorch model at least 1.00000" in capsys.readouterr().out


def test_an_error_is_one_line_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["onnx", str(tmp_path / "nothing"), str(tmp_path / "out")]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("m3edge-export: ")
    assert printed.err.count("\n") == 1


def test_a_folder_that_is_there_is_an_error(tiny_source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["onnx", str(tiny_source), str(tiny_source)]) == 1
    assert "already exists" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["onnx"], ["onnx", "a", "b", "--precision", "int3"]])
def test_a_wrong_command_line_exits_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_to_stop_leaves_nothing_behind(
    name: str, tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    number = getattr(signal, name, None)
    if number is None or os.name != "posix":
        pytest.skip("only POSIX systems send this signal")

    def trace(*arguments: object) -> None:
        assert list(tmp_path.iterdir()) != []
        os.kill(os.getpid(), number)

    monkeypatch.setattr(export, "export_graph", trace)
    previous = signal.signal(number, signal.SIG_DFL)
    try:
        assert main(["onnx", str(tiny_source), str(tmp_path / "out")]) == 128 + number
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, previous)
    assert "interrupted; nothing was written" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
