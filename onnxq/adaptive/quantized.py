"""How a QDQ model quantizes its activations, and what bounds other qparams of theirs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from onnxq.adaptive.deployment import TensorQParams
from onnxq.ir import Graph, Node, Value
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

FEWEST_STEPS = 8
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
    return {tensor: own.described() for tensor, own in read(graph).items()}


@dataclass(frozen=True)
class Reader:
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
class Quantized:
    """A tensor's QuantizeLinears and what reads their integers."""

    tensor: str
    qparams: TensorQParams
    format: Format
    scheme: Scheme
    root: str
    fixed: str = ""
    nodes: list[Node] = field(default_factory=list)
    readers: list[Reader] = field(default_factory=list)

    def is_direct(self, reader: Reader) -> bool:
        """Whether a reader gives back what was quantized."""
        return reader.qparams == self.qparams

    def distance(self, reader: Reader) -> float:
        """From zero to where a reader has its zero, downwards."""
        return (self.qparams.zero_point - reader.qparams.zero_point) * self.qparams.scale

    def is_gate(self, reader: Reader) -> bool:
        """Whether integers are clipped to what a reader has between 0 and 1, or need not be."""
        full = (self.format.qmin, self.format.qmax)
        ends = reader.ends or full
        return self.distance(reader) > 0 and ends == gate_ends(reader.qparams, self.format)

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
        if 0 < abs(whole) < (FEWEST_STEPS - 0.5) * own.scale:
            fixed = fixed or "a line of it has its zero only a few steps away"
        lowest, highest = self._used(whole)
        return Quantizer(
            *(self.tensor, own, self.format, self.scheme, self.root, fixed),
            least_scale=own.scale * max(self._shrinkage(), default=0.0),
            whole=whole,
            lowest=lowest,
            highest=highest,
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
                bias = bias_of(use.node) if use.slot == 0 else None
                if bias is not None:
                    stored, scale = (v.numpy() for v in bias.inputs[:2] if v is not None)
                    yield float(np.abs(stored).max(initial=0)) / BIAS_LIMIT
                    yield MIN_SCALE / float(scale.min()) * (1 + 1e-6)


def read(graph: Graph) -> dict[str, Quantized]:
    """What a model quantizes, by tensor, in the order of the graph."""
    rules = _rules(graph)
    found: dict[str, Quantized] = {}
    by_output: dict[Value, tuple[Quantized, Reader]] = {}
    for node in graph.all_nodes():
        qparams = _qparams(node) if node.is_op("QuantizeLinear") else None
        source = node.input(0)
        if qparams is None or source is None or source.is_constant:
            continue
        readers, fixed = _readers(node)
        format = _format_of(node, qparams, readers)
        own = Quantized(_name(source, readers), qparams, format, ZERO_POINT, "", fixed)
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


def _with_schemes(graph: Graph, found: dict[str, Quantized]) -> dict[str, Quantized]:
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


def _known_range(source: Value, own: Quantized, rules: Mapping[str, OperatorRule]) -> str:
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


def _format_of(node: Node, own: TensorQParams, readers: list[Reader]) -> Format:
    """The format of integers: that of their type, or one of fewer bits that they are clipped to."""
    zero = node.input(2)
    full = UINT8 if zero is None else _FORMATS[zero.numpy().dtype]
    for reader in readers:
        ends = reader.ends
        if ends and reader.qparams == own:
            return _NARROW.get((full.storage, *ends), full)
    return full


def _readers(node: Node) -> tuple[list[Reader], str]:
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
                    readers.append(Reader(reader, own, clip))
            elif reader.is_op("Clip") and use.slot == 0 and clip is None:
                pending.append((reader.output, reader))
            elif reader.is_op("Concat") or (reader.is_op(*_MOVES) and use.slot == 0):
                pending += [(v, clip) for v in reader.outputs if v is not None]
            else:
                fixed = f"{reader.op_type} reads its integers"
    # Several paths may lead through a Concat of one value.
    return list(dict.fromkeys(readers)), fixed


def _name(source: Value, readers: list[Reader]) -> str:
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


def gate_ends(own: TensorQParams, format: Format) -> tuple[int, int]:
    """The integers that stand for 0 and 1."""
    ends = np.clip(
        [own.zero_point, own.zero_point + round(1 / own.scale)], format.qmin, format.qmax
    )
    return int(ends[0]), int(ends[1])


def bias_of(node: Node) -> Node | None:
    """The DequantizeLinear that gives a node its int32 bias."""
    bias = node.input(2) if node.is_op(*_BIASED) else None
    made = None if bias is None else bias.producer
    if made is None or not made.is_op("DequantizeLinear"):
        return None
    stored, scale = made.inputs[:2]
    is_constant = stored is not None and scale is not None and stored.is_constant
    return made if is_constant and stored is not None and stored.numpy().dtype == np.int32 else None
