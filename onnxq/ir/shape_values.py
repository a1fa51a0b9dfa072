"""What is known of the numbers in shape computations before the model runs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxq.ir.graph import Graph, Node, Value
from onnxq.ir.types import DataType, Shape

_MAX_ELEMENTS = 64
"""Longer integer tensors are data, not shapes."""

_INTEGERS = frozenset({DataType.INT32, DataType.INT64})

Elements = np.ndarray
"""Object array of ints, with None for an element that is not known."""


def known_elements(graph: Graph) -> dict[Value, Elements]:
    """Elements, where known, of the values that a graph computes from shapes.

    Looks through Shape (with start and end), Size, Gather, Slice, Concat, Squeeze, Unsqueeze,
    Identity and Cast between int32 and int64, so that ``Gather(Shape(x), 1)`` is known when
    dimension 1 of ``x`` is, whatever the others are. Constants and values of outer graphs count
    as inputs; only values that nodes of this graph make are in the result. Scalars and vectors
    of at most 64 elements.
    """
    found: dict[Value, Elements] = {}
    for node in graph.nodes():
        rule = _RULES.get(node.op_type) if not node.domain else None
        if rule is None or not node.outputs or node.outputs[0] is None:
            continue
        elements = rule(node, found)
        if elements is not None and elements.ndim <= 1 and elements.size <= _MAX_ELEMENTS:
            found[node.output] = elements
    return found


def shape_range(node: Node, shape: Shape) -> Shape:
    """The dimensions that a Shape node gives of a tensor's shape."""
    return shape[slice(node.get("start", 0), node.get("end"))]


def constant_ints(value: Value | None) -> list[int] | None:
    """The numbers of a small constant integer vector or scalar, None for anything else."""
    if value is None or not value.is_constant or value.data is None:
        return None
    tensor = value.data
    if tensor.dtype not in _INTEGERS or len(tensor.shape) > 1 or tensor.size > _MAX_ELEMENTS:
        return None
    return [int(n) for n in tensor.numpy().reshape(-1)]


def _elements(value: Value | None, found: dict[Value, Elements]) -> Elements | None:
    if value is None or value in found:
        return None if value is None else found[value]
    numbers = constant_ints(value)
    if numbers is None:
        return None
    return np.array(numbers, dtype=object).reshape(value.numpy().shape)


def _shape(node: Node, found: dict[Value, Elements]) -> Elements | None:
    value = node.input(0)
    if value is None or value.shape is None:
        return None
    dims = shape_range(node, value.shape)
    return np.array([d if isinstance(d, int) else None for d in dims], dtype=object)


def _size(node: Node, found: dict[Value, Elements]) -> Elements | None:
    value = node.input(0)
    if value is None or value.shape is None:
        return None
    size = 1
    for dim in value.shape:
        if not isinstance(dim, int):
            return None
        size *= dim
    return np.array(size, dtype=object)


def _same(node: Node, found: dict[Value, Elements]) -> Elements | None:
    if node.is_op("Cast"):
        read = node.input(0)
        if node.get("to") not in _INTEGERS or read is None or read.dtype not in _INTEGERS:
            return None
    elements = _elements(node.input(0), found)
    if elements is None or node.get("to") != DataType.INT32:
        return elements
    limits = np.iinfo(np.int32)
    fits = all(e is None or limits.min <= e <= limits.max for e in elements.reshape(-1))
    return elements if fits else None


def _gather(node: Node, found: dict[Value, Elements]) -> Elements | None:
    elements, indices = _elements(node.input(0), found), node.input(1)
    numbers = constant_ints(indices)
    if elements is None or elements.ndim != 1 or numbers is None or indices is None:
        return None
    if any(not -elements.size <= n < elements.size for n in numbers):
        return None
    return np.asarray(elements[np.array(numbers, dtype=np.int64).reshape(indices.numpy().shape)])


def _slice(node: Node, found: dict[Value, Elements]) -> Elements | None:
    elements = _elements(node.input(0), found)
    if elements is None or elements.ndim != 1:
        return None
    if node.graph.opset < 10:
        starts, ends, steps = list(node.get("starts", ())), list(node.get("ends", ())), [1]
    else:
        read = [constant_ints(node.input(slot)) for slot in (1, 2)]
        step = [1] if node.input(4) is None else constant_ints(node.input(4))
        if read[0] is None or read[1] is None or step is None:
            return None
        starts, ends, steps = read[0], read[1], step
    if len(starts) != 1 or len(ends) != 1 or steps != [1]:
        return None
    return np.asarray(elements[starts[0] : ends[0]])


def _concat(node: Node, found: dict[Value, Elements]) -> Elements | None:
    parts = []
    for value in node.inputs:
        part = _elements(value, found)
        if part is None and value is not None and value.shape is not None:
            # A vector whose elements are unknown still leaves those of the others known.
            part = _unknown(value)
        if part is None or part.ndim != 1:
            return None
        parts.append(part)
    return np.concatenate(parts) if parts else None


def _unknown(value: Value) -> Elements | None:
    shape = value.shape
    if shape is None or len(shape) != 1 or value.dtype not in _INTEGERS:
        return None
    length = shape[0]
    if not isinstance(length, int) or length > _MAX_ELEMENTS:
        return None
    return np.full(length, None, dtype=object)


def _squeeze(node: Node, found: dict[Value, Elements]) -> Elements | None:
    elements = _elements(node.input(0), found)
    if elements is None or elements.shape != (1,):
        return None
    return elements.reshape(())


def _unsqueeze(node: Node, found: dict[Value, Elements]) -> Elements | None:
    elements = _elements(node.input(0), found)
    if elements is None or elements.ndim != 0:
        return None
    axes = constant_ints(node.input(1)) if node.graph.opset >= 13 else list(node.get("axes", ()))
    return elements.reshape(1) if axes in ([0], [-1]) else None


_RULES: dict[str, Callable[[Node, dict[Value, Elements]], Elements | None]] = {
    "Shape": _shape,
    "Size": _size,
    "Identity": _same,
    "Cast": _same,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
}
