"""Shapes that follow from computed shapes, where ONNX's own inference does not find them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from onnxq.ir.node import Node, Value
from onnxq.ir.shape_values import Elements, elements_of
from onnxq.ir.types import Dim, Shape, TensorType

_FIRST_SHAPE_INPUT_OPSET = 5
"""Before it Reshape takes its shape as an attribute."""


def computed_shapes(
    nodes: Iterable[Node], elements: Mapping[Value, Elements]
) -> dict[Value, TensorType]:
    """Types that the shape computations among some nodes state for values that are still open.

    Reshape, Expand and ConstantOfShape with a shape of which elements are known, as sizes or as
    symbols; a Reshape's one open dimension also from the input's other dimensions, when their
    product divides or their symbols cancel.
    """
    found = {}
    for node in nodes:
        if node.domain or node.op_type not in _RULES or not _is_open(node):
            continue
        read = node.input(0)
        dtype = node.output.dtype
        if dtype is None and read is not None and not node.is_op("ConstantOfShape"):
            dtype = read.dtype
        shape = None if read is None else _RULES[node.op_type](node, read, elements)
        if dtype is not None and shape is not None:
            found[node.output] = TensorType(dtype, shape)
    return found


def _is_open(node: Node) -> bool:
    value = node.outputs[0] if node.outputs else None
    if value is None or (value.type is not None and not isinstance(value.type, TensorType)):
        return False
    return value.shape is None or not all(isinstance(d, int) for d in value.shape)


def _reshape(node: Node, read: Value, elements: Mapping[Value, Elements]) -> Shape | None:
    if node.graph.opset < _FIRST_SHAPE_INPUT_OPSET:
        return None
    target = _vector(node.input(1), elements)
    if target is None:
        return None
    before = read.shape
    copies = not node.get("allowzero", 0)
    after: list[Dim] = []
    for at, wanted in enumerate(target):
        if wanted == 0 and copies:
            if before is not None and at >= len(before):
                return None
            after.append(None if before is None else before[at])
        else:
            after.append(None if wanted == -1 else wanted)
    if before is not None and after.count(None) == 1:
        after[after.index(None)] = _quotient(before, [d for d in after if d is not None])
    return tuple(after)


def _quotient(whole: Sequence[Dim], parts: Sequence[Dim]) -> Dim:
    """The dimension that makes the product of ``parts`` that of ``whole``, if it is one."""
    if None in whole:
        return None
    divisor = math.prod(d for d in parts if isinstance(d, int))
    product = math.prod(d for d in whole if isinstance(d, int))
    above = Counter(d for d in whole if isinstance(d, str))
    below = Counter(d for d in parts if isinstance(d, str))
    if divisor <= 0 or product % divisor or below - above:
        return None
    size, symbols = product // divisor, list((above - below).elements())
    if not symbols:
        return size
    return symbols[0] if size == 1 and len(symbols) == 1 else None


def _expand(node: Node, read: Value, elements: Mapping[Value, Elements]) -> Shape | None:
    target = _vector(node.input(1), elements)
    if target is None or read.shape is None:
        return None
    rank = max(len(target), len(read.shape))
    return tuple(map(_broadcast, _padded(read.shape, rank), _padded(target, rank)))


def _padded(dims: Sequence[Dim], rank: int) -> list[Dim]:
    return [1] * (rank - len(dims)) + list(dims)


def _broadcast(one: Dim, other: Dim) -> Dim:
    if one == 1 or one == other:
        return other
    if other == 1:
        return one
    # A size other than 1 decides; that of two unlike symbols could be either's.
    return next((d for d in (one, other) if isinstance(d, int)), None)


def _constant_of_shape(node: Node, read: Value, elements: Mapping[Value, Elements]) -> Shape | None:
    return _vector(read, elements)


def _vector(value: Value | None, elements: Mapping[Value, Elements]) -> Shape | None:
    found = elements_of(value, elements)
    return None if found is None or found.ndim != 1 else tuple(found.tolist())


_RULES: dict[str, Callable[[Node, Value, Mapping[Value, Elements]], Shape | None]] = {
    "Reshape": _reshape,
    "Expand": _expand,
    "ConstantOfShape": _constant_of_shape,
}
