"""Where values come from."""

from __future__ import annotations

from onnxq.ir import Node, Value


def made_by(value: Value | None, *op_types: str) -> Node | None:
    """The node that makes a value, None if there is none or it is no such operator of ONNX's."""
    node = None if value is None else value.producer
    return node if node is not None and node.is_op(*op_types) else None
