"""Merging operators in a row that only give the same elements another shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxq.ir import Context, Graph, Node, Pass, Shape, Value, remove_unused
from onnxq.ir.shape_values import constant_ints
from onnxq.passes.nodes import bypass, made_by, state, stated

_RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")

_FIRST_OPSET = 5
"""Before it Reshape takes the shape as an attribute."""


@dataclass(frozen=True)
class MergeReshapes(Pass):
    """Let the last of several Reshape, Flatten, Squeeze and Unsqueeze in a row do it all.

    Rewritten, where nothing but operators of these kinds reads the one before:

    - Unsqueeze and Squeeze, or Squeeze and Unsqueeze, of the same axes: gone.
    - Two Unsqueezes, or two Squeezes: one of all axes, when the rank is known.
    - Any other two: one Reshape to the shape of the second. A Reshape's own constant target is
      kept; zeros in it, which copy a dimension of what was between, become that dimension's size
      or copy the same dimension of the first input.

    Not rewritten:

    - When more than one dimension of the result is neither known nor the dimension at the same
      place of the input, or one dimension is 0: a Reshape cannot say that.
    - A target that would both copy and infer a dimension where the old one did not: with an empty
      batch it fails.
    - A second Reshape whose target is made at run time (unless ``allowzero`` rules out that it
      copies dimensions of what was between), and opsets below 5.
    - One that something else reads too, or that is a graph output: it would stay.
    """

    name = "merge-reshapes"
    default = True
    needs_types = True

    def run(self, graph: Graph, ctx: Context) -> int:
        """See `Pass.run`; counts the operators that read past another."""
        if graph.opset < _FIRST_OPSET:
            return 0
        made = 0
        for nested in list(graph.all_graphs()):
            for node in nested.nodes():
                label, merged = node.label, node if node.is_op(*_RESHAPES) else None
                while merged is not None and merged.in_graph:
                    merged = _merge(merged)
                    if merged is not None:
                        ctx.rewrote(f"{label}: does what the operator before it did too")
                        made += 1
        return made


def _merge(second: Node) -> Node | None:
    """Merge a node with the one before it; gives the node that is left, None if nothing is done."""
    between, first = second.input(0), made_by(second.input(0), *_RESHAPES)
    if between is None or first is None or between.is_output:
        return None
    source = first.input(0)
    if source is None or any(u.slot or not u.node.is_op(*_RESHAPES) for u in between.uses):
        return None
    if _undoes(first, second, between.rank):
        left = second if bypass(second, source) else None
    else:
        left = _merge_axes(first, second, source) or _merge_shapes(second, source, between)
    if left is not None:
        remove_unused(first.graph, [first])
    return left


def _normal(axes: Sequence[int], rank: int | None) -> list[int] | None:
    """Axes counted from the first, in order; None if that takes a rank that is not known."""
    if rank is None and any(a < 0 for a in axes):
        return None
    found = sorted(a + rank if a < 0 and rank is not None else a for a in axes)
    return found if len(set(found)) == len(found) and (not found or found[0] >= 0) else None


def _undoes(first: Node, second: Node, rank_between: int | None) -> bool:
    """Whether the second puts back the axes that the first took away, or the reverse."""
    if {first.op_type, second.op_type} != {"Squeeze", "Unsqueeze"}:
        return False
    one, other = stated(first, "axes", 1), stated(second, "axes", 1)
    if one is None or other is None:
        return False
    rank = rank_between
    if rank is not None and first.is_op("Squeeze"):
        rank += len(one)
    a, b = _normal(one, rank), _normal(other, rank)
    return (a is not None and a == b) or sorted(one) == sorted(other)


def _merge_axes(first: Node, second: Node, source: Value) -> Node | None:
    """Merge two Squeezes or two Unsqueezes."""
    one, other = stated(first, "axes", 1), stated(second, "axes", 1)
    if first.op_type != second.op_type or one is None or other is None or source.rank is None:
        return None
    if first.is_op("Unsqueeze"):
        rank = source.rank + len(one) + len(other)
        outer, inner = _normal(other, rank), _normal(one, rank - len(other))
    elif first.is_op("Squeeze"):
        rank = source.rank
        outer, inner = _normal(one, rank), _normal(other, rank - len(one))
    else:
        return None
    if outer is None or inner is None:
        return None
    # The axes that the outer list leaves over are those that the inner one counts.
    left = [axis for axis in range(rank) if axis not in set(outer)]
    if any(axis >= len(left) for axis in inner) or any(axis >= rank for axis in outer):
        return None
    second.set_input(0, source)
    state(second, "axes", 1, sorted((*outer, *(left[axis] for axis in inner))))
    return second


def _merge_shapes(second: Node, source: Value, between: Value) -> Node | None:
    """Make one Reshape of both."""
    graph = second.graph
    if second.is_op("Reshape") and constant_ints(second.input(1)) is None:
        if not second.get("allowzero", 0):
            return None
        second.set_input(0, source)
        return second
    target = _target(second, source.shape, between.shape)
    if target is None:
        return None
    if second.is_op("Reshape"):
        second.set_input(0, source)
        if target != constant_ints(second.input(1)):
            state(second, "shape", 1, target)
        return second
    old = second.output
    shape = graph.constant(np.array(target, dtype=np.int64), f"{old.name}_shape")
    new = graph.add("Reshape", [source, shape], name=second.name, types=[old.type])
    name, node_name = old.name, second.name
    graph.replace_uses(old, new.output)
    remove_unused(graph, [second])
    if graph.find(name) is None:
        graph.rename(new.output, name)
    graph.rename_node(new, node_name)
    return new


def _target(second: Node, source: Shape | None, between: Shape | None) -> list[int] | None:
    """What a Reshape of the source has to be told to give what the second operator gives."""
    if second.is_op("Reshape"):
        stated = constant_ints(second.input(1))
        if stated is None or 0 not in stated:
            return stated
        if second.get("allowzero", 0) or between is None or 0 in stated[len(between) :]:
            # Zeros that copy nothing, or copy what is not known.
            return None
        dims: Shape = tuple(between[at] if n == 0 else n for at, n in enumerate(stated))
        mixed = -1 in stated
    else:
        if second.output.shape is None:
            return None
        dims, mixed = second.output.shape, False
    target = []
    for at, dim in enumerate(dims):
        if isinstance(dim, int):
            if dim == 0:
                return None
            target.append(dim)
        elif dim is not None and source is not None and source[at : at + 1] == (dim,):
            target.append(0)
        else:
            target.append(-1)
    if target.count(-1) > 1 or (-1 in target and 0 in target and not mixed):
        return None
    return target
