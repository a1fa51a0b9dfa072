"""What is known of the numbers in shape computations before the model runs."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from onnxq.ir.graph import Graph
from onnxq.ir.node import Node, Value
from onnxq.ir.tensor import Tensor
from onnxq.ir.types import DataType, Dim, Shape, static_size

_MAX_ELEMENTS = 64
"""Longer integer tensors are data, not shapes."""

_INTEGERS = frozenset({DataType.INT32, DataType.INT64})

Elements = np.ndarray
"""Object array of ints, and of symbols where asked for, with None for what is not known."""


def known_elements(graph: Graph) -> dict[Value, Elements]:
    """Elements, where known, of the values that a graph computes from shapes.

    Looks through Shape (with start and end), Size, Gather, Slice, Concat, Squeeze, Unsqueeze,
    Identity, Add, Sub, Mul, Div and Cast between int32 and int64, so that
    ``Gather(Shape(x), 1)`` is known when dimension 1 of ``x`` is, whatever the others are.
    Constants, Constant nodes and values of outer graphs count as inputs; only values that other
    nodes of this graph make are in the result. Scalars and vectors of at most 64 elements.
    """
    found: dict[Value, Elements] = {}
    find_elements(graph.nodes(), found)
    return {value: _numbers(elements) for value, elements in found.items()}


def find_elements(nodes: Iterable[Node], found: dict[Value, Elements]) -> None:
    """Update ``found`` with the elements of what some nodes make, in their order.

    As of `known_elements`, with the symbol of a dimension where its size is not known. Equal
    symbols are equal sizes.
    """
    for node in nodes:
        rule = _RULES.get(node.op_type) if not node.domain else None
        if rule is None or not node.outputs or node.outputs[0] is None:
            continue
        elements = rule(node, found)
        if elements is not None and elements.ndim <= 1 and elements.size <= _MAX_ELEMENTS:
            found[node.output] = elements
        else:
            found.pop(node.output, None)


def elements_of(value: Value | None, found: Mapping[Value, Elements]) -> Elements | None:
    """The elements of a value: those found, or a small integer constant's."""
    if value is None or value in found:
        return None if value is None else found[value]
    tensor = _constant(value)
    return None if tensor is None else tensor.numpy().astype(object)


def shape_range(node: Node, shape: Shape) -> Shape:
    """The dimensions that a Shape node gives of a tensor's shape."""
    return shape[slice(node.get("start", 0), node.get("end"))]


def constant_ints(value: Value | None) -> list[int] | None:
    """The numbers of a small constant integer vector or scalar, None for anything else."""
    if value is None or not value.is_constant or value.data is None or not _is_small(value.data):
        return None
    return [int(n) for n in value.data.numpy().reshape(-1)]


def _constant(value: Value) -> Tensor | None:
    """The integers of a small constant or of a Constant node."""
    if value.is_constant:
        held: object = value.data
    elif value.producer is not None and value.producer.is_op("Constant"):
        held = value.producer.get("value")
        for name in ("value_int", "value_ints"):
            if name in value.producer.attributes:
                held = Tensor(np.array(value.producer.get(name), dtype=np.int64))
    else:
        return None
    return held if isinstance(held, Tensor) and _is_small(held) else None


def _is_small(tensor: Tensor) -> bool:
    return tensor.dtype in _INTEGERS and len(tensor.shape) <= 1 and tensor.size <= _MAX_ELEMENTS


def _ints(value: Value | None) -> list[int] | None:
    """As `constant_ints`, through Constant nodes."""
    tensor = None if value is None else _constant(value)
    return None if tensor is None else [int(n) for n in tensor.numpy().reshape(-1)]


def _numbers(elements: Elements) -> Elements:
    numbers = [None if isinstance(e, str) else e for e in elements.reshape(-1)]
    return np.array(numbers, dtype=object).reshape(elements.shape)


def _shape(node: Node, found: dict[Value, Elements]) -> Elements | None:
    value = node.input(0)
    if value is None or value.shape is None:
        return None
    dims = shape_range(node, value.shape)
    return np.array(dims, dtype=object)


def _size(node: Node, found: dict[Value, Elements]) -> Elements | None:
    value = node.input(0)
    size = static_size(None if value is None else value.shape)
    return None if size is None else np.array(size, dtype=object)


def _same(node: Node, found: dict[Value, Elements]) -> Elements | None:
    if node.is_op("Cast"):
        read = node.input(0)
        if node.get("to") not in _INTEGERS or read is None or read.dtype not in _INTEGERS:
            return None
    elements = elements_of(node.input(0), found)
    if elements is None or node.get("to") != DataType.INT32:
        return elements
    limits = np.iinfo(np.int32)
    numbers = [e for e in elements.reshape(-1) if isinstance(e, int)]
    fits = all(limits.min <= e <= limits.max for e in numbers)
    return elements if fits else None


def _gather(node: Node, found: dict[Value, Elements]) -> Elements | None:
    elements, read = elements_of(node.input(0), found), node.input(1)
    tensor = None if read is None else _constant(read)
    if elements is None or elements.ndim != 1 or tensor is None:
        return None
    indices = tensor.numpy()
    if ((indices < -elements.size) | (indices >= elements.size)).any():
        return None
    # Not the element itself, which numpy would take for an array of numbers or of text.
    return np.array(elements[indices], dtype=object)


def _slice(node: Node, found: dict[Value, Elements]) -> Elements | None:
    elements = elements_of(node.input(0), found)
    if elements is None or elements.ndim != 1:
        return None
    if node.graph.opset < 10:
        starts, ends, steps = list(node.get("starts", ())), list(node.get("ends", ())), [1]
    else:
        read = [_ints(node.input(slot)) for slot in (1, 2)]
        step = [1] if node.input(4) is None else _ints(node.input(4))
        if read[0] is None or read[1] is None or step is None:
            return None
        starts, ends, steps = read[0], read[1], step
    if len(starts) != 1 or len(ends) != 1 or steps != [1]:
        return None
    return np.asarray(elements[starts[0] : ends[0]])


def _concat(node: Node, found: dict[Value, Elements]) -> Elements | None:
    parts = []
    for value in node.inputs:
        part = elements_of(value, found)
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
    elements = elements_of(node.input(0), found)
    if elements is None or elements.shape != (1,):
        return None
    return elements.reshape(())


def _unsqueeze(node: Node, found: dict[Value, Elements]) -> Elements | None:
    elements = elements_of(node.input(0), found)
    if elements is None or elements.ndim != 0:
        return None
    axes = _ints(node.input(1)) if node.graph.opset >= 13 else list(node.get("axes", ()))
    return elements.reshape(1) if axes in ([0], [-1]) else None


def _arithmetic(node: Node, found: dict[Value, Elements]) -> Elements | None:
    read = node.input(0)
    first, second = elements_of(read, found), elements_of(node.input(1), found)
    if read is None or read.dtype not in _INTEGERS or first is None or second is None:
        return None
    try:
        one, other = np.broadcast_arrays(first, second)
    except ValueError:
        return None
    limits = np.iinfo(np.int32 if read.dtype is DataType.INT32 else np.int64)
    results = [_apply(node.op_type, a, b) for a, b in zip(one.flat, other.flat, strict=True)]
    if any(isinstance(r, int) and not limits.min <= r <= limits.max for r in results):
        return None
    return np.array(results, dtype=object).reshape(one.shape)


def _apply(op_type: str, one: Dim, other: Dim) -> Dim:
    """One element of a sum, difference, product or quotient; Div rounds towards zero."""
    neutral = 1 if op_type in ("Mul", "Div") else 0
    if other == neutral:
        return one
    if one == neutral and op_type in ("Add", "Mul"):
        return other
    if not isinstance(one, int) or not isinstance(other, int):
        return None
    if op_type == "Div":
        if other == 0:
            return None
        quotient = abs(one) // abs(other)
        return quotient if (one < 0) == (other < 0) else -quotient
    return int(getattr(operator, op_type.lower())(one, other))


_RULES: dict[str, Callable[[Node, dict[Value, Elements]], Elements | None]] = {
    "Add": _arithmetic,
    "Sub": _arithmetic,
    "Mul": _arithmetic,
    "Div": _arithmetic,
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
