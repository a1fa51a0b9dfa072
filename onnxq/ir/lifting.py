"""Giving out what the bodies of If, Loop and Scan compute, as outputs of the main graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np

from onnxq.ir.graph import Graph
from onnxq.ir.node import Node, Value
from onnxq.ir.types import DataType, TensorType, ValueType

_SCAN_OUTPUTS = ("scan_output_axes", "scan_output_directions")


def nested_values(graph: Graph) -> dict[str, Value]:
    """The values of all scopes by name; where several have one name, the outermost."""
    found: dict[str, Value] = {}
    for scope in graph.all_graphs():
        for name, value in scope.values.items():
            found.setdefault(name, value)
    return found


def can_lift(value: Value) -> bool:
    """Whether `lift` can give out a value, as far as is known.

    In a Loop, it can if the value has one shape in all iterations: dimensions of unknown size count
    as constant where an input of the model has them. What an If in a Loop or Scan computes, or one
    Loop in another, may have a shape of its own in each iteration.
    """
    owners = around(value.graph)
    repeated = [at for at, op_type in enumerate(owners) if op_type in ("Loop", "Scan")]
    if not repeated:
        return True
    if "If" in owners[: repeated[-1]] or ("Loop" in owners and len(repeated) > 1):
        return False
    if "Loop" not in owners:
        return True
    scope = value.graph
    while scope.outer is not None:
        scope = scope.outer
    fed = {dim for source in scope.inputs for dim in source.shape or () if isinstance(dim, str)}
    return value.shape is not None and all(isinstance(d, int) or d in fed for d in value.shape)


def liftable(graph: Graph) -> dict[str, Value]:
    """The values that `lift` can give out, by name; none that shares its name with another one."""
    count = Counter(name for scope in graph.all_graphs() for name in scope.values)
    return {n: v for n, v in nested_values(graph).items() if count[n] == 1 and can_lift(v)}


def around(graph: Graph) -> list[str]:
    """The operators that hold a graph in their bodies, the innermost first."""
    return [owner.op_type for owner in _owners(graph)]


def is_conditional(value: Value) -> bool:
    """Whether a value is computed in a branch of an If only."""
    return "If" in around(value.graph)


def lift(graph: Graph, names: Iterable[str]) -> None:
    """Let values of bodies be values of the main graph, under their own names.

    What an If computes in the branch that it does not take is empty, of shape [0]. What a Loop or
    Scan computes has the iterations as a new first axis. In the bodies themselves the values get
    other names. No two values of the graph may share a name.
    """
    inner = nested_values(graph)
    for name in names:
        value = inner[name]
        while (owner := value.graph.owner) is not None:
            value = _lifted(value, owner)


def _owners(graph: Graph) -> Iterator[Node]:
    """The operators that hold a graph, the innermost first."""
    while graph.owner is not None:
        yield graph.owner
        graph = graph.owner.graph


def _lifted(value: Value, owner: Node) -> Value:
    """A new output of the operator that holds a value's graph; it gives the value."""
    body, name = value.graph, value.name
    body.rename(value, body.fresh_name(f"{name}_inner"))
    # What goes in or out of a body already cannot go out as it is once more.
    given = body.add("Identity", [value], types=[value.type]).output
    for branch in owner.subgraphs():
        empty = np.zeros(0, (value.dtype or DataType.FLOAT).numpy)
        branch.add_output(given if branch is body else branch.constant(empty, f"{name}_none"))
    for attribute in _SCAN_OUTPUTS:
        if attribute in owner.attributes:
            owner.graph.set_attribute(owner, attribute, [*owner.get(attribute), 0])
    # The condition of a Loop stays inside.
    inside = int(owner.is_op("Loop"))
    while len(owner.outputs) < len(body.outputs) - inside - 1:
        owner._add_output(None)
    made = owner.graph._define(name, _type_outside(value, owner))
    owner._add_output(made)
    owner.graph._stale()
    return made


def _type_outside(value: Value, owner: Node) -> ValueType | None:
    if not isinstance(value.type, TensorType):
        return value.type
    is_stacked = value.shape is not None and not owner.is_op("If")
    return TensorType(value.type.dtype, (None, *(value.shape or ())) if is_stacked else None)
