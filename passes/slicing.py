"""What a Slice takes, however its opset says it."""

from __future__ import annotations

from typing import NamedTuple

from onnxq.ir import Node, Value
from onnxq.passes.nodes import state, stated
from onnxq.passes.unused import remove_computation

TO_THE_END = 2**31 - 1
"""Slice ends from here on mean the end: exporters write the largest int32 or int64."""


class Limits(NamedTuple):
    """What a Slice takes along one axis."""

    start: int
    end: int
    axis: int
    step: int


def slice_limits(node: Node) -> list[Limits] | None:
    """What a Slice takes along each axis that it names, None unless all of it is constant.

    Axes are as the model states them: negative ones count from the last.
    """
    starts, ends = stated(node, "starts", 1), stated(node, "ends", 2)
    if starts is None or ends is None:
        return None
    axes = stated(node, "axes", 3, list(range(len(starts))))
    steps = stated(node, "steps", 4, [1] * len(starts))
    if axes is None or steps is None or not len(starts) == len(ends) == len(axes) == len(steps):
        return None
    return [Limits(*numbers) for numbers in zip(starts, ends, axes, steps, strict=True)]


def set_limits(node: Node, limits: list[Limits]) -> None:
    """Make a Slice take this, in the form of the model's opset (steps of 1 below opset 10)."""
    starts, ends, axes, steps = (list(column) for column in zip(*limits, strict=True))
    for slot, name, numbers in ((1, "starts", starts), (2, "ends", ends), (3, "axes", axes)):
        state(node, name, slot, numbers)
    old = node.input(4)
    if any(step != 1 for step in steps):
        state(node, "steps", 4, steps)
    elif old is not None:
        node.set_input(4, None)
        remove_computation(old)


def normal_axis(axis: int, value: Value | None) -> int | None:
    """An axis of a value counted from the first, None where its rank has to be known and is not."""
    if axis >= 0:
        return axis
    return None if value is None or value.rank is None else axis + value.rank
