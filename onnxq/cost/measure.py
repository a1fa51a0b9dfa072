"""Measuring what nodes and borders cost on this machine."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from math import prod

import numpy as np
import onnx

from onnxq.cost.bench import Bench, Feeds
from onnxq.cost.cache import Measurements
from onnxq.cost.computed import shared_out
from onnxq.cost.costs import Costs
from onnxq.ir import DataType, Graph, Node, TensorType, Value, infer_types, to_proto
from onnxq.ir.blocks import repeated_blocks, without_weights
from onnxq.passes.notes import node_name
from onnxq.passes.static.placement import Placement
from onnxq.precision import FLOAT
from onnxq.runtime import NodeTime
from onnxq.runtime.specs import Array

_TAIL = re.compile(r"(_nchwc|_nhwc|_token_\d+|_quant|_matmulinteger\w*|/\w+Fusion/)+$")

_SAME = {
    "QLinearConv": "Conv",
    "ConvInteger": "Conv",
    "QGemm": "Gemm",
    "FusedGemm": "Gemm",
    "FusedConv": "Conv",
    "NhwcFusedConv": "Conv",
    "FusedMatMul": "MatMul",
    "MatMulIntegerToFloat": "MatMul",
    "DynamicQuantizeMatMul": "MatMul",
    "MatMulInteger": "MatMul",
    "MatMulNBits": "MatMul",
    "DynamicQuantizeLSTM": "LSTM",
}
"""Operators of onnxruntime's own by what they do; QLinearX does X."""

_ELEMENTWISE = (
    "Add",
    "Clip",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "LeakyRelu",
    "Mul",
    "Relu",
    "Sigmoid",
    "Sum",
    "Tanh",
)
"""Operators that onnxruntime fuses into the one before or after them."""

_BORDERS = ("QuantizeLinear", "DequantizeLinear", "Transpose", "ReorderInput", "ReorderOutput")

_RESTORING = "/restoring"
"""Behind the name of a node in those of the DequantizeLinears that restore its weights."""


def measure_costs(
    graph: Graph,
    nodes: Sequence[Node],
    placed: Placement,
    variants: Mapping[str, Graph],
    feeds: Feeds,
    *,
    backend: str = "onnxruntime",
    provider: str = "cpu",
    threads: int = 1,
    model_sha256: str = "",
    measurements: Measurements | None = None,
) -> Costs:
    """Latency of every node in every precision and of every border, on this machine.

    Nodes are timed where they stand: onnxruntime's profiler runs over the float model and over
    one model per precision in which all that can has it, in turn in one process. Borders are
    timed by themselves, at their real shapes, with the change of layout that one costs where
    images meet integers. What was measured before on this machine is not measured again. Repeated
    blocks take equal time, so each of their nodes costs what it does on average: equal blocks get
    equal plans, and the clock's noise is divided among them.

    Args:
        graph: The float graph.
        nodes: The nodes to find costs for.
        placed: Placement with everything quantized that can be.
        variants: By precision, the model in which all nodes that can have it do; operators that
            restore stored weights get names.
        feeds: What to run the models on.
        backend: What to run them with.
        provider: What the backend is to run them on.
        threads: Threads inside one operator.
        model_sha256: Hash to note in the result.
        measurements: What was measured before.

    Raises:
        InputError: onnxruntime cannot run one of the models.
    """
    known = Measurements() if measurements is None else measurements
    for variant in variants.values():
        _name_what_restores(variant)
    bench = Bench(backend, provider, threads, known)
    profiles = bench.profiles({FLOAT: graph, **variants}, feeds)
    found = {name: by_node(graph, times) for name, times in profiles.items()}
    sizes = _sizes(graph, feeds)
    if not all(found.values()):
        totals = {name: sum(time.ms for time in times) for name, times in profiles.items()}
        shares = shared_out(nodes, placed, totals, sizes)
        found = {name: times or shares[name] for name, times in found.items()}
    costs = {
        name: {p: times.get(name, 0.0) for p, times in found.items()}
        for name in map(node_name, nodes)
    }
    borders = _measure_borders(sizes, placed, found[FLOAT], bench)
    return Costs("latency", model_sha256, bench.here, _alike(graph, costs), borders)


def _alike(
    graph: Graph, costs: Mapping[str, Mapping[str, float]]
) -> dict[str, Mapping[str, float]]:
    """Costs with those of repeated blocks averaged, node by node."""
    found = dict(costs)
    for repeated in repeated_blocks(graph, without_weights(graph)):
        for nodes in zip(*(block.nodes for block in repeated), strict=True):
            names = [name for name in map(node_name, nodes) if name in costs]
            mean = {
                p: sum(costs[name].get(p, 0.0) for name in names) / len(names)
                for p in (costs[names[0]] if names else ())
            }
            found.update(dict.fromkeys(names, mean))
    return found


def _name_what_restores(graph: Graph) -> None:
    """Name operators that restore stored weights after the node that reads them.

    onnxruntime names nameless ones by number. Those that it fuses are not timed.
    """
    for node in [*graph.all_nodes()]:
        stored = node.input(0)
        if node.is_op("DequantizeLinear") and stored is not None and stored.is_constant:
            reader = next((use.node for use in node.output.uses), None)
            if reader is not None and reader.name:
                node.graph.rename_node(node, f"{reader.name}{_RESTORING}")


def by_node(graph: Graph, times: Sequence[NodeTime]) -> dict[str, float]:
    """Milliseconds by the name of the node that the time is due to.

    onnxruntime names what it fuses after one of the nodes, or after the value it makes, with
    tails that tell of layout and duplicates. A time counts for the node so named; where that is
    of another kind, for the nearest node before it that is of the kind and has no time yet. All
    other time, that of borders included, is under the empty name.
    """
    by_name: dict[str, Node] = {}
    for node in graph.all_nodes():
        by_name[node_name(node)] = node
        for value in node.outputs:
            if value is not None:
                by_name.setdefault(value.name, node)
    spent: dict[Node, float] = {}
    rest = 0.0
    for time in times:
        reader, restores, _ = time.name.partition(_RESTORING)
        if restores and reader in by_name:
            node = by_name[reader]
            spent[node] = spent.get(node, 0.0) + time.ms
            continue
        named = by_name.get(time.name) or by_name.get(_TAIL.sub("", time.name))
        if named is None or time.op_type in _BORDERS:
            rest += time.ms
            continue
        kind = _SAME.get(time.op_type, time.op_type.removeprefix("QLinear"))
        node = _of_kind(named, kind, spent)
        spent[node] = spent.get(node, 0.0) + time.ms
    found = {node_name(node): ms for node, ms in spent.items()}
    return {**found, "": rest} if found else {}


def _of_kind(node: Node, kind: str, spent: Mapping[Node, float]) -> Node:
    pending, seen = [node], {node}
    while pending:
        current = pending.pop(0)
        if current.op_type == kind and (current is node or current not in spent):
            return current
        if len(seen) > 16:
            break
        for value in current.inputs:
            maker = None if value is None else value.producer
            if maker is not None and maker not in seen:
                seen.add(maker)
                pending.append(maker)
    return node


def _measure_borders(
    sizes: Mapping[str, tuple[int, ...]],
    placed: Placement,
    in_place: Mapping[str, float],
    bench: Bench,
) -> dict[str, tuple[float, float]]:
    """What it costs to turn each value into integers, and into floats.

    onnxruntime gives every reader of floats a DequantizeLinear of its own, so a value with two
    such readers pays twice, and operators that were one kernel in float come apart: those that
    took no time of their own in the float model are timed by themselves and added.
    """
    shapes = {v: sizes[v.name] for v in placed.roots if v.name in sizes}
    names = {shape: json.dumps(shape) for shape in shapes.values()}
    found = bench.operators(
        "border", {name: partial(_border_model, shape) for shape, name in names.items()}
    )
    apart = {
        node: _Alone(node, sizes)
        for value in shapes
        if value in placed.integer
        for node in _fused_readers(value, placed, in_place)
    }
    alone = bench.operators("alone", {a.signature: a.model for a in apart.values() if a.signature})
    borders = {}
    for value, shape in shapes.items():
        times = found[names[shape]]
        quantize = sum(ms for name, ms in times.items() if name.startswith("q_"))
        dequantize = sum(ms for name, ms in times.items() if name.startswith("d_"))
        readers = {use.node for use in value.uses}
        dequantize *= max(1, len(readers))
        for node in readers:
            if node in apart and apart[node].signature:
                dequantize += sum(alone[apart[node].signature].values())
        borders[value.name] = (quantize, dequantize)
    return borders


def _fused_readers(value: Value, placed: Placement, in_place: Mapping[str, float]) -> list[Node]:
    """Readers of a value that are no kernel of their own in the float model."""
    readers = dict.fromkeys(use.node for use in value.uses)
    return [
        node for node in readers if not in_place.get(node_name(node)) and node.is_op(*_ELEMENTWISE)
    ]


class _Alone:
    """One operator of a graph by itself, at its real shapes, on made-up numbers."""

    def __init__(self, node: Node, sizes: Mapping[str, tuple[int, ...]]) -> None:
        self._node = node
        self._read = [v for v in node.inputs if v is not None and not v.is_constant]
        self._shapes = [sizes.get(v.name) for v in self._read]
        # A node of a body is counted with the others of its body alone.
        known = node.graph.outer is None and all(
            shape is not None and value.dtype is DataType.FLOAT
            for value, shape in zip(self._read, self._shapes, strict=True)
        )
        attributes = {name: str(a.value) for name, a in sorted(node.attributes.items())}
        constants = [v.shape if v is not None and v.is_constant else None for v in node.inputs]
        what = [node.op_type, attributes, self._shapes, constants, node.graph.opset]
        self.signature = json.dumps(what) if known else ""

    def model(self) -> tuple[bytes, Feeds]:
        """A model of the operator and what to feed it."""
        graph = self._node.graph
        part = graph.extract(dict.fromkeys(self._read), [v for v in self._node.outputs if v])
        feeds: dict[str, Array] = {
            value.name: np.linspace(-1, 1, prod(shape or ()), dtype=np.float32).reshape(shape or ())
            for value, shape in zip(self._read, self._shapes, strict=True)
        }
        return to_proto(part).SerializeToString(), feeds


def _sizes(graph: Graph, feeds: Feeds) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors that have elements, by name, where inputs have those of the feeds.

    A model may leave open more than the batch: the height and width of an image, say.
    """
    bound = graph.copy()
    for value in bound.inputs:
        if value.name in feeds and value.dtype is not None:
            value.type = TensorType(value.dtype, feeds[value.name].shape)
    infer_types(bound)
    found = {}
    for value in (v for scope in bound.all_graphs() for v in scope.values.values()):
        shape = value.shape if isinstance(value.type, TensorType) else None
        if shape is not None and all(isinstance(d, int) for d in shape):
            sizes = tuple(int(d or 0) for d in shape)
            found.update({value.name: sizes} if prod(sizes) else {})
    return found


def _border_model(shape: tuple[int, ...]) -> tuple[bytes, Feeds]:
    """A model of Q and DQ at a shape, for images with the change between NCHW and NHWC."""
    helper, image = onnx.helper, len(shape) == 4
    moved = (shape[0], shape[2], shape[3], shape[1]) if image else shape
    floats, integers = onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8
    quantized, read = ("quantized", "moved") if image else ("to_integers", "integers")
    nodes = [
        helper.make_node("QuantizeLinear", ["floats", "scale", "zero"], [quantized], "q_"),
        helper.make_node("DequantizeLinear", [read, "scale", "zero"], ["to_floats"], "d_"),
    ]
    if image:
        nodes += [
            helper.make_node(
                "Transpose", [quantized], ["to_integers"], "q_layout", perm=[0, 2, 3, 1]
            ),
            helper.make_node("Transpose", ["integers"], [read], "d_layout", perm=[0, 3, 1, 2]),
        ]
        nodes = [nodes[0], nodes[2], nodes[3], nodes[1]]
    graph = helper.make_graph(
        nodes,
        "border",
        [
            helper.make_tensor_value_info("floats", floats, shape),
            helper.make_tensor_value_info("integers", integers, moved),
        ],
        [
            helper.make_tensor_value_info("to_integers", integers, moved),
            helper.make_tensor_value_info("to_floats", floats, shape),
        ],
        [
            onnx.numpy_helper.from_array(np.asarray(0.01, dtype=np.float32), "scale"),
            onnx.numpy_helper.from_array(np.asarray(128, dtype=np.uint8), "zero"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    feeds: dict[str, Array] = {
        "floats": np.linspace(-1, 1, prod(shape), dtype=np.float32).reshape(shape),
        "integers": np.arange(prod(shape)).astype(np.uint8).reshape(moved),
    }
    return model.SerializeToString(), feeds
