"""Which channel every element of a tensor belongs to, followed through operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count
from math import prod

import numpy as np
import numpy.typing as npt

from onnxq.ir import Graph, Node, Value
from onnxq.ir.shape_values import constant_ints
from onnxq.passes.nodes import listed, made_by, stated
from onnxq.passes.slicing import slice_limits

Labels = npt.NDArray[np.int32]
"""Of a tensor's shape: the channel of each element, `NO_CHANNEL` where it belongs to none."""

NO_CHANNEL = -1


class Sizes:
    """Sizes that stand for a graph's symbolic dimensions: different primes.

    What lines up in these does so in all sizes, as far as Reshapes are concerned: where a symbol
    stands for a product of others, as behind a Reshape, its size is that product.
    """

    def __init__(self, graph: Graph) -> None:
        self._sizes: dict[str, int] = {}
        self._primes = (n for n in count(3, 2) if all(n % d for d in range(3, n, 2)))
        for scope in graph.all_graphs():
            for value in scope.inputs:
                self._name(value)
            for node in scope.nodes():
                for made in node.outputs:
                    if made is not None:
                        self._name(made)

    def of(self, value: Value | None) -> tuple[int, ...] | None:
        """A value's shape; None where a dimension is not known even by name."""
        if value is None or value.shape is None or None in value.shape:
            return None
        return tuple(d if isinstance(d, int) else self._sizes[str(d)] for d in value.shape)

    def start(self, value: Value, axis: int) -> Labels | None:
        """Labels of a value whose channels lie on one axis; None if their number is not known."""
        shape = value.shape or ()
        if not -len(shape) <= axis < len(shape) or not isinstance(shape[axis], int):
            return None
        whole = [
            d if isinstance(d, int) else next(self._primes) if d is None else self._sizes[d]
            for d in shape
        ]
        channels = np.arange(whole[axis], dtype=np.int32)
        return np.broadcast_to(on_axis(channels, axis % len(whole), len(whole)), whole)

    def _name(self, value: Value) -> None:
        shape = value.shape or ()
        new = [d for d in shape if isinstance(d, str) and d not in self._sizes]
        maker = made_by(value, "Reshape")
        whole = None if maker is None else self.of(maker.input(0))
        if len(new) == 1 and whole is not None and None not in shape:
            known = (self._sizes.get(d, 1) if isinstance(d, str) else d for d in shape)
            size, left = divmod(prod(whole), max(1, prod(d for d in known if d)))
            if size and not left:
                self._sizes[new[0]] = size
        for symbol in new:
            self._sizes.setdefault(symbol, next(self._primes))


def on_axis(numbers: np.ndarray, axis: int, rank: int) -> np.ndarray:
    """Numbers along one axis of so many."""
    return numbers.reshape([-1 if a == axis else 1 for a in range(rank)])


def along(labels: Labels, axis: int) -> Labels | None:
    """The channels along one axis, None unless they are the same at all places of the others."""
    if not -labels.ndim <= axis < labels.ndim:
        return None
    axis %= labels.ndim
    # What is repeated by a stride of 0 need not be looked at.
    short = labels[tuple(slice(1 if not s else None) for s in labels.strides)]
    first = short[tuple(slice(None) if a == axis else slice(1) for a in range(labels.ndim))]
    if not (short == first).all():
        return None
    return np.broadcast_to(first.reshape(-1), labels.shape[axis : axis + 1])


def follow(node: Node, read: Mapping[int, Labels], sizes: Sizes) -> list[Labels | None] | None:
    """Labels of what a node gives, if a positive factor on each channel goes through it.

    Args:
        node: The node.
        read: Labels of those of its inputs that have factors, by slot.
        sizes: Sizes of the graph's dimensions.

    Returns:
        Labels by output, None for one that has no factors; None where factors do not go through.
        Where the node adds constants, these have to be divided by the factors, too.
    """
    rule = _RULES.get(node.op_type) if not node.domain else None
    return None if rule is None else rule(node, read, sizes)


def for_constant(labels: Labels, made: Value, constant: Value) -> Labels | None:
    """Labels of a constant that is added to channels, with as few numbers as will do.

    Args:
        labels: Of the sum.
        made: The sum.
        constant: What is added.

    Returns:
        Labels of the shape that the constant needs; None where that has no known size.
    """
    shape, kept = constant.shape, made.shape
    if shape is None or kept is None or len(kept) != labels.ndim:
        return None
    for axis, size in enumerate((1,) * (labels.ndim - len(shape)) + tuple(shape)):
        first = labels[tuple(slice(1 if a == axis else None) for a in range(labels.ndim))]
        if size == 1 and (labels == first).all():
            labels = first
        elif not isinstance(kept[axis], int):
            return None
    while labels.ndim > len(shape) and labels.shape[0] == 1:
        labels = labels[0]
    return labels


def _one(labels: Labels | None) -> list[Labels | None] | None:
    return None if labels is None else [labels]


def _same(node: Node, read: Mapping[int, Labels], sizes: Sizes) -> list[Labels | None] | None:
    """Operators that work on each element and commute with positive factors."""
    others = [v for v in node.outputs[1:] if v is not None and v.is_used]
    made = node.output.dtype
    is_float = made is not None and made.is_float
    return _one(read[0]) if list(read) == [0] and is_float and not others else None


def _product(node: Node, read: Mapping[int, Labels], sizes: Sizes) -> list[Labels | None] | None:
    if len(read) != 1 or (node.is_op("Div") and 0 not in read):
        return None
    ((slot, labels),) = read.items()
    other = sizes.of(node.input(1 - slot))
    return None if other is None else _one(_broadcast(labels, other))


def _sum(node: Node, read: Mapping[int, Labels], sizes: Sizes) -> list[Labels | None] | None:
    shapes = [sizes.of(value) for value in node.inputs]
    known = [shape for shape in shapes if shape is not None]
    others = [v for slot, v in enumerate(node.inputs) if slot not in read]
    if len(known) < len(shapes) or not all(v is not None and v.is_constant for v in others):
        return None
    found = [_broadcast(labels, *known) for labels in read.values()]
    first = found[0]
    if first is None or any(f is None or not np.array_equal(f, first) for f in found[1:]):
        return None
    return [first]


def _broadcast(labels: Labels, *shapes: tuple[int, ...]) -> Labels | None:
    try:
        return np.broadcast_to(labels, np.broadcast_shapes(labels.shape, *shapes))
    except ValueError:
        return None


def _concat(node: Node, read: Mapping[int, Labels], sizes: Sizes) -> list[Labels | None] | None:
    parts = []
    for slot, value in enumerate(node.inputs):
        shape = sizes.of(value)
        if slot not in read and shape is None:
            return None
        parts.append(read[slot] if slot in read else np.full(shape or (), NO_CHANNEL, np.int32))
    try:
        return [np.concatenate(parts, node.get("axis", 0))]
    except ValueError:
        return None


def _transpose(node: Node, read: Mapping[int, Labels], sizes: Sizes) -> list[Labels | None] | None:
    return [read[0].transpose(node.get("perm"))]


def _reshape(node: Node, read: Mapping[int, Labels], sizes: Sizes) -> list[Labels | None] | None:
    if list(read) != [0]:
        return None
    labels, target = read[0], sizes.of(node.output)
    if target is None and node.is_op("Reshape"):
        numbers = constant_ints(node.input(1))
        if numbers is None or node.get("allowzero", 0) or len(labels.shape) < len(numbers):
            return None
        target = tuple(labels.shape[a] if n == 0 else n for a, n in enumerate(numbers))
    try:
        return None if target is None else [labels.reshape(target)]
    except ValueError:
        return None


def _expand(node: Node, read: Mapping[int, Labels], sizes: Sizes) -> list[Labels | None] | None:
    target = sizes.of(node.output)
    return None if target is None or list(read) != [0] else _one(_broadcast(read[0], target))


def _slice(node: Node, read: Mapping[int, Labels], sizes: Sizes) -> list[Labels | None] | None:
    limits, labels = slice_limits(node), read[0]
    if limits is None or any(limit.step < 1 for limit in limits):
        return None
    taken = [slice(None)] * labels.ndim
    for limit in limits:
        taken[limit.axis] = slice(limit.start, limit.end, limit.step)
    return [labels[tuple(taken)]]


def _split(node: Node, read: Mapping[int, Labels], sizes: Sizes) -> list[Labels | None] | None:
    labels, axis = read[0], node.get("axis", 0)
    size, parts = labels.shape[axis], len(node.outputs)
    lengths = stated(node, "split", 1, [-(-size // parts)] * parts)
    if lengths is None:
        return None
    return [*np.split(labels, np.cumsum(lengths)[:-1], axis)]


def _gather(node: Node, read: Mapping[int, Labels], sizes: Sizes) -> list[Labels | None] | None:
    indices = node.input(1)
    if list(read) != [0] or indices is None or not indices.is_constant:
        return None
    return [read[0].take(indices.numpy(), node.get("axis", 0))]


def _columns(node: Node, read: Mapping[int, Labels], sizes: Sizes) -> list[Labels | None] | None:
    """Factors on the columns of what is multiplied from the left stay on the columns."""
    if list(read) != [1] or read[1].ndim < 2:
        return None
    labels = read[1]
    is_free = (labels == labels[..., :1, :]).all()
    target = sizes.of(node.output)
    return _one(_broadcast(labels[..., :1, :], target)) if is_free and target else None


def _attention(node: Node, read: Mapping[int, Labels], sizes: Sizes) -> list[Labels | None] | None:
    """Factors on the columns of the values, whose heads several heads of the queries may share."""
    target, labels = sizes.of(node.output), read.get(2)
    caches = [v for v in node.outputs[1:] if v is not None and v.is_used]
    if list(read) != [2] or labels is None or labels.ndim != 4 or caches or target is None:
        return None
    heads, left = divmod(target[1], labels.shape[1])
    if left or not (labels == labels[:, :, :1]).all():
        return None
    return _one(_broadcast(np.repeat(labels[:, :, :1], heads, axis=1), target))


def _pool(node: Node, read: Mapping[int, Labels], sizes: Sizes) -> list[Labels | None] | None:
    """Operators over the places of an image, of which all have the same factors."""
    others = [v for v in node.outputs[1:] if v is not None and v.is_used]
    target, channels = sizes.of(node.output), along(read[0], 1) if list(read) == [0] else None
    if target is None or channels is None or others:
        return None
    return _one(_broadcast(on_axis(channels, 1, len(target)), target))


def _reduce(node: Node, read: Mapping[int, Labels], sizes: Sizes) -> list[Labels | None] | None:
    labels, axes = read[0], stated(node, "axes", 1)
    if not axes or list(read) != [0]:
        return None
    first = labels
    for axis in axes:
        first = first.take([0], axis)
    if not (labels == first).all():
        return None
    return [first if node.get("keepdims", 1) else first.squeeze(tuple(axes))]


_Rule = Callable[[Node, Mapping[int, Labels], Sizes], list[Labels | None] | None]

_RULES: dict[str, _Rule] = {
    **dict.fromkeys(listed("Relu LeakyRelu PRelu Identity Neg Abs Cast Dropout"), _same),
    **dict.fromkeys(("Mul", "Div"), _product),
    **dict.fromkeys(("Add", "Sub", "Sum"), _sum),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    **dict.fromkeys(listed("MaxPool AveragePool GlobalMaxPool GlobalAveragePool"), _pool),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax"), _reduce),
    "Attention": _attention,
    "Concat": _concat,
    "Expand": _expand,
    "Gather": _gather,
    "MatMul": _columns,
    "Slice": _slice,
    "Split": _split,
    "Transpose": _transpose,
}
