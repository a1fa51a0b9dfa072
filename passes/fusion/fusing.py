"""What fusions of decomposed operators have in common."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxq.ir import Context, Graph, Match, Node, Rule, Value, attribute_value, rewrite
from onnxq.ir.pattern import Operator, PatternBuilder, Term, Variable
from onnxq.ir.shape_values import constant_ints


def fuse(graph: Graph, rules: Sequence[Rule], ctx: Context, opset: int) -> int:
    """Apply rules, from the end, if the graph's opset has the fused operator.

    In a graph of an older opset nothing changes and the log is told, at debug level 2, what was
    left.
    """
    if graph.opset >= opset:
        return rewrite(graph, rules, ctx, last_first=True)
    if ctx.debug >= 2:
        _tell(graph, rules, ctx, opset)
    return 0


def _tell(graph: Graph, rules: Sequence[Rule], ctx: Context, opset: int) -> None:
    """Tell the log of what would be fused, a node that is part of a longer match only there."""
    told = set[Node]()
    for node in reversed(list(graph.all_nodes())):
        for rule in rules:
            match = None if node in told else rule.match(node)
            if match is not None:
                told.update(match.nodes)
                ctx.log(f"    {node.label}: left, since this needs opset {opset}: {rule.what}")


def number(value: Value | None) -> float | None:
    """The number a constant of one element holds, None for anything else."""
    if value is None or not value.is_constant or value.data is None or value.data.size != 1:
        return None
    if not value.data.dtype.is_float and value.data.dtype.numpy.kind not in "iu":
        return None
    return float(value.numpy().reshape(()))


def keeps_shape(match: Match, x: Value) -> bool:
    """Whether no one-element constant of a match adds dimensions to what is computed from ``x``."""
    return all(
        value.rank == 0 or (x.rank is not None and value.rank is not None and value.rank <= x.rank)
        for node in match.nodes
        for value in node.inputs
        if number(value) is not None and value is not None and not _names_axes(node, value)
    )


def kept_axes(reduction: Node) -> list[int] | None:
    """Axes a reduction goes over, counted from the end and sorted.

    None if it drops them, does not name them, or they cannot be counted from the end because the
    rank is unknown.
    """
    read, given = reduction.input(0), reduction.input(1)
    axes = list(reduction.get("axes", ())) if given is None else constant_ints(given)
    if not axes or read is None or not attribute_value(reduction, "keepdims"):
        return None
    if read.rank is None:
        return sorted(axes) if max(axes) < 0 else None
    return sorted({axis % read.rank - read.rank for axis in axes})


def reduced(op: PatternBuilder, op_type: str, x: Term, bind: str) -> Operator:
    """A reduction of ``x`` whose axes, an attribute or an input, are left to the condition."""
    return op(op_type)(x, op.optional(Variable(f"{bind}_axes")), bind=bind)


def trailing(axes: list[int] | None) -> bool:
    """Whether axes counted from the end are the last ones, without a gap."""
    return axes is not None and axes == list(range(-len(axes), 0))


def parameter(value: Value, shape: tuple[int, ...]) -> np.ndarray | Value | None:
    """A scale or bias in exactly this shape: the value as it is, or a constant's numbers.

    None if the value has another shape, or one that is not known.
    """
    if value.shape == shape:
        return value
    if not value.is_constant or value.numpy().size != np.prod(shape, dtype=np.int64):
        return None
    numbers = value.numpy()
    stripped = numbers.shape[numbers.ndim - len(shape) :]
    if numbers.ndim < len(shape) or stripped != shape:
        return None
    return numbers.reshape(shape)


def _names_axes(node: Node, value: Value) -> bool:
    return node.op_type.startswith("Reduce") and value is node.input(1)
