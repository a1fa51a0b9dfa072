"""Calling ONNX's inference so that no model makes it end the process or run without end."""

from __future__ import annotations

import math
from collections.abc import Iterable

import onnx
import onnx.checker
import onnx.shape_inference

from onnxq.ir.conformity import CRASHES_INFERENCE, CRASHING_NUMBERS
from onnxq.ir.loading import called
from onnxq.ir.node import Node, Value
from onnxq.ir.types import DataType

INFERENCE_FAILURES = (
    onnx.shape_inference.InferenceError,
    onnx.checker.ValidationError,
    RuntimeError,
    ValueError,
)
"""What ONNX's inference raises."""

_NOWHERE = "types unknown"
"""A domain that there is not."""

_HUGE = 1 << 22
"""ONNX writes down a symbol for each element of a vector; for more than these it takes long."""

_HUGE_SHAPE = 1 << 31
"""Elements that a tensor which is made a vector may have."""

_SHORT = 64
"""Longer constants are no shapes."""


def infer_shapes(message: onnx.ModelProto, nodes: Iterable[Node]) -> onnx.ModelProto:
    """A message of some nodes with the types that ONNX infers, in values of subgraphs too.

    Numbers of shape computations are followed only where no vector can be huge.

    Raises:
        one of `INFERENCE_FAILURES`.
    """
    kept = [f for f in message.functions if not _crashes(f)]
    if len(kept) < len(message.functions):
        del message.functions[:]
        message.functions.extend(kept)
    message.opset_import.add(domain=_NOWHERE, version=1)
    _hide(message.graph, frozenset())
    huge = any(_is_huge(node) for node in nodes)
    return onnx.shape_inference.infer_shapes(message, data_prop=not huge)


def _crashes(function: onnx.FunctionProto) -> bool:
    """Whether a function's body, which is not checked like a graph, may end the process."""
    return any((d, name) in CRASHES_INFERENCE for d, name, _ in called(function.node)) or any(
        node.op_type == op_type and a.name == name and not a.ref_attr_name and a.i not in taken
        for (op_type, name), taken in CRASHING_NUMBERS.items()
        for node in function.node
        for a in node.attribute
    )


def _hide(graph: onnx.GraphProto, known: frozenset[str]) -> None:
    """Make operators unknown that end the process, until the types of what they read are known."""
    described = (v for values in (graph.input, graph.value_info) for v in values)
    known |= {v.name for v in described if v.HasField("type")}
    known |= {t.name for t in graph.initializer}
    for node in graph.node:
        if (node.domain, node.op_type) in CRASHES_INFERENCE and not known.issuperset(node.input):
            node.domain = _NOWHERE
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                if body.node:
                    _hide(body, known)


def _is_huge(node: Node) -> bool:
    """Whether a node, or one in its subgraphs, may read a huge vector or lead to one."""
    # The ends of slices are often the largest integer.
    counts = not node.is_op("Slice")
    for value in node.inputs:
        if value is not None and (_is_huge_value(value) or (counts and _is_huge_number(value))):
            return True
    return any(_is_huge(inner) for body in node.subgraphs() for inner in body.nodes())


def _is_huge_value(value: Value) -> bool:
    sizes = [d for d in value.shape or () if isinstance(d, int)]
    return max(sizes, default=0) > _HUGE or math.prod(sizes) > _HUGE_SHAPE


def _is_huge_number(value: Value) -> bool:
    data = value.data
    if data is None and value.producer is not None and value.producer.is_op("Constant"):
        data = value.producer.get("value")
    if data is None or data.dtype is not DataType.INT64 or data.size > _SHORT:
        return False
    return bool((abs(data.numpy()) > _HUGE).any())
