"""Removing what a rewrite leaves without a reader."""

from __future__ import annotations

from onnxq.ir import Value, remove_unused


def remove_computation(value: Value) -> None:
    """Remove what makes a value that nothing reads, and in turn what only that read."""
    pending = [value]
    while pending:
        last = pending.pop()
        node, graph = last.producer, last.graph
        if last.is_used or last.is_input or graph.values.get(last.name) is not last:
            continue
        if node is None:
            graph.discard(last)
        elif not any(v is not None and v.is_used for v in node.outputs):
            pending += [v for v in node.inputs if v is not None]
            remove_unused(node.graph, [node])
