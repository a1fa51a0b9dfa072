"""Giving depthwise convolutions whole vectors of channels."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import numpy as np

from onnxq.ir import DataType, Graph, Node, TensorType, Value, attribute_value
from onnxq.ir.connected import connected
from onnxq.ir.types import static_size
from onnxq.passes.nodes import listed

_VECTOR = 16
"""Channels that an integer kernel takes at a time."""

_UNARY = listed("""
    AveragePool Clip GlobalAveragePool HardSigmoid HardSwish LeakyRelu MaxPool Relu Sigmoid
""")
_BINARY = ("Add", "Mul")


def fill_vectors(graph: Graph, able: Collection[Node], kept: Collection[Node]) -> list[Node]:
    """Give depthwise convolutions a multiple of 16 channels, the added ones of zeros.

    The convolutions that make the channels get more of them, with weights and biases of 0, and
    those that read them weights of 0 for these. Between them may stand depthwise convolutions,
    activations, poolings, products and sums with each other (as a gate that is computed from the
    channels) and with one number. Channels stay as they are that anything else reads or makes, as
    Concat, a reduction, or a number for each channel, those in a graph's inputs and outputs, and
    those that a body reads.

    Args:
        graph: Float graph with known shapes, which is changed.
        able: Depthwise convolutions that gain by it, if all are that a region holds.
        kept: Convolutions whose weights are to keep their shapes.

    Returns:
        The depthwise convolutions that have more channels now.
    """
    found = []
    for region in [r for nested in graph.all_graphs() for r in _regions(nested)]:
        touched = {*region.makers, *region.depthwise, *region.readers}
        if touched.isdisjoint(kept) and set(able).issuperset(region.depthwise):
            region.pad()
            found += region.depthwise
    return found


@dataclass
class _Region:
    """Values of one number of channels that nothing but convolutions can tell from more."""

    values: list[Value]
    makers: list[Node] = field(default_factory=list)
    depthwise: list[Node] = field(default_factory=list)
    readers: list[Node] = field(default_factory=list)

    def pad(self) -> None:
        """Add channels of zeros."""
        channels = _channels(self.values[0])
        assert channels is not None
        more = -channels % _VECTOR
        for node in (*self.makers, *self.depthwise):
            _pad(node, 1, 0, more)
            if node.input(2) is not None:
                _pad(node, 2, 0, more)
        for node in self.depthwise:
            node.graph.set_attribute(node, "group", channels + more)
        for node in self.readers:
            _pad(node, 1, 1, more)
        for value in self.values:
            batch, _, *spatial = value.shape or ()
            value.type = TensorType(DataType.FLOAT, (batch, channels + more, *spatial))


def _pad(node: Node, slot: int, axis: int, more: int) -> None:
    value = node.input(slot)
    assert value is not None
    numbers = value.numpy()
    widths = [(0, more if at == axis else 0) for at in range(numbers.ndim)]
    node.graph.set_constant(node, slot, np.pad(numbers, widths))


def _regions(graph: Graph) -> Iterator[_Region]:
    """The regions of a graph that hold depthwise convolutions of no whole vectors."""
    values = [v for node in graph.nodes() for v in node.outputs if v is not None and _has_rest(v)]
    links = (
        (value, read)
        for value in values
        if value.producer is not None
        for read in _linked(value.producer)
        if _has_rest(read) and read.graph is graph
    )
    for group in connected(values, links):
        region = _region(group)
        if region is not None and region.depthwise:
            yield region


def _has_rest(value: Value) -> bool:
    channels = _channels(value)
    return channels is not None and bool(channels % _VECTOR) and value.producer is not None


def _channels(value: Value | None) -> int | None:
    """The channels of an image in float32."""
    shape = None if value is None else value.shape
    if value is None or shape is None or len(shape) != 4 or value.dtype is not DataType.FLOAT:
        return None
    return shape[1] if isinstance(shape[1], int) else None


def _linked(node: Node) -> list[Value]:
    """What has the channels that the result of a node has, one by one."""
    if node.domain or not (node.is_op(*_UNARY, *_BINARY) or _is_depthwise(node)):
        return []
    read = node.inputs if node.is_op(*_BINARY) else node.inputs[:1]
    return [value for value in read if value is not None and not value.is_constant]


def _region(values: list[Value]) -> _Region | None:
    """What makes and reads the values of a region, None if something else has to do with them."""
    region, inside = _Region(values), set(values)
    for value in values:
        node = value.producer
        assert node is not None
        if (
            value.is_output
            or len(node.outputs) > 1
            or any(u.node.graph is not node.graph for u in value.uses)
        ):
            return None
        if _is_depthwise(node) and node.input(0) in inside:
            region.depthwise.append(node)
        elif _is_whole(node):
            region.makers.append(node)
        elif not _passes_on(node, inside):
            return None
        for use in value.uses:
            if use.node.is_op("Conv") and use.slot == 0 and _is_whole(use.node):
                region.readers.append(use.node)
            elif use.node.outputs[0] not in inside:
                return None
    return region


def _passes_on(node: Node, inside: set[Value]) -> bool:
    """Whether a node makes each channel of those that it reads, and of numbers for all."""
    read = _linked(node)
    others = [v for v in node.inputs if v is not None and v not in read]
    return (
        bool(read)
        and inside.issuperset(read)
        and (not node.is_op(*_BINARY) or all(static_size(v.shape) == 1 for v in others))
    )


def _is_depthwise(node: Node) -> bool:
    channels = _channels(node.input(0))
    return (
        _is_convolution(node)
        and channels is not None
        and attribute_value(node, "group") == channels == _channels(node.output)
    )


def _is_whole(node: Node) -> bool:
    return _is_convolution(node) and attribute_value(node, "group") == 1


def _is_convolution(node: Node) -> bool:
    constants = [v for v in node.inputs[1:] if v is not None]
    return node.is_op("Conv") and all(v.is_constant for v in constants)
