"""What the runtime's tests share: every kernel, in numpy and in each instruction set that this processor has, an index
that needs no model, and the real model on OpenVINO."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from sample_texts import TEXTS

from m3edge import Embeddings, Encoder, Index, _kernels_numpy
from m3edge.cli import main
from m3edge.index.graph import HnswGraph

try:
    from m3edge import _native
except ImportError:
    _native = None  # type: ignore[assignment]  # installed without a compiler: the twins alone are tested


_SETS = _native.instruction_sets() if _native else ["native"]


@pytest.fixture(scope="module", params=["numpy", *_SETS])
def kernels(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """A module with the kernels: the numpy twins, then the native ones in one instruction set after the other."""
    if request.param == "numpy":
        yield _kernels_numpy
    else:
        yield from _in(request.param)


@pytest.fixture(scope="module", params=_SETS)
def native(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """The native kernels alone, for what has no numpy twin."""
    yield from _in(request.param)


def _in(instruction_set: str) -> Iterator[ModuleType]:
    if _native is None:
        pytest.skip("m3edge was installed without a compiler: there are no native kernels")
    before = _native.instruction_set()
    _native.set_instruction_set(instruction_set)
    yield _native
    _native.set_instruction_set(before)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run one m3edge command; returns its exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def made() -> ModuleType:
    """The module writer_process: documents with made-up embeddings, and a process that writes them."""
    path = Path(__file__).with_name("writer_process.py")
    spec = importlib.util.spec_from_file_location("writer_process", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=["exact", "hnsw"])
def made_index(tmp_path: Path, made: ModuleType, request: pytest.FixtureRequest) -> Iterator[Index]:
    """An index with twenty made-up documents, "d0" to "d19", all in version 0; once without and once with a graph."""
    versions = {f"d{i}": 0 for i in range(20)}
    with Index.create(tmp_path / "made", made.MODEL, dense=request.param) as index:
        index.add(made.documents_of(versions), embeddings=made.embeddings_of(versions))
        yield index


@pytest.fixture
def taken_in(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows graphs were given, in a list that grows."""
    rows: list[int] = []
    add = HnswGraph.add
    monkeypatch.setattr(HnswGraph, "add", lambda self, new, vectors: (rows.append(len(new)), add(self, new, vectors)))
    return rows


@pytest.fixture(scope="module")
def openvino_encoder(mini_openvino: Path) -> Encoder:
    return Encoder.load(mini_openvino, "openvino")


@pytest.fixture(scope="module")
def together(openvino_encoder: Encoder) -> Embeddings:
    return openvino_encoder.encode_passages(TEXTS)


@pytest.fixture
def copied(mini_openvino: Path, tmp_path: Path) -> Path:
    """A copy of the folder, to spoil."""
    return Path(shutil.copytree(mini_openvino, tmp_path / "model"))
