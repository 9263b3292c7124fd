"""A model folder's graph on one piece of hardware: which engine runs it, behind one interface.

Everything above this module sees numpy arrays and does not know which engine made them. The engines are
onnxruntime_engine, openvino_engine and native_engine.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from m3edge import native_engine, onnxruntime_engine, openvino_engine
from m3edge.arguments import checked_integer
from m3edge.cpu import available_cpus, multiplies_bytes
from m3edge.errors import M3EdgeError

# "native" is m3edge's own engine; "openvino" runs on the CPU; "openvino:GPU" and "openvino:NPU" name a device of
# OpenVINO's, "openvino:bf16" is the CPU computing in bfloat16; "cuda:1" is a machine's second GPU.
PROVIDERS = (native_engine.NAME, *onnxruntime_engine.PROVIDERS, openvino_engine.NAME)
# What "auto" tries of onnxruntime's, best first. TensorRT takes minutes to compile and has to be asked for.
_GPUS = ("cuda", "directml", "coreml")
_MOST_THREADS = 2**31 - 1  # what engines take as a number


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
        "auto": a GPU that onnxruntime drives; else, on an x86 with VNNI, "native" for an int8 folder, or OpenVINO where
        it is installed and the folder has a static int8 graph; else onnxruntime's CPU
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
    if provider == native_engine.NAME:
        return native_engine.open_native(folder, n_threads)
    if provider == "auto":
        return _open_best(folder, n_threads, max_length, cache, hint)
    if engine == openvino_engine.NAME:
        return openvino_engine.open_openvino(folder, device or "CPU", n_threads, max_length, cache, hint)
    return onnxruntime_engine.open_onnxruntime(folder, engine, device, n_threads, max_length)


def _is_device(engine: str, device: str) -> bool:
    if engine in onnxruntime_engine.NUMBERED:
        return device.isascii() and device.isdecimal()
    return engine == openvino_engine.NAME and device != ""


def _open_best(folder: Path, n_threads: int, max_length: int, cache: Path | None, hint: str) -> Session:
    faster = [
        name
        for name, gains in ((native_engine.NAME, native_engine.gains), (openvino_engine.NAME, _openvino_gains))
        if gains(folder)
    ]
    installed: list[str] = []
    if not faster or onnxruntime_engine.may_drive_gpus():
        try:
            installed = onnxruntime_engine.installed_providers()
        except ImportError:
            if not faster:
                raise
    for name in (*(gpu for gpu in _GPUS if gpu in installed), *faster):
        try:
            return open_session(folder, name, n_threads, max_length=max_length, cache=cache, hint=hint)
        except (M3EdgeError, ImportError) as error:
            warnings.warn(f"{error}; trying the next provider", RuntimeWarning, stacklevel=4)
    return open_session(folder, onnxruntime_engine.CPU, n_threads, max_length=max_length)


def _openvino_gains(folder: Path) -> bool:
    """Whether OpenVINO runs the folder, on a CPU on which it was measured to be faster than onnxruntime."""
    return openvino_engine.runs_int8(folder) and multiplies_bytes()
