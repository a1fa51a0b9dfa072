"""When two operators compute the same."""

from __future__ import annotations

from collections.abc import Hashable

from onnxq.ir import Node
from onnxq.ir.operators import is_deterministic, lacks_identity


def node_key(node: Node, inputs: Hashable) -> Hashable | None:
    """What has to be equal for two nodes to be merged; None for one that is never merged.

    ``inputs`` stands for what the node reads.
    """
    if node.is_op("Identity") or any(node.subgraphs()) or not is_deterministic(node):
        return None
    if any(v is not None and v.is_output and lacks_identity(v) for v in node.outputs):
        return None
    if any(a.reference for a in node.attributes.values()):
        return None
    return (
        node.domain,
        node.op_type,
        inputs,
        tuple(value is None for value in node.outputs),
        tuple(sorted((name, a.kind, a.bits()) for name, a in node.attributes.items())),
        node.device_configurations,
    )
