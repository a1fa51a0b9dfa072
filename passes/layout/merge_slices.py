"""Merging Slices, Splits and Concats in a row."""

from __future__ import annotations

from dataclasses import dataclass

from onnxq.ir import Context, Graph, Node, Pass, Value, attribute_value, remove_unused
from onnxq.passes.nodes import made_by
from onnxq.passes.slicing import TO_THE_END, Limits, normal_axis, set_limits, slice_limits

_TO_THE_START = -(2**31)
"""End of a Slice in negative steps that takes the first element too."""


@dataclass(frozen=True)
class MergeSlices(Pass):
    """Merge Slices of a Slice and Concats of a Concat, and undo cutting what is joined again.

    Rewritten, with constant limits:

    - A Slice that only Slices read: each of them takes both cuts. Along one axis this needs the
      size of the axis, or starts and steps that are positive and no end counted from the end but
      the last.
    - A Concat that only one other Concat reads, along the same axis.
    - In a Concat, Slices in steps of one along its axis of one value, each beginning where the one
      before ends: the value itself if together they take all of it, else one Slice, if nothing
      else reads them. Likewise all parts of a Split along that axis, in order. A Concat that is
      left with one input is for `eliminate-identity`.

    Not rewritten:

    - Limits or axes known only at run time; negative axes where the rank is not known.
    - Slices that take nothing, and slices along one axis of unknown size whose merged limits
      would depend on that size.
    - A Slice or Concat that something else reads as well, or that is a graph output: it would
      stay, and nothing be gained.
    """

    name = "merge-slices"
    default = True
    needs_types = True

    def run(self, graph: Graph, ctx: Context) -> int:
        """See `Pass.run`; counts the Slices, Concats and runs of parts that are gone."""
        made = 0
        # Inner graphs first: what they no longer read makes room in outer ones.
        for nested in reversed(list(graph.all_graphs())):
            while found := self._merge(nested, ctx):
                made += found
        return made

    @staticmethod
    def _merge(graph: Graph, ctx: Context) -> int:
        made = 0
        # From the end, so that a whole chain of Concats goes into the last one.
        for node in reversed(graph.nodes()):
            if not node.in_graph:
                continue
            if node.is_op("Concat"):
                made += _take_in_concats(node, ctx) + _join_parts(node, ctx)
            elif node.is_op("Slice"):
                made += _go_into_readers(node, ctx)
        return made


def _go_into_readers(inner: Node, ctx: Context) -> int:
    """Let the Slices that read a Slice make its cuts too."""
    made, value = inner.output, inner.input(0)
    if made.is_output or not made.uses or value is None:
        return 0
    planned: list[tuple[Node, list[Limits]]] = []
    for use in made.uses:
        limits = None if use.slot or not use.node.is_op("Slice") else _both(value, inner, use.node)
        if limits is None:
            return 0
        planned.append((use.node, limits))
    ctx.rewrote(f"{inner.label}: into the Slices after it")
    for node, limits in planned:
        node.set_input(0, value)
        set_limits(node, limits)
    remove_unused(inner.graph, [inner])
    return 1


def _both(value: Value, first: Node, second: Node) -> list[Limits] | None:
    """Limits of two Slices in a row in terms of what the first one reads."""
    merged: dict[int, Limits] = {}
    for node in (first, second):
        limits = slice_limits(node)
        if limits is None:
            return None
        seen = set()
        for cut in limits:
            axis = normal_axis(cut.axis, value)
            if axis is None or axis in seen:
                return None
            seen.add(axis)
            own = cut._replace(axis=axis)
            both = _compose(merged[axis], own, _size(value, axis)) if axis in merged else own
            if both is None:
                return None
            merged[axis] = both
    return [merged[axis] for axis in sorted(merged)]


def _size(value: Value, axis: int) -> int | None:
    size = next(iter((value.shape or ())[axis : axis + 1]), None)
    return size if isinstance(size, int) else None


def _compose(first: Limits, second: Limits, size: int | None) -> Limits | None:
    """One cut along one axis for two, None if they depend on its unknown size or take nothing."""
    if first.step == 0 or second.step == 0:
        return None
    if size is not None:
        taken = range(size)
        for cut in (first, second):
            taken = taken[cut.start : cut.end : cut.step]
        if not taken:
            return None
        end = taken.stop if taken.stop >= 0 else _TO_THE_START
        return Limits(taken.start, end, first.axis, taken.step)
    if min(first.start, second.start, first.step - 1, second.step - 1) < 0:
        return None
    open_first = first.end >= TO_THE_END
    if second.end >= TO_THE_END:
        end = first.end
    elif second.end >= 0 and first.end >= 0:
        end = first.start + second.end * first.step
        end = end if open_first else min(first.end, end)
    elif second.end < 0 and open_first and first.step == 1:
        end = second.end
    else:
        return None
    start = first.start + second.start * first.step
    return Limits(start, min(end, TO_THE_END), first.axis, first.step * second.step)


def _take_in_concats(outer: Node, ctx: Context) -> int:
    """Join at once what a chain of Concats that nothing else reads joins one after the other."""
    inputs: list[Value | None] = []
    taken: list[Node] = []
    pending = list(reversed(outer.inputs))
    while pending:
        value = pending.pop()
        inner = made_by(value, "Concat")
        if inner is None or not _goes_into(inner, outer):
            inputs.append(value)
        else:
            taken.append(inner)
            pending += reversed(inner.inputs)
    if taken:
        _set_inputs(outer, inputs)
        remove_unused(outer.graph, taken)
        ctx.rewrote(f"{outer.label}: joins what {len(taken)} Concats before it joined")
    return len(taken)


def _goes_into(inner: Node, outer: Node) -> bool:
    return (
        inner.graph is outer.graph
        and len(inner.output.uses) == 1
        and not inner.output.is_output
        and _axis(inner) is not None
        and _axis(inner) == _axis(outer)
    )


def _axis(node: Node) -> int | None:
    axis = attribute_value(node, "axis")
    return None if axis is None else normal_axis(int(axis), node.output)


def _join_parts(concat: Node, ctx: Context) -> int:
    """Replace runs of parts of one value by the value, or by one Slice."""
    axis = _axis(concat)
    if axis is None or None in concat.inputs:
        return 0
    parts = [v for v in concat.inputs if v is not None]
    joined: list[Value | None] = []
    made, at = 0, 0
    while at < len(parts):
        length, whole = _run(parts, at, axis)
        if length > 1:
            joined.append(whole)
            made += 1
            ctx.rewrote(f"{concat.label}: {length} parts are '{whole.name}' again")
        else:
            joined.append(parts[at])
        at += length
    if made:
        _set_inputs(concat, joined)
        cut = dict.fromkeys(v.producer for v in parts if v.producer is not None)
        for node in cut:
            remove_unused(node.graph, [node])
    return made


def _run(parts: list[Value], at: int, axis: int) -> tuple[int, Value]:
    """How many parts from ``at`` on belong together, and what stands for all of them."""
    split = made_by(parts[at], "Split")
    if split is not None:
        whole, outputs = split.input(0), list(split.outputs)
        own = normal_axis(int(attribute_value(split, "axis")), whole)
        if whole is not None and own == axis and parts[at : at + len(outputs)] == outputs:
            return len(outputs), whole
        return 1, parts[at]
    cuts = [_cut(parts[at], axis)]
    while cuts[-1] is not None and at + len(cuts) < len(parts):
        following = _cut(parts[at + len(cuts)], axis)
        if following is None or not _continues(cuts[-1], following):
            break
        cuts.append(following)
    run = [c for c in cuts if c is not None]
    if len(run) < 2:
        return 1, parts[at]
    return _stand_in(parts[at : at + len(run)], run)


@dataclass(frozen=True)
class _Cut:
    """A Slice in steps of one along one axis."""

    node: Node
    value: Value
    start: int
    end: int
    reaches_end: bool


def _cut(part: Value, axis: int) -> _Cut | None:
    node = made_by(part, "Slice")
    value, limits = (None, None) if node is None else (node.input(0), slice_limits(node))
    if node is None or value is None or limits is None or len(limits) != 1:
        return None
    start, end, own_axis, step = limits[0]
    if step != 1 or normal_axis(own_axis, value) != axis:
        return None
    size = _size(value, axis)
    if size is not None:
        start, end, _ = slice(start, end).indices(size)
        return _Cut(node, value, start, max(start, end), end == size)
    return _Cut(node, value, start, end, end >= TO_THE_END)


def _continues(before: _Cut, after: _Cut) -> bool:
    return (
        before.value is after.value
        and before.end == after.start
        and not before.reaches_end
        and (after.end < 0 or after.start <= after.end)
    )


def _stand_in(parts: list[Value], run: list[_Cut]) -> tuple[int, Value]:
    first, last = run[0], run[-1]
    borders = [cut.end for cut in run[:-1]]
    takes_all = first.start == 0 and last.reaches_end
    # A border counted from the end is certainly where the other parts think it is only when it
    # is the only one.
    if min(first.start, *borders) < 0 and not (takes_all and len(borders) == 1):
        return 1, parts[0]
    if first.end >= 0 and first.start > first.end:
        return 1, parts[0]
    if takes_all:
        return len(run), first.value
    alone = all(len(p.uses) == 1 and not p.is_output for p in parts)
    here = all(c.node.graph is first.node.graph for c in run)
    if not alone or not here or last.end < 0:
        return 1, parts[0]
    limits = slice_limits(first.node)
    assert limits is not None
    set_limits(first.node, [Limits(first.start, last.end, limits[0].axis, 1)])
    parts[0].type = None
    return len(run), parts[0]


def _set_inputs(node: Node, inputs: list[Value | None]) -> None:
    for slot in range(max(len(inputs), len(node.inputs)) - 1, -1, -1):
        node.set_input(slot, inputs[slot] if slot < len(inputs) else None)
