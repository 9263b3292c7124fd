"""The static int8 graph of a model folder on OpenVINO: compiled once, or taken from a cache of compiled models.

Called through its own package: onnxruntime's OpenVINO provider was measured to be no faster than onnxruntime's CPU.
"""

from __future__ import annotations

import hashlib
import threading
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from m3edge.errors import FormatError, ProviderError
from m3edge.files import write_atomically
from m3edge.model_folder import DENSE_OUTPUT, INPUTS, MANIFEST, STATIC_GRAPH

NAME = "openvino"
_OLDEST = (2026, 4)  # what m3edge was measured and tested with; older ones are not known to fuse the same
# OpenVINO prepares kernels for each shape it meets and keeps them: 7 MB for a length of text on mini, whose first run
# takes three times as long. Lengths are padded to few, and few kernels are kept.
_LENGTH_STEP = 8
_KEPT_KERNELS = 1000
_MAGIC = b"m3edge-openvino-1\n"  # a cached model: this, 8 bytes of CRC-32 in hexadecimal, and OpenVINO's own bytes


class OpenVinoSession:
    """The static graph on one OpenVINO device. Safe to call from several threads.

    provider:  "openvino" on the CPU, otherwise with the device: "openvino:GPU"
    n_threads: CPU threads a run may use
    """

    def __init__(self, compiled: Any, provider: str, n_threads: int) -> None:
        self.provider = provider
        self.n_threads = n_threads
        self._compiled = compiled
        self._idle: list[Any] = []  # infer requests that no thread is using: as many as ever ran at once
        self._lock = threading.Lock()

    def run(self, input_ids: np.ndarray, attention_mask: np.ndarray, outputs: Sequence[str]) -> list[np.ndarray]:
        """Run one batch; see session.Session."""
        length = input_ids.shape[1]
        padding = ((0, 0), (0, -length % _LENGTH_STEP))
        input_ids, attention_mask = np.pad(input_ids, padding), np.pad(attention_mask, padding)
        with self._lock:
            request = self._idle.pop() if self._idle else None
        request = request or self._compiled.create_infer_request()
        try:
            request.infer(dict(zip(INPUTS, (input_ids, attention_mask), strict=True)), share_inputs=True)
            results = [request.get_tensor(name).data for name in outputs]
            # Copies: the next run writes over the request's tensors.
            return [
                np.array(r[:, :length] if name != DENSE_OUTPUT else r) for name, r in zip(outputs, results, strict=True)
            ]
        finally:
            with self._lock:
                self._idle.append(request)


def open_openvino(folder: Path, device: str, n_threads: int, cache: Path | None) -> OpenVinoSession:
    """Compile a model folder's static graph for a device, or take it from the cache.

    device: OpenVINO's name, "CPU", "GPU", "GPU.1", "NPU"
    cache:  a folder for compiled models, made when missing; what is stale or damaged in it is written anew, and when
        it cannot be written a warning says so
    Raises ProviderError when OpenVINO is too old, has no such device or cannot run the graph there, FormatError for a
    folder without a static graph or with a damaged one, ImportError without OpenVINO.
    """
    openvino = import_openvino()
    graph = (folder / STATIC_GRAPH).resolve()
    if not graph.is_file():
        raise FormatError(f"{folder}: has no {STATIC_GRAPH}, which OpenVINO needs; export the model with `--openvino`")
    core = openvino.Core()
    devices = core.available_devices
    if device not in devices and not any(name.startswith(f"{device}.") for name in devices):
        raise ProviderError(f"OpenVINO finds no device {device!r} here, only {devices}; its driver may be missing")
    properties = _properties(device, n_threads)
    path = None if cache is None else cache / f"{_cache_key(openvino, core, folder, device, properties)}.blob"
    compiled = None if path is None else _read_cache(core, path, device, properties)
    if compiled is None:
        compiled = _compile(core, graph, device, properties)
        if path is not None:
            _write_cache(path, compiled)
    return OpenVinoSession(compiled, NAME if device == "CPU" else f"{NAME}:{device}", n_threads)


def import_openvino() -> Any:
    """The package; ImportError with the pip command when it is missing, ProviderError when it is too old."""
    try:
        import openvino  # late: `import m3edge` stays light
    except ImportError as error:
        raise ImportError("this provider needs OpenVINO: pip install 'm3edge[openvino]'") from error
    version = tuple(int(part) for part in openvino.__version__.split("-")[0].split(".")[:2])
    if version < _OLDEST:
        raise ProviderError(
            f"OpenVINO {openvino.__version__} is too old, m3edge needs {'.'.join(map(str, _OLDEST))}; "
            "pip install --upgrade 'm3edge[openvino]'"
        )
    return openvino


def _properties(device: str, n_threads: int) -> dict[str, Any]:
    properties: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}  # one batch at a time has all threads
    if device == "CPU":
        properties |= {
            "INFERENCE_NUM_THREADS": n_threads,
            # Otherwise it takes one thread a core, whatever the number asked for, and pins it: two processes would
            # share one core and leave the other idle.
            "ENABLE_HYPER_THREADING": True,
            "ENABLE_CPU_PINNING": False,
            "CPU_RUNTIME_CACHE_CAPACITY": str(_KEPT_KERNELS),
            # What is not int8 stays float32 on every CPU, so that vectors do not depend on whether it has bfloat16.
            "INFERENCE_PRECISION_HINT": "f32",
        }
    return properties


def _compile(core: Any, graph: Path, device: str, properties: dict[str, Any]) -> Any:
    try:
        model = core.read_model(str(graph))
    except RuntimeError as error:
        raise FormatError(f"{graph}: OpenVINO cannot read it ({error}); export the model again") from error
    try:
        return core.compile_model(model, device, properties)
    except RuntimeError as error:
        raise ProviderError(f"OpenVINO cannot run {graph} on {device}: {error}") from error


# The cache. OpenVINO has one of its own (CACHE_DIR), but takes what is in it on trust: here a file's name says what it
# was compiled from, with what and for which device, and a checksum says that it is whole.


def _cache_key(openvino: Any, core: Any, folder: Path, device: str, properties: dict[str, Any]) -> str:
    parts = [
        (folder / MANIFEST).read_bytes(),  # has every file's SHA-256
        openvino.__version__,
        core.get_property(device, "FULL_DEVICE_NAME"),
        " ".join(core.get_property(device, "OPTIMIZATION_CAPABILITIES")),
        repr(sorted(properties.items())),
    ]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else part.encode())
        digest.update(b"\0")
    return f"{STATIC_GRAPH.removesuffix('.onnx')}-{digest.hexdigest()[:32]}"


def _read_cache(core: Any, path: Path, device: str, properties: dict[str, Any]) -> Any:
    """The compiled model, or None when there is none or it is damaged."""
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        warnings.warn(f"{path}: cannot be read ({error}); compiling without it", RuntimeWarning, stacklevel=5)
        return None
    head, body = content[: len(_MAGIC) + 8], memoryview(content)[len(_MAGIC) + 8 :]
    if head == _MAGIC + _checksum(body):
        try:
            return core.import_model(bytes(body), device, properties)
        except RuntimeError:
            pass  # of another OpenVINO than its name says: as good as damaged
    warnings.warn(f"{path}: damaged; compiling the model again", RuntimeWarning, stacklevel=5)
    return None


def _write_cache(path: Path, compiled: Any) -> None:
    body = compiled.export_model().getbuffer()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, b"".join([_MAGIC, _checksum(body), body]))
    except OSError as error:
        warnings.warn(f"{path.parent}: cannot keep the compiled model ({error})", RuntimeWarning, stacklevel=5)


def _checksum(content: bytes | memoryview) -> bytes:
    return format(zlib.crc32(content), "08x").encode()
