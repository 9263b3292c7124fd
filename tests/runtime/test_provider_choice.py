"""Which backend runs, decided against an onnxruntime that claims to have what is not at hand."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import warnings
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from m3edge import ProviderError, onnxruntime_engine, session

CPU, CUDA, DIRECTML = "CPUExecutionProvider", "CUDAExecutionProvider", "DmlExecutionProvider"


class _Onnxruntime:
    """All providers are installed; those not in `working` are silently left out of a session, as onnxruntime does.

    asked_for: the providers of the last session
    """

    SessionOptions = onnxruntime.SessionOptions
    __version__ = onnxruntime.__version__

    def __init__(self, installed: list[str], working: list[str]) -> None:
        self._installed, self._working = installed, working

    def get_available_providers(self) -> list[str]:
        return self._installed

    def InferenceSession(self, path: str, options: Any, providers: list[str]) -> Any:
        assert Path(path).name == "model.onnx"
        self.asked_for = providers
        names = [provider if isinstance(provider, str) else provider[0] for provider in providers]
        running = [name for name in names if name in self._working]

        class Running:
            def get_providers(self) -> list[str]:
                return running

        return Running()


@pytest.fixture
def pretend(monkeypatch):
    def pretend(installed: list[str], working: list[str]) -> _Onnxruntime:
        runtime = _Onnxruntime(installed, working)
        monkeypatch.setattr(onnxruntime_engine, "_import_onnxruntime", lambda: runtime)
        return runtime

    return pretend


def test_cuda_that_falls_back_is_an_error_and_not_a_slow_success(pretend, tmp_path):
    pretend([CUDA, CPU], [CPU])
    with pytest.raises(ProviderError, match="'cuda' is installed but onnxruntime fell back to CPUExecutionProvider"):
        session.open_session(tmp_path, "cuda")


def test_cuda_that_is_not_installed_says_what_to_install(pretend, tmp_path):
    pretend([CPU], [CPU])
    with pytest.raises(ProviderError, match=r"pip install 'm3edge\[gpu\]'"):
        session.open_session(tmp_path, "cuda")


@pytest.mark.parametrize("version", ["1.23.2", "1.24.1", "1.9.0"])
def test_an_onnxruntime_that_is_too_old_is_named(pretend, tmp_path, version):
    pretend([CPU], [CPU]).__version__ = version
    message = rf"onnxruntime {version} is too old, m3edge needs 1\.24\.2; pip install --upgrade 'm3edge\[cpu\]'"
    with pytest.raises(ProviderError, match=message):
        session.open_session(tmp_path, "cpu")


@pytest.mark.parametrize("version", ["1.24.2", "1.30.0.dev20261101001", "2.0.0+cu130"])
def test_newer_ones_and_builds_of_ones_own_are_taken(pretend, tmp_path, version):
    pretend([CPU], [CPU]).__version__ = version
    assert session.open_session(tmp_path, "cpu").provider == "cpu"


def test_cuda_that_works_is_what_runs(pretend, tmp_path):
    pretend([CUDA, CPU], [CUDA, CPU])
    assert session.open_session(tmp_path, "cuda").provider == "cuda"


def test_a_number_names_one_of_several_gpus(pretend, tmp_path):
    runtime = pretend([CUDA, CPU], [CUDA, CPU])
    assert session.open_session(tmp_path, "cuda:1").provider == "cuda:1"
    assert runtime.asked_for == [(CUDA, {"device_id": "1"}), CPU]


@pytest.mark.parametrize("provider", ["cuda:", "cuda:one", "cuda:-1", "cpu:0", "coreml:0", "openvino:", "auto:0"])
def test_a_device_that_is_none_is_refused(provider, tmp_path):
    with pytest.raises(ValueError, match=r"provider must be 'auto' or one of .*'cuda:' and a GPU's number, got"):
        session.open_session(tmp_path, provider)


def test_auto_takes_the_first_that_really_runs_and_warns_of_those_that_do_not(pretend, tmp_path):
    pretend([CUDA, DIRECTML, CPU], [DIRECTML, CPU])
    with pytest.warns(RuntimeWarning, match="'cuda' is installed but onnxruntime fell back"):
        assert session.open_session(tmp_path, "auto").provider == "directml"


def test_auto_prefers_cuda_where_it_works(pretend, tmp_path):
    pretend([CPU, CUDA], [CUDA, CPU])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert session.open_session(tmp_path, "auto").provider == "cuda"


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (["libonnxruntime.so.1.31.1", "libonnxruntime_providers_shared.so"], False),
        (["libonnxruntime_providers_cuda.so"], True),
        (["onnxruntime_providers_cuda.dll"], True),
        (["DirectML.dll", "onnxruntime.dll"], True),
    ],
)
def test_whether_a_gpu_is_possible_is_told_without_importing_onnxruntime(monkeypatch, tmp_path, parts, expected):
    (tmp_path / "capi").mkdir()
    for part in parts:
        (tmp_path / "capi" / part).touch()
    spec = importlib.machinery.ModuleSpec("onnxruntime", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(sys, "platform", "linux")
    assert onnxruntime_engine.may_drive_gpus() is expected
    monkeypatch.setattr(sys, "platform", "darwin")
    assert onnxruntime_engine.may_drive_gpus() is True
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert onnxruntime_engine.may_drive_gpus() is False
