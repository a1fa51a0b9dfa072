"""insert-qdq: static integer quantization by QuantizeLinear/DequantizeLinear pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxq.errors import InputError
from onnxq.ir import Context, DataType, Graph, Node, Pass, Value, remove_unused
from onnxq.needs import Need, RangeOf
from onnxq.passes.nodes import added
from onnxq.passes.notes import LEFT_IN_FLOAT_KEY, Reason, node_name, note_left_in_float, note_target
from onnxq.passes.static.lines import line_of, sums_by_channel
from onnxq.passes.static.operands import (
    activation_slots,
    channel_bias,
    reads_weight,
    weight_granularity,
)
from onnxq.passes.static.placement import (
    ALREADY_QUANTIZED,
    Placement,
    needs_pair_behind,
    place,
    place_within,
)
from onnxq.passes.static.repeats import repeated, repeats
from onnxq.passes.static.value_qparams import ValueQParams
from onnxq.passes.static.vectors import fill_vectors
from onnxq.passes.tuned import Tuned, tuned_weight
from onnxq.passes.weights.stored_weights import Quantizer, Rounding
from onnxq.quant import QParams, dequantize, quantize
from onnxq.quant.bias import bias_qparams, quantize_bias, weight_qparams_for_bias
from onnxq.quant.formats import BYTE_FORMATS, INT8, INT16, UINT8, UINT16, Format
from onnxq.targets import OperatorRule, Target, load_target

_LEFT_OUT = Reason("chosen", "another precision was chosen for it")

_UNIT = (0.0, 1.0)
"""What a gate can give."""

_ACTIVATIONS = {f.name: f for f in (INT8, UINT8, INT16, UINT16, *BYTE_FORMATS.values())}
"""Formats that activations may have."""

CLIP_OPSET = 12
"""The lowest in which Clip takes integers."""


@dataclass(frozen=True)
class InsertQdq(Pass):
    """Quantize a float graph to static integers with QDQ pairs, as a target's table says.

    Weights are stored as integers behind a DequantizeLinear; biases as int32 with the scale of
    input times weight, or as floats where the target wants that; every activation that an integer
    kernel reads or gives carries one QuantizeLinear/DequantizeLinear pair. Pairs sit where runtimes
    fuse them: behind Relu and Clip rather than before, with the same qparams on both sides of
    operators that only move values about. Which nodes take part is chosen by
    `onnxq.passes.static.placement.place`.

    Where the target says so, a product or sum with one number is no operator any more: its readers
    read the integers of what it read, with another scale and zero-point. What is no whole step of a
    sum goes into the biases of its readers, which is wrong by at most half a step where they pad.
    HardSigmoid is the same, clipped as integers, or by the range of what it reads if nothing else
    reads that; HardSwish is one product with it. A Resize that repeats pixels is concatenations of
    integers with channels last, as which convolutions have them. Between integer convolutions
    (onnxruntime 1.32) a Mul and a Sub are 1.20 to 1.56 times as fast so, a Resize with what it is
    added to 1.26 to 1.73 times, and a HardSwish with a Mul and an Add behind it, eight times in a
    row, 1.47 times. onnxruntime 1.24.1 computes the same.

    Depthwise convolutions get a multiple of 16 channels where the target says so: the kernels take
    16 at a time, and the rest one by one. With 28 x 28 pixels 24 channels take 29 us and 32 take
    20, 72 take 56 and 80 take 34, 88 take 64 and 96 take 38 (onnxruntime 1.32); MobileNetV3-small
    in integers is 1.14 times as fast so, a smaller one for the direction of text 1.28 times.

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
    the format of what they read, whatever is asked. Formats of another type than the target's own
    have a zero-point.

    Activations of fewer than 8 bits are held in bytes and clipped as integers behind their
    QuantizeLinear, which costs next to nothing: four 3 x 3 convolutions of 64 channels take 0.81 to
    0.84 ms with it and 0.78 to 0.83 without (onnxruntime 1.24.1 and 1.32). A value is given
    in the widest format of its type that readers want, whatever the node that gives it has.

    The graph must have the opset that the formats need (13 with scales per channel, 21 with
    activations of 16 bits). The pass is for float graphs: nodes that already read a
    DequantizeLinear are left as they are.

    Attributes:
        ranges: Smallest and largest value of each observed tensor, by name.
        target: Name of the table to follow.
        keep_float: Names of nodes that are to stay in float.
        only: Names of the nodes that may be quantized; empty stands for all. Operators that clip
            go with the node whose result they clip.
        activations: Format of activations: int8, uint8, int16, uint16, or one of fewer bits, which
            is held in bytes; the target's if empty.
        formats: The same by name of node, for nodes that are to differ.
        quantizers: What quantizes weights that are not to have the target's format, by name of
            node, to integers of the target's type.
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
    quantizers: Mapping[str, Quantizer] = field(default_factory=dict, repr=False)
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
        clips = CLIP_OPSET if any(format.is_narrow for format in formats) else 0
        return max(load_target(self.target).opset, clips, *(format.opset for format in formats))

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
        given = _given(placed, formats)
        gaining = {node for node, rule in placed.nodes.items() if rule.form == "vectors"}
        tuned = [node for node in graph.all_nodes() if node_name(node) in self.tuned]
        for node in fill_vectors(graph, gaining, tuned):
            ctx.rewrote(f"{node.label}: its channels fill vectors")
        _Insertion(self, target, placed, formats, given, ctx).run()
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
        """The format in which each node reads its activations, and gives them unless `_given`."""
        found: dict[Node, Format] = {}
        for node in graph.all_nodes():
            rule = placed.nodes.get(node)
            if rule is None or rule.role == "absorb":
                continue
            source = node.input(activation_slots(node, rule)[0])
            makers = placed.integer.get(source) if source is not None else None
            wanted = self.formats.get(node_name(node))
            if rule.role == "share" and makers:
                found[node] = found[makers[0]]
            else:
                found[node] = _activation_format(wanted) if wanted else self.activation_format
        return found


def _given(placed: Placement, formats: dict[Node, Format]) -> dict[Value, Format]:
    """The format in which each value is given, if it is: the widest that its readers want.

    Nodes that move values about read and give that format; ``formats`` is changed to say so.
    """
    moving = {n for n, rule in placed.nodes.items() if rule.role == "share" and rule.form != "line"}
    wanted: dict[Value, dict[Format, None]] = {}
    for value, root in placed.roots.items():
        readers = {use.node: None for use in value.uses if placed.reads_pair(use)}
        own = wanted.setdefault(root, {})
        own.update((formats[n], None) for n in readers if n not in moving and n in formats)
    found: dict[Value, Format] = {}
    for value, root in placed.roots.items():
        # What clips its result may follow the maker.
        for maker in placed.integer.get(value, ())[:1]:
            format = formats[maker]
            if maker in moving:
                format = found.get(root, format)
                formats[maker] = format
            elif wanted[root] and not placed.nodes[maker].form.endswith("line"):
                wish = max(wanted[root], key=lambda format: format.levels)
                format = wish if wish.storage == format.storage else format
            found[value] = format
    return found


def _activation_format(name: str) -> Format:
    if name not in _ACTIVATIONS:
        raise InputError(
            f"activations cannot have the format '{name}'; use one of {', '.join(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[name]


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
        given: Mapping[Value, Format],
        ctx: Context,
    ) -> None:
        self._target = target
        self._given = given
        self._quantizers = options.quantizers
        self._placed = placed
        self._formats = formats
        self._ctx = ctx
        self._constants: dict[tuple[Graph, bytes, str, tuple[int, ...]], Value] = {}
        self._stored: dict[tuple[Value, QParams], Value] = {}
        self._read: dict[tuple[Graph, Value], Value] = {}
        # All at once: insertion changes who reads what, and names of what is given to callers.
        self._qparams = qparams = ValueQParams(placed, options.ranges, target)
        known = {*formats.values(), *given.values()}
        self._params = {(v, f): qparams.of(v, f) for v in placed.roots for f in known}
        self._gates = {
            node: qparams.gate(node, formats[node])
            for node, rule in placed.nodes.items()
            if rule.form == "clipped-line"
        }
        self._repeats = {n: repeats(n) for n, rule in placed.nodes.items() if rule.form == "repeat"}
        self._tuned = {n: t for n in placed.nodes if (t := options.tuned.get(node_name(n)))}

    def run(self) -> None:
        self._correct_biases()
        for node, rule in self._placed.nodes.items():
            if rule.weight is not None and reads_weight(node, rule):
                self._store_weight(node, rule, rule.weight)
            if rule.constant_inputs:
                self._store_constant_inputs(node)
        for value in self._placed.roots:
            self._insert_pairs(value)
        for node, rule in self._placed.nodes.items():
            if rule.form == "clipped-line" and node.in_graph:
                self._write_gate(node)

    def _correct_biases(self) -> None:
        """Add what integers lack of the offset of a line to the biases of its readers.

        That is at most half a step. It is exact but where a reader pads.
        """
        for value in self._placed.lines:
            error = self._qparams.error(value, self._formats[self._placed.integer[value][0]])
            for node in {use.node: None for use in value.uses} if error else ():
                bias, name = node.input(2), f"{node.output.name}_bias"
                shift = (error * sums_by_channel(node)).astype(np.float32)
                corrected = shift if bias is None else bias.numpy() + shift
                node.graph.set_constant(node, 2, corrected, name)

    def _insert_pairs(self, value: Value) -> None:
        readers = value.uses
        makers = self._placed.integer.get(value)
        given = None
        restored: dict[tuple[Graph, Format], Value] = {}
        source, relabelled = value, None
        if makers is not None:
            given = self._given[value]
            relabelled = self._relabelled(value, given)
            source = relabelled or self._insert_pair(value.graph, value, value, given)
            restored[value.graph, given] = source
        for use in readers:
            read, format = source, self._formats.get(use.node)
            if format is not None and self._placed.reads_pair(use):
                key = (use.node.graph, format)
                if key not in restored:
                    restored[key] = self._insert_pair(key[0], source, value, format)
                read = restored[key]
            use.node.set_input(use.slot, read)
        if given is not None and value.is_output:
            quantized = [use.node for use in value.uses]
            value.graph.replace_uses(value, source)
            for node in quantized:
                node.set_input(0, value)
        if relabelled is not None and value.producer is not None:
            remove_unused(value.graph, [value.producer, *_makers_of(value.producer)])

    def _insert_pair(self, graph: Graph, source: Value, value: Value, format: Format) -> Value:
        """A pair for a value, on the value itself or behind a pair of it elsewhere."""
        name, params = value.name, self._params[value, format]
        scale, zero_point = self._scale(graph, name, params)
        read, dtype = [source, scale, zero_point], DataType(params.format.onnx_dtype)
        quantized = added(graph, "QuantizeLinear", read, f"{name}_q", dtype, value.shape)
        self._ctx.rewrote(f"pair on '{name}', scale {float(params.scale):.6g}")
        quantized = self._clipped(graph, quantized, params.bounds, params.format, name)
        return self._dequantize(graph, quantized, scale, zero_point, params, name)

    def _relabelled(self, value: Value, format: Format) -> Value | None:
        """What is read instead of what a node gives that has another form; None if it has none."""
        node, line = value.producer, self._placed.lines.get(value)
        assert node is not None
        times = self._repeats.get(node)
        if line is None and times is None and self._gates.get(node) is None:
            return None
        if node.is_op("HardSwish"):
            return None
        (pair,) = (n for n in _makers_of(node) if n.is_op("DequantizeLinear"))
        params, name = self._params[value, format], value.name
        if times is None:
            return self._relabel(pair, params, name, clip=line is None)
        assert pair.inputs[0] is not None
        integers = repeated(node.graph, pair.inputs[0], *times, name)
        self._ctx.rewrote(f"'{name}' repeats pixels by concatenation")
        scale = self._scale(node.graph, name, params)
        return self._dequantize(node.graph, integers, *scale, params, name)

    def _relabel(self, pair: Node, params: QParams, name: str, *, clip: bool) -> Value:
        """The integers of a pair read with other qparams, clipped to what is between 0 and 1."""
        graph, integers = pair.graph, pair.inputs[0]
        assert integers is not None
        low = int(params.zero_point)
        high = low + round(1 / float(params.scale))
        if clip:
            ends = np.clip([low, high], *params.bounds)
            integers = self._clipped(graph, integers, (ends[0], ends[1]), params.format, name)
        self._ctx.rewrote(f"'{name}' is other qparams of integers, scale {float(params.scale):.6g}")
        return self._dequantize(graph, integers, *self._scale(graph, name, params), params, name)

    def _clipped(
        self, graph: Graph, integers: Value, ends: tuple[float, float], format: Format, name: str
    ) -> Value:
        """Integers between two ends, the very value where their type ends there."""
        full = np.iinfo(format.storage)
        if ends[0] <= full.min and ends[1] >= full.max:
            return integers
        arrays = [np.asarray(end, format.storage) for end in ends]
        read = [integers, *(self._constant(graph, array, f"{name}_end") for array in arrays)]
        dtype = DataType(format.onnx_dtype)
        return added(graph, "Clip", read, f"{name}_clip", dtype, integers.shape)

    def _write_gate(self, node: Node) -> None:
        """Write HardSigmoid as an Add that saturates, HardSwish as a product with its gate.

        The gate of a HardSwish is the integers that it reads, with other qparams and clipped, or
        such an Add.
        """
        read = node.inputs[0]
        pair = None if read is None else read.producer
        assert read is not None and pair is not None
        graph, name, types = node.graph, node.output.name, [node.output.type]
        gate_name, params = f"{node.name or name}_gate", self._gates[node]
        made = None if params else self._saturating_line(node, pair, gate_name)
        if node.is_op("HardSwish"):
            if params is not None:
                gate = self._relabel(pair, params, gate_name, clip=True)
            else:
                assert made is not None
                params = self._qparams.from_range(*_UNIT, self._formats[node], name)
                scale, zero = self._scale(graph, name, params)
                dtype = DataType(params.format.onnx_dtype)
                quantized = added(
                    graph, "QuantizeLinear", [made, scale, zero], gate_name, dtype, made.shape
                )
                quantized = self._clipped(graph, quantized, params.bounds, params.format, name)
                gate = self._dequantize(graph, quantized, scale, zero, params, name)
            made = graph.add("Mul", [read, gate], types=types).output
        assert made is not None
        graph.replace_uses(node.output, made)
        remove_unused(graph, [node, pair])
        graph.rename(made, name)
        if node.name and made.producer is not None:
            graph.rename_node(made.producer, node.name)

    def _saturating_line(self, node: Node, pair: Node, gate_name: str) -> Value:
        """The line of a gate as an Add, whose output saturates where the gate clips.

        ``alpha * x + beta`` is an Add once the integers of ``x`` are read with alpha times their
        scale, and integers from 0 to 255 of scale 1/255 hold just what is between 0 and 1; so do
        those of 16 bits.
        """
        graph, line, name = node.graph, line_of(node), node.output.name
        integers, scale, zero_point = pair.inputs
        assert line is not None and integers is not None and scale is not None
        assert zero_point is not None
        shrunk = np.asarray(scale.numpy() * np.float32(line.slope))
        beta = line.offset
        offset = self._qparams.from_range(min(0.0, beta), max(0.0, beta), self._formats[node], name)
        slope = self._constant(graph, shrunk, f"{name}_scale")
        scaled = self._dequantize(graph, integers, slope, zero_point, offset, name)
        addend = graph.constant(quantize(np.float32(beta), offset), f"{name}_offset")
        shift = self._dequantize(graph, addend, *self._scale(graph, name, offset), offset, name)
        types = [node.output.type]
        return graph.add("Add", [scaled, shift], name=gate_name, types=types).output

    def _store_weight(self, node: Node, rule: OperatorRule, slot: int) -> None:
        weight, activation = node.inputs[slot], node.inputs[rule.activations[0]]
        assert weight is not None and activation is not None
        weights, params = self._weight_qparams(node, rule, weight)
        numbers = channel_bias(node, rule) if self._target.bias == "int32" else None
        bias = node.input(rule.bias or 0)
        if bias is not None and numbers is not None and rule.bias is not None:
            input_scale = self._params[activation, self._formats[node]].scale
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
        target, numbers, name = self._target, weight.numpy(), node_name(node)
        plain = Rounding(target.weight_format, target.weight_scheme)
        quantizer = self._quantizers.get(name, plain)
        format, granularity = quantizer.format, weight_granularity(node, rule, target)
        if (tensors := self._tuned.get(node)) is None:
            made = quantizer(numbers, granularity, weight.name)
            if isinstance(quantizer, Rounding):
                return numbers, made.qparams
            # Quantized anew they are the same, unless the bias needs another scale.
            return made.dequantize(), made.qparams
        shape, bounds = numbers.shape, quantizer.bounds
        tuned = tuned_weight(tensors, name, format, granularity, shape, bounds=bounds)
        if tuned.values is None:
            return numbers, tuned.qparams
        return dequantize(tuned.values, tuned.qparams), tuned.qparams

    def _store_constant_inputs(self, node: Node) -> None:
        for slot, value in enumerate(node.inputs):
            if value is not None and value.is_constant:
                numbers = value.numpy()
                low, high = float(numbers.min(initial=0)), float(numbers.max(initial=0))
                params = self._qparams.from_range(low, high, self._formats[node], value.name)
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
        known = self._constants.get(key)
        if known is None or graph.find(known.name) is not known:
            # What became unused was taken out.
            known = self._constants[key] = graph.constant(array, name)
        return known

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


def _makers_of(node: Node) -> list[Node]:
    return [v.producer for v in node.inputs if v is not None and v.producer is not None]
