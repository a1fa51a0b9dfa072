"""The sources of a precision's noise, each put into a float graph by itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from onnxq.ir import DataType, Graph, Node, TensorType, Value
from onnxq.ir.lifting import nested_values
from onnxq.passes.static.operands import activation_slots, channel_axis, reads_weight
from onnxq.passes.static.placement import Placement
from onnxq.passes.static.value_qparams import ValueQParams
from onnxq.passes.weights.stored_weights import Quantizer, Rounding
from onnxq.quant import (
    INT8,
    Granularity,
    QParams,
    per_channel,
)
from onnxq.targets import OperatorRule, Target


@dataclass(frozen=True)
class Scene:
    """What parts are put in by: where static integers can go, on which target, in which ranges.

    Attributes:
        placed: Placement in the float graph.
        target: Where the model is to run.
        bounds: Smallest and largest value of the tensors that were observed.
    """

    placed: Placement
    target: Target
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def rule(self, node: Node) -> OperatorRule | None:
        """How the target quantizes a node of the float graph; None where it does not."""
        return self.placed.nodes.get(node)

    def qparams(self, value: Value, bits: int) -> QParams:
        """Qparams of a value of the float graph in activations of so many bits."""
        format = self.target.activation_format_of(bits)
        return ValueQParams(self.placed, self.bounds, self.target).of(value, format)


class Part(ABC):
    """One source of noise. Of parts of one name each node has only one, whatever precision asks."""

    name: str
    """``weights:`` or ``activations:`` and what they become, or ``recurrence:`` for both."""

    @abstractmethod
    def fits(self, node: Node, scene: Scene) -> bool:
        """Whether a node of the float graph has this part."""

    @abstractmethod
    def apply(self, graph: Graph, node: Node, scene: Scene) -> None:
        """Put it into a graph that holds the node under the same names.

        Args:
            graph: A copy of the float graph, or of the part of it around the node.
            node: The node of the float graph.
            scene: See `Scene`.
        """


@dataclass(frozen=True)
class Weights8(Part):
    """Weights in 8 bits, as the target stores them beside integer activations."""

    name: str = "weights:int8"

    def fits(self, node: Node, scene: Scene) -> bool:
        """See `Part`."""
        return bool(_weights(node, scene))

    def apply(self, graph: Graph, node: Node, scene: Scene) -> None:
        """See `Part`."""
        _fake_weights(graph, node, scene, Rounding(INT8, scene.target.weight_scheme))


@dataclass(frozen=True)
class StaticWeights(Part):
    """Weights in few bits, as the target stores them beside integer activations."""

    label: str
    quantizer: Callable[[Target], Quantizer]

    @property
    def name(self) -> str:  # type: ignore[override]
        """See `Part`."""
        return f"weights:static-{self.label}"

    def fits(self, node: Node, scene: Scene) -> bool:
        """See `Part`."""
        return bool(_weights(node, scene))

    def apply(self, graph: Graph, node: Node, scene: Scene) -> None:
        """See `Part`."""
        _fake_weights(graph, node, scene, self.quantizer(scene.target))


@dataclass(frozen=True)
class StaticActivations(Part):
    """Activations in integers of known ranges: what a node reads, if it computes, and gives."""

    bits: int

    @property
    def name(self) -> str:  # type: ignore[override]
        """See `Part`."""
        return f"activations:int{self.bits}"

    def fits(self, node: Node, scene: Scene) -> bool:
        """See `Part`."""
        rule = scene.rule(node)
        return rule is not None and rule.role in ("compute", "follow")

    def apply(self, graph: Graph, node: Node, scene: Scene) -> None:
        """See `Part`. A node that merely follows reads what others gave as integers already."""
        own, rule = twin(graph, node), scene.rule(node)
        assert rule is not None
        for slot in activation_slots(node, rule) if rule.role == "compute" else ():
            value, read = node.input(slot), own.input(slot)
            if value is not None and not value.is_constant and value in scene.placed.roots:
                assert read is not None
                own.set_input(slot, _pair(own.graph, read, scene.qparams(value, self.bits)))
        for value, makers in scene.placed.integer.items():
            if makers[0] is node:
                _behind(own.graph, own.graph.values[value.name], scene.qparams(value, self.bits))


@dataclass(frozen=True)
class DynamicActivations(Part):
    """Activations of products in integers whose ranges are found at run time."""

    name: str = "activations:dynamic"

    def fits(self, node: Node, scene: Scene) -> bool:
        """See `Part`."""
        return node.is_op("MatMul", "Gemm")

    def apply(self, graph: Graph, node: Node, scene: Scene) -> None:
        """See `Part`."""
        own = twin(graph, node)
        read = own.input(0)
        assert read is not None
        own.set_input(0, _pair(own.graph, read, None))


def twin(graph: Graph, node: Node) -> Node:
    """The node of a graph that gives what a node of another one gives."""
    name = next(value.name for value in node.outputs if value is not None)
    found = (graph.values.get(name) or nested_values(graph)[name]).producer
    assert found is not None
    return found


def _fake_weights(graph: Graph, node: Node, scene: Scene, quantizer: Quantizer) -> None:
    own = twin(graph, node)
    for slot, granularity in _weights(node, scene).items():
        value = node.inputs[slot]
        assert value is not None
        faked = quantizer(value.numpy(), granularity, value.name).dequantize()
        own.set_input(slot, own.graph.constant(faked, f"{value.name}_faked"))


def _weights(node: Node, scene: Scene) -> dict[int, Granularity]:
    """Slots of a node's constant weights, and which of their values share a scale."""
    rule = scene.target.operators.get(node.op_type) if not node.domain else None
    if rule is not None and rule.role == "compute" and rule.weight is not None:
        weight = node.input(rule.weight)
        if weight is None or not reads_weight(node, rule) or (weight.rank or 0) < 2:
            return {}
        return {rule.weight: scene.target.weight_granularity(channel_axis(node, rule))}
    table = node.input(0) if node.is_op("Gather") else None
    if table is None or not table.is_constant or table.dtype is not DataType.FLOAT:
        return {}
    return {0: per_channel(0)}


def _behind(graph: Graph, value: Value, params: QParams) -> None:
    """Let everything that reads a value read it through a fake quantization."""
    readers = value.uses
    given = _pair(graph, value, params)
    for use in readers:
        use.node.set_input(use.slot, given)
    if value.is_output:
        graph.set_outputs([given if v is value else v for v in graph.outputs])


def _pair(graph: Graph, value: Value, params: QParams | None) -> Value:
    """The value behind a fake quantization, a dynamic one without qparams."""
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
        scale = graph.constant(np.asarray(params.scale), f"{value.name}_scale")
        zero = graph.constant(params.zero_point, f"{value.name}_zero")
        made = graph.add(
            "QuantizeLinear",
            [value, scale, zero],
            types=[TensorType(DataType(params.format.onnx_dtype), value.shape)],
        )
        read = [made.output, scale, zero]
        if params.format.is_narrow:
            ends = [np.asarray(end, params.format.storage) for end in params.bounds]
            bounds = [graph.constant(end, f"{value.name}_end") for end in ends]
            types = [made.output.type]
            read[0] = graph.add("Clip", [made.output, *bounds], types=types).output
    return graph.add("DequantizeLinear", read, types=[value.type]).output
