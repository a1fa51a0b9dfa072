"""What a Slice takes, however its opset says it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from onnxq.ir import Node, Value
from onnxq.ir.shape_values import constant_ints

TO_THE_END = 2**31 - 1
"""Slice ends from here on mean the end: exporters write the largest int32 or int64."""

FIRST_INPUT_OPSET = 10
"""From here on Slice takes its limits as inputs and has steps."""


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
    if node.graph.opset < FIRST_INPUT_OPSET:
        starts, ends = list(node.get("starts", ())), list(node.get("ends", ()))
        axes: list[int] | None = list(node.get("axes", range(len(starts))))
        steps: list[int] | None = [1] * len(starts)
    else:
        read = constant_ints(node.input(1)), constant_ints(node.input(2))
        if read[0] is None or read[1] is None:
            return None
        starts, ends = read[0], read[1]
        axes, steps = list(range(len(starts))), [1] * len(starts)
        if node.input(3) is not None:
            axes = constant_ints(node.input(3))
        if node.input(4) is not None:
            steps = constant_ints(node.input(4))
    if axes is None or steps is None or not len(starts) == len(ends) == len(axes) == len(steps):
        return None
    return [Limits(*numbers) for numbers in zip(starts, ends, axes, steps, strict=True)]


def set_limits(node: Node, limits: list[Limits]) -> None:
    """Make a Slice take this, in the form of the model's opset (steps of 1 below opset 10)."""
    graph = node.graph
    columns = {
        "starts": [n.start for n in limits],
        "ends": [n.end for n in limits],
        "axes": [n.axis for n in limits],
        "steps": [n.step for n in limits],
    }
    if graph.opset < FIRST_INPUT_OPSET:
        for name in ("starts", "ends", "axes"):
            graph.set_attribute(node, name, columns[name])
        return
    has_steps = any(n.step != 1 for n in limits)
    for slot, (name, numbers) in enumerate(columns.items(), start=1):
        if name != "steps" or has_steps:
            stem = f"{node.output.name}_{name}"
            graph.set_constant(node, slot, np.array(numbers, dtype=np.int64), stem)
        elif (steps := node.input(slot)) is not None:
            node.set_input(slot, None)
            if steps.is_constant and not steps.is_used:
                steps.graph.discard(steps)


def normal_axis(axis: int, value: Value | None) -> int | None:
    """An axis of a value counted from the first, None where its rank has to be known and is not."""
    if axis >= 0:
        return axis
    return None if value is None or value.rank is None else axis + value.rank
