"""What tests share: the real mini model, built and exported once in a checkout, and where the evaluation data lie."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from m3edge import Encoder, Index
from m3edge.files import sha256_file
from m3edge.model_folder import STATIC_GRAPH, STATIC_WEIGHTS, read_model_folder, write_manifest

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"
CACHE = ROOT / "build" / "test-models"
_SOURCES = {".py", ".safetensors", ".jsonl"}


@pytest.fixture(scope="session")
def mini_checkpoint() -> Path:
    """The mini model as a PyTorch checkpoint folder."""
    folder = CACHE / "mini"
    _build([folder], ["mini", str(folder)])
    return folder


@pytest.fixture(scope="session")
def mini_models(mini_checkpoint: Path) -> dict[str, Path]:
    """The mini model's model folders, by precision; int8's has the static graph for OpenVINO too."""
    precisions = ("fp32", "fp16", "int8", "int4")
    folders = {precision: CACHE / f"mini-{precision}" for precision in precisions}
    command = ["onnx", str(mini_checkpoint), str(CACHE / "mini"), "--precision", "all", "--openvino"]
    _build(list(folders.values()), command)
    return folders


@pytest.fixture(scope="session")
def mini_fp32(mini_models: dict[str, Path]) -> Path:
    """The mini model as an fp32 model folder: for what has to be exact."""
    return mini_models["fp32"]


@pytest.fixture(scope="session")
def mini_int8(mini_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mini model as an int8 model folder without the static graph: what the README and the demo run on."""
    folder = tmp_path_factory.mktemp("models") / "mini-int8"
    shutil.copytree(mini_models["int8"], folder)
    (folder / STATIC_GRAPH).unlink()
    (folder / STATIC_WEIGHTS).unlink()
    write_manifest(folder, read_model_folder(mini_models["int8"], verify=False))
    return folder


@pytest.fixture(scope="session")
def mini_openvino(mini_models: dict[str, Path]) -> Path:
    """The mini model as an int8 model folder with the static graph that OpenVINO runs."""
    return mini_models["int8"]


@pytest.fixture(scope="session")
def encoder(mini_fp32: Path) -> Encoder:
    return Encoder.load(mini_fp32, "cpu")


@pytest.fixture
def index(tmp_path: Path, encoder: Encoder) -> Iterator[Index]:
    """An empty index."""
    with Index.create(tmp_path / "index", encoder) as index:
        yield index


@pytest.fixture(scope="session")
def largest_file() -> Callable[[int], AbstractContextManager[None]]:
    """`with largest_file(n)`: every write that would make a file larger than n bytes fails, as on a full disk, by the
    system itself."""
    resource = pytest.importorskip("resource", reason="only POSIX systems limit the size of files")

    @contextmanager
    def limit(size_bytes: int) -> Iterator[None]:
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))

    return limit


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def beir() -> Callable[[str], Path]:
    """The folder of an evaluation data set; skips where the data are not at hand."""

    def folder(name: str) -> Path:
        path = SHARED / "data" / "beir" / name
        if not path.is_dir():
            pytest.skip(f"the evaluation data are not here: {path}")
        return path

    return folder


@pytest.fixture(scope="session")
def small_beir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 24 short documents and 12 judged queries in the BEIR layout, for what need not be hard."""
    folder = tmp_path_factory.mktemp("data") / "small"
    shutil.copytree(ROOT / "tests" / "data" / "small-beir", folder)
    return folder


@pytest.fixture
def twelve(small_beir: Path, tmp_path: Path) -> Path:
    """A folder with a data set for each of XQuAD's languages, all of them the same texts."""
    for language in ("ar", "de", "el", "en", "es", "hi", "ro", "ru", "th", "tr", "vi", "zh"):
        shutil.copytree(small_beir, tmp_path / "data" / f"xquad-{language}")
    return tmp_path / "data"


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts of benchmarks/, to import."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


@pytest.fixture
def run_small(modules: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Run a script of benchmarks/ in this process, with some of its constants made small; returns its JSON."""

    def run_small(script: str, *arguments: object, result: str, **constants: object) -> dict[str, Any]:
        module = importlib.import_module(script)
        out = tmp_path / "results"
        out.mkdir(exist_ok=True)
        for name, value in {"RESULTS": out, **constants}.items():
            monkeypatch.setattr(module, name, value)
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        module.main()
        report: dict[str, Any] = json.loads((out / result).read_bytes())
        return report

    return run_small


def _build(folders: list[Path], command: list[str]) -> None:
    """Let `m3edge-export` make these folders, unless they are there and nothing that decides their content changed."""
    sources = sorted(path for path in (ROOT / "export").rglob("*.*") if path.suffix in _SOURCES)
    decides = ("cpu", "model_folder", "onnxruntime_engine", "session", "vocabulary")
    sources += [ROOT / "m3edge" / f"{name}.py" for name in decides]
    sources += [ROOT / "constraints.txt"]
    sources = [path for path in sources if "training" not in path.parts]
    key = "\n".join(f"{path.relative_to(ROOT)} {sha256_file(path)}" for path in sources)
    stamp = folders[0].with_suffix(".key")
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(CACHE / "build.lock"):  # of two test runs in a checkout one builds
        if not (all(folder.exists() for folder in folders) and stamp.exists() and stamp.read_text() == key):
            stamp.unlink(missing_ok=True)
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "m3edge_export.cli", *command], check=True)
            stamp.write_text(key)
