"""insert-qdq: static integer quantization by QuantizeLinear/DequantizeLinear pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from onnxq.errors import InputError
from onnxq.ir import (
    Context,
    DataType,
    Graph,
    Node,
    Numerics,
    Pass,
    TensorType,
    Value,
    attribute_value,
)
from onnxq.passes.notes import LEFT_IN_FLOAT_KEY, node_name, note_left_in_float, note_target
from onnxq.passes.placement import (
    ALREADY_QUANTIZED,
    Placement,
    channel_axis,
    channel_bias,
    known_range,
    needs_pair_behind,
    place,
    reads_weight,
)
from onnxq.quant import (
    OperatorRule,
    QParams,
    Target,
    bias_qparams,
    load_target,
    qparams_from_range,
    quantize,
    quantize_bias,
    weight_qparams,
    weight_qparams_for_bias,
)

_LEFT_OUT = "another precision was chosen for it"

_LARGEST = 1e8
"""Beyond are masks (-1e9, the smallest float), which leave no integers for any other number."""

_UNIT = (0.0, 1.0)
"""What a gate can give."""


@dataclass(frozen=True)
class InsertQdq(Pass):
    """Quantize a float graph to static integers with QDQ pairs, as a target's table says.

    Weights are stored as integers behind a DequantizeLinear; biases as int32 with the scale of
    input times weight, or as floats where the target wants that; every activation that an integer
    kernel reads or gives carries one QuantizeLinear/DequantizeLinear pair. Pairs sit where runtimes
    fuse them: behind Relu and Clip rather than before, with the same qparams on both sides of
    operators that only move values about. Which nodes take part is chosen by
    `onnxq.passes.placement.place`.

    Left in float, each with its reason in the model's metadata: operators without a rule,
    computations whose weight or bias is not constant (unless the target multiplies two
    activations), tensors that are not float32, have no finite range or hold masks, operators that
    merely follow where nothing on both sides is an integer, and all of a subgraph.

    The graph must have the opset that the formats need (13 with scales per channel). The pass
    is for float graphs: nodes that already read a DequantizeLinear are left as they are.

    Attributes:
        ranges: Smallest and largest value of each observed tensor, by name.
        target: Name of the table to follow.
        keep_float: Names of nodes that are to stay in float.
        only: Names of the nodes that may be quantized; empty stands for all. Operators that clip
            go with the node whose result they clip.
    """

    name: ClassVar[str] = "insert-qdq"
    numerics: ClassVar[Numerics] = "approximates"
    needs_types: ClassVar[bool] = True

    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    target: str = "auto"
    keep_float: tuple[str, ...] = ()
    only: tuple[str, ...] = ()

    def run(self, graph: Graph, ctx: Context) -> int:
        """Quantize; gives the number of nodes that compute on integers now.

        Raises:
            InputError: the graph's opset cannot express the target's formats.
        """
        target = load_target(self.target)
        if graph.opset < target.opset:
            raise InputError(
                f"target {target.name} needs opset {target.opset} and the model has "
                f"{graph.opset}; raise the model's opset first"
            )
        placed = place(graph, target, frozenset(self.keep_float))
        left_out = self._left_out(placed, target)
        if left_out:
            placed = place(graph, target, frozenset(self.keep_float), left_out)
        while refused := _without_range(placed, self.ranges):
            placed = place(graph, target, frozenset(self.keep_float), {**left_out, **refused})
        quantized = [node_name(node) for node in placed.nodes]
        _Insertion(graph, target, self.ranges, placed, ctx).run()
        _note_left_in_float(graph, placed, quantized)
        if quantized:
            note_target(graph, target.name)
        return len(placed.nodes)

    def _left_out(self, placed: Placement, target: Target) -> dict[Node, str]:
        if not self.only:
            return {}
        names = set(self.only)
        return {
            node: _LEFT_OUT
            for node, rule in placed.nodes.items()
            if rule.role != "absorb"
            and node_name(node) not in names
            and not needs_pair_behind(node, rule, target)
        }


def _without_range(placed: Placement, ranges: Mapping[str, tuple[float, float]]) -> dict[Node, str]:
    """Nodes that cannot be quantized for want of a range, beside those known before."""
    refused: dict[Node, str] = {}
    for value, root in placed.roots.items():
        if known_range(root, placed):
            continue
        bounds = ranges.get(root.name)
        if bounds is None:
            reason = f"calibration gave no range for '{root.name}'"
        elif not np.isfinite(bounds).all():
            reason = f"'{root.name}' has infinite or NaN values"
        elif max(map(abs, bounds)) > _LARGEST:
            reason = f"'{root.name}' holds {max(bounds, key=abs):.3g}, which masks everything else"
        else:
            continue
        touching = [use.node for use in value.uses if placed.reads_pair(use)]
        refused.update({n: reason for n in [*touching, *placed.integer.get(value, [])]})
    if refused:
        known = {n: r for n, r in placed.left_in_float.items() if r.startswith(("calibr", "'"))}
        refused = {**known, **refused}
    return refused


def _line(node: Node) -> tuple[float, float]:
    return float(attribute_value(node, "alpha")), float(attribute_value(node, "beta"))


def _note_left_in_float(graph: Graph, placed: Placement, quantized: list[str]) -> None:
    reasons = {}
    for node in graph.nodes():
        reason = placed.left_in_float.get(node)
        if reason and reason != ALREADY_QUANTIZED:
            reasons[node] = reason
    # A graph that was quantized before keeps the reasons of that time.
    if quantized or LEFT_IN_FLOAT_KEY not in graph.model.metadata:
        note_left_in_float(graph, reasons, quantized)


class _Insertion:
    """Changes the graph as a placement says."""

    def __init__(
        self,
        graph: Graph,
        target: Target,
        ranges: Mapping[str, tuple[float, float]],
        placed: Placement,
        ctx: Context,
    ) -> None:
        self._graph = graph
        self._target = target
        self._placed = placed
        self._ctx = ctx
        self._constants: dict[tuple[bytes, str, tuple[int, ...]], Value] = {}
        self._stored: dict[tuple[Value, QParams], Value] = {}
        self._params: dict[Value, QParams] = {}
        for value, root in placed.roots.items():
            if root not in self._params:
                bounds = known_range(root, placed) or ranges[root.name]
                self._params[root] = self._activation_qparams(*bounds, root.name)
            self._params[value] = self._params[root]

    def run(self) -> None:
        for node, rule in self._placed.nodes.items():
            if rule.weight is not None and reads_weight(node, rule):
                self._store_weight(node, rule, rule.weight)
            if rule.constant_inputs:
                self._store_constant_inputs(node)
        for value in self._placed.roots:
            self._insert_pair(value)
        for node, rule in self._placed.nodes.items():
            if rule.form == "saturating-add":
                self._saturate(node)

    def _activation_qparams(self, low: float, high: float, name: str) -> QParams:
        return qparams_from_range(
            low,
            high,
            self._target.activation_format,
            self._target.activation_scheme,
            name=name,
        )

    def _insert_pair(self, value: Value) -> None:
        name, params = value.name, self._params[value]
        readers = value.uses
        scale, zero_point = self._scale(name, params)
        quantized = self._graph.add(
            "QuantizeLinear",
            [value, scale, zero_point],
            outputs=[self._graph.fresh_name(f"{name}_q")],
            types=[TensorType(DataType(params.format.onnx_dtype), value.shape)],
        )
        restored = self._dequantize(quantized.output, scale, zero_point, params, name)
        all_read = value in self._placed.integer
        for use in readers:
            if all_read or self._placed.reads_pair(use):
                use.node.graph.set_input(use.node, use.slot, restored)
        if all_read and value.is_output:
            self._graph.replace_uses(value, restored)
            self._graph.set_input(quantized, 0, value)
        self._ctx.rewrote(f"pair on '{name}', scale {float(params.scale):.6g}")

    def _saturate(self, node: Node) -> None:
        """Write HardSigmoid as an Add that saturates, HardSwish as its product with that.

        ``alpha * x + beta`` is an Add once the integers of ``x`` are read with alpha times their
        scale, and integers from 0 to 255 of scale 1/255 hold just what is between 0 and 1.
        """
        read = node.inputs[0]
        pair = None if read is None else read.producer
        assert read is not None and pair is not None
        alpha, beta = (1 / 6, 0.5) if node.is_op("HardSwish") else _line(node)
        (integers, scale, zero_point), name = pair.inputs, node.output.name
        assert integers is not None and scale is not None and zero_point is not None
        shrunk = np.asarray(scale.numpy() * np.float32(alpha))
        offset = self._activation_qparams(min(0.0, beta), max(0.0, beta), name)
        stored = quantize(np.float32(beta), offset, name=name)
        slope = self._constant(shrunk, f"{name}_scale")
        scaled = self._dequantize(integers, slope, zero_point, offset, name)
        added = self._dequantize(
            self._graph.constant(stored, f"{name}_offset"),
            *self._scale(name, offset),
            offset,
            name,
        )
        is_swish = node.is_op("HardSwish")
        line = self._graph.add(
            "Add",
            [scaled, added],
            name=f"{node.name or name}_gate",
            types=[node.output.type],
        ).output
        made = line
        if is_swish:
            params = self._activation_qparams(*_UNIT, name)
            gate_scale, gate_zero = self._scale(name, params)
            gate = self._graph.add(
                "QuantizeLinear",
                [line, gate_scale, gate_zero],
                types=[TensorType(DataType(params.format.onnx_dtype), line.shape)],
            ).output
            opened = self._dequantize(gate, gate_scale, gate_zero, params, name)
            made = self._graph.add("Mul", [read, opened], types=[node.output.type]).output
        self._graph.replace_uses(node.output, made)
        self._graph.remove(node)
        self._graph.rename(made, name)
        if node.name and made.producer is not None:
            self._graph.rename_node(made.producer, node.name)

    def _store_weight(self, node: Node, rule: OperatorRule, slot: int) -> None:
        weight, activation = node.inputs[slot], node.inputs[rule.activations[0]]
        assert weight is not None and activation is not None
        params = weight_qparams(
            weight.numpy(),
            self._target.weight_format,
            self._target.weight_scheme,
            self._target.weight_granularity(channel_axis(node, rule)),
            name=weight.name,
        )
        numbers = channel_bias(node, rule) if self._target.bias == "int32" else None
        bias = node.input(rule.bias or 0)
        if bias is not None and numbers is not None and rule.bias is not None:
            input_scale = self._params[activation].scale
            params = weight_qparams_for_bias(params, input_scale, numbers, name=bias.name)
            stored = quantize_bias(numbers, input_scale, params.scale, name=bias.name)
            self._replace_constant(
                node, rule.bias, stored, bias_qparams(input_scale, params.scale, name=bias.name)
            )
        self._replace_constant(
            node, slot, quantize(weight.numpy(), params, name=weight.name), params
        )

    def _store_constant_inputs(self, node: Node) -> None:
        for slot, value in enumerate(node.inputs):
            if value is not None and value.is_constant:
                numbers = value.numpy()
                params = self._activation_qparams(
                    float(numbers.min(initial=0)), float(numbers.max(initial=0)), value.name
                )
                stored = quantize(numbers, params, name=value.name)
                self._replace_constant(node, slot, stored, params)

    def _replace_constant(self, node: Node, slot: int, stored: np.ndarray, params: QParams) -> None:
        """Let a node read integers behind a DequantizeLinear instead of a float constant."""
        value = node.inputs[slot]
        assert value is not None
        key = (value, params)
        if key not in self._stored:
            integers = self._graph.constant(stored, f"{value.name}_q")
            self._stored[key] = self._dequantize(
                integers, *self._scale(value.name, params), params, value.name
            )
        self._graph.set_input(node, slot, self._stored[key])
        if not value.uses and not value.is_output:
            self._graph.discard(value)

    def _scale(self, name: str, params: QParams) -> tuple[Value, Value]:
        return (
            self._constant(params.scale, f"{name}_scale"),
            self._constant(params.zero_point, f"{name}_zero_point"),
        )

    def _constant(self, array: np.ndarray, name: str) -> Value:
        """A constant, the same one for the same numbers."""
        key = (array.tobytes(), str(array.dtype), array.shape)
        if key not in self._constants:
            self._constants[key] = self._graph.constant(array, name)
        return self._constants[key]

    def _dequantize(
        self, quantized: Value, scale: Value, zero_point: Value, params: QParams, name: str
    ) -> Value:
        return self._graph.add(
            "DequantizeLinear",
            [quantized, scale, zero_point],
            {} if params.axis is None else {"axis": params.axis},
            outputs=[self._graph.fresh_name(f"{name}_dq")],
            types=[TensorType(DataType.FLOAT, quantized.shape)],
        ).output
