"""Resize that repeats pixels, as concatenations of integers with channels last."""

from __future__ import annotations

import numpy as np

from onnxq.ir import Graph, Node, Value, attribute_value
from onnxq.passes.nodes import added

_FIRST_OPSET = 13
"""From here on Unsqueeze and Squeeze take axes as an input."""


def repeats(node: Node) -> tuple[int, int] | None:
    """How often a Resize repeats every row and every column; None if that is not all it does."""
    read, made = node.input(0), node.output
    if read is None or read.rank != 4 or node.graph.opset < _FIRST_OPSET:
        return None
    if attribute_value(node, "antialias") or not isinstance((read.shape or ())[1], int):
        return None
    grid, rounding = (
        attribute_value(node, name) for name in ("coordinate_transformation_mode", "nearest_mode")
    )
    # Where a pixel lies halfway between two, the mode of rounding would matter.
    centred = grid == "half_pixel" and str(rounding).startswith("round")
    if not centred and (grid, rounding) != ("asymmetric", "floor"):
        return None
    factors = _scales(node, read) or _ratios(read, made)
    if factors is None or len(factors) != 4 or factors[:2] != [1, 1]:
        return None
    rows, columns = factors[2:]
    whole = float(rows).is_integer() and float(columns).is_integer()
    if not whole or min(rows, columns) < 1 or rows * columns == 1:
        return None
    return int(rows), int(columns)


def _scales(node: Node, read: Value) -> list[float] | None:
    scales, axes = node.input(2), node.get("axes")
    if scales is None or not scales.is_constant or not scales.numpy().size:
        return None
    found = [float(s) for s in scales.numpy()]
    if axes is None:
        return found
    by_axis = dict(zip((axis % 4 for axis in axes), found, strict=False))
    return [by_axis.get(axis, 1.0) for axis in range(4)]


def _ratios(read: Value, made: Value) -> list[float] | None:
    """Sizes over sizes, where they are known."""
    before, after = read.shape or (), made.shape or ()
    if len(before) != len(after):
        return None
    pairs = list(zip(before, after, strict=True))
    # A batch that is left open stays what it is.
    if pairs[0][0] != pairs[0][1] or pairs[0][0] is None:
        return None
    rest = [(a, b) for a, b in pairs[1:] if isinstance(a, int) and isinstance(b, int) and a]
    return None if len(rest) != 3 else [1.0, *(b / a for a, b in rest)]


def repeated(graph: Graph, integers: Value, rows: int, columns: int, name: str) -> Value:
    """Integers of an image with every row and column repeated."""
    shape, dtype = integers.shape, integers.dtype
    assert shape is not None and dtype is not None and isinstance(shape[1], int)
    channels = shape[1]

    def made(op_type: str, *read: Value, **attributes: int | list[int]) -> Value:
        return added(graph, op_type, read, f"{name}_{op_type}", dtype, None, **attributes)

    def numbers(*values: int) -> Value:
        return graph.constant(np.array(values, np.int64), f"{name}_shape")

    value = made("Transpose", integers, perm=[0, 2, 3, 1])
    if columns > 1:
        value = made("Concat", *[value] * columns, axis=3)
        value = made("Reshape", value, numbers(0, 0, -1, channels))
    if rows > 1:
        axis = numbers(2)
        value = made("Concat", *[made("Unsqueeze", value, axis)] * rows, axis=2)
        # Zeros keep the size that stands at their place.
        value = made("Squeeze", made("Reshape", value, numbers(0, -1, 1, 0, 0)), axis)
    return made("Transpose", value, perm=[0, 3, 1, 2])
