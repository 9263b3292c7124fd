"""From an M3Model to an ONNX graph with three outputs, through optimum's exporter and a configuration of our own.

Writes model.onnx and beside it model.onnx_data, every weight at a multiple of 64 bytes so that it can be mapped and
used in place.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import onnx
import torch
from onnx import TensorProto
from onnx.external_data_helper import load_external_data_for_tensor, set_external_data, uses_external_data
from optimum.exporters.onnx import export
from optimum.exporters.onnx.config import TextEncoderOnnxConfig
from optimum.exporters.tasks import TasksManager
from optimum.utils import NormalizedTextConfig

from m3edge.errors import FormatError
from m3edge.model_folder import DENSE_OUTPUT, GRAPH, INPUTS, SPARSE_OUTPUT, TOKENS_OUTPUT, WEIGHTS
from m3edge_export.model import M3Model

OPSET = 17  # the first with LayerNormalization as one operator
_ALIGNMENT = 64  # bytes: a cache line, and the widest vector register
_EXTERNAL_FROM = 1024  # bytes: smaller tensors stay in the graph, where shape inference can see them


class M3OnnxConfig(TextEncoderOnnxConfig):
    """What optimum has to know: the graph's inputs, outputs and their dynamic axes."""

    NORMALIZED_CONFIG_CLASS = NormalizedTextConfig
    DEFAULT_ONNX_OPSET = OPSET

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        return {name: {0: "batch", 1: "sequence"} for name in INPUTS}

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        return {
            DENSE_OUTPUT: {0: "batch"},
            SPARSE_OUTPUT: {0: "batch", 1: "sequence"},
            TOKENS_OUTPUT: {0: "batch", 1: "sequence"},
        }


def export_graph(model: M3Model, folder: Path) -> None:
    """Write the model's graph and weights into `folder`, in float32.

    Raises FormatError for an encoder that optimum cannot export.
    """
    _check_exportable(model)
    work = Path(tempfile.mkdtemp(dir=folder, prefix=".graph."))
    try:
        with _quiet_tracing():
            export(
                model,
                M3OnnxConfig(model.config, task="feature-extraction"),
                work / GRAPH,
                opset=OPSET,
                disable_dynamic_axes_fix=True,
            )
        graph = onnx.load(work / GRAPH, load_external_data=False)
        graph.producer_name = "m3edge"
        save_graph(graph, folder, source=work)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def save_graph(graph: onnx.ModelProto, folder: Path, *, source: Path) -> None:
    """Write a graph to `folder`, its weights to one aligned file beside it; empties the graph's weights.

    source: the folder that the graph's external data, if it has any, now lies in. One weight is in memory at a
    time, besides those that came with the graph.
    """
    with (folder / WEIGHTS).open("wb") as file:
        for tensor in graph.graph.initializer:
            if uses_external_data(tensor):
                load_external_data_for_tensor(tensor, str(source))
                tensor.data_location = TensorProto.DEFAULT
                del tensor.external_data[:]
            _move_to_file(tensor, file)
    onnx.save(graph, folder / GRAPH)
    onnx.checker.check_model(str(folder / GRAPH))


def _move_to_file(tensor: TensorProto, file: BinaryIO) -> None:
    if not tensor.HasField("raw_data") or len(tensor.raw_data) < _EXTERNAL_FROM:
        return
    file.write(b"\0" * (-file.tell() % _ALIGNMENT))
    set_external_data(tensor, location=WEIGHTS, offset=file.tell(), length=len(tensor.raw_data))
    file.write(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL


def _check_exportable(model: M3Model) -> None:
    kind = model.config.model_type
    try:
        TasksManager.get_supported_tasks_for_model_type(kind, exporter="onnx", library_name="transformers")
    except KeyError as error:
        raise FormatError(
            f"optimum has no ONNX exporter for encoders of type {kind!r}; m3edge takes BERT and XLM-RoBERTa types"
        ) from error


@contextmanager
def _quiet_tracing() -> Iterator[None]:
    """Tracing warns of shape checks that become constants, and the TorchScript exporter of its own retirement."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", category=torch.jit.TracerWarning)
        warnings.simplefilter("ignore", category=DeprecationWarning)
        warnings.simplefilter("ignore", category=FutureWarning)
        yield
