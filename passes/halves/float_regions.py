"""Which operators of a graph can compute in float16 or bfloat16, and which constants they read."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx

from onnxq.ir import DataType, Graph, Node, OpaqueType, Tensor, Use, Value
from onnxq.ir.connected import connected
from onnxq.ir.operators import schema_of
from onnxq.passes.nodes import listed, made_by
from onnxq.passes.notes import Reason, node_name

_BY_REQUEST = Reason("request", "kept in float32 by request")
_APART = Reason(
    "neighbours", "its neighbours stay in float32, and Casts would cost more than it saves"
)

_KEPT = {
    "Cosh Exp Log Pow Reciprocal Sinh Tan": (
        "its results leave the range of small floats even for ordinary inputs"
    ),
    """
    CumProd CumSum DFT Det GlobalAveragePool GlobalLpPool InstanceNormalization LRN LpNormalization
    LpPool MeanVarianceNormalization NegativeLogLikelihoodLoss ReduceL1 ReduceL2 ReduceLogSum
    ReduceLogSumExp ReduceMean ReduceProd ReduceSum ReduceSumSquare STFT SoftmaxCrossEntropyLoss
    """: ("it sums many numbers, in the type it gives"),
    "AffineGrid GridSample MaxRoiPool NonMaxSuppression Range RoiAlign": (
        "it counts or measures places, and small floats skip integers"
    ),
    "Bernoulli Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike": (
        "it would draw other numbers"
    ),
}

KEEP_REASONS: Mapping[str, str] = {
    op_type: reason for op_types, reason in _KEPT.items() for op_type in sorted(listed(op_types))
}
"""Operators that stay in float32 unless asked otherwise, each with the reason.

The functions among them are those that PyTorch's autocast computes in float32 ("CUDA Ops that can
autocast to float32" in its manual), as far as they are ONNX operators without a float32
accumulator of their own: Softmax subtracts the largest number and gives at most one,
LayerNormalization and RMSNormalization compute in the type that ``stash_type`` names.
"""

_LARGEST = {DataType.FLOAT16: 65504.0, DataType.BFLOAT16: (2 - 2.0**-7) * 2.0**127}
"""Largest finite number of each small format."""

_QUANTIZING = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
_STAYING_INPUTS = {
    "Dropout": (1,),
    "OneHot": (0, 1),
    "Resize": (1, 2),
}
"""Inputs that are places, counts and ratios rather than data; they may keep another type."""

_STAYING_OUTPUTS = {"LayerNormalization": (1, 2)}
"""Outputs in the type that ``stash_type`` names."""

_TYPE_ATTRIBUTES = ("dtype", "output_dtype", "output_datatype", "to", "type")

_PRODUCTS = listed(
    "Attention Conv ConvTranspose DeformConv Einsum GRU Gemm LSTM LinearAttention MatMul RNN"
)
"""Operators with so much arithmetic that another type pays for the Casts around them."""

READERS = frozenset({"Cast", "Shape", "Size"})
"""Operators whose result does not depend on whether they read a rounded value or its float32."""

_SOURCES = frozenset({"Constant", "ConstantOfShape"})

_MOVERS = listed("""
    Concat DepthToSpace Expand Flatten Gather GatherElements GatherND Identity Pad Reshape Slice
    SpaceToDepth Split Squeeze Tile Transpose Unsqueeze Where
""")
"""Operators that only move values about: alone they gain nothing from another type."""


_PASSING = frozenset({"Abs", "Add", "Max", "Min", "Mul", "Neg", "Sqrt", "Sub", "Sum"})
"""Operators behind which a number too large or too small for a format may still be there."""


@dataclass(frozen=True)
class Slots:
    """Input and output slots of a node whose type changes with it."""

    inputs: frozenset[int]
    outputs: frozenset[int]


@dataclass(frozen=True)
class FloatRegions:
    """The operators that compute in the small format.

    Attributes:
        low: The small format.
        nodes: Those operators, in topological order, with the slots that change.
        left: Reason for each other operator that computes in float32 (without those that the
            caller did not choose, or that are quantized).
    """

    low: DataType
    nodes: dict[Node, Slots]
    left: dict[Node, Reason]

    def reads_low(self, use: Use) -> bool:
        """Whether this use reads the small format."""
        slots = self.nodes.get(use.node)
        return slots is not None and use.slot in slots.inputs

    def reads_either(self, use: Use) -> bool:
        """Whether it is all the same to this use."""
        node = use.node
        return (
            node.is_op(*READERS)
            and use.slot in changing_slots(node, self.low).inputs
            and node.get("to") != DataType.STRING
        )

    def gives_low(self, value: Value) -> bool:
        """Whether one of the operators makes this value in the small format."""
        slots = self.nodes.get(value.producer) if value.producer is not None else None
        return slots is not None and value.slot in slots.outputs


@dataclass(frozen=True)
class Choice:
    """What the caller asks for: ``FLOAT16`` or ``BFLOAT16``, and the options of `ConvertFloat`."""

    low: DataType
    only: frozenset[str] = frozenset()
    keep_float: frozenset[str] = frozenset()
    keep_operators: frozenset[str] = frozenset(KEEP_REASONS)
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    interface: bool = False


def find_regions(graph: Graph, choice: Choice) -> FloatRegions:
    """Choose the operators of a graph and its subgraphs that compute in the small format."""
    numbers = _Numbers(choice)
    nodes: dict[Node, Slots] = {}
    left: dict[Node, Reason] = {}
    quantized = _quantized(graph)
    for node in graph.all_nodes():
        slots = changing_slots(node, choice.low)
        # Numbers are followed through operators that stay as they are, too.
        unfit = numbers.refusal(node, slots)
        if node in quantized or not takes(node, choice):
            continue
        reason = static_reason(node, choice) or unfit
        if reason:
            left[node] = reason
        elif any(v.dtype is DataType.FLOAT for v in _changing(node, slots)):
            nodes[node] = slots
    regions = FloatRegions(choice.low, nodes, left)
    idle = _idle(graph, regions, choice.interface)
    for node in [n for n in nodes if n in idle]:
        del nodes[node]
        if node.op_type not in _MOVERS:
            left[node] = _APART
    return regions


def range_reason(value: Value, choice: Choice) -> Reason | None:
    """Why calibration speaks against holding a value in the small format, None if it does not.

    Half of the format's range is left for inputs that calibration did not see.
    """
    bounds = choice.ranges.get(value.name)
    largest = 0.0 if bounds is None else float(np.abs(bounds).max())
    if largest <= _LARGEST[choice.low] / 2:
        return None
    text = (
        f"'{value.name}' reaches {largest:.4g}, more than half of what {choice.low.label} can hold"
    )
    return Reason("range", text)


def changing_slots(node: Node, low: DataType) -> Slots:
    """Slots of a node that ONNX lets hold either float32 or the small format."""
    schema = schema_of(node)
    if schema is None:
        return Slots(frozenset(), frozenset())
    inputs, outputs = _changing_parameters(schema.name, schema.since_version, schema.domain, low)
    return Slots(
        _open_slots(len(node.inputs), inputs, _STAYING_INPUTS.get(node.op_type, ())),
        _open_slots(len(node.outputs), outputs, _STAYING_OUTPUTS.get(node.op_type, ())),
    )


def _open_slots(count: int, changing: tuple[bool, ...], staying: tuple[int, ...]) -> frozenset[int]:
    # The last parameter may stand for any number of values.
    last = len(changing) - 1
    return frozenset(
        slot
        for slot in range(count if changing else 0)
        if changing[min(slot, last)] and slot not in staying
    )


@functools.cache
def _changing_parameters(
    op_type: str, version: int, domain: str, low: DataType
) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
    """Which formal inputs and outputs of an operator can hold float32 and the small format."""
    schema = onnx.defs.get_schema(op_type, version, domain)
    both = {"tensor(float)", f"tensor({low.label})"}
    changing = {
        c.type_param_str for c in schema.type_constraints if both <= set(c.allowed_type_strs)
    }
    return (
        tuple(p.type_str in changing for p in schema.inputs),
        tuple(p.type_str in changing for p in schema.outputs),
    )


def constant_tensor(value: Value) -> Tensor | None:
    """Numbers of a constant, be it stored or made by a Constant node; None for any other value.

    A sparse initializer does not count: held densely it could be much larger.
    """
    if value.is_constant and value.data is not None:
        return None if value.data.is_sparse else value.data
    maker = made_by(value, "Constant")
    if maker is None:
        return None
    held = maker.get("value")
    if isinstance(held, Tensor):
        return held
    numbers = maker.get("value_float", maker.get("value_floats"))
    return None if numbers is None else Tensor(np.array(numbers, dtype=np.float32))


def round_to(numbers: np.ndarray, low: DataType) -> np.ndarray:
    """The nearest numbers of the small format; what is finite stays finite."""
    limit = np.float32(_LARGEST[low])
    with np.errstate(all="ignore"):
        rounded = numbers.astype(low.numpy)
        lost = np.isinf(rounded) & np.isfinite(numbers)
        if lost.any():
            rounded[lost] = np.copysign(limit, numbers[lost]).astype(low.numpy)
    return rounded


def takes(node: Node, choice: Choice) -> bool:
    """Whether a node touches float32 and was chosen: it is converted, or a note says why not."""
    return (
        not node.is_op(*READERS, *_SOURCES)
        and (not choice.only or node_name(node) in choice.only)
        and any(v.dtype is DataType.FLOAT or v.dtype is None for v in _touched(node))
    )


def static_reason(node: Node, choice: Choice) -> Reason | None:
    """Why a node that is taken stays in float32 whatever numbers it reads, None if it need not."""
    if node_name(node) in choice.keep_float:
        return _BY_REQUEST
    if any(True for _ in node.subgraphs()):
        return Reason("operator", "it hands float32 to its subgraphs")
    if schema_of(node) is None:
        domain = node.domain or "ai.onnx"
        return Reason("operator", f"ONNX defines no operator {domain}:{node.op_type}")
    if not node.domain and node.op_type in choice.keep_operators:
        text = KEEP_REASONS.get(node.op_type)
        return _BY_REQUEST if text is None else Reason("operator", text)
    for value in _touched(node):
        if isinstance(value.type, OpaqueType):
            return Reason("type", f"'{value.name}' is a {value.type}, no tensor")
        if value.type is None:
            return Reason("type", f"the type of '{value.name}' is not known")
    changing = _changing(node, changing_slots(node, choice.low))
    if not any(v.dtype is DataType.FLOAT for v in changing):
        if any(v.dtype is choice.low for v in changing):
            return None
        return Reason("opset", f"it takes no {choice.low.label} in opset {node.graph.opset}")
    stated = next((name for name in _TYPE_ATTRIBUTES if name in node.attributes), None)
    if stated is not None or node.is_op("BitCast", "CastLike"):
        what = f"attribute {stated}" if stated else "meaning"
        return Reason("attribute", f"its {what} depends on the type")
    return _attribute_reason(node, choice.low)


def _touched(node: Node) -> list[Value]:
    return [v for v in (*node.inputs, *node.outputs) if v is not None]


def _changing(node: Node, slots: Slots) -> list[Value]:
    held = [node.inputs[s] for s in slots.inputs] + [node.outputs[s] for s in slots.outputs]
    return [v for v in held if v is not None]


class _Numbers:
    """Finds operators that touch numbers which the small format cannot hold.

    Nodes are asked about in topological order. What reads such a number and gives it on, moved or
    added to something, gives it to its readers, unless calibration saw a value without it. So
    a mask of -1e38 stays float32 up to and with the Softmax, and an epsilon up to and with the
    division.
    """

    def __init__(self, choice: Choice) -> None:
        self._choice = choice
        self._constants: dict[Value, Reason | None] = {}
        self._reached: dict[Value, Reason] = {}

    def refusal(self, node: Node, slots: Slots) -> Reason | None:
        """Why a node stays in float32 because of the numbers it touches, None if it need not."""
        changing = [v for v in _changing(node, slots) if v.dtype is DataType.FLOAT]
        ranged = next(filter(None, (range_reason(v, self._choice) for v in changing)), None)
        reason = self._read(node, slots)
        if reason and (node.is_op(*_PASSING) or node.op_type in _MOVERS):
            for value in changing:
                if value.producer is node and value.name not in self._choice.ranges:
                    self._reached[value] = reason
        return ranged or reason

    def _read(self, node: Node, slots: Slots) -> Reason | None:
        for slot in sorted(slots.inputs):
            value = node.inputs[slot]
            if value is None or value.dtype is not DataType.FLOAT:
                continue
            if value in self._reached:
                return self._reached[value]
            reason = self._constant(value)
            # A bound beyond the range bounds nothing, and neither does the largest number.
            if reason and not (node.is_op("Clip") and slot and reason.kind == "overflow"):
                return reason
        return None

    def _constant(self, value: Value) -> Reason | None:
        if value not in self._constants:
            tensor = constant_tensor(value) or _filling(value)
            self._constants[value] = (
                None
                if tensor is None or tensor.dtype is not DataType.FLOAT
                else number_reason(tensor.numpy(), f"'{value.name}'", self._choice.low)
            )
        return self._constants[value]


def _filling(value: Value) -> Tensor | None:
    """What a ConstantOfShape fills a value with, None for any other value."""
    maker = made_by(value, "ConstantOfShape")
    held = None if maker is None else maker.get("value")
    return held if isinstance(held, Tensor) else None


def _attribute_reason(node: Node, low: DataType) -> Reason | None:
    schema = schema_of(node)
    if node.is_op("Clip") or (schema is not None and "stash_type" in schema.attributes):
        return None
    for name, attribute in node.attributes.items():
        if attribute.kind in (onnx.AttributeProto.FLOAT, onnx.AttributeProto.FLOATS):
            numbers = np.array(attribute.value, dtype=np.float32)
            if reason := number_reason(numbers, f"attribute {name}", low):
                return reason
    return None


def number_reason(numbers: np.ndarray, name: str, low: DataType) -> Reason | None:
    """Why numbers cannot be held in the small format, None if they can.

    Single numbers that become zero are rounded like any other; where all do, as an epsilon that
    guards a division, the constant has lost its meaning.
    """
    with np.errstate(all="ignore"):
        rounded = numbers.astype(low.numpy)
    lost = np.isinf(rounded) & np.isfinite(numbers)
    if lost.any():
        text = f"{name} holds {numbers[lost].flat[0]:.4g}, beyond the range of {low.label}"
        return Reason("overflow", text)
    if numbers.any() and not rounded.any():
        return Reason("vanish", f"all numbers of {name} vanish in {low.label}")
    return None


def _quantized(graph: Graph) -> set[Node]:
    """Operators that are, or fuse into, integer kernels."""
    found: set[Node] = set()
    for node in graph.all_nodes():
        makers = [v.producer for v in node.inputs if v is not None and v.producer is not None]
        uses = [use for v in node.outputs if v is not None for use in v.uses]
        # The product of integers is restored behind a Cast.
        products = [m.input(0) for m in makers if m.is_op("Cast")]
        if (
            node.is_op(*_QUANTIZING)
            or node.op_type.startswith("QLinear")
            or node.op_type.endswith("Integer")
            or any(maker.is_op("DequantizeLinear", "DynamicQuantizeLinear") for maker in makers)
            or any(v and v.producer and v.producer.op_type.endswith("Integer") for v in products)
            or (
                any(maker in found for maker in makers)
                and uses
                and all(use.node.is_op("QuantizeLinear") for use in uses)
            )
        ):
            found.add(node)
    return found


def _idle(graph: Graph, regions: FloatRegions, interface: bool) -> set[Node]:
    """Operators of regions that gain nothing: no matrix product, and as many Casts as operators."""
    outer = {*graph.inputs, *graph.outputs} if interface else set()
    given = {v for nested in graph.all_graphs() for v in nested.outputs}
    links = (
        (node, use.node)
        for node in regions.nodes
        for value in node.outputs
        if value is not None and regions.gives_low(value)
        for use in value.uses
        if regions.reads_low(use)
    )
    idle: set[Node] = set()
    for region in connected(regions.nodes, links):
        working = [n for n in region if n.op_type not in _MOVERS]
        if any(n.is_op(*_PRODUCTS) or _reads_matrix(n, regions) for n in region):
            continue
        border = {
            value
            for node in region
            for value in _changing(node, regions.nodes[node])
            if value.dtype is DataType.FLOAT
            and constant_tensor(value) is None
            and value not in outer
            and _crosses(value, regions, given)
        }
        if len(working) <= len(border) and border:
            idle.update(region)
    return idle


def _reads_matrix(node: Node, regions: FloatRegions) -> bool:
    tensors = [constant_tensor(v) for v in _changing(node, regions.nodes[node])]
    return any(t is not None and len(t.shape) > 1 for t in tensors)


def _crosses(value: Value, regions: FloatRegions, given: set[Value]) -> bool:
    """Whether a Cast stands between this value and some of those who read it."""
    if not regions.gives_low(value):
        return True
    return value in given or any(
        not regions.reads_low(use) and not regions.reads_either(use) for use in value.uses
    )
