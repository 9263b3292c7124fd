"""A model folder's graph on one piece of hardware: chooses the engine, proves that it is the one running, and runs it.

Everything above this module sees numpy arrays and does not know which engine made them. onnxruntime is here, OpenVINO
in openvino_engine.
"""

from __future__ import annotations

import importlib.util
import math
import os
import platform
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from m3edge import openvino_engine
from m3edge.arguments import checked_integer
from m3edge.errors import FormatError, M3EdgeError, ProviderError
from m3edge.model_folder import DENSE_OUTPUT, GRAPH, INPUTS, STATIC_GRAPH

# The names users write, and onnxruntime's.
ONNXRUNTIME_PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "directml": "DmlExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
}
# "openvino" runs on the CPU; "openvino:GPU" and "openvino:NPU" name a device of OpenVINO's, "openvino:bf16" is the CPU
# computing in bfloat16.
PROVIDERS = (*ONNXRUNTIME_PROVIDERS, openvino_engine.NAME)
_NUMBERED = ("cuda", "tensorrt", "directml")  # where a machine has several such GPUs, "cuda:1" is the second
# What "auto" tries of onnxruntime's, best first. TensorRT takes minutes to compile and has to be asked for.
_AUTO = ("cuda", "directml", "coreml", "cpu")
_CPUINFO = Path("/proc/cpuinfo")
_MOST_THREADS = 2**31 - 1  # what engines take as a number
_SPINS_BRIEFLY = (1, 26)  # the first onnxruntime that can be told how long a waiting thread spins


class Session(Protocol):
    """A loaded graph. Safe to call from several threads.

    provider: the engine and device that really run: one of PROVIDERS, or one and a device, "cuda:1", "openvino:GPU"
    n_threads: CPU threads a run may use
    """

    provider: str
    n_threads: int

    def run(self, input_ids: np.ndarray, attention_mask: np.ndarray, outputs: Sequence[str]) -> list[np.ndarray]:
        """Run one batch.

        input_ids, attention_mask: int64 [batch, seq]; outputs: names of graph outputs
        returns one float32 array for each name, in that order
        """
        ...


class OnnxruntimeSession:
    """A graph on onnxruntime; see Session.

    On a GPU, whose memory pool keeps a place for every shape it has seen, batches are padded to a few shapes. What is
    not asked for stays on the device.

    max_length: tokens of the model's longest text, beyond which nothing is padded: it may have no more positions
    """

    def __init__(self, session: Any, provider: str, n_threads: int, max_length: int = sys.maxsize) -> None:
        self._session = session
        self.provider = provider
        self.n_threads = n_threads
        self._in_buckets = provider != "cpu"
        self._max_length = max_length

    def run(self, input_ids: np.ndarray, attention_mask: np.ndarray, outputs: Sequence[str]) -> list[np.ndarray]:
        """Run one batch; see Session."""
        if not self._in_buckets:
            return self._session.run(list(outputs), dict(zip(INPUTS, (input_ids, attention_mask), strict=True)))
        n_texts, length = input_ids.shape
        padded_length = min(bucket(length), max(length, self._max_length))
        padding = [(0, bucket(n_texts) - n_texts), (0, padded_length - length)]
        # Padding is what the mask leaves out; the ids are those of a text, so that they are in the vocabulary.
        padded = np.pad(input_ids, padding, mode="edge"), np.pad(attention_mask, padding)
        padded[1][n_texts:, 0] = 1  # a text of nothing but padding would be an average of nothing
        results = self._session.run(list(outputs), dict(zip(INPUTS, padded, strict=True)))
        return [
            result[:n_texts] if name == DENSE_OUTPUT else result[:n_texts, :length]
            for name, result in zip(outputs, results, strict=True)
        ]


def bucket(size: int) -> int:
    """The smallest power of two, or one and a half of one, that holds so many texts or tokens: at most a third is left
    empty, and there are only two sizes for every doubling."""
    power = 1 << max(0, size - 1).bit_length()
    return power * 3 // 4 if power >= 4 and size <= power * 3 // 4 else power


def open_session(
    folder: Path,
    provider: str = "auto",
    n_threads: int | None = None,
    *,
    max_length: int = sys.maxsize,
    cache: Path | None = None,
    hint: str = "latency",
) -> Session:
    """Load a model folder's graph.

    provider:  one of PROVIDERS; "openvino:" and a device; "cuda:", "tensorrt:" or "directml:" and a GPU's number; or
        "auto": a GPU that onnxruntime drives; else OpenVINO where it is installed, the folder has a static int8 graph
        and the CPU is an x86 with VNNI; else onnxruntime's CPU
    n_threads: CPU threads; by default as many as this process may use
    max_length: tokens of the model's longest text: engines that pad to a few lengths pad no further, since it may have
        no more positions
    cache:     a folder where OpenVINO's compiled models are kept; other engines do without
    hint:      "latency", or "throughput" where many threads call at once; OpenVINO's, other engines do without
    Raises ProviderError when the provider is not installed or does not really run; ImportError without its package.
    """
    if not isinstance(provider, str):
        raise TypeError(f"provider must be a string such as 'auto', got {type(provider).__name__}")
    engine, colon, device = provider.partition(":")
    if provider != "auto" and (engine not in PROVIDERS or (colon and not _is_device(engine, device))):
        raise ValueError(
            f"provider must be 'auto' or one of {sorted(PROVIDERS)}, or 'openvino:' and a device, or 'cuda:' and a "
            f"GPU's number, got {provider!r}"
        )
    if hint not in openvino_engine.HINTS:
        raise ValueError(f"hint must be one of {openvino_engine.HINTS}, got {hint!r}")
    n_threads = available_cpus() if n_threads is None else checked_integer("n_threads", n_threads, most=_MOST_THREADS)
    if provider == "auto":
        return _open_best(folder, n_threads, max_length, cache, hint)
    if engine == openvino_engine.NAME:
        return openvino_engine.open_openvino(folder, device or "CPU", n_threads, max_length, cache, hint)
    return _open_installed(folder, provider, n_threads, max_length)


def _is_device(engine: str, device: str) -> bool:
    if engine in _NUMBERED:
        return device.isascii() and device.isdecimal()
    return engine == openvino_engine.NAME and device != ""


def _open_installed(folder: Path, provider: str, n_threads: int, max_length: int) -> Session:
    """One of onnxruntime's providers, which must be part of what is installed."""
    onnxruntime = _import_onnxruntime()
    installed = onnxruntime.get_available_providers()
    engine = provider.partition(":")[0]
    if ONNXRUNTIME_PROVIDERS[engine] not in installed:
        usable = [name for name, theirs in ONNXRUNTIME_PROVIDERS.items() if theirs in installed]
        nvidia = engine in ("cuda", "tensorrt")
        remedy = "; pip uninstall onnxruntime && pip install 'm3edge[gpu]'" if nvidia else ""
        raise ProviderError(
            f"provider {provider!r} is not part of the installed onnxruntime, which has {usable}{remedy}"
        )
    return _open(onnxruntime, folder, provider, n_threads, max_length)


def _open_best(folder: Path, n_threads: int, max_length: int, cache: Path | None, hint: str) -> Session:
    gains = _openvino_gains(folder)
    try:
        installed = _import_onnxruntime().get_available_providers()
    except ImportError:
        if not gains:
            raise
        installed = []
    candidates = [name for name in _AUTO if ONNXRUNTIME_PROVIDERS[name] in installed]
    if gains:
        position = candidates.index("cpu") if "cpu" in candidates else len(candidates)
        candidates.insert(position, openvino_engine.NAME)
    for name in candidates:
        try:
            return open_session(folder, name, n_threads, max_length=max_length, cache=cache, hint=hint)
        except (M3EdgeError, ImportError) as error:
            if name == candidates[-1]:
                raise
            warnings.warn(f"{error}; trying the next provider", RuntimeWarning, stacklevel=4)
    raise ProviderError(f"none of {list(_AUTO)} works; onnxruntime has {installed}")


def _openvino_gains(folder: Path) -> bool:
    """Whether OpenVINO is here, has a graph to run, and the CPU is one on which it was measured to be faster."""
    has_engine = importlib.util.find_spec(openvino_engine.NAME) is not None
    return has_engine and (folder / STATIC_GRAPH).is_file() and multiplies_bytes()


def session_options(onnxruntime: Any, n_threads: int, provider: str = "cpu") -> Any:
    """The options of a session on one of ONNXRUNTIME_PROVIDERS; the export compares precisions under the same ones."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads  # explicit, so that onnxruntime does not pin threads inside a container
    options.log_severity_level = 3  # errors; what matters of its warnings is checked after loading
    if _release(onnxruntime) >= _SPINS_BRIEFLY:
        # From one operator to the next a thread waits awake: a fifth of a small batch's time. No longer than that, so
        # that it does not keep the CPU from the machine's other programs.
        options.add_session_config_entry("session.intra_op.spin_duration_us", "100")
    else:  # it would wait for up to half a second
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if provider == "cpu":
        # Its GELU with the bias added inside takes twice as long as without: 8 % of a batch at BGE-M3's size in int8.
        options.add_session_config_entry("optimization.disable_specified_optimizers", "BiasGeluFusion")
    if products_saturate():
        # onnxruntime turns the weights unsigned while loading: exact, and half as fast. It would do so with VNNI too.
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def _release(onnxruntime: Any) -> tuple[int, int]:
    """onnxruntime's major and minor version."""
    major, minor = onnxruntime.__version__.split(".")[:2]
    return int(major), int(minor)


def products_saturate(machine: str | None = None, cpuinfo: Path = _CPUINFO) -> bool:
    """Whether this CPU adds pairs of unsigned-by-signed 8-bit products in 16 bits: x86 without VNNI, or x86 of which it
    cannot be told, does."""
    return _is_x86(machine) and not multiplies_bytes(machine, cpuinfo)


def multiplies_bytes(machine: str | None = None, cpuinfo: Path = _CPUINFO) -> bool:
    """Whether this is an x86 that is known to have VNNI: 8-bit products at four times float32's rate.

    Only Linux has /proc/cpuinfo; elsewhere the native kernels know, where they are installed.
    """
    if not _is_x86(machine):
        return False
    try:
        flags = next(line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")).split()
    except (OSError, StopIteration):
        flags = _native_instruction_sets()
    return not {"avx512_vnni", "avx_vnni", "avx512-vnni", "avx-vnni"}.isdisjoint(flags)


def _native_instruction_sets() -> list[str]:
    """Those of the native kernels that this CPU has; none without a compiler at installation."""
    try:
        from m3edge import _native
    except ImportError:
        return []
    return list(_native.instruction_sets())


def _is_x86(machine: str | None) -> bool:
    return (machine or platform.machine()).lower() in ("x86_64", "amd64", "i386", "i686")


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


def _open(onnxruntime: Any, folder: Path, provider: str, n_threads: int, max_length: int) -> OnnxruntimeSession:
    options = session_options(onnxruntime, n_threads, provider)
    # Through a symbolic link onnxruntime looks for the weights beside the link: give it the real place.
    graph = (folder / GRAPH).resolve()
    engine, _, device = provider.partition(":")
    wanted = ONNXRUNTIME_PROVIDERS[engine]
    providers: list[Any] = [(wanted, {"device_id": device}) if device else wanted]
    if engine != "cpu":
        providers.append(ONNXRUNTIME_PROVIDERS["cpu"])  # for what the other cannot compute
    try:
        session = onnxruntime.InferenceSession(str(graph), options, providers=providers)
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
    return OnnxruntimeSession(session, provider, n_threads, max_length)
