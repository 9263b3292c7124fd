"""A model folder's graph on onnxruntime: on the CPU, or on a GPU that is proved to be what runs it."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from m3edge.cpu import products_saturate
from m3edge.errors import FormatError, ProviderError
from m3edge.model_folder import DENSE_OUTPUT, GRAPH, INPUTS

CPU = "cpu"
PROVIDERS = {  # the names users write, and onnxruntime's
    CPU: "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "directml": "DmlExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
}
NUMBERED = ("cuda", "tensorrt", "directml")  # of which a machine may have several
_OLDEST = (1, 24, 2)  # 1.23 has no kernel for some of the graphs' operators, 1.24.1 fails on weights in a file
_SPINS_BRIEFLY = (1, 26)  # the first onnxruntime that can be told how long a waiting thread spins


class OnnxruntimeSession:
    """A graph on onnxruntime; see session.Session.

    On a GPU, whose memory pool keeps a place for every shape it has seen, batches are padded to a few shapes. What is
    not asked for stays on the device.

    max_length: tokens of the model's longest text, beyond which nothing is padded: it may have no more positions
    """

    def __init__(self, session: Any, provider: str, n_threads: int, max_length: int = sys.maxsize) -> None:
        self._session = session
        self.provider = provider
        self.n_threads = n_threads
        self._in_buckets = provider != CPU
        self._max_length = max_length

    def run(self, input_ids: np.ndarray, attention_mask: np.ndarray, outputs: Sequence[str]) -> list[np.ndarray]:
        """Run one batch; see session.Session."""
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


def open_onnxruntime(
    folder: Path, engine: str, device: str, n_threads: int, max_length: int = sys.maxsize
) -> OnnxruntimeSession:
    """Load a model folder's graph.

    engine:     one of PROVIDERS
    device:     of those NUMBERED, which one: "1" is the second; "" for the first
    max_length: tokens of the model's longest text
    Raises ProviderError when onnxruntime is too old, lacks the provider or does not really run it, FormatError for a
    graph that it cannot load, ImportError without onnxruntime.
    """
    provider = f"{engine}:{device}" if device else engine
    installed = installed_providers()
    if engine not in installed:
        remedy = "; pip uninstall onnxruntime && pip install 'm3edge[gpu]'" if engine in ("cuda", "tensorrt") else ""
        raise ProviderError(
            f"provider {provider!r} is not part of the installed onnxruntime, which has {installed}{remedy}"
        )
    onnxruntime = _import_onnxruntime()
    if _release(onnxruntime) < _OLDEST:
        raise ProviderError(
            f"onnxruntime {onnxruntime.__version__} is too old, m3edge needs {'.'.join(map(str, _OLDEST))}; "
            "pip install --upgrade 'm3edge[cpu]', or 'm3edge[gpu]' for NVIDIA GPUs"
        )
    options = session_options(onnxruntime, n_threads, engine)
    # Through a symbolic link onnxruntime looks for the weights beside the link: give it the real place.
    graph = (folder / GRAPH).resolve()
    wanted = PROVIDERS[engine]
    providers: list[Any] = [(wanted, {"device_id": device}) if device else wanted]
    if engine != CPU:
        providers.append(PROVIDERS[CPU])  # for what the other cannot compute
    try:
        session = onnxruntime.InferenceSession(str(graph), options, providers=providers)
    except _load_errors() as error:
        if engine == CPU:
            raise FormatError(f"{graph}: onnxruntime cannot load it ({error}); export the model again") from error
        raise ProviderError(f"provider {provider!r} could not load {graph}: {error}") from error
    running = session.get_providers()
    if running[0] != wanted:
        raise ProviderError(
            f"provider {provider!r} is installed but onnxruntime fell back to {running[0]}: "
            "its driver or libraries (for CUDA: the driver, CUDA and cuDNN of the version it was built for) are missing"
        )
    return OnnxruntimeSession(session, provider, n_threads, max_length)


def installed_providers() -> list[str]:
    """Those of PROVIDERS that are part of the installed onnxruntime. Raises ImportError when there is none."""
    theirs = _import_onnxruntime().get_available_providers()
    return [name for name, provider in PROVIDERS.items() if provider in theirs]


def may_drive_gpus() -> bool:
    """Whether the installed onnxruntime, if any, could have a GPU's provider: told from its files, since importing it
    takes a good part of the time that a start takes without it."""
    package = importlib.util.find_spec("onnxruntime")
    if package is None or not package.submodule_search_locations:
        return False
    parts = Path(package.submodule_search_locations[0]) / "capi"
    return sys.platform == "darwin" or any(
        path.name.startswith(("libonnxruntime_providers_cuda", "onnxruntime_providers_cuda", "DirectML"))
        for path in parts.iterdir()
    )


def session_options(onnxruntime: Any, n_threads: int, engine: str = CPU) -> Any:
    """The options of a session on one of PROVIDERS; the export compares precisions under the same ones."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads  # explicit, so that onnxruntime does not pin threads inside a container
    options.log_severity_level = 3  # errors; what matters of its warnings is checked after loading
    if _release(onnxruntime) >= _SPINS_BRIEFLY:
        # From one operator to the next a thread waits awake: a fifth of a small batch's time. No longer than that, so
        # that it does not keep the CPU from the machine's other programs.
        options.add_session_config_entry("session.intra_op.spin_duration_us", "100")
    else:  # it would wait for up to half a second
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if engine == CPU:
        # Its GELU with the bias added inside takes twice as long as without: 8 % of a batch at BGE-M3's size in int8.
        options.add_session_config_entry("optimization.disable_specified_optimizers", "BiasGeluFusion")
    if products_saturate():
        # onnxruntime turns the weights unsigned while loading: exact, and half as fast. It would do so with VNNI too.
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def _release(onnxruntime: Any) -> tuple[int, ...]:
    """onnxruntime's version: major, minor and patch, without what a build of one's own adds to it."""
    return tuple(int(part) for part in re.findall(r"\d+", onnxruntime.__version__)[:3])


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
