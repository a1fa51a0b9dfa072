"""Channel groups: where a factor on each channel comes in, and where its inverse goes out again."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod

import numpy as np
import numpy.typing as npt

from onnxq.ir import Graph, Node, Value
from onnxq.passes.channels.labels import NO_CHANNEL, Labels, Sizes, along, follow, for_constant
from onnxq.passes.fusion.weighted import channel_count, is_shared
from onnxq.passes.notes import Reason, node_name

_NORMALIZATIONS = {
    "LayerNormalization": (-1, (1, 2)),
    "RMSNormalization": (-1, (1,)),
    "SimplifiedLayerNormalization": (-1, (1,)),
    "BatchNormalization": (1, (1, 2)),
    "InstanceNormalization": (1, (1, 2)),
}
"""Axis of the channels, and slots of what they are multiplied with and of what is added to them."""

_MOST_ELEMENTS = 1 << 22
"""Of a tensor whose channels are followed; axes of unknown size count as several hundred."""

_WEIGHTED = ("MatMul", "Gemm", "Conv", "ConvTranspose")


@dataclass(frozen=True, eq=False)
class Consumer:
    """A product with a constant weight (slot 1) that takes up the inverse factors.

    Attributes:
        node: MatMul, Gemm, Conv or ConvTranspose; depthwise ones, too.
        channels: For each of its input channels the group's channel, or `NO_CHANNEL`.
    """

    node: Node
    channels: Labels

    @property
    def read(self) -> Value:
        """What it multiplies."""
        value = self.node.input(0)
        assert value is not None
        return value

    @property
    def axis(self) -> int:
        """Axis of `read` on which its input channels lie."""
        return input_axis(self.node)


@dataclass(frozen=True, eq=False)
class Addend:
    """A constant on the way that has to be divided as well.

    Attributes:
        node: Add, Sub or Sum.
        slot: Where it reads the constant.
        channels: Channel of each number, in a shape that broadcasts with the constant.
    """

    node: Node
    slot: int
    channels: Labels


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """A float tensor whose channels may be divided by factors that its consumers multiply with.

    Attributes:
        tensor: The tensor, as its producer gives it.
        axis: Axis of the channels.
        free: For each channel, whether it may have a factor; others must have 1, as the queries
            that the product with the values gives as well.
        producer: What takes up the factors: a normalization, a Mul or Div by a constant vector, or
            a product with a constant weight. None where a Mul has to be put in.
        consumers: The products that take up the inverse.
        addends: Constants that are divided on the way.
        changed: All tensors that are divided, `tensor` first.
    """

    tensor: Value
    axis: int
    free: npt.NDArray[np.bool_]
    producer: Node | None
    consumers: tuple[Consumer, ...]
    addends: tuple[Addend, ...] = ()
    changed: tuple[Value, ...] = ()

    @property
    def size(self) -> int:
        """Number of channels."""
        return len(self.free)

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of the nodes whose constants change."""
        found = [c.node for c in self.consumers] + [a.node for a in self.addends]
        return tuple(node_name(n) for n in ([self.producer] if self.producer else []) + found)


@dataclass(frozen=True)
class Groups:
    """All channel groups of a graph, by the name of their tensor.

    Attributes:
        folded: Groups whose producer takes up the factors.
        inserted: Groups of tensors that have none such, and need a Mul in front of the consumers;
            other readers keep reading the tensor as it is.
        refused: Why what could take up factors is the producer of no group.
    """

    folded: dict[str, ChannelGroup] = field(default_factory=dict)
    inserted: dict[str, ChannelGroup] = field(default_factory=dict)
    refused: dict[str, Reason] = field(default_factory=dict)

    def __iter__(self) -> Iterator[ChannelGroup]:
        yield from self.folded.values()
        yield from self.inserted.values()

    def get(self, tensor: str) -> ChannelGroup | None:
        """The group of a tensor."""
        return self.folded.get(tensor) or self.inserted.get(tensor)


def find_groups(graph: Graph) -> Groups:
    """Find all channel groups of a graph with known types, those of its bodies included.

    Factors go from a producer through what commutes with positive factors on channels (Relu,
    pooling, a product with another activation, ...), through what only moves elements about, and
    through the product of attention's probabilities with its values, to the consumers. A tensor
    between them that is an output of its graph, or that anything else reads, such as a residual
    Add, takes its channels out; a group without any left is refused. Groups may overlap: a
    depthwise Conv is consumer of one and producer of another, a Mul by a vector behind a MatMul
    lies within the MatMul's and has one of its own.
    """
    found, sizes = Groups(), Sizes(graph)
    for scope in graph.all_graphs():
        order = {node: place for place, node in enumerate(scope.nodes())}
        for node in order:
            axis = _producer_axis(node)
            if axis is None or (start := sizes.start(node.output, axis)) is None:
                continue
            if start.size > _MOST_ELEMENTS:
                # Its channels are followed element by element, which takes memory.
                found.refused[node.output.name] = Reason("shape", "it has too many elements")
                continue
            group = _group(node, axis, start, sizes, order)
            if isinstance(group, Reason):
                found.refused[node.output.name] = group
            else:
                found.folded[node.output.name] = group
    covered = {c.read for group in found.folded.values() for c in group.consumers}
    for scope in graph.all_graphs():
        for value in [*scope.inputs, *(v for n in scope.nodes() for v in n.outputs if v)]:
            inserted = None if value in covered else _inserted(value)
            if inserted is not None:
                found.inserted[value.name] = inserted
    return found


def producer_constants(node: Node) -> dict[int, Callable[[np.ndarray, np.ndarray], np.ndarray]]:
    """What becomes of a producer's vectors, by slot, when its channels are divided by factors.

    Nothing of a product's weight, which is no vector.
    """
    if node.op_type in _NORMALIZATIONS:
        return dict.fromkeys(_NORMALIZATIONS[node.op_type][1], np.divide)
    if node.is_op("Mul", "Div"):
        return {_vector_slot(node): np.divide if node.is_op("Mul") else np.multiply}
    return {}


def input_axis(node: Node) -> int:
    """Axis of a product's first input on which its input channels lie."""
    return -1 if node.is_op("MatMul", "Gemm") else 1


def _producer_axis(node: Node) -> int | None:
    """Axis of the channels of what a node gives, None if it takes up no factors."""
    if node.domain or not node.outputs or node.outputs[0] is None or not _is_float(node.output):
        return None
    if node.op_type in _NORMALIZATIONS:
        axis, slots = _NORMALIZATIONS[node.op_type]
        read = [v for v in map(node.input, slots) if v is not None]
        is_last = axis == 1 or node.get("axis", -1) in (-1, (node.output.rank or 0) - 1)
        fits = all(v.is_constant and v.rank == 1 for v in read) and read
        return axis if is_last and fits else None
    if node.is_op("Mul", "Div"):
        slot = _vector_slot(node)
        if slot < 0:
            return None
        vector = node.inputs[slot]
        assert vector is not None and vector.shape is not None
        return next(a for a, d in enumerate(vector.shape) if d != 1) - len(vector.shape)
    if not node.is_op(*_WEIGHTED) or _unfit_weight(node) is not None:
        return None
    bias, weight = node.input(2), node.input(1)
    assert weight is not None and weight.data is not None
    channels = channel_count(node, weight.data.shape)
    if bias is not None and (not bias.is_constant or not _is_row(bias, channels)):
        return None
    return -1 if node.is_op("MatMul", "Gemm") else 1


def _vector_slot(node: Node) -> int:
    """Slot at which a Mul or Div reads a constant vector along one axis; -1 if at none."""
    for slot in (1,) if node.is_op("Div") else (0, 1):
        value, other = node.input(slot), node.input(1 - slot)
        if value is None or other is None or not value.is_constant or other.is_constant:
            continue
        shape, rank = value.shape or (), other.rank or 0
        if len(shape) <= rank and sum(d != 1 for d in shape) == 1:
            return slot
    return -1


def _is_row(bias: Value, channels: int | None) -> bool:
    """Whether a bias has one number, or one for each output channel."""
    shape = bias.numpy().shape
    return prod(shape) in (1, channels) and shape[-1:] in ((), (1,), (channels,))


def _unfit_weight(node: Node) -> str | None:
    """Why a product's weight cannot be changed, None if it can."""
    weight = node.input(1)
    if weight is None or not weight.is_constant or weight.data is None:
        return "its weight is not constant"
    if not _is_float(weight) or len(weight.data.shape) < 2:
        return "its weight is no matrix of floats"
    if node.inputs.count(weight) > 1 or is_shared(weight):
        return "its weight is read by others, too"
    if node.is_op("MatMul") and weight.rank != 2:
        return "its weight is several matrices"
    return None


def _is_float(value: Value) -> bool:
    return value.dtype is not None and value.dtype.is_float and value.dtype.bits >= 16


def _group(
    producer: Node, axis: int, start: Labels, sizes: Sizes, order: dict[Node, int]
) -> ChannelGroup | Reason:
    size = start.shape[axis]
    labels: dict[Value, Labels] = {}
    consumers: list[Consumer] = []
    addends: list[Addend] = []
    free = np.ones(size, bool)
    reasons: list[Reason] = []
    waiting: list[tuple[int, Node]] = []

    def fix(some: Iterable[Labels], text: str) -> None:
        """Note that some channels can have no factors."""
        reasons.append(Reason("neighbours", text))
        for own in some:
            free[own[own != NO_CHANNEL]] = False

    def enter(value: Value, own: Labels) -> None:
        labels[value] = own
        if value.is_output:
            fix([own], f"'{value.name}' is an output of its graph")
        for use in value.uses:
            if use.node not in order:
                fix([own], f"'{value.name}' is read in the body of a node")
            elif (order[use.node], use.node) not in waiting:
                heapq.heappush(waiting, (order[use.node], use.node))

    enter(producer.output, start)
    while waiting and free.any():
        node = heapq.heappop(waiting)[1]
        read = {s: labels[v] for s, v in enumerate(node.inputs) if v in labels}
        if node.is_op(*_WEIGHTED) and list(read) == [0] and _is_weighted(node):
            found = _consumer(node, read[0])
            if isinstance(found, Consumer):
                consumers.append(found)
            else:
                fix(read.values(), f"'{node_name(node)}' cannot take factors: {found}")
            continue
        made = follow(node, read, sizes)
        if made is None:
            fix(read.values(), f"factors do not go through {node.op_type} '{node_name(node)}'")
            continue
        if node.is_op("Add", "Sub", "Sum"):
            own = _addends(node, read, made[0])
            if own is None:
                fix(read.values(), f"what '{node_name(node)}' adds has no known size")
                continue
            addends += own
        for output, given in zip(node.outputs, made, strict=True):
            if output is not None and given is not None and (given != NO_CHANNEL).any():
                enter(output, given)
    taken = np.zeros(size, bool)
    for consumer in consumers:
        taken[consumer.channels[consumer.channels != NO_CHANNEL]] = True
    if not (free & taken).any():
        return (*reasons, Reason("neighbours", "no product with a constant weight reads it"))[0]
    changed = tuple(v for v, own in labels.items() if free[own[own != NO_CHANNEL]].any())
    return ChannelGroup(
        *(producer.output, axis, free, producer, tuple(consumers), tuple(addends), changed)
    )


def _addends(node: Node, read: Mapping[int, Labels], made: Labels | None) -> list[Addend] | None:
    """The constants among what a node adds; None if one would need a size that is not known."""
    found = []
    for slot, value in enumerate(node.inputs):
        if slot not in read and value is not None and made is not None:
            channels = for_constant(made, node.output, value)
            if channels is None:
                return None
            found.append(Addend(node, slot, channels))
    return found


def _is_weighted(node: Node) -> bool:
    weight = node.input(1)
    return weight is not None and weight.is_constant


def _consumer(node: Node, labels: Labels) -> Consumer | str:
    """The consumer that a product is, or why it is none."""
    unfit = _unfit_weight(node)
    channels = along(labels, input_axis(node))
    if unfit is not None:
        return unfit
    if channels is None or (node.is_op("Gemm") and node.get("transA", 0)):
        return "it multiplies along another axis"
    return Consumer(node, channels)


def _inserted(value: Value) -> ChannelGroup | None:
    """The group of a tensor that its consumers are to read through a Mul."""
    shape = value.shape or ()
    if len(shape) < 2 or not _is_float(value) or value.is_constant:
        return None
    fit = [
        use.node
        for use in value.uses
        if use.slot == 0 and use.node.is_op(*_WEIGHTED) and _unfit_weight(use.node) is None
        if use.node.graph is value.graph and not use.node.get("transA", 0)
    ]
    axis = input_axis(fit[0]) if fit else 0
    size = shape[axis]
    if not fit or not isinstance(size, int):
        return None
    channels = np.arange(size, dtype=np.int32)
    consumers = tuple(Consumer(node, channels) for node in fit if input_axis(node) == axis)
    return ChannelGroup(value, axis, np.ones(size, bool), None, consumers)
