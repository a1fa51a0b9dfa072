"""Which constant computations may be tried before the model runs, and how large they get."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx.checker import ValidationError
from onnx.shape_inference import InferenceError, infer_node_outputs

from onnxq.ir import DataType, Node, TensorType, Value
from onnxq.ir.copying import reads
from onnxq.ir.operators import schema_of
from onnxq.ir.saving import write_node
from onnxq.ir.types import merge_types, static_size, type_from_proto, type_to_proto

_BODY_BYTES = 1 << 26
"""Largest value inside a subgraph that is run to fold the node holding it."""

_LOOP_TRIPS = 1000
"""Longest Loop that is run to fold it."""

_KERNEL_SIZE = 1 << 16
"""Longest window of a pooling that is run; onnxruntime goes over all of it, padding included."""

_STRING_BYTES = 16
"""What one string is taken to need before it is known."""

_SHAPE_ELEMENTS = 64
"""Longer constants never say how large a result is."""

_BOUNDED = frozenset({"NonZero", "Unique", "Compress", "NonMaxSuppression"})
"""Operators whose result cannot outgrow their inputs by more than a small factor."""


def is_safe(node: Node) -> bool:
    """Whether running it can neither end the process nor take very long or very much memory."""
    if node.is_op("Loop"):
        trips = node.input(0)
        if trips is None or not trips.is_constant or trips.numpy().max(initial=0) > _LOOP_TRIPS:
            return False
    if max(map(abs, node.get("kernel_shape", ())), default=0) > _KERNEL_SIZE:
        return False
    if node.is_op("Div", "Mod"):
        divisor = node.input(1)
        if divisor is None or divisor.dtype is None:
            return False
        if not divisor.dtype.is_float and (
            not divisor.is_constant or np.isin(divisor.numpy(), (0, -1)).any()
        ):
            return False
    for subgraph in node.subgraphs():
        for inner in subgraph.all_nodes():
            if inner.is_op("Loop") or not is_safe(inner):
                return False
            for value in inner.outputs:
                if value is not None and (bytes_of(value) or _BODY_BYTES + 1) > _BODY_BYTES:
                    return False
    return True


def sizes_are_known(node: Node, inputs_are_known: bool) -> bool:
    """Whether the results' sizes are known, if need be from the numbers of its inputs."""
    if not inputs_are_known or any(node.subgraphs()) or _are_known(node.outputs):
        return _are_known(node.outputs)
    _infer(node)
    return node.is_op(*_BOUNDED) or _are_known(node.outputs)


def _are_known(values: Iterable[Value | None]) -> bool:
    return all(v is None or bytes_of(v) is not None or not may_be_tensor(v) for v in values)


def _infer(node: Node) -> None:
    """Fill in the types of a node's outputs from its constant inputs."""
    schema = schema_of(node)
    types, numbers = {}, {}
    for read in reads(node):
        if read.type is None or read.data is None:
            return
        types[read.name] = type_to_proto(read.type)
        if read.data.size <= _SHAPE_ELEMENTS:
            numbers[read.name] = read.data.to_proto(read.name)
    if schema is None:
        return
    proto = onnx.NodeProto()
    write_node(node, proto)
    imports = [onnx.helper.make_opsetid(d, v) for d, v in node.graph.model.opset_imports.items()]
    try:
        found = infer_node_outputs(schema, proto, types, numbers, opset_imports=imports)
    except (InferenceError, ValidationError, RuntimeError, ValueError):
        # The operator is used against its definition.
        return
    for value in node.outputs:
        if value is not None and value.name in found:
            value.type = merge_types(value.type, type_from_proto(found[value.name]))


def may_be_tensor(value: Value) -> bool:
    """Whether a value is a tensor as far as is known."""
    return value.type is None or isinstance(value.type, TensorType)


def bytes_of(value: Value) -> int | None:
    """Bytes a value takes, None while its size is not known."""
    if value.data is not None:
        return value.data.nbytes
    size = static_size(value.shape)
    if size is None or value.dtype is None or size < 0:
        return None
    bits = 8 * _STRING_BYTES if value.dtype is DataType.STRING else value.dtype.bits
    return (size * bits + 7) // 8
