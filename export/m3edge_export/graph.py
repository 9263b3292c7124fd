"""From an M3Model to an ONNX graph with three outputs, through optimum's exporter and a configuration of our own."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from optimum.exporters.onnx import export
from optimum.exporters.onnx.config import TextEncoderOnnxConfig
from optimum.exporters.tasks import TasksManager
from optimum.utils import NormalizedTextConfig
from transformers import PretrainedConfig

from m3edge.errors import FormatError
from m3edge.model_folder import DENSE_OUTPUT, GRAPH, INPUTS, SPARSE_OUTPUT, TOKENS_OUTPUT
from m3edge_export.model import M3Model

_ACTIVATION = "gelu"  # the exact one: gelu_new and gelu_fast are approximations
_SUPPORTED = f"m3edge exports encoders of the BERT and XLM-RoBERTa types with hidden_act {_ACTIVATION!r}"
OPSET = 20  # the newest that PyTorch's TorchScript exporter writes


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
    """Trace the model: writes its graph and, beside it, its weights in float32, as the tracer leaves them.

    model: one that check_exportable lets through
    """
    with _quiet_tracing():
        export(
            model,
            M3OnnxConfig(model.config, task="feature-extraction"),
            folder / GRAPH,
            opset=OPSET,
            disable_dynamic_axes_fix=True,
        )


def check_exportable(config: PretrainedConfig) -> None:
    """Raise FormatError for an encoder that optimum cannot export, or whose layers fusing would turn into others."""
    kind = config.model_type
    try:
        TasksManager.get_supported_tasks_for_model_type(kind, exporter="onnx", library_name="transformers")
    except KeyError as error:
        raise FormatError(f"optimum has no ONNX exporter for encoders of type {kind!r}; {_SUPPORTED}") from error
    activation = getattr(config, "hidden_act", None)
    if activation != _ACTIVATION:
        raise FormatError(f"the encoder's hidden_act is {activation!r}; {_SUPPORTED}")
    if getattr(config, "is_decoder", False):
        raise FormatError(f"the encoder is a decoder (is_decoder is true), it does not see what follows; {_SUPPORTED}")


@contextmanager
def _quiet_tracing() -> Iterator[None]:
    """Tracing warns of shape checks that become constants, and the TorchScript exporter of its own retirement."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", category=torch.jit.TracerWarning)
        warnings.simplefilter("ignore", category=DeprecationWarning)
        warnings.simplefilter("ignore", category=FutureWarning)
        yield
