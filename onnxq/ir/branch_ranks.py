"""Ranks that follow from what the branches of an If state of the values they read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from onnxq.ir.graph import Graph
from onnxq.ir.node import Node, Value
from onnxq.ir.shape_values import constant_ints
from onnxq.ir.types import TensorType

_FIRST_AXES_INPUT_OPSET = 13
"""Before it Squeeze and Unsqueeze take their axes as an attribute."""


def agreed_ranks(nodes: Iterable[Node]) -> Iterator[tuple[Value, TensorType]]:
    """Values of unknown rank that both branches of an If among some nodes give the same rank to.

    A branch that hands a value on, or adds or takes axes of size 1, states with the type of what it
    makes of it what rank the value has when that branch runs. One of the two does. Exporters write
    such Ifs for what may have a batch axis or none.
    """
    for node in nodes:
        if node.is_op("If"):
            stated = [dict(_stated(branch)) for branch in node.subgraphs()]
            for value, rank in stated[0].items():
                if value.dtype is not None and all(of.get(value) == rank for of in stated):
                    yield value, TensorType(value.dtype, (None,) * rank)


def _stated(branch: Graph) -> Iterator[tuple[Value, int]]:
    """Values of outer graphs with the rank that a branch states for them."""
    for node in branch.nodes():
        read = node.input(0)
        if read is None or read.graph is branch or read.shape is not None:
            continue
        added = _added_axes(node)
        if added is not None and node.output.rank is not None and node.output.rank >= added:
            yield read, node.output.rank - added


def _added_axes(node: Node) -> int | None:
    """How many axes an operator adds, None if it is another one."""
    if node.is_op("Identity"):
        return 0
    if not node.is_op("Squeeze", "Unsqueeze"):
        return None
    axes = node.get("axes")
    if node.graph.opset >= _FIRST_AXES_INPUT_OPSET:
        given = node.input(1)
        axes = None if given is None else constant_ints(given)
    if axes is None:
        return None
    return len(axes) if node.is_op("Unsqueeze") else -len(axes)
