"""One ONNX graph on one piece of hardware: chooses the backend, proves that it is the one running, and runs it.

Everything above this module sees numpy arrays and does not know which backend made them.
"""

from __future__ import annotations

import math
import os
import platform
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from m3edge.errors import FormatError, ProviderError
from m3edge.model_folder import GRAPH, INPUTS

# The names users write, and onnxruntime's.
PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "directml": "DmlExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}
# What "auto" tries, best first. TensorRT (minutes of compilation) and OpenVINO (through onnxruntime it is no faster
# than the CPU kernels) have to be asked for.
_AUTO = ("cuda", "directml", "coreml", "cpu")


class Session:
    """A loaded graph. Safe to call from several threads.

    provider: the backend that really runs, one of PROVIDERS
    n_threads: CPU threads a run may use
    """

    def __init__(self, session: Any, provider: str, n_threads: int) -> None:
        self._session = session
        self.provider = provider
        self.n_threads = n_threads

    def run(self, input_ids: np.ndarray, attention_mask: np.ndarray, outputs: Sequence[str]) -> list[np.ndarray]:
        """Run one batch.

        input_ids, attention_mask: int64 [batch, seq]; outputs: names of graph outputs
        returns one float32 array for each name, in that order
        """
        return self._session.run(list(outputs), dict(zip(INPUTS, (input_ids, attention_mask), strict=True)))


def open_session(folder: Path, provider: str = "auto", n_threads: int | None = None) -> Session:
    """Load a model folder's graph.

    provider: one of PROVIDERS, or "auto" for the best that is installed and works
    n_threads: CPU threads; by default as many as this process may use
    Raises ProviderError when the provider is not installed or does not really run; ImportError without onnxruntime.
    """
    if provider != "auto" and provider not in PROVIDERS:
        raise ValueError(f"provider must be 'auto' or one of {sorted(PROVIDERS)}, got {provider!r}")
    if n_threads is not None and n_threads < 1:
        raise ValueError(f"n_threads must be at least 1, got {n_threads}")
    onnxruntime = _import_onnxruntime()
    n_threads = n_threads or available_cpus()
    installed = onnxruntime.get_available_providers()
    if provider != "auto":
        if PROVIDERS[provider] not in installed:
            usable = [name for name, theirs in PROVIDERS.items() if theirs in installed]
            nvidia = provider in ("cuda", "tensorrt")
            remedy = "; pip uninstall onnxruntime && pip install 'm3edge[gpu]'" if nvidia else ""
            raise ProviderError(
                f"provider {provider!r} is not part of the installed onnxruntime, which has {usable}{remedy}"
            )
        return _open(onnxruntime, folder, provider, n_threads)
    for name in _AUTO:
        if PROVIDERS[name] in installed:
            try:
                return _open(onnxruntime, folder, name, n_threads)
            except ProviderError as error:
                warnings.warn(f"{error}; trying the next provider", RuntimeWarning, stacklevel=3)
    raise ProviderError(f"none of {list(_AUTO)} works; onnxruntime has {installed}")


def session_options(onnxruntime: Any, n_threads: int) -> Any:
    """The options every session gets; the export compares precisions under the same ones."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads  # explicit, so that onnxruntime does not pin threads inside a container
    options.log_severity_level = 3  # errors; what matters of its warnings is checked after loading
    # Waiting threads sleep. Spinning takes a fifth off the time of small batches on an idle machine, and trebles it on
    # one whose other programs want the CPU too.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if products_saturate():
        # onnxruntime turns the weights unsigned while loading: exact, and half as fast. It would do so with VNNI too.
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def products_saturate(machine: str | None = None, cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this CPU adds pairs of unsigned-by-signed 8-bit products in 16 bits: x86 without VNNI, or x86 of which it
    cannot be told, does."""
    if (machine or platform.machine()).lower() not in ("x86_64", "amd64", "i386", "i686"):
        return False
    try:
        flags = next(line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")).split()
    except (OSError, StopIteration):
        return True
    return not {"avx512_vnni", "avx_vnni"} & set(flags)


def available_cpus() -> int:
    """How many CPUs this process may use: its affinity mask and its container's quota, not the machine's count."""
    cpus = len(os.sched_getaffinity(0)) if sys.platform == "linux" else (os.cpu_count() or 1)
    return max(1, min(cpus, _cgroup_cpus(Path("/sys/fs/cgroup/cpu.max"))))


def _cgroup_cpus(cpu_max: Path) -> int:
    """A container's CPU quota (cgroup v2), rounded up; a very large number where there is none."""
    try:
        quota, period = cpu_max.read_text().split()
        return math.ceil(int(quota) / int(period))
    except (OSError, ValueError):  # no such file, or "max 100000"
        return 1 << 20


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime  # late: `import m3edge` stays light
    except ImportError as error:
        raise ImportError(
            "m3edge needs onnxruntime to run a model: pip install 'm3edge[cpu]', or 'm3edge[gpu]' for NVIDIA GPUs"
        ) from error
    return onnxruntime


def _load_errors() -> tuple[type[Exception], ...]:
    """What onnxruntime raises for a graph it cannot load: its classes share no base but Exception."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = ("EPFail", "Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoModel", "NoSuchFile")
    return (RuntimeError, *(getattr(state, name) for name in (*names, "NotImplemented", "RuntimeException")))


def _open(onnxruntime: Any, folder: Path, provider: str, n_threads: int) -> Session:
    options = session_options(onnxruntime, n_threads)
    # Through a symbolic link onnxruntime looks for the weights beside the link: give it the real place.
    graph = (folder / GRAPH).resolve()
    wanted = PROVIDERS[provider]
    try:
        session = onnxruntime.InferenceSession(
            str(graph), options, providers=list(dict.fromkeys([wanted, PROVIDERS["cpu"]]))
        )
    except _load_errors() as error:
        if provider == "cpu":
            raise FormatError(f"{graph}: onnxruntime cannot load it ({error}); export the model again") from error
        raise ProviderError(f"provider {provider!r} could not load {graph}: {error}") from error
    running = session.get_providers()
    if running[0] != wanted:
        raise ProviderError(
            f"provider {provider!r} is installed but onnxruntime fell back to {running[0]}: "
            "its driver or libraries (for CUDA: the driver, CUDA and cuDNN of the version it was built for) are missing"
        )
    return Session(session, provider, n_threads)
