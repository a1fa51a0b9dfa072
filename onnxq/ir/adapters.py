"""Operators that ONNX's version converter passes on although they come to mean something else.

Each adapter changes a node of an old version before the converter runs, so that what the
converter makes of it computes the same. Found by running every operator's old forms before and
after conversion.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from onnxq.errors import InputError
from onnxq.ir.graph import Graph
from onnxq.ir.node import Node, Value
from onnxq.ir.tensor import Tensor


@dataclass(frozen=True)
class Adapter:
    """What has to be done to an operator on the way to the version that changed its meaning."""

    changed_in: int
    apply: Callable[[Node], None]


def last_before(graph: Graph, version: int) -> int:
    """The version at which a model has to be adapted first on its way to a newer one.

    That is the last one in which everything means what it does in the model's own.
    """
    names = {node.op_type for node in graph.all_nodes() if not node.domain}
    needed = (name for name in names if needs_adapter(name, graph.opset, version))
    return min((ADAPTERS[name].changed_in - 1 for name in needed), default=graph.opset)


def adapt(graph: Graph, version: int) -> None:
    """Change a model's nodes, those of subgraphs included, that `last_before` speaks of.

    Raises:
        InputError: a node has no newer equal.
    """
    for node in list(graph.all_nodes()):
        if not node.domain and needs_adapter(node.op_type, graph.opset, version):
            ADAPTERS[node.op_type].apply(node)


def needs_adapter(op_type: str, old: int, new: int) -> bool:
    """Whether an operator of the default domain means something else in a newer version."""
    adapter = ADAPTERS.get(op_type)
    return adapter is not None and old < adapter.changed_in <= new


def _resize(node: Node) -> None:
    """Name the sampling that was the only one: positions are divided by the scale.

    The nearest element is the one before when an axis grows and the one after when it shrinks,
    as onnxruntime has it; the definition leaves it open.
    """
    graph = node.graph
    graph.set_attribute(node, "coordinate_transformation_mode", "asymmetric")
    if node.get("mode", "nearest") != "nearest":
        return
    scales = _constant(node.input(1))
    if scales is None:
        raise _no_equal(node, "has scales that are not constant")
    before = bool((scales >= 1).all())
    if not before and (scales > 1).any():
        raise _no_equal(node, "enlarges one axis and reduces another")
    graph.set_attribute(node, "nearest_mode", "floor" if before else "ceil")


def _constant(value: Value | None) -> np.ndarray | None:
    if value is None or value.is_constant:
        return None if value is None else value.numpy()
    held = value.producer.get("value") if value.producer is not None else None
    return held.numpy() if isinstance(held, Tensor) else None


def _hardmax(node: Node) -> None:
    """Take the maximum over all axes from one on, as was done, and not over that one alone."""
    graph, (data, *_) = node.graph, node.inputs
    shape = graph.add("Shape", [data]).output
    flat = graph.add("Flatten", [data], {"axis": int(node.get("axis", 1))}).output
    found = graph.add("Hardmax", [flat], {"axis": 1}).output
    graph.replace_uses(node.output, graph.add("Reshape", [found, shape]).output)
    graph.remove(node)


def _group_normalization(node: Node) -> None:
    """Give every channel the scale and bias that its group had."""
    graph, data = node.graph, node.input(0)
    groups = graph.constant(np.array([node.get("num_groups")], np.int64), "groups")
    channels = graph.add("Shape", [data], {"start": 1, "end": 2}).output
    each = graph.add("Div", [channels, groups]).output
    table = graph.add("Concat", [groups, each], {"axis": 0}).output
    column = graph.constant(np.array([-1, 1], np.int64), "column")
    flat = graph.constant(np.array([-1], np.int64), "flat")
    for slot in (1, 2):
        upright = graph.add("Reshape", [node.input(slot), column]).output
        repeated = graph.add("Expand", [upright, table]).output
        node.set_input(slot, graph.add("Reshape", [repeated, flat]).output)


def _scan(node: Node) -> None:
    raise _no_equal(node, "scans a batch")


def _no_equal(node: Node, what: str) -> InputError:
    return InputError(
        f"node {node.label} {what}, which no opset after {node.graph.opset} can, so the model "
        "cannot be raised to a newer one; export it with the newer opset"
    )


ADAPTERS = {
    "GroupNormalization": Adapter(21, _group_normalization),
    "Hardmax": Adapter(13, _hardmax),
    "Resize": Adapter(11, _resize),
    "Scan": Adapter(9, _scan),
    # Is a Resize by then.
    "Upsample": Adapter(11, _resize),
}
