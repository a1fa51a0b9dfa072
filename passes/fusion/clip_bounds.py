"""Between which numbers a Clip keeps its values, however its opset says it."""

from __future__ import annotations

import math

import numpy as np

from onnxq.ir import DataType, Node, attribute_value
from onnxq.ir.pattern import number

Bounds = tuple[float, float]
"""What values are raised to if they are below it, and what they are lowered to after that."""

FIRST_INPUT_OPSET = 11
"""From here on Clip has its bounds as inputs, before it as attributes."""

LARGEST = {
    DataType.FLOAT: float(np.finfo(np.float32).max),
    DataType.DOUBLE: float(np.finfo(np.float64).max),
}
"""The largest finite number of each element type whose bounds are known."""


def clip_bounds(clip: Node) -> Bounds | None:
    """The bounds of a Clip; None if they are not constant numbers, or its dtype is no known float.

    A bound that is not given is the largest finite number of the dtype, as ONNX defines it.
    """
    read = clip.input(0)
    largest = None if read is None or read.dtype is None else LARGEST.get(read.dtype)
    if largest is None:
        return None
    if clip.graph.opset < FIRST_INPUT_OPSET:
        return float(attribute_value(clip, "min")), float(attribute_value(clip, "max"))
    found = [-largest, largest]
    for at, given in enumerate((clip.input(1), clip.input(2))):
        bound = number(given)
        if given is not None and (bound is None or math.isnan(bound)):
            return None
        found[at] = found[at] if bound is None else bound
    return found[0], found[1]
