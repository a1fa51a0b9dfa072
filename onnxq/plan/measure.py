"""Measuring what nodes and borders cost on this machine, and computing it without one."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from math import prod

import numpy as np
import onnx

from onnxq.ir import Graph, Node, TensorType, Value, to_proto
from onnxq.passes.notes import node_name
from onnxq.passes.placement import Placement, channel_axis
from onnxq.plan.cache import Measurements, machine
from onnxq.plan.cost import Costs
from onnxq.runtime.profile import NodeTime, profile_nodes
from onnxq.runtime.specs import Array

Feeds = Mapping[str, Array]

FLOAT = "float32"

_TAIL = re.compile(r"(_nchwc|_nhwc|_token_\d+|_quant|_dequantize\w*|_matmulinteger\w*)+$")

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
}
"""Operators of onnxruntime's own by what they do; QLinearX does X."""

_BORDERS = ("QuantizeLinear", "DequantizeLinear", "Transpose", "ReorderInput", "ReorderOutput")

BITS = {
    "float32": 32,
    "int8": 8,
    "int8-dynamic": 8,
    "int8-weight": 8,
    "int4-weight": 4,
    "int2-weight": 2,
    "int16-act": 8,
    "float16": 16,
    "bfloat16": 16,
}
"""Bits of a stored weight, by precision."""

_SPEED = {"float32": 1.0, "int8": 0.25, "int8-dynamic": 0.3}
"""Time of one multiplication relative to float32, for planning without measuring."""

_BORDER_FLOPS = 8.0
"""What turning one element into or out of an integer costs, in multiplications."""


def measure_costs(
    graph: Graph,
    placed: Placement,
    variants: Mapping[str, Graph],
    feeds: Feeds,
    *,
    provider: str = "cpu",
    threads: int = 1,
    model_sha256: str = "",
    measurements: Measurements | None = None,
) -> Costs:
    """Latency of every node in every precision and of every border, on this machine.

    Nodes are timed where they stand: onnxruntime's profiler runs over the float model and over
    one model per precision in which all that can has it, in turn in one process. Borders are
    timed by themselves, at their real shapes, with the change of layout that one costs where
    images meet integers. What was measured before on this machine is not measured again.

    Args:
        graph: The float graph.
        placed: Placement with everything quantized that can be.
        variants: By precision, the model in which all nodes that can have it do.
        feeds: What to run the models on.
        provider: Execution provider.
        threads: Threads inside one operator.
        model_sha256: Hash to note in the result.
        measurements: What was measured before.

    Raises:
        InputError: onnxruntime cannot run one of the models.
    """
    known = Measurements() if measurements is None else measurements
    here = machine(provider, threads)
    models = {FLOAT: graph, **variants}
    protos = {name: to_proto(g).SerializeToString() for name, g in models.items()}
    shapes = json.dumps({n: a.shape for n, a in sorted(feeds.items())})
    keys = {
        name: _signature(here, "model", hashlib.sha256(data).hexdigest(), shapes)
        for name, data in protos.items()
    }
    found = {name: known.get(key) for name, key in keys.items()}
    missing = [name for name, times in found.items() if times is None]
    if missing:
        profiles = profile_nodes(
            [protos[name] for name in missing], feeds, provider=provider, threads=threads
        )
        for name, times in zip(missing, profiles, strict=True):
            found[name] = _by_node(graph, placed, times)
            known.put(keys[name], found[name] or {})
    nodes: dict[str, dict[str, float]] = {}
    for precision, times_of in found.items():
        for name, ms in (times_of or {}).items():
            nodes.setdefault(name, {})[precision] = ms
    borders = _measure_borders(graph, placed, feeds, here, provider, threads, known)
    return Costs("latency", model_sha256, here, nodes, borders)


def size_costs(graph: Graph, placed: Placement, precisions: Sequence[str]) -> Costs:
    """Bytes of every node's weights, by precision; borders cost nothing."""
    nodes: dict[str, dict[str, float]] = {}
    for node, rule in placed.nodes.items():
        weight = None if rule.weight is None else node.input(rule.weight)
        size = weight.data.size if weight is not None and weight.data is not None else 0
        nodes[node_name(node)] = {
            p: float(size) * BITS[p] / 8 for p in (FLOAT, *precisions) if p in BITS
        }
    return Costs("size", "", {}, nodes, {})


def flops_costs(graph: Graph, placed: Placement, precisions: Sequence[str]) -> Costs:
    """Multiplications of every node, weighted by precision, and elements at every border.

    For planning for a machine that is not at hand: orders of magnitude, not milliseconds. Nodes
    that only follow count one operation per element.
    """
    nodes: dict[str, dict[str, float]] = {}
    for node, rule in placed.nodes.items():
        made = _elements(node.outputs[0])
        weight = None if rule.weight is None else node.input(rule.weight)
        work = made
        if rule.role == "compute" and weight is not None and weight.shape:
            axis = channel_axis(node, rule)
            channels = weight.shape[0 if axis is None else axis]
            if all(isinstance(d, int) for d in weight.shape) and channels:
                work = made * prod(int(d or 1) for d in weight.shape) / int(channels or 1)
        nodes[node_name(node)] = {
            p: float(work) * _SPEED[p] for p in (FLOAT, *precisions) if p in _SPEED
        }
    borders = {value.name: (_elements(value) * _BORDER_FLOPS,) * 2 for value in placed.roots}
    return Costs("flops", "", {}, nodes, {k: (q, d) for k, (q, d) in borders.items()})


def _elements(value: Value | None) -> float:
    shape = None if value is None else value.shape
    return float(prod(d if isinstance(d, int) else 1 for d in shape or ()))


def _signature(here: Mapping[str, str], *what: str) -> str:
    return json.dumps([dict(here), *what], sort_keys=True)


def _by_node(graph: Graph, placed: Placement, times: Sequence[NodeTime]) -> dict[str, float]:
    """Milliseconds by the name of the node with a choice that the time is due to.

    onnxruntime names what it fuses after one of the nodes, or after the value it makes, with
    tails that tell of layout and duplicates. A time counts for the node so named; where that is
    of another kind, for the nearest node before it that is of the kind and has no time yet.
    """
    by_name: dict[str, Node] = {}
    for node in graph.nodes():
        by_name[node_name(node)] = node
        for value in node.outputs:
            if value is not None:
                by_name.setdefault(value.name, node)
    spent: dict[Node, float] = {}
    for time in times:
        if time.op_type in _BORDERS:
            continue
        named = by_name.get(time.name) or by_name.get(_TAIL.sub("", time.name))
        if named is None:
            continue
        kind = _SAME.get(time.op_type, time.op_type.removeprefix("QLinear"))
        node = _of_kind(named, kind, spent)
        spent[node] = spent.get(node, 0.0) + time.ms
    return {
        node_name(node): spent.get(node, 0.0)
        for node, rule in placed.nodes.items()
        if rule.role != "absorb"
    }


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
    graph: Graph,
    placed: Placement,
    feeds: Feeds,
    here: Mapping[str, str],
    provider: str,
    threads: int,
    known: Measurements,
) -> dict[str, tuple[float, float]]:
    shapes = {v.name: s for v in placed.roots if (s := _shape(v, feeds)) is not None}
    wanted = {shape: _signature(here, "border", json.dumps(shape)) for shape in shapes.values()}
    found = {shape: known.get(key) for shape, key in wanted.items()}
    missing = [shape for shape, times in found.items() if times is None]
    if missing:
        model, fed = _border_model(missing)
        (times,) = profile_nodes([model], fed, provider=provider, threads=threads)
        spent: dict[str, float] = {}
        for time in times:
            spent[time.name.rsplit("_", 1)[0]] = (
                spent.get(time.name.rsplit("_", 1)[0], 0.0) + time.ms
            )
        for number, shape in enumerate(missing):
            found[shape] = {way: spent.get(f"{way}_{number}", 0.0) for way in ("q", "d")}
            known.put(wanted[shape], found[shape] or {})
    return {
        name: ((found[shape] or {}).get("q", 0.0), (found[shape] or {}).get("d", 0.0))
        for name, shape in shapes.items()
    }


def _shape(value: Value, feeds: Feeds) -> tuple[int, ...] | None:
    """A value's shape with the batch of the feeds for what is open; None if it is not known."""
    if value.shape is None or not isinstance(value.type, TensorType):
        return None
    batch = next((a.shape[0] for a in feeds.values() if a.ndim), 1)
    shape = tuple(d if isinstance(d, int) else batch for d in value.shape)
    return shape if prod(shape) else None


def _border_model(shapes: Sequence[tuple[int, ...]]) -> tuple[bytes, dict[str, Array]]:
    """A model of Q and DQ at each shape, for images with the change between NCHW and NHWC."""
    nodes, inputs, outputs = [], [], []
    feeds: dict[str, Array] = {}
    helper = onnx.helper
    for number, shape in enumerate(shapes):
        image = len(shape) == 4
        moved = (shape[0], shape[2], shape[3], shape[1]) if image else shape
        x, q = f"x{number}", f"y{number}"
        inputs.append(helper.make_tensor_value_info(x, onnx.TensorProto.FLOAT, shape))
        inputs.append(helper.make_tensor_value_info(q, onnx.TensorProto.UINT8, moved))
        feeds[x] = np.linspace(-1, 1, prod(shape), dtype=np.float32).reshape(shape)
        feeds[q] = np.arange(prod(shape), dtype=np.uint8).reshape(moved)
        quantized, given = f"q{number}", f"g{number}"
        nodes.append(
            helper.make_node("QuantizeLinear", [x, "scale", "zero"], [quantized], f"q_{number}_a")
        )
        if image:
            nodes.append(
                helper.make_node(
                    "Transpose", [quantized], [given], f"q_{number}_b", perm=[0, 2, 3, 1]
                )
            )
        outputs.append(
            helper.make_tensor_value_info(
                given if image else quantized, onnx.TensorProto.UINT8, moved
            )
        )
        read = q
        if image:
            read = f"t{number}"
            nodes.append(
                helper.make_node("Transpose", [q], [read], f"d_{number}_b", perm=[0, 3, 1, 2])
            )
        restored = f"f{number}"
        nodes.append(
            helper.make_node(
                "DequantizeLinear", [read, "scale", "zero"], [restored], f"d_{number}_a"
            )
        )
        outputs.append(helper.make_tensor_value_info(restored, onnx.TensorProto.FLOAT, shape))
    constants = [
        onnx.numpy_helper.from_array(np.asarray(0.01, dtype=np.float32), "scale"),
        onnx.numpy_helper.from_array(np.asarray(128, dtype=np.uint8), "zero"),
    ]
    graph = helper.make_graph(nodes, "borders", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return model.SerializeToString(), feeds
