"""What ONNX's operator definitions say about nodes."""

from __future__ import annotations

import functools
from typing import Any

import onnx.defs
import onnx.helper

from onnxq.ir.attribute import Attribute
from onnxq.ir.node import Node, Value
from onnxq.ir.types import DataType

_RANDOM = frozenset(
    {
        "Bernoulli",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    }
)


def schema_of(node: Node) -> onnx.defs.OpSchema | None:
    """The operator's definition at the model's opset.

    None for an operator that ONNX does not define there and for a call of a function that the
    model itself defines, whatever its name.
    """
    model = node.graph.model
    if any(f.domain == node.domain and f.name == node.op_type for f in model.functions):
        return None
    version = model.opset_imports.get(node.domain)
    return None if version is None else _schema(node.op_type, version, node.domain)


def attribute_value(node: Node, name: str) -> Any:
    """An attribute's plain value, its default from the operator's definition if not set.

    None if there is no such attribute, default or definition (see `schema_of`).
    """
    if name in node.attributes:
        return node.get(name)
    schema = schema_of(node)
    declared = None if schema is None else schema.attributes.get(name)
    if declared is None or not declared.default_value.name:
        return None
    return Attribute.of(onnx.helper.get_attribute_value(declared.default_value)).plain()


@functools.cache
def _schema(op_type: str, version: int, domain: str) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op_type, version, domain)
    except onnx.defs.SchemaError:
        return None


def is_deterministic(node: Node) -> bool:
    """Whether ONNX defines the operator and equal inputs always give equal outputs.

    A node with subgraphs is deterministic when every node in them is.
    """
    if schema_of(node) is None or node.is_op(*_RANDOM):
        return False
    if node.is_op("Dropout") and not is_inference_dropout(node):
        return False
    return all(is_deterministic(n) for subgraph in node.subgraphs() for n in subgraph.all_nodes())


def lacks_identity(value: Value) -> bool:
    """Whether runtimes have no Identity for such tensors.

    These are elements smaller than a byte and, as of onnxruntime 1.32, exponents alone (E8M0).
    """
    dtype = value.dtype
    return dtype is DataType.FLOAT8E8M0 or (dtype is not None and 0 < dtype.bits < 8)


def is_inference_dropout(node: Node) -> bool:
    """Whether a Dropout certainly drops nothing.

    Up to opset 6 attribute ``is_test`` says so, from 7 to 11 every Dropout is one, and from 12
    on the third input, ``training_mode``, has to be absent or a constant false.
    """
    opset = node.graph.opset
    if opset < 7:
        return bool(node.get("is_test", 0))
    training = node.input(2)
    return training is None or (training.is_constant and not training.numpy().any())
