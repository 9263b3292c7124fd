"""From the fused float32 graph to half precision, for GPUs: the encoder's layers compute in float16, the rest does not.

float16 ends at 65,504. A layer in which calibration saw a value that comes near it keeps float32; the graph's
inputs and outputs are float32 as in every other precision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

from m3edge_export.fuse import SWITCHES, layer_of
from m3edge_export.weights import WeightReader, WeightWriter

# A quarter of the largest float16: other texts than the calibration's may go further.
OVERFLOW_LIMIT = 65_504 / 4


def layer_values(model: ModelProto) -> list[str]:
    """The tensors inside a fused graph's layers that could overflow: what calibration has to look at."""
    watched = ("Gemm", "Add", "LayerNormalization", "Gelu")
    return [node.output[0] for node in model.graph.node if layer_of(node) is not None and node.op_type in watched]


def blocked_layers(model: ModelProto, largest: Mapping[str, np.ndarray]) -> list[int]:
    """Layers that must stay in float32; largest: tensor -> float32 [width], largest absolute values seen."""
    blocked = set()
    for node in model.graph.node:
        seen = largest.get(node.output[0])
        layer = layer_of(node)
        if layer is not None and seen is not None and not float(seen.max()) <= OVERFLOW_LIMIT:
            blocked.add(layer)
    return sorted(blocked)


def write_fp16(model: ModelProto, reader: WeightReader, writer: WeightWriter, blocked: Sequence[int]) -> None:
    """Turn a fused graph into its float16 form, in place, its weights going to `writer`."""
    graph = model.graph
    inside = {
        node.output[0]: node for node in graph.node if layer_of(node) is not None and layer_of(node) not in blocked
    }
    weights = {tensor.name for tensor in graph.initializer}
    half = {name for node in inside.values() for name in node.input if name in weights}
    # Of parameters with equal values the tracer keeps one: what the layers share with the rest goes in twice.
    elsewhere = {name for node in graph.node if node.output[0] not in inside for name in node.input}
    shared = {name for name in half & elsewhere if reader[name].dtype == np.float32}
    tables = {
        node.input[0] for node in graph.node
        if node.op_type == "Gather" and node.input[0] in weights and reader[node.input[0]].dtype == np.float32
    }  # fmt: skip
    nodes: list[NodeProto] = []
    casts: set[str] = set()

    def cast(name: str, to: int) -> str:
        """A tensor in the other precision; the cast is made once."""
        output = f"{name}/{'fp16' if to == TensorProto.FLOAT16 else 'fp32'}"
        if output not in casts:
            casts.add(output)
            nodes.append(helper.make_node("Cast", [name], [output], name=output, to=to))
        return output

    for node in graph.node:
        in_half = node.output[0] in inside
        for position, name in enumerate(node.input):
            if in_half and name in shared:
                node.input[position] = f"{name}/fp16"
                continue
            is_half = name in inside and inside[name].op_type != "Shape"
            is_value = name in inside or (in_half and _is_float_value(name, weights))
            if in_half and is_value and not is_half:
                node.input[position] = cast(name, TensorProto.FLOAT16)
            elif not in_half and is_half:
                node.input[position] = cast(name, TensorProto.FLOAT)
        if in_half:
            _retype_branches(node)
        nodes.append(node)
        if node.op_type == "Gather" and node.input[0] in tables:
            rows, node.output[0] = node.output[0], f"{node.output[0]}/fp16"
            nodes.append(helper.make_node("Cast", [node.output[0]], [rows], name=rows, to=TensorProto.FLOAT))
    nodes = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    tensors = []
    for tensor in graph.initializer:
        values = reader[tensor.name]
        if tensor.name in shared:
            tensors.append(writer.tensor(f"{tensor.name}/fp16", values.astype(np.float16)))
        to_half = tensor.name in (half - shared) | tables and values.dtype == np.float32
        tensors.append(writer.tensor(tensor.name, values.astype(np.float16) if to_half else values))
    for shape in graph.value_info:
        if shape.name in inside:
            shape.type.tensor_type.elem_type = TensorProto.FLOAT16
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(tensors)


def _is_float_value(name: str, weights: AbstractSet[str]) -> bool:
    """Whether an input from outside the layers is a tensor of numbers and not a weight, a shape, a mask or a switch."""
    return bool(name) and name not in weights and name not in SWITCHES


def _retype_branches(node: NodeProto) -> None:
    """An If says of what type its branches' outputs are."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            _retype(attribute.g)


def _retype(graph: GraphProto) -> None:
    for output in graph.output:
        output.type.tensor_type.elem_type = TensorProto.FLOAT16
    for node in graph.node:
        _retype_branches(node)
