"""What quantizing one node does to the model, taken apart: its weights, its activations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from onnxq.ir import DataType, Graph, Node, TensorType, Value
from onnxq.passes.static.placement import (
    Placement,
    activation_slots,
    channel_axis,
    known_range,
    reads_weight,
)
from onnxq.quant import (
    ABSMAX,
    INT2,
    INT8,
    UINT4,
    ZERO_POINT,
    Format,
    Granularity,
    QParams,
    Scheme,
    fake_quantize,
    per_block,
    qparams_from_range,
    weight_qparams,
)
from onnxq.targets import OperatorRule, Target

BLOCK_SIZE = 32
"""Weights that share a scale in the formats below 8 bits."""

PARTS: Mapping[str, tuple[str, ...]] = {
    "int8": ("weights:int8", "activations:int8"),
    "int8-dynamic": ("weights:int8", "activations:dynamic"),
    "int16-act": ("weights:int8", "activations:int16"),
    "int8-weight": ("weights:int8",),
    "int4-weight": ("weights:int4",),
    "int2-weight": ("weights:int2",),
}
"""The parts that a precision's noise comes from. Each is measured once, whatever shares it."""

_BLOCKED: Mapping[str, tuple[Format, Scheme]] = {
    "weights:int4": (UINT4, ZERO_POINT),
    "weights:int2": (INT2, ABSMAX),
}


@dataclass(frozen=True)
class Perturbation:
    """Fake quantization of one part of one node, to be put into any graph that holds the node.

    Attributes:
        node: Name of the node's first output, which finds it in a part of the graph.
        part: One of the names in `PARTS`.
        weight: Slot of the weight and the numbers to use in its place, if it is a weights part.
        inputs: Slots of the activations and their qparams; None stands for dynamic ones.
        outputs: Values that the node gives as integers, and their qparams.
    """

    node: str
    part: str
    weight: tuple[int, np.ndarray] | None = None
    inputs: tuple[tuple[int, QParams | None], ...] = ()
    outputs: tuple[tuple[str, QParams], ...] = ()

    def apply(self, graph: Graph) -> None:
        """Put the fake quantization into a graph."""
        node = graph.values[self.node].producer
        assert node is not None
        if self.weight is not None:
            slot, numbers = self.weight
            node.set_input(slot, graph.constant(numbers, f"{self.node}_weight"))
        for slot, params in self.inputs:
            value = node.inputs[slot]
            assert value is not None
            node.set_input(slot, _pair(graph, value, params))
        for name, params in self.outputs:
            value = graph.values[name]
            readers = value.uses
            given = _pair(graph, value, params)
            for use in readers:
                use.node.set_input(use.slot, given)
            if value.is_output:
                graph.set_outputs([given if v is value else v for v in graph.outputs])


@dataclass(frozen=True)
class Quantizable:
    """The nodes that a placement quantizes, and how to perturb each."""

    placed: Placement
    target: Target
    ranges: Mapping[str, tuple[float, float]]

    def nodes(self) -> Iterator[tuple[Node, OperatorRule]]:
        """Nodes whose quantization adds noise: those that compute or follow."""
        for node, rule in self.placed.nodes.items():
            if rule.role in ("compute", "follow"):
                yield node, rule

    def perturbation(self, node: Node, rule: OperatorRule, part: str) -> Perturbation | None:
        """The fake quantization of one part of a node; None if it has no such part.

        Static activations are those that the node reads, where it computes, and the value that it
        gives as integers. A node that merely follows reads what others gave as integers already.
        """
        name = node.output.name
        kind, _, form = part.partition(":")
        if kind == "weights":
            if rule.role != "compute" or not reads_weight(node, rule) or rule.weight is None:
                return None
            numbers = self._weight(node, rule, rule.weight, part)
            return None if numbers is None else Perturbation(name, part, (rule.weight, numbers))
        if form == "dynamic":
            if rule.role != "compute" or not node.is_op("MatMul", "Gemm"):
                return None
            slots = activation_slots(node, rule)
            return Perturbation(name, part, None, tuple((slot, None) for slot in slots))
        inputs = self._inputs(node, rule, form) if rule.role == "compute" else ()
        outputs = tuple(
            (value.name, self._params(value, form))
            for value, makers in self.placed.integer.items()
            if makers[0] is node
        )
        return Perturbation(name, part, None, inputs, outputs)

    def _inputs(
        self, node: Node, rule: OperatorRule, form: str
    ) -> tuple[tuple[int, QParams | None], ...]:
        found = []
        for slot in activation_slots(node, rule):
            value = node.input(slot)
            if value is not None and not value.is_constant and value in self.placed.roots:
                found.append((slot, self._params(value, form)))
        return tuple(found)

    def _params(self, value: Value, form: str) -> QParams:
        root = self.placed.roots[value]
        format = self.target.activation_format_of(16 if form == "int16" else 8)
        low, high = known_range(root, self.placed, format) or self.ranges[root.name]
        return qparams_from_range(low, high, format, self.target.scheme_of(format), name=value.name)

    def _weight(self, node: Node, rule: OperatorRule, slot: int, part: str) -> np.ndarray | None:
        value = node.inputs[slot]
        assert value is not None
        numbers, axis = value.numpy(), channel_axis(node, rule)
        if part in _BLOCKED:
            if numbers.ndim != 2 or axis is None:
                return None
            format, scheme = _BLOCKED[part]
            granularity: Granularity = per_block(1 - axis % 2, BLOCK_SIZE)
        else:
            format, scheme = INT8, self.target.weight_scheme
            granularity = self.target.weight_granularity(axis)
        params = weight_qparams(numbers, format, scheme, granularity, name=value.name)
        return fake_quantize(numbers, params, name=value.name)


def _pair(graph: Graph, value: Value, params: QParams | None) -> Value:
    """The value behind a fake quantization."""
    if params is None:
        made = graph.add(
            "DynamicQuantizeLinear",
            [value],
            outputs=[graph.fresh_name(f"{value.name}_{s}") for s in ("q", "scale", "zero")],
            types=[
                TensorType(DataType.UINT8, value.shape),
                TensorType(DataType.FLOAT, ()),
                TensorType(DataType.UINT8, ()),
            ],
        )
        read = list(made.outputs)
    else:
        scale = graph.constant(params.scale, f"{value.name}_scale")
        zero = graph.constant(params.zero_point, f"{value.name}_zero")
        made = graph.add(
            "QuantizeLinear",
            [value, scale, zero],
            types=[TensorType(DataType(params.format.onnx_dtype), value.shape)],
        )
        read = [made.output, scale, zero]
    return graph.add("DequantizeLinear", read, types=[value.type]).output
