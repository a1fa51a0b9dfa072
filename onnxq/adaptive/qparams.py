"""The qparams of a quantized model's activations: reading them, choosing others, writing these.

Other qparams are other constants, so they need another session. Scales that are inputs with
defaults would not, but cost the integer kernels: with onnxruntime 1.32 (one thread, AVX512-VNNI)
cifar_resnet20 then has 0 of 21 QLinearConv and takes 4.0 times as long, 1.9 times as long as in
float, and cifar_mobilenet 0 of 25 and 5.3 times; the one scale of what is fed to the model costs
one convolution's kernel. 1.24.1 keeps all kernels of cifar_resnet20 if zero-points stay constants
(1.0 times), 11 of 21 if not (3.2 times), and 8 of 25 of cifar_mobilenet either way (4.9 times).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from onnxq.adaptive.deployment import TensorQParams
from onnxq.errors import InputError
from onnxq.ir import DataType, Graph, Node, Value
from onnxq.observe import Statistics
from onnxq.observe.calibrators import Calibrator
from onnxq.passes.nodes import added
from onnxq.passes.notes import target as target_of
from onnxq.quant import (
    ABSMAX,
    BIAS_LIMIT,
    INT8,
    INT16,
    MIN_SCALE,
    UINT8,
    UINT16,
    ZERO_POINT,
    Format,
    Scheme,
    bias_qparams,
    qparams_from_range,
)
from onnxq.quant.formats import BYTE_FORMATS
from onnxq.targets import OperatorRule, load_target

_MOVES = (
    *("DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Reshape", "Resize"),
    *("Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
)
"""Operators that give what they read, floats or integers, in another order or fewer of it."""

_BIASED = ("Conv", "ConvTranspose", "Gemm")
_FORMATS = {f.storage: f for f in (UINT8, INT8, UINT16, INT16)}
_NARROW = {(f.storage, f.qmin, f.qmax): f for f in BYTE_FORMATS.values()}

_WHOLE = 1e-3
"""How far from an integer a number of steps may be that has to be whole."""

_FEWEST_STEPS = 8
"""Steps that a distance which has to be whole is made of at least, for making it so not to widen
the range by more than an eighth."""


@dataclass(frozen=True)
class Quantizer:
    """How a model quantizes one activation.

    Attributes:
        tensor: Name of what is quantized, as in the float model; behind a pair in another format,
            the name of what that pair gives.
        qparams: Scale and zero-point.
        format: Format of the integers.
        scheme: How ranges are laid over it.
        root: The tensor of the float model whose values decide the qparams: itself, or what
            operators that only move values about made it of, or what another pair read. Tensors of
            one root and format have one scale and zero-point.
        fixed: Why its qparams cannot be others; empty if they can.
        least_scale: With a smaller one biases that are added to its products would leave int32.
        whole: A distance from zero, in the tensor's own units, that has to be a whole number of
            steps, because what reads the integers has its zero there; 0 for none.
        lowest: Values below are as good as it to all that reads the tensor.
        highest: Values above are as good as it.
    """

    tensor: str
    qparams: TensorQParams
    format: Format
    scheme: Scheme
    root: str
    fixed: str = ""
    least_scale: float = 0.0
    whole: float = 0.0
    lowest: float = -math.inf
    highest: float = math.inf


def quantizers(graph: Graph) -> dict[str, Quantizer]:
    """How a QDQ model quantizes its activations, by tensor, in the order of the graph.

    What is quantized at run time (DynamicQuantizeLinear) has no qparams, and constants have theirs
    for good: they are not among these.
    """
    return {tensor: own.described() for tensor, own in _read(graph).items()}


def requantized(graph: Graph, changes: Mapping[str, TensorQParams]) -> Graph:
    """A copy of a QDQ model with other qparams of activations; weights stay as they are.

    Tensors that share their qparams with one that changes change with it. What reads the integers
    of one with another scale and zero-point goes along, and so do the ends between which they are
    clipped. Biases are rescaled from their stored integers: they are what rounding the float biases
    to the new scale gives, to one unit of the coarser of the two scales, so that always those of
    the model as it was made are to be rescaled.

    Args:
        graph: The quantized model, which is left as it is.
        changes: By `Quantizer.tensor`.

    Raises:
        InputError: the model does not quantize such a tensor, its qparams cannot change, or not to
            these.
    """
    graph = graph.copy()
    found = _read(graph)
    for tensor, wanted in _spread(found, changes).items():
        found[tensor].check(wanted)
        _Writing(found[tensor], wanted).run()
    return graph


def fresh(
    seen: Mapping[str, Statistics], known: Mapping[str, Quantizer], calibrator: Calibrator
) -> dict[str, TensorQParams]:
    """The qparams that a calibrator chooses from what was seen, where they are not those there are.

    They are those of `insert-qdq` for the same ranges, but that a scale is not so small that biases
    leave int32, and that a tensor of which a line (see `onnxq.passes.static.lines`) reads the very
    integers has a scale that makes a whole number of steps of its offset.

    Args:
        seen: Statistics of the float model's tensors, by name: those of `Quantizer.root`.
        known: See `quantizers`.
        calibrator: Chooses ranges.

    Returns:
        Changes, see `requantized`. Tensors are left out that were not seen, hold numbers that are
        not finite, or cannot change.
    """
    changes = {}
    for tensor, own in known.items():
        statistics = seen.get(own.root)
        if own.fixed or statistics is None or not statistics.is_finite:
            continue
        low, high = calibrator.range(statistics, own.format, own.scheme)
        chosen = _chosen(own, max(low, own.lowest), min(high, own.highest))
        if chosen is not None and chosen != own.qparams:
            changes[tensor] = chosen
    return changes


def _chosen(own: Quantizer, low: float, high: float) -> TensorQParams | None:
    """The qparams of a range, None where there are none that will do."""
    if own.whole:
        return _whole(own, min(low, 0.0), max(high, 0.0))
    made = qparams_from_range(low, high, own.format, own.scheme, name=own.tensor)
    if float(made.scale) < own.least_scale:
        wider = own.least_scale / float(made.scale) * (1 + 1e-6)
        made = qparams_from_range(low * wider, high * wider, own.format, own.scheme)
    return TensorQParams(float(made.scale), int(made.zero_point))


def _whole(own: Quantizer, low: float, high: float) -> TensorQParams | None:
    """Qparams that hold a range and the zero of a line, which is a whole number of steps away."""
    distance = abs(own.whole)
    low, high = min(low, -own.whole), max(high, -own.whole)
    steps = math.floor(distance * (own.format.levels - 1) / (high - low) + _WHOLE)
    if own.least_scale:
        steps = min(steps, math.floor(distance / own.least_scale))
    if steps < _FEWEST_STEPS:
        return None
    scale = float(np.float32(distance / steps))
    return TensorQParams(scale, int(own.format.qmin) + round(-low / scale))


@dataclass(frozen=True)
class _Reader:
    """A DequantizeLinear of an activation's integers, and what clips these on their way."""

    node: Node
    qparams: TensorQParams
    clip: Node | None

    @property
    def ends(self) -> tuple[int, int] | None:
        """Between which integers are clipped; None for no numbers, or no clipping."""
        bounds = () if self.clip is None else self.clip.inputs[1:3]
        if len(bounds) != 2 or any(v is None or not v.is_constant for v in bounds):
            return None
        low, high = (int(v.numpy()) for v in bounds if v is not None)
        return low, high


@dataclass
class _Found:
    """A tensor's QuantizeLinears and what reads their integers."""

    tensor: str
    qparams: TensorQParams
    format: Format
    scheme: Scheme
    root: str
    fixed: str = ""
    nodes: list[Node] = field(default_factory=list)
    readers: list[_Reader] = field(default_factory=list)

    def is_direct(self, reader: _Reader) -> bool:
        """Whether a reader gives back what was quantized."""
        return reader.qparams == self.qparams

    def distance(self, reader: _Reader) -> float:
        """From zero to where a reader has its zero, downwards."""
        return (self.qparams.zero_point - reader.qparams.zero_point) * self.qparams.scale

    def is_gate(self, reader: _Reader) -> bool:
        """Whether integers are clipped to what a reader has between 0 and 1, or need not be."""
        full = (self.format.qmin, self.format.qmax)
        ends = reader.ends or full
        return self.distance(reader) > 0 and ends == _gate_ends(reader.qparams, self.format)

    def described(self) -> Quantizer:
        """Without the nodes."""
        own = self.qparams
        distances = {round(d / own.scale): d for r in self.readers if (d := self.distance(r))}
        fixed = self.fixed
        if len(distances) > 1:
            fixed = fixed or "several lines of it read its very integers"
        if any(not self.is_direct(r) and r.clip and not self.is_gate(r) for r in self.readers):
            fixed = fixed or "its integers are clipped"
        whole = next(iter(distances.values()), 0.0)
        if 0 < abs(whole) < (_FEWEST_STEPS - 0.5) * own.scale:
            fixed = fixed or "a line of it has its zero only a few steps away"
        lowest, highest = self._used(whole)
        return Quantizer(
            *(self.tensor, own, self.format, self.scheme, self.root, fixed),
            least_scale=own.scale * max(self._shrinkage(), default=0.0),
            whole=whole,
            lowest=lowest,
            highest=highest,
        )

    def check(self, wanted: TensorQParams) -> None:
        """Refuse qparams that the tensor cannot have."""
        known = self.described()
        if known.fixed:
            raise InputError(f"the qparams of '{self.tensor}' are fixed: {known.fixed}")
        scale, zero = float(np.float32(wanted.scale)), wanted.zero_point
        low, high = self.format.qmin, self.format.qmax
        if not (math.isfinite(scale) and scale > 0 and low <= zero <= high):
            raise InputError(
                f"'{self.tensor}' cannot have scale {scale:g} and zero-point {zero}: the scale has "
                f"to be above 0, the zero-point within {self.format.name}"
            )
        if scale < known.least_scale:
            raise InputError(
                f"'{self.tensor}' cannot have scale {scale:g}: biases behind it would leave int32; "
                f"give at least {known.least_scale:g}"
            )
        steps = known.whole / scale
        if abs(steps - round(steps)) > _WHOLE or not low <= zero - round(steps) <= high:
            raise InputError(
                f"'{self.tensor}' cannot have scale {scale:g} and zero-point {zero}: a line of it "
                f"reads its very integers, and its zero, {-known.whole:g}, is none of them"
            )

    def _used(self, whole: float) -> tuple[float, float]:
        """What of a tensor makes a difference, if all that reads it is gates and products."""
        gates = [r for r in self.readers if whole and self.is_gate(r)]
        opened = {r.node.output for r in gates}
        direct = [r for r in self.readers if self.is_direct(r)]
        products = [use.node for r in direct for use in r.node.output.uses]
        if (
            not gates
            or len(gates) + len(direct) < len(self.readers)
            or not all(n.is_op("Mul") and not opened.isdisjoint(n.inputs) for n in products)
            or any(r.node.output.is_output for r in direct)
        ):
            return -math.inf, math.inf
        slope = gates[0].qparams.scale / self.qparams.scale
        return -whole, math.inf if direct else 1 / slope - whole

    def _shrinkage(self) -> Iterator[float]:
        """To which part of itself the scale may shrink, for each bias behind it."""
        for reader in self.readers:
            for use in reader.node.output.uses:
                bias = _bias_of(use.node) if use.slot == 0 else None
                if bias is not None:
                    stored, scale = (v.numpy() for v in bias.inputs[:2] if v is not None)
                    yield float(np.abs(stored).max(initial=0)) / BIAS_LIMIT
                    yield MIN_SCALE / float(scale.min()) * (1 + 1e-6)


def _read(graph: Graph) -> dict[str, _Found]:
    """What a model quantizes, by tensor, in the order of the graph."""
    rules = _rules(graph)
    found: dict[str, _Found] = {}
    by_output: dict[Value, tuple[_Found, _Reader]] = {}
    for node in graph.all_nodes():
        qparams = _qparams(node) if node.is_op("QuantizeLinear") else None
        source = node.input(0)
        if qparams is None or source is None or source.is_constant:
            continue
        readers, fixed = _readers(node)
        format = _format_of(node, qparams, readers)
        own = _Found(_name(source, readers), qparams, format, ZERO_POINT, "", fixed)
        own.root = own.tensor
        maker = _maker_of(source)
        if maker is not None and maker in by_output:
            before, reader = by_output[maker]
            is_same = before.format == format and reader.qparams == qparams
            if is_same and not before.is_direct(reader):
                own.fixed = before.fixed = "what a line of it gives is moved about"
            elif is_same or (maker is source and before.is_direct(reader)):
                own.root = before.root
        own.fixed = own.fixed or _known_range(source, own, rules)
        own = found.setdefault(own.tensor, own)
        if (own.qparams, own.format) != (qparams, format):
            own.fixed = own.fixed or "it is quantized in two ways"
        own.nodes.append(node)
        own.readers += readers
        by_output.update((r.node.output, (own, r)) for r in readers)
    return _with_schemes(graph, found)


def _with_schemes(graph: Graph, found: dict[str, _Found]) -> dict[str, _Found]:
    """With the schemes of the model's target; without one, absmax where zeros are in the middle."""
    name = target_of(graph)
    for own in found.values():
        alike = [o for o in found.values() if o.format.storage == own.format.storage]
        if name:
            own.scheme = load_target(name).scheme_of(own.format)
        elif all(o.qparams.zero_point == (o.format.qmin + o.format.qmax + 1) // 2 for o in alike):
            own.scheme = ABSMAX
    return found


def _rules(graph: Graph) -> Mapping[str, OperatorRule]:
    name = target_of(graph)
    return load_target(name).operators if name else {}


def _known_range(source: Value, own: _Found, rules: Mapping[str, OperatorRule]) -> str:
    """Why a tensor's range does not depend on the data; empty if it does."""
    node = source.producer
    if node is None or node.domain:
        return ""
    rule = rules.get(node.op_type)
    if rule is not None and (rule.range or (own.format.bits == 16 and rule.range_16bit)):
        return f"what {node.op_type} gives lies between fixed ends"
    is_unit = own.qparams.zero_point == own.format.qmin and own.qparams.scale == float(
        np.float32(1 / (own.format.levels - 1))
    )
    if node.is_op("Add") and is_unit and all(_is_dequantized(v) for v in node.inputs):
        # A HardSigmoid may be written so, and this range is what clips it.
        return "what it saturates at are the ends of a gate"
    return ""


def _is_dequantized(value: Value | None) -> bool:
    return (
        value is not None
        and value.producer is not None
        and value.producer.is_op("DequantizeLinear")
    )


def _qparams(node: Node) -> TensorQParams | None:
    """Constant qparams of a whole tensor, None for others."""
    scale, zero = node.input(1), node.input(2)
    if scale is None or not scale.is_constant or scale.numpy().size != 1:
        return None
    if zero is not None and (not zero.is_constant or zero.dtype is None):
        return None
    if zero is not None and zero.numpy().dtype not in _FORMATS:
        return None
    number = 0 if zero is None else int(zero.numpy().reshape(()))
    return TensorQParams(float(scale.numpy().reshape(())), number)


def _format_of(node: Node, own: TensorQParams, readers: list[_Reader]) -> Format:
    """The format of integers: that of their type, or one of fewer bits that they are clipped to."""
    zero = node.input(2)
    full = UINT8 if zero is None else _FORMATS[zero.numpy().dtype]
    for reader in readers:
        ends = reader.ends
        if ends and reader.qparams == own:
            return _NARROW.get((full.storage, *ends), full)
    return full


def _readers(node: Node) -> tuple[list[_Reader], str]:
    """What dequantizes integers, and why their qparams are fixed if something else reads them."""
    readers, fixed = [], ""
    pending: list[tuple[Value, Node | None]] = [(node.output, None)]
    while pending:
        value, clip = pending.pop()
        if value.is_output:
            fixed = "the model gives its integers"
        for use in value.uses:
            reader = use.node
            if reader.is_op("DequantizeLinear") and use.slot == 0:
                own = _qparams(reader)
                if own is None:
                    fixed = "its integers are read with qparams that are not constant"
                else:
                    readers.append(_Reader(reader, own, clip))
            elif reader.is_op("Clip") and use.slot == 0 and clip is None:
                pending.append((reader.output, reader))
            elif reader.is_op("Concat") or (reader.is_op(*_MOVES) and use.slot == 0):
                pending += [(v, clip) for v in reader.outputs if v is not None]
            else:
                fixed = f"{reader.op_type} reads its integers"
    # Several paths may lead through a Concat of one value.
    return list(dict.fromkeys(readers)), fixed


def _name(source: Value, readers: list[_Reader]) -> str:
    """What a tensor is called in the float model: as what is given to callers, if it is."""
    given = [r.node.output.name for r in readers if r.node.output.is_output]
    return given[0] if given else source.name


def _maker_of(value: Value) -> Value | None:
    """What a DequantizeLinear gives that operators only moved about, the very value included."""
    while not _is_dequantized(value):
        node = value.producer
        if node is None or not node.is_op(*_MOVES) or node.input(0) is None:
            return None
        source = node.input(0)
        assert source is not None
        value = source
    return value


def _gate_ends(own: TensorQParams, format: Format) -> tuple[int, int]:
    """The integers that stand for 0 and 1."""
    ends = np.clip(
        [own.zero_point, own.zero_point + round(1 / own.scale)], format.qmin, format.qmax
    )
    return int(ends[0]), int(ends[1])


def _bias_of(node: Node) -> Node | None:
    """The DequantizeLinear that gives a node its int32 bias."""
    bias = node.input(2) if node.is_op(*_BIASED) else None
    made = None if bias is None else bias.producer
    if made is None or not made.is_op("DequantizeLinear"):
        return None
    stored, scale = made.inputs[:2]
    is_constant = stored is not None and scale is not None and stored.is_constant
    return made if is_constant and stored is not None and stored.numpy().dtype == np.int32 else None


def _spread(
    found: Mapping[str, _Found], changes: Mapping[str, TensorQParams]
) -> dict[str, TensorQParams]:
    """The changes of all tensors, those included that share their qparams with one that changes."""
    by_group: dict[tuple[str, str], tuple[str, TensorQParams]] = {}
    for tensor, wanted in changes.items():
        own = found.get(tensor)
        if own is None:
            raise InputError(
                f"the model quantizes no tensor '{tensor}'; it cannot get other qparams"
            )
        first, known = by_group.setdefault((own.root, own.format.name), (tensor, wanted))
        if known != wanted:
            raise InputError(f"'{first}' and '{tensor}' share their qparams; give both the same")
    groups = {tensor: (own.root, own.format.name) for tensor, own in found.items()}
    return {t: by_group[group][1] for t, group in groups.items() if group in by_group}


class _Writing:
    """Gives one tensor of a model other qparams."""

    def __init__(self, found: _Found, wanted: TensorQParams) -> None:
        self._found = found
        self._wanted = replace(wanted, scale=float(np.float32(wanted.scale)))
        self._constants: dict[tuple[Graph, str, bytes], Value] = {}

    def run(self) -> None:
        found, wanted = self._found, self._wanted
        for node in found.nodes:
            self._write(node, wanted)
        for reader in found.readers:
            if found.is_direct(reader):
                own = wanted
            else:
                scale = np.float32(wanted.scale * (reader.qparams.scale / found.qparams.scale))
                steps = round(found.distance(reader) / wanted.scale)
                own = TensorQParams(float(scale), wanted.zero_point - steps)
                if found.is_gate(reader):
                    self._clip(reader, _gate_ends(own, found.format))
            self._write(reader.node, own)
            for use in reader.node.output.uses:
                bias = _bias_of(use.node) if use.slot == 0 else None
                if bias is not None:
                    self._rescale(use.node, bias, reader.qparams.scale, own.scale)

    def _write(self, node: Node, own: TensorQParams) -> None:
        storage = self._found.format.storage
        shapes = [v.numpy().shape if v is not None else () for v in (node.input(1), node.input(2))]
        self._set(node, 1, np.full(shapes[0], own.scale, np.float32))
        if own.zero_point or node.input(2) is not None:
            self._set(node, 2, np.full(shapes[1], own.zero_point, storage))

    def _clip(self, reader: _Reader, ends: tuple[int, int]) -> None:
        """Clip the integers that a gate reads, by a Clip of its own if there was no need before."""
        format, clip = self._found.format, reader.clip
        if clip is None:
            if ends[0] <= format.qmin and ends[1] >= format.qmax:
                return
            integers, name = reader.node.inputs[0], f"{reader.node.output.name}_clip"
            graph, dtype = reader.node.graph, DataType(format.onnx_dtype)
            clipped = added(graph, "Clip", [integers], name, dtype, reader.node.output.shape)
            reader.node.set_input(0, clipped)
            clip = clipped.producer
        assert clip is not None
        for slot, end in enumerate(ends, 1):
            self._set(clip, slot, np.asarray(end, format.storage))

    def _rescale(self, node: Node, bias: Node, before: float, after: float) -> None:
        """Give a bias the scale of its products."""
        stored, scale = bias.inputs[:2]
        assert stored is not None and scale is not None
        weight = self._weight_scale(node, scale.numpy(), before)
        made = bias_qparams(after, weight, name=node.output.name).scale
        numbers = np.rint(stored.numpy() * (scale.numpy().astype(np.float64) / made))
        if len(bias.output.uses) > 1:
            # Others that read it read other tensors, maybe.
            copied = node.graph.add(
                *("DequantizeLinear", bias.inputs, bias.attributes),
                outputs=[node.graph.fresh_name(bias.output.name)],
                types=[bias.output.type],
            )
            node.set_input(2, copied.output)
            bias = copied
        self._set(bias, 0, numbers.astype(np.int32))
        self._set(bias, 1, made)

    def _weight_scale(self, node: Node, scale: np.ndarray, before: float) -> np.ndarray:
        """The scale of a node's weight, which that of the bias is the product with."""
        weight = node.input(1)
        made = None if weight is None else weight.producer
        found = made.input(1) if made is not None and made.is_op("DequantizeLinear") else None
        if found is not None and found.is_constant:
            numbers = found.numpy()
            if np.array_equal(np.float32(before) * numbers, scale):
                return numbers
        return (scale.astype(np.float64) / before).astype(np.float32)

    def _set(self, node: Node, slot: int, data: np.ndarray[Any, Any]) -> None:
        """Let a node read a constant, the same one for the same numbers."""
        old = node.input(slot)
        key = (node.graph, f"{data.dtype}{data.shape}", data.tobytes())
        known = self._constants.get(key)
        if known is None:
            node.graph.set_constant(node, slot, data)
            value = node.inputs[slot]
            assert value is not None
            self._constants[key] = value
            return
        node.set_input(slot, known)
        if old is not None and old is not known and not old.is_used:
            old.graph.discard(old)
