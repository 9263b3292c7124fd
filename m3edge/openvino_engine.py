"""A model folder's graph on OpenVINO: compiled once, or taken from a cache of compiled models.

An int8 folder's graph is the static one, an fp32 folder's the one that onnxruntime runs too. OpenVINO is called
through its own package: onnxruntime's OpenVINO provider was measured to be no faster than onnxruntime's CPU.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import sys
import threading
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from m3edge.errors import FormatError, ProviderError
from m3edge.files import write_atomically
from m3edge.model_folder import (
    DENSE_OUTPUT,
    GRAPH,
    INPUTS,
    MANIFEST,
    STATIC_GRAPH,
    read_model_folder,
)

NAME = "openvino"
BFLOAT16 = "bf16"  # in a device's place: the CPU, with what is not int8 in bfloat16
HINTS = ("latency", "throughput")
_CONVERTER = "openvino.tools.ovc"
_OLDEST = (2026, 4)  # what m3edge was measured and tested with; older ones are not known to fuse the same
# OpenVINO prepares kernels for each shape it meets and keeps them: 7 MB for a length of text on mini, whose first run
# takes three times as long. Lengths are padded to few, and few kernels are kept.
_LENGTH_STEP = 8
_KEPT_KERNELS = 1000
# A cached model: this, 8 bytes of CRC-32 in hexadecimal, zeros up to a page, and OpenVINO's own bytes, which are mapped
# and not read: most of them are weights. The first line counts up when the same graph is compiled to something else.
_MAGIC = b"m3edge-openvino-3\n"
_PAGE = 4096


class OpenVinoSession:
    """A graph on one OpenVINO device. Safe to call from several threads.

    A text's results may depend on its batch: of 120 texts on mini's static graph, each beside itself alone, all cosines
    were above .99999 in batches of 512 tokens; in batches of 32 texts two fell below .9999, to .9997 (dense) and .9984
    (a token), and stayed as near to fp32 (a token: .9975, alone .9971). On onnxruntime none fell below .99999.

    provider:  "openvino" on the CPU, otherwise with the device, "openvino:GPU", or "openvino:bf16"
    n_threads: CPU threads a run may use
    mapped:    uint8 [bytes], the cached model that `compiled` points into
    max_length: tokens of the model's longest text, beyond which nothing is padded: it may have no more positions
    """

    def __init__(
        self,
        compiled: Any,
        provider: str,
        n_threads: int,
        mapped: np.ndarray | None = None,
        max_length: int = sys.maxsize,
    ) -> None:
        self.provider = provider
        self.n_threads = n_threads
        self._compiled = compiled
        self._max_length = max_length
        self._mapped = mapped  # OpenVINO does not keep it
        self._idle: list[Any] = []  # infer requests that no thread is using: as many as ever ran at once
        self._lock = threading.Lock()

    def run(self, input_ids: np.ndarray, attention_mask: np.ndarray, outputs: Sequence[str]) -> list[np.ndarray]:
        """Run one batch; see session.Session."""
        length = input_ids.shape[1]
        padded_length = min(length + -length % _LENGTH_STEP, max(length, self._max_length))
        padding = ((0, 0), (0, padded_length - length))
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


def runs_int8(folder: Path) -> bool:
    """Whether OpenVINO is here, which is not imported for that, and the folder has a static graph for it."""
    return importlib.util.find_spec(NAME) is not None and (folder / STATIC_GRAPH).is_file()


def open_openvino(
    folder: Path, device: str, n_threads: int, max_length: int, cache: Path | None, hint: str = "latency"
) -> OpenVinoSession:
    """Compile a model folder's graph for a device, or take it from the cache.

    device: OpenVINO's name, "CPU", "GPU", "GPU.1", "NPU"; or BFLOAT16, for a CPU that has it
    max_length: tokens of the model's longest text
    cache:  a folder for compiled models, made when missing; what is stale or damaged in it is written anew, and when
        it cannot be written, or the folder is not what its manifest says, a warning says so
    hint:   "latency": one run has all threads; "throughput": the CPU's threads are shared out among runs at once
    Raises ProviderError when OpenVINO is too old, has no such device or cannot run the graph there, FormatError for a
    folder without a graph that OpenVINO runs or with a damaged one, ImportError without OpenVINO.
    """
    openvino = import_openvino()
    graph = (folder / _graph_name(folder)).resolve()
    core = openvino.Core()
    name = "CPU" if device == BFLOAT16 else device
    devices = core.available_devices
    if name not in devices and not any(known.startswith(f"{name}.") for known in devices):
        raise ProviderError(f"OpenVINO finds no device {name!r} here, only {devices}; its driver may be missing")
    if device == BFLOAT16 and not has_bfloat16(core):
        raise ProviderError("this CPU has no bfloat16 products; take provider 'openvino', which computes in float32")
    properties = _properties(device, n_threads, hint)
    path = None if cache is None else cache / f"{_cache_key(openvino, core, folder, graph, name, properties)}.blob"
    compiled, mapped = (None, None) if path is None else _read_cache(openvino, core, path, name, properties)
    if compiled is None:
        compiled = _compile(core, graph, name, properties)
        if path is not None:
            _write_cache(path, folder, compiled)
    provider = NAME if device == "CPU" else f"{NAME}:{device}"
    return OpenVinoSession(compiled, provider, n_threads, mapped, max_length)


def _graph_name(folder: Path) -> str:
    """The static graph where there is one; else the only one, which OpenVINO can run in fp32."""
    if (folder / STATIC_GRAPH).is_file():
        return STATIC_GRAPH
    precision = _precision(folder)
    if precision != "fp32":
        raise FormatError(
            f"{folder}: has no {STATIC_GRAPH}, which OpenVINO needs of a model in {precision}; "
            "export it with `--precision int8 --openvino`, or take the fp32 folder"
        )
    return GRAPH


def _precision(folder: Path) -> str:
    manifest = json.loads((folder / MANIFEST).read_bytes())
    precision: str = manifest["model"]["precision"]
    return precision


def import_openvino() -> Any:
    """The package; ImportError with the pip command when it is missing, ProviderError when it is too old."""
    try:
        openvino = _import_without_converter()
    except ImportError as error:
        raise ImportError("this provider needs OpenVINO: pip install 'm3edge[openvino]'") from error
    version = tuple(int(part) for part in openvino.__version__.split("-")[0].split(".")[:2])
    if version < _OLDEST:
        raise ProviderError(
            f"OpenVINO {openvino.__version__} is too old, m3edge needs {'.'.join(map(str, _OLDEST))}; "
            "pip install --upgrade 'm3edge[openvino]'"
        )
    return openvino


def _import_without_converter() -> Any:
    """Importing OpenVINO also imports its converter of other frameworks' models, and with that a client that reports
    the import to a server. It does without where there is none; whoever asks for the converter later gets it.

    That is two thirds of the import's time, and nothing here goes online.
    """
    if "openvino" in sys.modules or _CONVERTER in sys.modules:
        return importlib.import_module("openvino")
    sys.modules[_CONVERTER] = None  # type: ignore[assignment]  # by which Python knows that it cannot be imported
    try:
        openvino: Any = importlib.import_module("openvino")  # late: `import m3edge` stays light
    finally:
        del sys.modules[_CONVERTER]

    def convert_model(*arguments: Any, **options: Any) -> Any:
        return importlib.import_module(_CONVERTER).convert_model(*arguments, **options)

    openvino.convert_model = convert_model
    return openvino


def has_bfloat16(core: Any) -> bool:
    """Whether OpenVINO, of which this is the Core, has bfloat16 products on this CPU."""
    return "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _properties(device: str, n_threads: int, hint: str) -> dict[str, Any]:
    properties: dict[str, Any] = {"PERFORMANCE_HINT": hint.upper()}
    if device in ("CPU", BFLOAT16):
        properties |= {
            "INFERENCE_NUM_THREADS": n_threads,
            # Otherwise it takes one thread a core, whatever the number asked for, and pins it: two processes would
            # share one core and leave the other idle.
            "ENABLE_HYPER_THREADING": True,
            "ENABLE_CPU_PINNING": False,
            "CPU_RUNTIME_CACHE_CAPACITY": str(_KEPT_KERNELS),
            # Left to itself it takes bfloat16 where the CPU has it, and vectors would depend on the machine.
            "INFERENCE_PRECISION_HINT": BFLOAT16 if device == BFLOAT16 else "f32",
        }
    return properties


def _compile(core: Any, graph: Path, device: str, properties: dict[str, Any]) -> Any:
    try:
        model = core.read_model(str(graph))
    except RuntimeError as error:
        raise FormatError(f"{graph}: OpenVINO cannot read it ({error}); export the model again") from error
    _take_then_branches(model)
    try:
        return core.compile_model(model, device, properties)
    except RuntimeError as error:
        raise ProviderError(f"OpenVINO cannot run {graph} on {device}: {error}") from error


def _take_then_branches(model: Any) -> None:
    """Put its `then` branch in each If's place: the one for padded batches, which is right for the others too.

    With an If before it OpenVINO's CPU plugin (2026.4) gives wrong numbers, or none, in the first run of many a shape.
    The branches that are cheaper without padding are onnxruntime's kernels; OpenVINO is as fast without them.
    """
    for operator in model.get_ordered_ops():
        if operator.get_type_name() == "If":
            branch = operator.get_function(0)
            parameters, results = branch.get_parameters(), branch.get_results()
            for item in operator.get_input_descriptions(0):
                parameters[item.body_parameter_index].output(0).replace(operator.input_value(item.input_index))
            for item in operator.get_output_descriptions(0):
                operator.output(item.output_index).replace(results[item.body_value_index].input_value(0))


# The cache. OpenVINO has one of its own (CACHE_DIR), but takes what is in it on trust: here a file's name says what it
# was compiled from, with what and for which device, and a checksum says that it is whole.


def _cache_key(openvino: Any, core: Any, folder: Path, graph: Path, device: str, properties: dict[str, Any]) -> str:
    parts = [
        _MAGIC,
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
    return f"{graph.stem}-{digest.hexdigest()[:32]}"


def _read_cache(openvino: Any, core: Any, path: Path, device: str, properties: dict[str, Any]) -> tuple[Any, Any]:
    """The compiled model and the mapped file it points into; twice None when there is none or it is damaged."""
    try:
        with path.open("rb") as file:
            head = file.read(_PAGE)
        body = _mapped(path)
    except (FileNotFoundError, NotADirectoryError):
        return None, None
    except OSError as error:
        warnings.warn(f"{path}: cannot be read ({error}); compiling without it", RuntimeWarning, stacklevel=5)
        return None, None
    if head == _head(body):
        try:
            return core.import_model(openvino.Tensor(body, shared_memory=True), device, properties), body
        except RuntimeError:
            pass  # of another OpenVINO than its name says: as good as damaged
    warnings.warn(f"{path}: damaged; compiling the model again", RuntimeWarning, stacklevel=5)
    return None, None


def _write_cache(path: Path, folder: Path, compiled: Any) -> None:
    """Keep the compiled model, unless the folder that it was made from is damaged: its name comes from the manifest, so
    that it would be taken for that of the whole folder. Whoever loads may still be comparing the weights, or never."""
    try:
        read_model_folder(folder)
    except FormatError as error:
        warnings.warn(f"{path.parent}: not keeping the compiled model ({error})", RuntimeWarning, stacklevel=5)
        return
    body = compiled.export_model().getbuffer()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, b"".join([_head(body), body]))
    except OSError as error:
        warnings.warn(f"{path.parent}: cannot keep the compiled model ({error})", RuntimeWarning, stacklevel=5)


def _mapped(path: Path) -> np.ndarray:
    """What follows the first page. Writable, but in memory only: OpenVINO takes no tensor that is not."""
    if path.stat().st_size <= _PAGE:
        return np.empty(0, np.uint8)
    return np.memmap(path, np.uint8, "c", offset=_PAGE)


def _head(body: Any) -> bytes:
    """body: the bytes that follow, in whatever holds them"""
    return (_MAGIC + format(zlib.crc32(body), "08x").encode()).ljust(_PAGE, b"\0")
