"""From the traced graph of a BERT-type encoder to the one that is served: each layer rebuilt from few, large operators.

The tracer writes some seventy small operators a layer, and names each after the module it stems from. A layer's parts
are found by the names they have in PyTorch, not by the shape of what the tracer happened to write, and rebuilt as

    q, k, v = Gemm(x)                        one product each, so that quantization can treat them apart
    a = Attention(q, k, v)                   with a mask only where a batch is padded
    y = LayerNormalization(Gemm(a) + x)
    x = LayerNormalization(Gemm(Gelu(Gemm(y))) + y)

on rows [tokens, hidden], all texts of a batch one after another. The keys' bias is left out: it adds the same to all
scores of a query, which softmax takes away again. What stands before the first layer (embeddings) and
behind the last (heads) stays as traced. SkipLayerNormalization, the usual fusion, is left out: on a CPU it takes
seven times as long as the addition and the normalisation it stands for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper
from onnx.external_data_helper import uses_external_data

from m3edge.errors import FormatError

CONTRIB = "com.microsoft"  # onnxruntime's own operators
OPSET = 23  # the first with Attention; what the tracer writes in opset 20 means the same in it
_WHOLE_SCORES_UP_TO = 1024  # tokens of a text; beyond, the kernel that never holds all attention scores is faster too
_QUERY = re.compile(r"(?P<layer>.*/layer\.(?P<number>\d+)/)attention/self/query/MatMul")
_ALLOWED, _PADDED, _LONG, _SHAPE = "fused/allowed", "fused/padded", "fused/long", "fused/shape"
SWITCHES = (_ALLOWED, _PADDED, _LONG, _SHAPE)  # what the layers take that is no number: the same in every precision


class Linear(NamedTuple):
    """Names of a linear layer's input and parameters in the traced graph; weight: [inputs, outputs]."""

    source: str
    weight: str
    bias: str


class FusionCounts(NamedTuple):
    """How many of each large operator the fused graph has: as many as the encoder has layers, or twice or six times."""

    layers: int
    attentions: int
    gelus: int
    normalizations: int
    products: int


def fuse(model: ModelProto, *, n_layers: int, n_heads: int) -> FusionCounts:
    """Rebuild the encoder's layers in place.

    n_layers, n_heads: what the model's configuration says; the counts are checked against it
    Raises FormatError when the traced graph is not that of a BERT-type encoder.
    """
    graph = model.graph
    _lift_large_constants(graph)
    traced = _Traced(graph)
    matches = [match for name in traced.nodes if (match := _QUERY.fullmatch(name)) is not None]
    layers = sorted((int(match["number"]), match["layer"]) for match in matches)
    if [number for number, _ in layers] != list(range(n_layers)):
        raise FormatError(
            f"the traced graph has {len(layers)} BERT-type layers, the model {n_layers}; it cannot be fused"
        )
    builder = _Builder()
    first = traced.linear(layers[0][1] + "attention/self/query").source
    last = traced.normalization(layers[-1][1] + "output/LayerNorm")
    builder.node("ReduceMin", ["attention_mask"], "fused/least", keepdims=0)
    builder.node("Equal", ["fused/least", builder.constant(0, TensorProto.INT64)], _PADDED)
    _allowed(builder)
    builder.node("Shape", [first], _SHAPE)
    builder.node("Shape", ["input_ids"], "fused/length", start=1, end=2)
    builder.node("Greater", ["fused/length", builder.constant(_WHOLE_SCORES_UP_TO, TensorProto.INT64)], _LONG)
    x = builder.rows(first, traced.width(layers[0][1]), "fused/layer.0/input")
    for number, prefix in layers:
        x = _layer(builder, traced, f"fused/layer.{number}", prefix, x, n_heads)
    builder.node("Reshape", [x, _SHAPE], last.output[0])

    last.output[0] = "unfused"  # the traced layers are no longer reached from the outputs
    replace_nodes(graph, [*graph.node, *builder.nodes])
    graph.initializer.extend(builder.initializers)
    prune(graph)
    graph.value_info.extend(builder.shapes)
    _set_opset(model)
    counts = _count(graph, n_layers)
    expected = FusionCounts(n_layers, n_layers, n_layers, 2 * n_layers + 1, 6 * n_layers)
    if counts != expected:
        raise FormatError(f"fusing gave {counts}, expected {expected}; the encoder is not of the BERT type")
    return counts


class Copies:
    """Of parameters with equal values the tracer keeps one, and copies it with Identity."""

    def __init__(self, graph: GraphProto) -> None:
        self._sources = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Identity"}

    def original(self, name: str) -> str:
        """The name of the tensor itself."""
        while name in self._sources:
            name = self._sources[name]
        return name


class _Traced:
    """Finds a layer's parts in the traced graph by the paths of the modules they stem from."""

    def __init__(self, graph: GraphProto) -> None:
        self.nodes = {node.name: node for node in graph.node}
        self._initializers = {tensor.name: tensor for tensor in graph.initializer}
        self.parameter = Copies(graph).original

    def linear(self, path: str) -> Linear:
        """The product and the addition of the linear layer at `path`."""
        product, addition = self._node(f"{path}/MatMul"), self._node(f"{path}/Add")
        weight = self.parameter(product.input[1])
        bias = [name for name in map(self.parameter, addition.input) if name in self._initializers]
        if weight not in self._initializers or len(bias) != 1:
            raise FormatError(
                f"{path}: not a weight and a bias in the traced graph; the encoder is not of the BERT type"
            )
        return Linear(product.input[0], weight, bias[0])

    def normalization(self, path: str) -> NodeProto:
        """The LayerNormalization at `path`."""
        return self._node(f"{path}/LayerNormalization")

    def width(self, layer: str) -> int:
        """The width of the hidden states."""
        return int(self._initializers[self.linear(f"{layer}attention/self/query").bias].dims[0])

    def _node(self, name: str) -> NodeProto:
        if name not in self.nodes:
            raise FormatError(f"the traced graph has no {name}; the encoder is not of the BERT type")
        return self.nodes[name]


class _Builder:
    """Collects new nodes and the small constants they need."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.shapes: list[ValueInfoProto] = []

    def node(self, kind: str, inputs: Iterable[str], output: str, *, domain: str = "", **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=output, domain=domain, **attributes))
        return output

    def constant(self, value: int, data_type: int) -> str:
        name = f"fused/constant/{TensorProto.DataType.Name(data_type).lower()}/{value}"
        if all(tensor.name != name for tensor in self.initializers):
            self.initializers.append(helper.make_tensor(name, data_type, [], [value]))
        return name

    def rows(self, source: str, width: int, output: str) -> str:
        """All texts' tokens one after another, [tokens, width].

        Their number gets a name: by it onnxruntime sees which tensors are of one size and can share memory. For tensors
        whose size it does not know it tries every pair, more than half of the time that loading a graph would take.
        """
        name = f"fused/rows/{width}"
        if all(tensor.name != name for tensor in self.initializers):
            self.initializers.append(helper.make_tensor(name, TensorProto.INT64, [2], [-1, width]))
        self.shapes.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, ["tokens", width]))
        return self.node("Reshape", [source, name], output)

    def texts(self, source: str, width: int, output: str) -> str:
        """The opposite of `rows`: the texts side by side, [batch, sequence, width].

        The width is written down because onnxruntime, where it does not know it, takes an Attention's output to be 0
        wide, and warns of that in every run.
        """
        self.shapes.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", "sequence", width]))
        return self.node("Reshape", [source, _SHAPE], output)


def _layer(builder: _Builder, traced: _Traced, name: str, prefix: str, x: str, n_heads: int) -> str:
    """One encoder layer from rows x to the rows it returns."""

    def linear(part: str, source: str, *, bias: bool = True) -> str:
        traced_part = traced.linear(prefix + part)
        parameters = [traced_part.weight, *([traced_part.bias] if bias else [])]
        return builder.node("Gemm", [source, *parameters], f"{name}/{part}")

    def add_and_normalize(part: str, left: str, right: str) -> str:
        norm = traced.normalization(prefix + part)
        attributes = {item.name: helper.get_attribute_value(item) for item in norm.attribute}
        total = builder.node("Add", [left, right], f"{name}/{part}/sum")
        return builder.node(
            "LayerNormalization", [total, *map(traced.parameter, norm.input[1:])], f"{name}/{part}", **attributes
        )

    width = traced.width(prefix)
    projections = []
    for part in ("query", "key", "value"):
        flat = linear(f"attention/self/{part}", x, bias=part != "key")
        projections.append(builder.texts(flat, width, f"{name}/{part}"))
    attended = _attention(builder, f"{name}/attention", projections, n_heads)
    attended = builder.rows(attended, width, f"{name}/attention/rows")
    y = add_and_normalize("attention/output/LayerNorm", linear("attention/output/dense", attended), x)
    inner = builder.node("Gelu", [linear("intermediate/dense", y)], f"{name}/gelu")
    return add_and_normalize("output/LayerNorm", linear("output/dense", inner), y)


def _allowed(builder: _Builder) -> None:
    """Which token may look at which, bool [batch, 1, sequence, sequence]: written out only where a batch is padded."""
    name, shape = f"{_ALLOWED}/padded", f"{_ALLOWED}/shape"

    def constant(of: str, values: list[int]) -> TensorProto:
        return helper.make_tensor(f"{_ALLOWED}/{of}", TensorProto.INT64, [len(values)], values)

    def result(output: str) -> ValueInfoProto:
        return helper.make_tensor_value_info(output, TensorProto.BOOL, None)

    nodes = [
        helper.make_node("Cast", ["attention_mask"], [f"{name}/tokens"], to=TensorProto.BOOL),
        helper.make_node("Unsqueeze", [f"{name}/tokens", f"{_ALLOWED}/axes"], [f"{name}/keys"]),
        helper.make_node("Shape", ["attention_mask"], [f"{shape}/batch"], start=0, end=1),
        helper.make_node("Shape", ["attention_mask"], [f"{shape}/sequence"], start=1, end=2),
        helper.make_node(
            "Concat", [f"{shape}/batch", f"{_ALLOWED}/one", f"{shape}/sequence", f"{shape}/sequence"], [shape], axis=0
        ),
        helper.make_node("Expand", [f"{name}/keys", shape], [name]),
    ]
    constants = [constant("axes", [1, 2]), constant("one", [1])]
    padded = helper.make_graph(nodes, name, [], [result(name)], constants)
    nothing = helper.make_tensor(f"{_ALLOWED}/nothing", TensorProto.BOOL, [1, 1, 1, 1], [True])
    unused = helper.make_node("Constant", [], [f"{_ALLOWED}/unpadded"], value=nothing)
    unpadded = helper.make_graph([unused], f"{_ALLOWED}/unpadded", [], [result(unused.output[0])])
    builder.node("If", [_PADDED], _ALLOWED, then_branch=padded, else_branch=unpadded)


def _attention(builder: _Builder, name: str, projections: list[str], n_heads: int) -> str:
    """Attention by the operator that suits the batch, chosen when it runs.

    padded:  ONNX's Attention with a mask: two thirds of the time that MultiHeadAttention takes with one
    long:    MultiHeadAttention without a mask: onnxruntime's CPU kernel then keeps a tile of the scores instead of all
             of them, and one text of 8,192 tokens takes megabytes instead of gigabytes
    neither: ONNX's Attention without one, half the time of MultiHeadAttention on batches of short texts
    """

    def graph(kind: str, node: NodeProto) -> GraphProto:
        result = helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None)
        return helper.make_graph([node], f"{name}/{kind}", [], [result])

    def node(operator: str, kind: str, inputs: list[str], **attributes: Any) -> NodeProto:
        return helper.make_node(operator, inputs, [f"{name}/{kind}"], name=f"{name}/{kind}", **attributes)

    heads = {"q_num_heads": n_heads, "kv_num_heads": n_heads}
    padded = graph("padded", node("Attention", "padded", [*projections, _ALLOWED], **heads))
    long = graph("long", node("MultiHeadAttention", "long", projections, domain=CONTRIB, num_heads=n_heads))
    short = graph("short", node("Attention", "short", projections, **heads))
    unpadded = graph("unpadded", node("If", "unpadded", [_LONG], then_branch=long, else_branch=short))
    return builder.node("If", [_PADDED], name, then_branch=padded, else_branch=unpadded)


def _lift_large_constants(graph: GraphProto) -> None:
    """Make initializers of the Constant nodes whose values lie in the weights' file, so that they move with it."""
    for node in [node for node in graph.node if node.op_type == "Constant"]:
        tensor = node.attribute[0].t
        if uses_external_data(tensor):
            tensor.name = node.output[0]
            graph.initializer.append(tensor)
            graph.node.remove(node)


def replace_nodes(graph: GraphProto, nodes: list[NodeProto]) -> None:
    """Put the nodes that the outputs depend on into the graph, each behind what it depends on."""
    producers = {output: node for node in nodes for output in node.output}
    ordered: list[NodeProto] = []
    done: set[int] = set()
    stack = [(producers[output.name], False) for output in graph.output]
    while stack:
        node, ready = stack.pop()
        if ready:
            ordered.append(node)
        elif id(node) not in done:
            done.add(id(node))
            stack.append((node, True))
            stack += [(producers[name], False) for name in _inputs(node) if name in producers]
    ordered = [NodeProto.FromString(node.SerializeToString()) for node in ordered]
    del graph.node[:]
    graph.node.extend(ordered)


def _inputs(node: NodeProto) -> list[str]:
    """A node's inputs and what its branches take from outside."""
    names = list(node.input)
    for attribute in node.attribute:
        if attribute.HasField("g"):
            own = {output for inner in attribute.g.node for output in inner.output}
            names += [name for inner in attribute.g.node for name in _inputs(inner) if name not in own]
    return names


def prune(graph: GraphProto) -> None:
    """Drop initializers and shapes that nothing uses."""
    used = {name for node in graph.node for name in _inputs(node)}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    if len(kept) < len(graph.initializer):
        del graph.initializer[:]
        graph.initializer.extend(kept)
    del graph.value_info[:]


def layer_of(node: NodeProto) -> int | None:
    """Which encoder layer a node of a fused graph belongs to; None for what stands before and behind the layers."""
    match = re.match(r"fused/layer\.(\d+)/", node.name)
    return int(match[1]) if match else None


def _set_opset(model: ModelProto) -> None:
    del model.opset_import[:]
    model.opset_import.extend([helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)])
    model.ir_version = max(model.ir_version, 11)


def _count(graph: GraphProto, n_layers: int) -> FusionCounts:
    kinds = [node.op_type for node in graph.node]
    attentions = sum(node.op_type == "If" and layer_of(node) is not None for node in graph.node)
    return FusionCounts(
        n_layers, attentions, kinds.count("Gelu"), kinds.count("LayerNormalization"), kinds.count("Gemm")
    )
