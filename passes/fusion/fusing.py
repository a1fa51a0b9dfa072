"""What fusions of decomposed operators have in common."""

from __future__ import annotations

from onnxq.ir import Match, Node, Value, attribute_value
from onnxq.ir.pattern import Operator, PatternBuilder, Term, Variable, number
from onnxq.passes.nodes import stated


def keeps_shape(match: Match, x: Value) -> bool:
    """Whether no one-element constant of a match adds dimensions to what is computed from ``x``."""
    return all(
        value.rank == 0 or (x.rank is not None and value.rank is not None and value.rank <= x.rank)
        for node in match.nodes
        for slot, value in enumerate(node.inputs)
        # The second input of a reduction names its axes.
        if not (slot and node.op_type.startswith("Reduce"))
        if value is not None and number(value) is not None
    )


def kept_axes(reduction: Node) -> list[int] | None:
    """Axes a reduction goes over, counted from the end and sorted.

    None if it drops them, does not name them, or they cannot be counted from the end because the
    rank is unknown.
    """
    read, axes = reduction.input(0), stated(reduction, "axes", 1)
    if not axes or read is None or not attribute_value(reduction, "keepdims"):
        return None
    if read.rank is None:
        return sorted(axes) if max(axes) < 0 else None
    return sorted({axis % read.rank - read.rank for axis in axes})


def reduced(op: PatternBuilder, op_type: str, x: Term, bind: str) -> Operator:
    """A reduction of ``x`` whose axes, an attribute or an input, are left to the condition."""
    return op(op_type)(x, op.optional(Variable(f"{bind}_axes")), bind=bind)
