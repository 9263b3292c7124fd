"""What tests share: the real mini model, built and exported once in a checkout, and where the evaluation data lie."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from m3edge import Encoder, Index
from m3edge.files import sha256_file

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"
CACHE = ROOT / "build" / "test-models"


@pytest.fixture(scope="session")
def mini_checkpoint() -> Path:
    """The mini model as a PyTorch checkpoint folder."""
    return _built("mini", "mini")


@pytest.fixture(scope="session")
def mini_fp32(mini_checkpoint: Path) -> Path:
    """The mini model as an fp32 model folder."""
    return _built("mini-fp32", "onnx", str(mini_checkpoint))


@pytest.fixture(scope="session")
def encoder(mini_fp32: Path) -> Encoder:
    return Encoder.load(mini_fp32, "cpu")


@pytest.fixture
def index(tmp_path: Path, encoder: Encoder) -> Iterator[Index]:
    """An empty index."""
    with Index.create(tmp_path / "index", encoder) as index:
        yield index


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


def _built(name: str, *command: str) -> Path:
    """A folder that `m3edge-export` makes, kept for as long as nothing that decides its content changes."""
    sources = sorted([*(ROOT / "export").rglob("*.py"), *(ROOT / "export").rglob("*.safetensors")])
    sources += [ROOT / "m3edge" / "model_folder.py", ROOT / "constraints.txt"]
    sources = [path for path in sources if "training" not in path.parts]
    key = "\n".join(f"{path.relative_to(ROOT)} {sha256_file(path)}" for path in sources)
    folder, stamp = CACHE / name, CACHE / f"{name}.key"
    if not folder.exists() or not stamp.exists() or stamp.read_text() != key:
        stamp.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        verb, *source = command
        subprocess.run([sys.executable, "-m", "m3edge_export.cli", verb, *source, str(folder)], check=True)
        stamp.write_text(key)
    return folder
