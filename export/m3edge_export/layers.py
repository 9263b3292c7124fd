"""Where in an int8 folder's weights each layer's arrays lie, for the runtime's own engine, which reads no ONNX.

The graph and this list are of one and the same weights: the list is made from the graph that was written.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from m3edge.model_folder import LAYERS
from m3edge_export.fuse import Copies
from m3edge_export.quantize import GELU_LEAST, GELU_ZERO_POINT, ZERO_POINT

_STEP = 16  # outputs that the kernels compute together


def write_layers(model: ModelProto, folder: Path, *, n_heads: int, pooling: str, pad_id: int | None) -> None:
    """Write the list beside an int8 graph; none for widths that the kernels do not have.

    model: the graph, its weights in the folder; pad_id: the padding token's, which XLM-RoBERTa's positions start from
    """
    graph = _Int8Graph(model)
    if graph.width % (n_heads * _STEP) == 0 and all(width % _STEP == 0 for width in graph.widths):
        (folder / LAYERS).write_text(json.dumps(graph.layers(n_heads, pooling, pad_id), indent=1) + "\n")


class _Int8Graph:
    """Finds the weights by the names that fusing and quantizing gave them, and those that were left as traced through
    the operators that take them, since these may take copies."""

    def __init__(self, model: ModelProto) -> None:
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self._nodes = {output: node for node in model.graph.node for output in node.output}
        self._original = Copies(model.graph).original
        self._kinds = {node.op_type for node in model.graph.node}
        self._norms = [node for node in model.graph.node if node.op_type == "LayerNormalization"]
        self._n_layers = len(self._norms) // 2
        self.width = int(self._tensor(self._norms[0].input[1]).dims[0])
        inner = [self._tensor(f"fused/layer.{n}/intermediate/dense/bias").dims[0] for n in range(self._n_layers)]
        self.widths = [*inner, self._tensor(self._head("token", "MatMul")).dims[1]]  # of all other products

    def layers(self, n_heads: int, pooling: str, pad_id: int | None) -> dict[str, Any]:
        # XLM-RoBERTa counts the tokens that are no padding, from the position behind padding's.
        first = pad_id if "CumSum" in self._kinds else None
        return {
            "n_heads": n_heads,
            "epsilon": helper.get_node_attr_value(self._norms[0], "epsilon"),
            "pooling": pooling,
            "first_position": 0 if first is None else first + 1,
            "pad_id": first,
            "words": self._table("word"),
            "positions": self._table("position"),
            "token_type": self._array("encoder.embeddings.token_type_embeddings.weight"),
            "embedding_norm": self._norm(0),
            "layers": [self._layer(number) for number in range(self._n_layers)],
            "token_head": {
                "weights": self._array(self._head("token", "MatMul")),
                "biases": self._array(self._head("token", "Add")),
            },
            "sparse_head": {
                "weights": self._array(self._head("sparse", "MatMul")),
                "bias": float(numpy_helper.to_array(self._tensor(self._head("sparse", "Add")))[0]),
            },
        }

    def _layer(self, number: int) -> dict[str, Any]:
        name = f"fused/layer.{number}"
        before = f"fused/layer.{number - 1}/output/LayerNorm" if number else f"{name}/input"
        attended = f"{name}/attention/output/LayerNorm"
        projections = [f"{name}/attention/self/{part}" for part in ("query", "key", "value")]
        return {
            "projections": self._product(projections, before),
            "attention_output": self._product([f"{name}/attention/output/dense"], f"{name}/attention/rows"),
            "attention_norm": self._norm(1 + 2 * number),
            "inner": self._product([f"{name}/intermediate/dense"], attended),
            "output": self._product([f"{name}/output/dense"], f"{name}/gelu"),
            "output_norm": self._norm(2 + 2 * number),
        }

    def _product(self, names: list[str], source: str) -> dict[str, Any]:
        is_gelu = source.endswith("/gelu")
        return {
            "linears": [
                {
                    "codes": self._array(f"{name}/weight/int8"),
                    "scales": self._array(f"{name}/weight/scale"),
                    "bias": self._array(f"{name}/bias") if f"{name}/bias" in self._tensors else None,
                }
                for name in names
            ],
            "smoothing": self._array(f"{source}/int8/smoothing")
            if f"{source}/int8/smoothing" in self._tensors
            else None,
            "zero_point": GELU_ZERO_POINT if is_gelu else ZERO_POINT,
            "least": GELU_LEAST if is_gelu else None,
        }

    def _norm(self, number: int) -> dict[str, Any]:
        return dict(zip(("weights", "biases"), map(self._array, self._norms[number].input[1:]), strict=True))

    def _table(self, kind: str) -> dict[str, Any]:
        name = f"encoder.embeddings.{kind}_embeddings.weight"
        return {"codes": self._array(f"{name}/int8"), "scales": self._array(f"{name}/scale")}

    def _head(self, kind: str, operator: str) -> str:
        """The weights or biases that a head's operator takes."""
        inputs = self._nodes[f"/{kind}_head/{operator}_output_0"].input
        return next(name for name in map(self._original, inputs) if name in self._tensors)

    def _tensor(self, name: str) -> TensorProto:
        return self._tensors[self._original(name)]

    def _array(self, name: str) -> dict[str, Any]:
        """What a reader needs of a tensor; its bytes are in the weights' file."""
        tensor = self._tensor(name)
        assert uses_external_data(tensor), name
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type).name
        return {"dtype": dtype, "shape": list(tensor.dims), "offset": ExternalDataInfo(tensor).offset or 0}
