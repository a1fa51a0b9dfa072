"""What nodes cost by what there is to multiply and to store, without measuring each of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import prod

from onnxq.cost.costs import Costs
from onnxq.ir import Node, Value
from onnxq.ir.operators import attribute_value
from onnxq.passes.notes import node_name
from onnxq.passes.static.operands import channel_axis
from onnxq.passes.static.placement import Placement
from onnxq.passes.weights.weight_rewrites import ConstantWeight, find_weight
from onnxq.precision import FLOAT, parse_precision
from onnxq.targets import Target

Sizes = Mapping[str, Sequence[int]]

_BORDER_FLOPS = 8.0
"""What turning one element into or out of an integer costs, in multiplications."""

_FLOPS_PER_BYTE = 4.0
"""Multiplications of floats that one thread does while a byte of weights comes from memory: with
AVX512 some 50 a nanosecond, and 17 bytes (AMD EPYC); 1.5 to 4 find the same plans."""


def size_costs(
    nodes: Sequence[Node], precisions: Sequence[str], target: Target, model_sha256: str = ""
) -> Costs:
    """Bytes of every node's weights, by precision, with their scales; borders cost nothing.

    Those of a weight that several of the nodes read are divided among these.
    """
    weights = {node: _weights(node) for node in nodes}
    readers = Counter(value for values in weights.values() for value in values)
    costs = {
        node_name(node): {
            p: sum(b / readers[v] for v, b in _stored_bytes(node, own, p, target).items())
            for p in (FLOAT, *precisions)
        }
        for node, own in weights.items()
    }
    return Costs("size", model_sha256, {}, costs, {})


def _stored_bytes(
    node: Node, weights: Sequence[Value], precision: str, target: Target
) -> dict[Value, float]:
    """Bytes that each of a node's weights takes in a precision."""
    parsed = parse_precision(precision)
    layouts = {weight.value: layout for weight, layout in parsed.weights(node, target)}
    found = {}
    for value in weights:
        assert value.data is not None
        found[value] = parsed.stored_bits / 8 * value.data.size
        if value in layouts:
            found[value] += layouts[value].qparams_bytes(value.data.shape)
    return found


def flops_costs(
    nodes: Sequence[Node], placed: Placement, precisions: Sequence[str], model_sha256: str = ""
) -> Costs:
    """Multiplications of every node, weighted by precision, and elements at every border.

    For planning for a machine that is not at hand: orders of magnitude, not milliseconds. Nodes
    that only follow count one operation per element.
    """
    work = {node: _multiplications(node, placed, {}) for node in nodes}
    costs = {
        node_name(node): {
            p: amount * parse_precision(p).relative_time for p in (FLOAT, *precisions)
        }
        for node, amount in work.items()
    }
    crossing = {value.name: _elements(value, {}) * _BORDER_FLOPS for value in placed.roots}
    borders = {name: (work, work) for name, work in crossing.items()}
    return Costs("flops", model_sha256, {}, costs, borders)


def shared_out(
    nodes: Sequence[Node], placed: Placement, totals: Mapping[str, float], sizes: Sizes
) -> dict[str, dict[str, float]]:
    """What nodes cost in models that a provider compiles as a whole, of which it tells the time.

    A node takes as long as what it multiplies or, where that is longer, as reading its weights
    (the roofline model, Williams, Waterman and Patterson 2009). The time of the float model is
    divided by that among the nodes, and what a precision gains by what it saves of that. Where an
    output sums the products of a single channel, as in a depthwise convolution, integers save
    nothing: they are faster because they add up products of several channels at once.

    Of MobileNetV3-small's 53 products in oneDNN's log (onnxruntime-openvino 1.24.1, one thread),
    what int8 gains correlates 0.99 with the log, and 0.60 by multiplications alone.

    Args:
        nodes: The nodes.
        placed: Placement with everything quantized that can be.
        totals: By precision, milliseconds of the model in which all nodes that can have it do.
        sizes: Shapes of tensors, by name, where the graph leaves them open.

    Returns:
        Milliseconds by precision and node.
    """
    work = {p: {node: _time(node, placed, p, sizes) for node in nodes} for p in totals}
    whole = {p: sum(own.values()) or 1.0 for p, own in work.items()}
    floats = {node: totals[FLOAT] * t / whole[FLOAT] for node, t in work[FLOAT].items()}
    found = {FLOAT: {node_name(node): ms for node, ms in floats.items()}}
    for p in set(totals) - {FLOAT}:
        saved = whole[FLOAT] - whole[p]
        gained = totals[FLOAT] - totals[p]
        found[p] = {
            node_name(node): max(0.0, floats[node] - gained * (work[FLOAT][node] - t) / saved)
            if saved > 0
            else totals[p] * t / whole[p]
            for node, t in work[p].items()
        }
    return found


def _time(node: Node, placed: Placement, precision: str, sizes: Sizes) -> float:
    """Time of a node by the roofline model, in that of a multiplication of floats."""
    parsed, rule = parse_precision(precision), placed.nodes.get(node)
    work = _multiplications(node, placed, sizes)
    weights = _weights(node) if rule and rule.role == "compute" else []
    if not weights or (weight := weights[0].data) is None:
        return work * parsed.relative_time
    is_depthwise = node.is_op("Conv") and attribute_value(node, "group") > 1 == weight.shape[1]
    work *= 1.0 if is_depthwise else parsed.relative_time
    return max(work, _FLOPS_PER_BYTE * parsed.weight_bits / 8 * weight.size)


_STORED = {"Gather": (0,), "LSTM": (1, 2), "GRU": (1, 2), "RNN": (1, 2)}
"""Slots of the weights of operators that are no products."""


def _weights(node: Node) -> list[Value]:
    """Constant floats that a node reads as weights."""
    found = (find_weight(node, slot) for slot in _STORED.get(node.op_type, (1,)))
    return [weight.value for weight in found if isinstance(weight, ConstantWeight)]


def _multiplications(node: Node, placed: Placement, sizes: Sizes) -> float:
    """What a node multiplies where it computes, else the elements that it gives."""
    work, rule = _elements(node.outputs[0], sizes), placed.nodes.get(node)
    weight = node.input(rule.weight) if rule and rule.weight is not None else None
    if not rule or rule.role != "compute" or weight is None or not weight.shape:
        return work
    shape = sizes.get(weight.name, weight.shape)
    if not weight.is_constant:
        # A product of two activations.
        summed = shape[-2] if len(shape) > 1 else shape[-1]
        return work * summed if isinstance(summed, int) else work
    axis = channel_axis(node, rule)
    channels = shape[0 if axis is None else axis]
    if all(isinstance(d, int) for d in shape) and channels:
        work *= prod(int(d or 1) for d in shape) / int(channels or 1)
    return work


def _elements(value: Value | None, sizes: Sizes) -> float:
    if value is not None and value.name in sizes:
        return float(prod(sizes[value.name]))
    shape = None if value is None else value.shape
    return float(prod(d if isinstance(d, int) else 1 for d in shape or ()))
