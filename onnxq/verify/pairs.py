"""Pairs of QuantizeLinear and DequantizeLinear, and the integers between them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxq.ir import Node, Value
from onnxq.runtime.specs import Array


@dataclass(frozen=True)
class Grid:
    """The integers of a pair; the scale is that of the whole tensor."""

    scale: float
    zero_point: int
    low: int
    high: int

    @property
    def is_centred(self) -> bool:
        """Whether the integers have both signs, with 0 for 0."""
        return self.zero_point == 0 and self.low < 0

    def lies_within(self, low: float, high: float) -> bool:
        """Whether the integers stand for numbers between two, up to half a step."""
        ends = (self.low - self.zero_point, self.high - self.zero_point)
        return ends[0] > low / self.scale - 0.5 and ends[1] < high / self.scale + 0.5

    def cuts(self, values: Array) -> Array:
        """Whether values lie beyond the ends, by more than rounding does."""
        codes = values.astype(np.float64) / self.scale + self.zero_point
        return (codes < self.low - 0.5) | (codes > self.high + 0.5)


def goes_into_pair(node: Node) -> bool:
    """Whether a node quantizes what is dequantized again."""
    return node.is_op("QuantizeLinear") and bool(behind(node))


def behind(quantizer: Node) -> list[Value]:
    """What DequantizeLinear makes of what a QuantizeLinear gives, each of them.

    Integers of few bits in a wider type may be clipped between.
    """
    integers = [quantizer.output]
    integers += [use.node.output for use in quantizer.output.uses if use.node.is_op("Clip")]
    return [
        use.node.output
        for value in integers
        for use in value.uses
        if use.slot == 0 and use.node.is_op("DequantizeLinear")
    ]


def read_back(quantizer: Node) -> list[Value]:
    """What of `behind` is the value that was quantized.

    Integers that are read with another scale or zero-point may be another value, a multiple of this
    one or a sum. They are where they were clipped, or where insert-qdq named them after another.
    """
    found = []
    for value in behind(quantizer):
        reader = value.producer
        assert reader is not None
        stem = quantizer.output.name.removesuffix("_q")
        is_other = value.name.endswith("_dq") and value.name != f"{stem}_dq"
        is_other = is_other or reader.input(0) is not quantizer.output
        if not is_other or all(map(_equal, quantizer.inputs[1:], reader.inputs[1:])):
            found.append(value)
    return found


def _equal(one: Value | None, other: Value | None) -> bool:
    if one is other:
        return True
    if one is None or other is None or not (one.is_constant and other.is_constant):
        return False
    return np.array_equal(one.numpy(), other.numpy())


def grid_of(quantizer: Node, reader: Node) -> Grid | None:
    """The grid of a pair with one scale that is constant; None of others."""
    scale, zero = quantizer.input(1), quantizer.input(2)
    dtype = quantizer.output.dtype if zero is None else zero.dtype
    given = [v for v in (scale, zero) if v is not None]
    if dtype is None or scale is None or not all(v.is_constant for v in given):
        return None
    step = scale.numpy()
    is_integer = dtype.name.removeprefix("U").startswith("INT")
    if not is_integer or step.size != 1 or not step.item() > 0:
        return None
    signed = dtype.name.startswith("INT")
    high = 2 ** (dtype.bits - signed) - 1
    point = 0 if zero is None else int(zero.numpy().astype(np.int64).item())
    low = -high - 1 if signed else 0
    clip = reader.inputs[0].producer if reader.inputs[0] is not None else None
    if clip is not None and clip.is_op("Clip"):
        ends = [v.numpy().item() for v in clip.inputs[1:] if v is not None and v.is_constant]
        low, high = ends if len(ends) == 2 else (low, high)
    return Grid(float(step.item()), point, low, high)
