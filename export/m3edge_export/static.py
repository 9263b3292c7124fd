"""From the fused graph to static int8 in plain ONNX operators (QDQ): what OpenVINO runs at the chip's int8 rate.

Activations have one scale for a whole tensor, found by calibration, where the dynamic form has one for each token:

    x -> Mul, Add -> QuantizeLinear -> DequantizeLinear -> MatMul(DequantizeLinear(weight)) -> Add (bias)

That needs more smoothing than the dynamic form. Every channel is moved so that its range lies evenly round 0, and what
GELU and attention give is smoothed too: a few channels of theirs are a hundred times as large as the others. The
products behind these two have int8 weights of their own; what attention gives is moved and smoothed for free, by the
bias and the scales of the values' product. All other weights, the embedding table and the heads are those of the
dynamic form, and both graphs point to the same bytes.

Attention is written out, for OpenVINO's own fusion to find; hidden states are [batch, sequence, width] throughout.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from m3edge_export.eight_bits import byte_range, quantize_columns
from m3edge_export.fuse import layer_of, prune, replace_nodes
from m3edge_export.quantize import ATTENTION_OUTPUT, ATTENTION_ROWS, VALUE, Seen, smoothing_factors
from m3edge_export.weights import WeightReader, WeightWriter

OPSET = 21  # what these operators need; TensorRT and older OpenVINO releases read it
# SmoothQuant's alpha for what GELU and attention give. The usual .5 costs the channels that weigh little more than it
# gains; with .9, texts unlike calibration's leave some channel's range.
_OWN_SMOOTHING = 0.85
# GELU reaches down to -.17 in nearly every channel. Smoothed by that, quiet channels would take up to half of a byte's
# values for their negative side; counted so many times, it takes about a tenth. Halves the error of this input.
_GELU_BELOW = 8
_MASKED = -10_000.0  # added to the scores of padding: its exponential is 0 in float32 and no nan can come of it


def write_static(
    fused: ModelProto,
    reader: WeightReader,
    dynamic: ModelProto,
    dynamic_reader: WeightReader,
    writer: WeightWriter,
    statistics: Mapping[str, Seen],
    *,
    n_heads: int,
) -> ModelProto:
    """The static form of a fused graph.

    fused, reader:           the float32 graph and its weights
    dynamic, dynamic_reader: its int8 form and its weights, which are taken where they fit
    writer:                  takes the others
    statistics:              each product's input -> what calibration saw
    """
    products = [node for node in fused.graph.node if node.op_type == "Gemm"]
    builder = _Builder(reader, dynamic, dynamic_reader, writer, statistics, n_heads, products)
    for node in dynamic.graph.node:
        if layer_of(node) is None:
            builder.outside(node)
    for node in fused.graph.node:
        if layer_of(node) is not None:
            builder.inside(node)
    static = ModelProto(ir_version=10, producer_name=dynamic.producer_name)
    static.opset_import.append(helper.make_opsetid("", OPSET))
    static.graph.name = "static"
    static.graph.input.extend(dynamic.graph.input)
    static.graph.output.extend(dynamic.graph.output)
    replace_nodes(static.graph, builder.nodes)
    static.graph.initializer.extend(builder.tensors.values())
    prune(static.graph)
    return static


class _Adjusted(NamedTuple):
    """A product's input as it is quantized, (x - shift) · factors; both float32 [inputs].

    own_weights: whether the product has int8 weights of its own, the dynamic form's being made for other factors
    """

    shift: np.ndarray
    factors: np.ndarray
    own_weights: bool


class _Builder:
    """Collects the static graph's nodes and weights."""

    def __init__(
        self,
        reader: WeightReader,
        dynamic: ModelProto,
        dynamic_reader: WeightReader,
        writer: WeightWriter,
        statistics: Mapping[str, Seen],
        n_heads: int,
        products: Iterable[NodeProto],
    ) -> None:
        self.nodes: list[NodeProto] = []
        self.tensors: dict[str, TensorProto] = {}
        self._reader = reader
        self._shared = {tensor.name: tensor for tensor in dynamic.graph.initializer}
        self._shared_reader = dynamic_reader
        self._writer = writer
        self._statistics = statistics
        self._n_heads = n_heads
        self._same: dict[str, str] = {}  # what a left-out Reshape gave -> what it took
        self._quantized: dict[str, str] = {}  # a product's input -> the same, through quantization
        self._weight_of = {node.output[0]: node.input[1] for node in products}
        self._width = 0  # of the hidden states

    def outside(self, node: NodeProto) -> None:
        """What stands before and behind the layers is the dynamic form's."""
        if _only_reshapes(node):
            self._same[node.output[0]] = node.input[0]
        else:
            self._keep(node)

    def inside(self, node: NodeProto) -> None:
        """A node of an encoder layer."""
        if _only_reshapes(node):
            self._same[node.output[0]] = node.input[0]
        elif node.op_type == "Gemm":
            self._product(node)
        elif node.op_type == "If":
            self._attention(node.output[0])
        else:
            self._keep(node)

    def _keep(self, node: NodeProto) -> None:
        node = NodeProto.FromString(node.SerializeToString())
        for position, name in enumerate(node.input):
            node.input[position] = self._origin(name)
            if name in self._shared or name in self._reader:
                self._weight(name)
        self.nodes.append(node)

    def _origin(self, name: str) -> str:
        while name in self._same:
            name = self._same[name]
        return name

    def _node(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        inputs = [self._origin(name) for name in inputs]
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def _weight(self, name: str, values: np.ndarray | None = None) -> str:
        """The weight of this name: the dynamic form's where it has one, else these values, else the fused graph's."""
        if name not in self.tensors:
            if name in self._shared:
                self.tensors[name] = self._shared[name]
            else:
                self.tensors[name] = self._writer.tensor(name, self._reader[name] if values is None else values)
        return name

    def _product(self, node: NodeProto) -> None:
        source, weight, output = node.input[0], node.input[1], node.output[0]
        self._width = self._width or self._reader[weight].shape[0]  # the first product is a layer's query, key or value
        adjusted = self._adjusted(source, weight)
        shift, factors = adjusted.shift, adjusted.factors
        seen = self._statistics[source]
        if adjusted.own_weights:
            whole = self._reader[weight] / factors[:, None]
            values, scale = quantize_columns(whole, seen.covariance(factors))
            parameters = [
                self._weight(f"{output}/weight/static/int8", values),
                self._weight(f"{output}/weight/static/scale", scale),
            ]
        else:
            parameters = [self._weight(f"{output}/weight/int8"), self._weight(f"{output}/weight/scale")]
            values, scale = (self._shared_reader[name] for name in parameters)
        bias: np.ndarray | None = None
        if len(node.input) == 3:
            # What the shift takes out is put back, and what rounding the weights adds on average is taken out.
            intended = self._reader[node.input[2]] + seen.mean @ self._reader[weight]
            bias = intended - ((seen.mean - shift) * factors) @ values * scale
        if output.endswith(VALUE):  # gives what the attention's output is to take
            layer = output.removesuffix(VALUE)
            taken = self._adjusted(f"{layer}{ATTENTION_ROWS}", self._weight_of[f"{layer}{ATTENTION_OUTPUT}"])
            assert bias is not None
            bias = (bias - taken.shift) * taken.factors
            scale = scale * taken.factors
            parameters[1] = self._weight(f"{output}/static/scale", scale.astype(np.float32))
        rows = self._quantized_input(source, adjusted)
        dequantized = self._node("DequantizeLinear", parameters, f"{output}/weight", axis=1)
        if bias is None:  # the keys': see fuse
            self._node("MatMul", [rows, dequantized], output)
            return
        product = self._node("MatMul", [rows, dequantized], f"{output}/product")
        self._node("Add", [product, self._weight(f"{output}/static/bias", bias.astype(np.float32))], output)

    def _adjusted(self, source: str, weight: str) -> _Adjusted:
        """How a product's input is adjusted before it is quantized."""
        seen = self._statistics[source]
        shift, reach = (seen.least + seen.largest) / 2, (seen.largest - seen.least) / 2
        smoothing = f"{source}/int8/smoothing"
        if smoothing in self._shared:
            return _Adjusted(shift, self._shared_reader[smoothing], own_weights=False)
        if source.endswith("/gelu"):
            shift, reach = np.zeros_like(shift), np.maximum(seen.largest, -_GELU_BELOW * seen.least)
        factors = 1 / smoothing_factors(reach, np.abs(self._reader[weight]).max(axis=1), _OWN_SMOOTHING)
        return _Adjusted(shift, factors, own_weights=True)

    def _quantized_input(self, source: str, adjusted: _Adjusted) -> str:
        """The adjusted input, to bytes and back: the pair of operators that stands for int8."""
        if source in self._quantized:
            return self._quantized[source]
        name, seen, rows = f"{source}/static", self._statistics[source], source
        shift, factors = adjusted.shift, adjusted.factors
        if not source.endswith(ATTENTION_ROWS):  # that is adjusted already, by the product that gives the values
            rows = self._node("Mul", [rows, self._weight(f"{name}/factors", factors)], f"{name}/smooth")
            if shift.any():
                rows = self._node("Add", [rows, self._weight(f"{name}/shift", -shift * factors)], f"{name}/shifted")
        least, largest = (seen.least - shift) * factors, (seen.largest - shift) * factors
        scale, zero_point = byte_range(float(least.min()), float(largest.max()))
        parameters = [
            self._weight(f"{name}/scale", np.array(scale, np.float32)),
            self._weight(f"{name}/zero_point", np.array(zero_point, np.uint8)),
        ]
        quantized = self._node("QuantizeLinear", [rows, *parameters], f"{name}/bytes")
        self._quantized[source] = self._node("DequantizeLinear", [quantized, *parameters], name)
        return self._quantized[source]

    def _attention(self, output: str) -> None:
        """softmax(q k^T / sqrt(width of a head) + mask) v, head by head; output: "<layer>/attention"."""
        layer = output.removesuffix("/attention")
        width = self._width
        head_width = width // self._n_heads
        split = self._weight("static/split", np.array([0, 0, self._n_heads, head_width], np.int64))
        merge = self._weight("static/merge", np.array([0, 0, width], np.int64))
        scale = self._weight("static/scale", np.array(head_width**-0.5, np.float32))
        heads = []
        for part, order in (("query", [0, 2, 1, 3]), ("key", [0, 2, 3, 1]), ("value", [0, 2, 1, 3])):
            apart = self._node("Reshape", [f"{layer}/{part}", split], f"{layer}/{part}/split")
            heads.append(self._node("Transpose", [apart], f"{layer}/{part}/heads", perm=order))
        scores = self._node("MatMul", heads[:2], f"{output}/scores")
        scores = self._node("Mul", [scores, scale], f"{output}/scaled")
        scores = self._node("Add", [scores, self._mask()], f"{output}/masked")
        shares = self._node("Softmax", [scores], f"{output}/shares", axis=-1)
        context = self._node("MatMul", [shares, heads[2]], f"{output}/context")
        context = self._node("Transpose", [context], f"{output}/context/heads", perm=[0, 2, 1, 3])
        self._node("Reshape", [context, merge], output)

    def _mask(self) -> str:
        """What is added to the attention scores, float32 [batch, 1, 1, sequence]."""
        name = "static/mask"
        if "static/mask/axes" not in self.tensors:
            axes = self._weight("static/mask/axes", np.array([1, 2], np.int64))
            nothing = self._weight("static/mask/token", np.array(0, np.float32))
            masked = self._weight("static/mask/padding", np.array(_MASKED, np.float32))
            tokens = self._node("Cast", ["attention_mask"], f"{name}/tokens", to=TensorProto.BOOL)
            self._node("Where", [self._node("Unsqueeze", [tokens, axes], f"{name}/keys"), nothing, masked], name)
        return name


def _only_reshapes(node: NodeProto) -> bool:
    """Whether a node of the fused graph goes between [batch, sequence, width] and rows [tokens, width]."""
    return node.op_type == "Reshape" and node.input[1].startswith("fused/")
