"""From the fused float32 graph to int8 and int4: which operators stand in for a product, and their weights.

int8: activations in unsigned bytes with a scale for every token (row), weights in signed bytes with a scale
for every output (column). Unsigned by signed is the product that a CPU with VNNI does at its full rate; a scale for
every token makes a text's vectors independent of its batch. SmoothQuant (arXiv 2211.10438) moves the outlier channels
of two of a layer's four inputs into the weights.

int4: weights in 4 bits with a scale for every 32 inputs, rounded as four_bits says (MatMulNBits, activations in 8 bits
inside the kernel).

In both the embedding table, most of a small model, is quantized too; the heads stay in float32: they are a
hundredth of the work and what they compute is what is compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from m3edge_export.eight_bits import quantize_columns, quantize_rows
from m3edge_export.four_bits import BLOCK, quantize_product, quantize_table
from m3edge_export.fuse import CONTRIB
from m3edge_export.weights import WeightReader, WeightWriter

# Alpha of SmoothQuant: the share of an outlier channel's range that goes into the weights. On 36 texts in 12 languages,
# in a simulation, mini's token vectors come out at .99899 with .5, .99910 with .7 and .99893 with .85 where each token
# has its scale; the static form, with one for all, gains a good deal from .5 to .75 and nothing beyond.
SMOOTHING = 0.75
_SMOOTHING_RANGE = (1e-2, 1e2)  # a channel that calibration hardly saw must not be blown up
ZERO_POINT = 128  # symmetric: 0.0 is 128
# What GELU gives is never below -0.17: a byte's range is better spent on the positive side.
GELU_ZERO_POINT = 20
GELU_LEAST = 0.17
# The ends of names in a fused graph: the values' product, what attention gives, the product behind it.
VALUE, ATTENTION_ROWS, ATTENTION_OUTPUT = "/attention/self/value", "/attention/rows", "/attention/output/dense"


class Seen(NamedTuple):
    """What calibration saw of a tensor; float32 [width], a value for every channel."""

    least: np.ndarray
    largest: np.ndarray
    mean: np.ndarray
    moments: np.ndarray | None = None  # float32 [width, width], the mean of x xᵀ, where it was asked for

    @property
    def magnitude(self) -> np.ndarray:
        """The largest absolute values."""
        return np.maximum(-self.least, self.largest)

    def covariance(self, factors: np.ndarray) -> np.ndarray | None:
        """Of this tensor times factors, float32 [width]: float32 [width, width], or None without moments."""
        if self.moments is None:
            return None
        mean = self.mean.astype(np.float32)
        return (self.moments - np.outer(mean, mean)) * np.outer(factors, factors)


Statistics = Mapping[str, Seen]  # a tensor's name -> what was seen of it


def product_inputs(model: ModelProto) -> list[str]:
    """The tensors that a fused graph's products take, each once: what calibration has to look at."""
    return list(dict.fromkeys(node.input[0] for node in model.graph.node if node.op_type == "Gemm"))


def write_int8(model: ModelProto, reader: WeightReader, writer: WeightWriter, statistics: Statistics) -> None:
    """Turn a fused graph into its int8 form, in place, its weights going to `writer`."""
    products = _Int8Products(statistics, _smoothing(model, reader, statistics))
    _Rewriter(model, reader, writer, products, embedding_bits=8).rewrite()


def write_int4(model: ModelProto, reader: WeightReader, writer: WeightWriter, statistics: Statistics) -> None:
    """Turn a fused graph into its int4 form, in place, its weights going to `writer`; statistics: with moments."""
    _Rewriter(model, reader, writer, _Int4Products(statistics), embedding_bits=4).rewrite()


def write_fp32(model: ModelProto, reader: WeightReader, writer: WeightWriter) -> None:
    """Write a fused graph's weights as they are."""
    tensors = [writer.tensor(tensor.name, reader[tensor.name]) for tensor in model.graph.initializer]
    del model.graph.initializer[:]
    model.graph.initializer.extend(tensors)


class _Products(Protocol):
    """What stands in for the products of one precision."""

    def replace(self, rewriter: _Rewriter, node: NodeProto) -> None:
        """Give the rewriter the nodes and weights that stand for a Gemm; the last node gives what the Gemm gave.

        The weights are named after the product, not after the weight it has in the fused graph: of equal weights the
        tracer keeps one, and each product rounds it for its own input.
        """


class _Rewriter:
    """Goes through a fused graph once, keeps what it does not quantize, and collects the new nodes and weights."""

    def __init__(
        self,
        model: ModelProto,
        reader: WeightReader,
        writer: WeightWriter,
        products: _Products,
        *,
        embedding_bits: int,
    ) -> None:
        self.graph = model.graph
        self.reader = reader
        self.writer = writer
        self.products = products
        self.embedding_bits = embedding_bits
        self.nodes: list[NodeProto] = []
        self.tensors: dict[str, TensorProto] = {}

    def rewrite(self) -> None:
        for node in self.graph.node:
            if node.op_type == "Gemm":
                self.products.replace(self, node)
            elif node.op_type == "Gather" and self._is_large_table(node.input[0]):
                self._replace_table(node)
            else:
                self.nodes.append(node)
                self._keep_inputs(node)
        nodes = [NodeProto.FromString(node.SerializeToString()) for node in self.nodes]
        del self.graph.node[:], self.graph.initializer[:]
        self.graph.node.extend(nodes)
        self.graph.initializer.extend(self.tensors.values())

    def node(self, kind: str, inputs: Sequence[str], output: str, *, domain: str = "", **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=output, domain=domain, **attributes))
        return output

    def weight(self, name: str, values: np.ndarray) -> str:
        """Add a weight; a name that is there already must stand for the same values."""
        if name not in self.tensors:
            self.tensors[name] = self.writer.tensor(name, values)
        return name

    def scalar(self, value: float, dtype: type = np.float32) -> str:
        """A constant of rank 0."""
        name = f"quantized/{np.dtype(dtype).name}/{value!r}"
        if name not in self.tensors:
            self.tensors[name] = numpy_helper.from_array(np.array(value, dtype), name)
        return name

    def last_axis(self) -> str:
        name = "quantized/last_axis"
        if name not in self.tensors:
            self.tensors[name] = numpy_helper.from_array(np.array([1], np.int64), name)
        return name

    def zero_points(self, zero_point: str, rows: str) -> str:
        """A zero point for each of the batch's rows, which are as many for every product; rows: some column of them."""
        name = f"{zero_point}/rows"
        if all(node.output[0] != name for node in self.nodes):
            self.node("Expand", [zero_point, self.node("Shape", [rows], f"{name}/shape")], name)
        return name

    def _keep_inputs(self, node: NodeProto) -> None:
        for name in node.input:
            if name in self.reader and name not in self.tensors:
                self.weight(name, self.reader[name])

    def _is_large_table(self, name: str) -> bool:
        """Whether a Gather reads a table worth quantizing: of words, of 8,194 positions, not of two token types."""
        return name in self.reader and self.reader[name].ndim == 2 and len(self.reader[name]) > 16

    def _replace_table(self, node: NodeProto) -> None:
        """Gather, then dequantize, the rows of an embedding table.

        8 bits: a scale for every row. 4 bits: a scale for every 32 columns, in one operator of onnxruntime's.
        """
        table, indices, output = node.input[0], node.input[1], node.output[0]
        if self.embedding_bits == 8:
            quantized, scales = quantize_rows(self.reader[table])
            rows = self.node("Gather", [self.weight(f"{table}/int8", quantized), indices], f"{output}/int8")
            floats = self.node("Cast", [rows], f"{output}/float", to=TensorProto.FLOAT)
            scale = self.node("Gather", [self.weight(f"{table}/scale", scales), indices], f"{output}/scale")
            self.node("Mul", [floats, scale], output)
        else:
            packed, scales = quantize_table(self.reader[table])
            packed = packed.reshape(len(packed), -1)
            inputs = [self.weight(f"{table}/int4", packed), indices, self.weight(f"{table}/scale", scales)]
            attributes = {"gather_axis": 0, "quantize_axis": 1, "block_size": BLOCK, "bits": 4}
            self.node("GatherBlockQuantized", inputs, output, domain=CONTRIB, **attributes)


class _Int8Products:
    """y = x W + b as (x quantized for each row) times (W quantized for each column)."""

    def __init__(self, statistics: Statistics, smoothing: Mapping[str, np.ndarray]) -> None:
        """smoothing: a product's input -> float32 [inputs], what it is divided by; without the inputs that are not"""
        self._statistics = statistics
        self._smoothing = smoothing
        self._value_biases: dict[str, np.ndarray] = {}  # of each layer, until its attention's output takes it over
        self._quantized: dict[str, tuple[str, str, str]] = {}  # input -> names of its bytes, row scales, zero point

    def replace(self, rewriter: _Rewriter, node: NodeProto) -> None:
        source, weight = node.input[:2]
        output = node.output[0]
        rows, row_scale, zero_point = self._quantize_input(rewriter, source)
        seen = self._statistics[source]
        factors = self._smoothing.get(source, np.ones_like(seen.least))
        values = rewriter.reader[weight] * factors[:, None]
        quantized, scales = quantize_columns(values, seen.covariance(1 / factors))
        # What the rounding adds to the output on average is taken out of the bias.
        rounded = quantized * scales
        offset = (seen.mean / factors) @ (values - rounded)
        product = rewriter.node(
            "MatMulIntegerToFloat",
            [
                rows,
                rewriter.weight(f"{output}/weight/int8", quantized),
                rewriter.scalar(1.0),
                rewriter.weight(f"{output}/weight/scale", scales),
                zero_point,
            ],
            f"{output}/product",
            domain=CONTRIB,
        )
        # The scale of the rows and the bias are operators of their own. Within the product, onnxruntime would multiply
        # by the scale on one thread, however many there are; and the bias by the scale as well.
        scaled = rewriter.node("Mul", [product, row_scale], f"{output}/scaled")
        bias = self._bias(rewriter, node, rounded, offset.astype(np.float32))
        if bias is None:
            rewriter.nodes[-1].output[0] = output
        else:
            rewriter.node("Add", [scaled, rewriter.weight(f"{output}/bias", bias)], output)

    def _bias(self, rewriter: _Rewriter, node: NodeProto, weight: np.ndarray, offset: np.ndarray) -> np.ndarray | None:
        """What is to be added to a product, float32 [outputs]; offset: on top of its own bias.

        What attention does to the values' bias is nothing: a row of its weights sums to 1. So it goes on into the bias
        of the attention's output, and one pass over the activations is saved.
        """
        output = node.output[0]
        if len(node.input) < 3:
            return None
        bias = rewriter.reader[node.input[2]] + offset
        if output.endswith(VALUE):
            self._value_biases[output.removesuffix(VALUE)] = bias
            return None
        if output.endswith(ATTENTION_OUTPUT):
            values = self._value_biases.pop(output.removesuffix(ATTENTION_OUTPUT))
            return bias + values @ weight
        return bias

    def _quantize_input(self, rewriter: _Rewriter, source: str) -> tuple[str, str, str]:
        """bytes [tokens, inputs], scale [tokens, 1] and zero point of an input; computed once for all its products."""
        if source in self._quantized:
            return self._quantized[source]
        node, name = rewriter.node, f"{source}/int8"
        values = source
        if source in self._smoothing:
            factors = rewriter.weight(f"{name}/smoothing", (1 / self._smoothing[source]).astype(np.float32))
            values = node("Mul", [source, factors], f"{name}/smooth")
        is_gelu = source.endswith("/gelu")
        point = GELU_ZERO_POINT if is_gelu else ZERO_POINT
        zero_point = rewriter.scalar(point, np.uint8)
        # A vector of scales becomes a column only at the end: onnxruntime would go through a column value by value, a
        # call for each, when it multiplies it by a number or compares the two.
        largest = node("ReduceMax", [values, rewriter.last_axis()], f"{name}/largest", keepdims=0)
        above = node("Mul", [largest, rewriter.scalar(1 / (255 - point))], f"{name}/above")
        if is_gelu:  # how far it goes below 0 is known
            vector = node("Max", [above, rewriter.scalar(GELU_LEAST / point)], f"{name}/scale/vector")
        else:
            # Largest and smallest apart: two passes that onnxruntime vectorises; Abs would write the whole tensor.
            smallest = node("ReduceMin", [values, rewriter.last_axis()], f"{name}/smallest", keepdims=0)
            below = node("Mul", [smallest, rewriter.scalar(-1 / point)], f"{name}/below")
            vector = node("Max", [above, below, rewriter.scalar(1e-12)], f"{name}/scale/vector")
        scale = node("Unsqueeze", [vector, rewriter.last_axis()], f"{name}/scale")
        points = rewriter.zero_points(zero_point, scale)
        # A row is one block of the last axis: with a scale for each of the first, onnxruntime would use one thread.
        width = len(self._statistics[source].least)
        rows = node("QuantizeLinear", [values, scale, points], name, axis=1, block_size=width)
        self._quantized[source] = rows, scale, zero_point
        return self._quantized[source]


class _Int4Products:
    """y = x W + b by onnxruntime's MatMulNBits."""

    def __init__(self, statistics: Statistics) -> None:
        self._statistics = statistics

    def replace(self, rewriter: _Rewriter, node: NodeProto) -> None:
        source, weight = node.input[:2]
        output = node.output[0]
        values = rewriter.reader[weight]
        packed, scales = quantize_product(np.ascontiguousarray(values.T), self._statistics[source].moments)
        inputs = [
            source,
            rewriter.weight(f"{output}/weight/int4", packed),
            rewriter.weight(f"{output}/weight/scale", scales.ravel()),
        ]
        if len(node.input) == 3:
            inputs += ["", "", rewriter.weight(node.input[2], rewriter.reader[node.input[2]])]
        # accuracy_level 4: activations in int8, block by block
        attributes = {"K": values.shape[0], "N": values.shape[1], "bits": 4, "block_size": BLOCK, "accuracy_level": 4}
        rewriter.node("MatMulNBits", inputs, output, domain=CONTRIB, **attributes)


def _smoothing(model: ModelProto, reader: WeightReader, statistics: Statistics) -> dict[str, np.ndarray]:
    """How far each product's input is to be smoothed, see _Int8Products; all products of one input share the answer."""
    by_input: dict[str, list[str]] = {}
    for node in model.graph.node:
        if node.op_type == "Gemm" and _is_smoothed(node.input[0]):
            by_input.setdefault(node.input[0], []).append(node.input[1])
    smoothing = {}
    for source, weights in by_input.items():
        largest = np.max([np.abs(reader[name]).max(axis=1) for name in weights], axis=0)
        smoothing[source] = smoothing_factors(statistics[source].magnitude, largest)
    return smoothing


def _is_smoothed(source: str) -> bool:
    """The inputs of the attention and of the feed-forward network, both straight from a normalisation.

    Smoothing what attention or GELU gives was measured to gain nothing, or to lose.
    """
    return not source.endswith((ATTENTION_ROWS, "/gelu"))


def smoothing_factors(activations: np.ndarray, weights: np.ndarray, alpha: float = SMOOTHING) -> np.ndarray:
    """SmoothQuant's s_j = max|X_j|^alpha / max|W_j|^(1 - alpha), scaled to a geometric mean of 1.

    activations, weights: float32 [inputs], largest absolute values of each channel; returns float32 [inputs]
    """
    floor = 1e-5
    factors = np.maximum(activations, floor) ** alpha / np.maximum(weights, floor) ** (1 - alpha)
    return np.clip(factors / np.exp(np.log(factors).mean()), *_SMOOTHING_RANGE).astype(np.float32)
