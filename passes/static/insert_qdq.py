"""insert-qdq: static integer quantization by QuantizeLinear/DequantizeLinear pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxq.errors import InputError
from onnxq.ir import Context, DataType, Graph, Node, Pass, TensorType, Value, remove_unused
from onnxq.ir.operators import attribute_value
from onnxq.needs import Need, RangeOf
from onnxq.passes.nodes import added
from onnxq.passes.notes import LEFT_IN_FLOAT_KEY, Reason, node_name, note_left_in_float, note_target
from onnxq.passes.static.placement import (
    ALREADY_QUANTIZED,
    Placement,
    channel_bias,
    known_range,
    needs_pair_behind,
    place,
    place_within,
    reads_weight,
    weight_granularity,
)
from onnxq.passes.tuned import Tuned, tuned_weight
from onnxq.quant import (
    QParams,
    dequantize,
    qparams_from_range,
    quantize,
    value_range,
    weight_qparams,
)
from onnxq.quant.bias import bias_qparams, quantize_bias, weight_qparams_for_bias
from onnxq.quant.formats import FORMATS, Format
from onnxq.targets import OperatorRule, Target, load_target

_LEFT_OUT = Reason("chosen", "another precision was chosen for it")

_UNIT = (0.0, 1.0)
"""What a gate can give."""

_ACTIVATIONS = ("int8", "uint8", "int16", "uint16")
"""Formats that activations may have."""


@dataclass(frozen=True)
class InsertQdq(Pass):
    """Quantize a float graph to static integers with QDQ pairs, as a target's table says.

    Weights are stored as integers behind a DequantizeLinear; biases as int32 with the scale of
    input times weight, or as floats where the target wants that; every activation that an integer
    kernel reads or gives carries one QuantizeLinear/DequantizeLinear pair. Pairs sit where runtimes
    fuse them: behind Relu and Clip rather than before, with the same qparams on both sides of
    operators that only move values about. Which nodes take part is chosen by
    `onnxq.passes.static.placement.place`.

    Left in float, each with its reason in the model's metadata: operators without a rule,
    computations whose weight or bias is not constant (unless the target multiplies two
    activations), tensors that are not float32, have no finite range or hold masks, operators that
    merely follow where nothing on both sides is an integer, and what in a Loop may have another
    shape in each iteration.

    Bodies of If, Loop and Scan are quantized like the graph around them. Runtimes fuse pairs within
    one graph only, so a body reads through a pair of its own what it takes from outside.

    Activations have the target's format, or another one by wish, node by node: a node reads and
    gives its activations in its own format. A value that a node gives as integers has a pair in
    that node's format, and readers of another one read through a second pair behind it, which
    runtimes take for a requantization; a value that is given as floats has one pair for each
    format that it is read in. Operators that move values about give what they read, so they have
    the format of what they read, whatever is asked. Formats that are not the target's own have a
    zero-point.

    The graph must have the opset that the formats need (13 with scales per channel, 21 with
    activations of 16 bits). The pass is for float graphs: nodes that already read a
    DequantizeLinear are left as they are.

    Attributes:
        ranges: Smallest and largest value of each observed tensor, by name.
        target: Name of the table to follow.
        keep_float: Names of nodes that are to stay in float.
        only: Names of the nodes that may be quantized; empty stands for all. Operators that clip
            go with the node whose result they clip.
        activations: Format of activations: int8, uint8, int16 or uint16; the target's if empty.
        formats: The same by name of node, for nodes that are to differ.
        tuned: Scales of weights, and maybe values, that were computed elsewhere, by the name of
            the node that is to have these (see `onnxq.passes.tuned`).
    """

    name = "insert-qdq"
    numerics = "approximates"
    needs_types = True

    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict, repr=False)
    target: str = "auto"
    keep_float: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    activations: str = ""
    formats: Mapping[str, str] = field(default_factory=dict, repr=False)
    tuned: Tuned = field(default_factory=dict, repr=False, compare=False)

    @property
    def activation_format(self) -> Format:
        """Format of the activations of nodes that have none of their own.

        Raises:
            InputError: there is no such target or format.
        """
        named = self.activations
        return _activation_format(named) if named else load_target(self.target).activation_format

    @property
    def needed_opset(self) -> int:
        """Lowest opset that expresses the target's formats and those of the activations.

        Raises:
            InputError: there is no such target or format.
        """
        formats = [self.activation_format, *map(_activation_format, self.formats.values())]
        return max(load_target(self.target).opset, *(format.opset for format in formats))

    def needs(self, graph: Graph) -> Sequence[Need]:
        """See `Pass.needs`: ranges of what is read or given as integers.

        Raises:
            InputError: there is no such target.
        """
        placed = place(graph, load_target(self.target), frozenset(self.keep_float))
        return [RangeOf(name) for name in placed.observed()]

    def run(self, graph: Graph, ctx: Context) -> int:
        """Quantize; gives the number of nodes that compute on integers now.

        Raises:
            InputError: there is no such target or format, or the graph's opset cannot express
                the formats.
        """
        target = load_target(self.target)
        if graph.opset < self.needed_opset:
            what = "with these activations " if graph.opset >= target.opset else ""
            raise InputError(
                f"target {target.name} {what}needs opset {self.needed_opset} and the model has "
                f"{graph.opset}; raise the model's opset first"
            )
        kept = frozenset(self.keep_float)
        left_out = {}
        if self.only:
            able = place_within(graph, target, self.ranges, kept)
            left_out = self._left_out(place(graph, target, kept), able, target)
        placed = place_within(graph, target, self.ranges, kept, left_out)
        quantized = [node_name(node) for node in placed.nodes]
        formats = self._formats(graph, placed)
        _Insertion(self, target, placed, formats, ctx).run()
        _note_left_in_float(graph, placed, quantized)
        if quantized:
            note_target(graph, target.label)
        return len(placed.nodes)

    def _left_out(self, placed: Placement, able: Placement, target: Target) -> dict[Node, Reason]:
        names, reasons = set(self.only), able.left_in_float
        return {
            node: reasons[node] if node in reasons and reasons[node].kind == "range" else _LEFT_OUT
            for node, rule in placed.nodes.items()
            if rule.role != "absorb"
            and node_name(node) not in names
            and not needs_pair_behind(node, rule, target)
        }

    def _formats(self, graph: Graph, placed: Placement) -> dict[Node, Format]:
        """The format in which each node reads and gives its activations."""
        found: dict[Node, Format] = {}
        for node in graph.all_nodes():
            rule, source = placed.nodes.get(node), node.input(0)
            if rule is None or rule.role == "absorb":
                continue
            makers = placed.integer.get(source) if source is not None else None
            wanted = self.formats.get(node_name(node))
            if rule.role == "share" and makers:
                found[node] = found[makers[0]]
            else:
                found[node] = _activation_format(wanted) if wanted else self.activation_format
        return found


def _activation_format(name: str) -> Format:
    if name not in _ACTIVATIONS:
        raise InputError(
            f"activations cannot have the format '{name}'; use one of {', '.join(_ACTIVATIONS)}"
        )
    return FORMATS[name]


def _note_left_in_float(graph: Graph, placed: Placement, quantized: list[str]) -> None:
    left = placed.left_in_float
    reasons = {
        n: left[n] for n in graph.all_nodes() if left.get(n) not in (None, ALREADY_QUANTIZED)
    }
    # A graph that was quantized before keeps the reasons of that time.
    if quantized or LEFT_IN_FLOAT_KEY not in graph.model.metadata:
        note_left_in_float(graph, reasons, quantized)


class _Insertion:
    """Changes the graph as a placement says."""

    def __init__(
        self,
        options: InsertQdq,
        target: Target,
        placed: Placement,
        formats: Mapping[Node, Format],
        ctx: Context,
    ) -> None:
        self._target = target
        self._placed = placed
        self._formats = formats
        self._ctx = ctx
        self._constants: dict[tuple[Graph, bytes, str, tuple[int, ...]], Value] = {}
        self._stored: dict[tuple[Value, QParams], Value] = {}
        self._read: dict[tuple[Graph, Value], Value] = {}
        self._params: dict[tuple[Value, Format], QParams] = {}
        # By value: what is given to callers is renamed under way.
        self._ranges = {root: options.ranges.get(root.name) for root in placed.roots.values()}
        self._tuned = {n: t for n in placed.nodes if (t := options.tuned.get(node_name(n)))}

    def run(self) -> None:
        for node, rule in self._placed.nodes.items():
            if rule.weight is not None and reads_weight(node, rule):
                self._store_weight(node, rule, rule.weight)
            if rule.constant_inputs:
                self._store_constant_inputs(node)
        for value in self._placed.roots:
            self._insert_pairs(value)
        for node, rule in self._placed.nodes.items():
            if rule.form == "saturating-add":
                self._saturate(node)

    def _value_qparams(self, value: Value, format: Format) -> QParams:
        """Qparams of a value with pairs, in one of the formats that it is read in."""
        root = self._placed.roots[value]
        key = (root, format)
        if key not in self._params:
            bounds = known_range(root, self._placed, format) or self._ranges[root]
            assert bounds is not None
            self._params[key] = self._activation_qparams(*bounds, format, root.name)
        return self._params[key]

    def _activation_qparams(self, low: float, high: float, format: Format, name: str) -> QParams:
        return qparams_from_range(low, high, format, self._target.scheme_of(format), name=name)

    def _insert_pairs(self, value: Value) -> None:
        readers = value.uses
        makers = self._placed.integer.get(value)
        given = None
        restored: dict[tuple[Graph, Format], Value] = {}
        if makers is not None:
            given = self._formats[makers[0]]
            restored[value.graph, given] = self._insert_pair(value.graph, value, value, given)
        source = value if given is None else restored[value.graph, given]
        for use in readers:
            read, format = source, self._formats.get(use.node)
            if format is not None and self._placed.reads_pair(use):
                key = (use.node.graph, format)
                if key not in restored:
                    restored[key] = self._insert_pair(key[0], source, value, format)
                read = restored[key]
            use.node.set_input(use.slot, read)
        if given is not None and value.is_output:
            (quantized,) = (use.node for use in value.uses)
            value.graph.replace_uses(value, source)
            quantized.set_input(0, value)

    def _insert_pair(self, graph: Graph, source: Value, value: Value, format: Format) -> Value:
        """A pair for a value, on the value itself or behind a pair of it elsewhere."""
        name, params = value.name, self._value_qparams(value, format)
        scale, zero_point = self._scale(graph, name, params)
        read, dtype = [source, scale, zero_point], DataType(params.format.onnx_dtype)
        quantized = added(graph, "QuantizeLinear", read, f"{name}_q", dtype, value.shape)
        self._ctx.rewrote(f"pair on '{name}', scale {float(params.scale):.6g}")
        return self._dequantize(graph, quantized, scale, zero_point, params, name)

    def _saturate(self, node: Node) -> None:
        """Write HardSigmoid as an Add that saturates, HardSwish as its product with that.

        ``alpha * x + beta`` is an Add once the integers of ``x`` are read with alpha times their
        scale, and integers from 0 to 255 of scale 1/255 hold just what is between 0 and 1; so do
        those of 16 bits.
        """
        read = node.inputs[0]
        pair = None if read is None else read.producer
        assert read is not None and pair is not None
        graph, alpha, beta = node.graph, 1 / 6, 0.5
        if node.is_op("HardSigmoid"):
            alpha, beta = (float(attribute_value(node, name)) for name in ("alpha", "beta"))
        (integers, scale, zero_point), name = pair.inputs, node.output.name
        assert integers is not None and scale is not None and zero_point is not None
        shrunk = np.asarray(scale.numpy() * np.float32(alpha))
        format = self._formats[node]
        offset = self._activation_qparams(min(0.0, beta), max(0.0, beta), format, name)
        stored = quantize(np.float32(beta), offset, name=name)
        slope = self._constant(graph, shrunk, f"{name}_scale")
        scaled = self._dequantize(graph, integers, slope, zero_point, offset, name)
        addend = graph.constant(stored, f"{name}_offset")
        shift = self._dequantize(graph, addend, *self._scale(graph, name, offset), offset, name)
        types, gate_name = [node.output.type], f"{node.name or name}_gate"
        line = graph.add("Add", [scaled, shift], name=gate_name, types=types).output
        made = line
        if node.is_op("HardSwish"):
            params = self._activation_qparams(*_UNIT, format, name)
            gate_scale, gate_zero = self._scale(graph, name, params)
            gate = graph.add(
                "QuantizeLinear",
                [line, gate_scale, gate_zero],
                types=[TensorType(DataType(params.format.onnx_dtype), line.shape)],
            ).output
            opened = self._dequantize(graph, gate, gate_scale, gate_zero, params, name)
            made = graph.add("Mul", [read, opened], types=types).output
        graph.replace_uses(node.output, made)
        remove_unused(graph, [node, pair])
        graph.rename(made, name)
        if node.name and made.producer is not None:
            graph.rename_node(made.producer, node.name)

    def _store_weight(self, node: Node, rule: OperatorRule, slot: int) -> None:
        weight, activation = node.inputs[slot], node.inputs[rule.activations[0]]
        assert weight is not None and activation is not None
        weights, params = self._weight_qparams(node, rule, weight)
        numbers = channel_bias(node, rule) if self._target.bias == "int32" else None
        bias = node.input(rule.bias or 0)
        if bias is not None and numbers is not None and rule.bias is not None:
            input_scale = self._value_qparams(activation, self._formats[node]).scale
            params = weight_qparams_for_bias(params, input_scale, numbers, name=bias.name)
            stored = quantize_bias(numbers, input_scale, params.scale, name=bias.name)
            self._replace_constant(
                node, rule.bias, stored, bias_qparams(input_scale, params.scale, name=bias.name)
            )
        self._replace_constant(node, slot, quantize(weights, params, name=weight.name), params)

    def _weight_qparams(
        self, node: Node, rule: OperatorRule, weight: Value
    ) -> tuple[np.ndarray, QParams]:
        """The numbers of a weight that are to be quantized, and with what."""
        target, numbers = self._target, weight.numpy()
        format, granularity = target.weight_format, weight_granularity(node, rule, target)
        if (tensors := self._tuned.get(node)) is None:
            scheme = target.weight_scheme
            return numbers, weight_qparams(numbers, format, scheme, granularity, name=weight.name)
        bounds = value_range(format, target.weight_scheme)
        name, shape = node_name(node), numbers.shape
        tuned = tuned_weight(tensors, name, format, granularity, shape, bounds=bounds)
        if tuned.values is None:
            return numbers, tuned.qparams
        # Quantized anew they are the same, unless the bias needs another scale.
        return dequantize(tuned.values, tuned.qparams), tuned.qparams

    def _store_constant_inputs(self, node: Node) -> None:
        for slot, value in enumerate(node.inputs):
            if value is not None and value.is_constant:
                numbers = value.numpy()
                low, high = float(numbers.min(initial=0)), float(numbers.max(initial=0))
                params = self._activation_qparams(low, high, self._formats[node], value.name)
                stored = quantize(numbers, params, name=value.name)
                self._replace_constant(node, slot, stored, params)

    def _replace_constant(self, node: Node, slot: int, stored: np.ndarray, params: QParams) -> None:
        """Let a node read integers behind a DequantizeLinear instead of a float constant."""
        value = node.inputs[slot]
        assert value is not None
        key, graph = (value, params), node.graph
        if key not in self._stored:
            self._stored[key] = value.graph.constant(stored, f"{value.name}_q")
        integers = self._stored[key]
        if (graph, integers) not in self._read:
            scale = self._scale(graph, value.name, params)
            self._read[graph, integers] = self._dequantize(
                graph, integers, *scale, params, value.name
            )
        node.set_input(slot, self._read[graph, integers])
        if not value.uses and not value.is_output:
            value.graph.discard(value)

    def _scale(self, graph: Graph, name: str, params: QParams) -> tuple[Value, Value]:
        return (
            self._constant(graph, params.scale, f"{name}_scale"),
            self._constant(graph, params.zero_point, f"{name}_zero_point"),
        )

    def _constant(self, graph: Graph, array: np.ndarray, name: str) -> Value:
        """A constant of a graph, the same one for the same numbers."""
        key = (graph, array.tobytes(), str(array.dtype), array.shape)
        if key not in self._constants:
            self._constants[key] = graph.constant(array, name)
        return self._constants[key]

    def _dequantize(
        self,
        graph: Graph,
        quantized: Value,
        scale: Value,
        zero_point: Value,
        params: QParams,
        name: str,
    ) -> Value:
        read, shape, dtype = [quantized, scale, zero_point], quantized.shape, DataType.FLOAT
        axis = {} if params.axis is None else {"axis": params.axis}
        return added(graph, "DequantizeLinear", read, f"{name}_dq", dtype, shape, **axis)
