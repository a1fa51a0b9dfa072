"""Lines: values whose integers are those of another, read with another scale and zero-point."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from onnxq.ir import Node, Use, Value, attribute_value
from onnxq.targets import Target


@dataclass(frozen=True)
class Line:
    """``slope * x + offset`` of one value ``x``, with a slope above 0.

    Attributes:
        source: The value ``x``.
        slope: See above.
        offset: See above.
    """

    source: Value
    slope: float
    offset: float

    @property
    def zero(self) -> float:
        """The ``x`` at which the line is 0."""
        return -self.offset / self.slope


def line_of(node: Node) -> Line | None:
    """What a node computes, if it is a line: arithmetic with one number, HardSigmoid, HardSwish.

    The line of a HardSwish is that of the factor by which it multiplies what it reads.
    """
    read = node.input(0)
    if read is not None and node.is_op("HardSwish"):
        return Line(read, 1 / 6, 0.5)
    if read is not None and node.is_op("HardSigmoid"):
        alpha, beta = (float(attribute_value(node, name)) for name in ("alpha", "beta"))
        return Line(read, alpha, beta)
    constant = [v for v in node.inputs if v is not None and v.is_constant]
    source = [v for v in node.inputs if v is not None and not v.is_constant]
    if len(constant) != 1 or len(source) != 1 or not node.is_op("Mul", "Div", "Add", "Sub"):
        return None
    numbers, x = constant[0].numpy(), source[0]
    if numbers.size != 1 or numbers.dtype != np.float32 or numbers.ndim > (x.rank or 0):
        return None
    number = float(numbers.reshape(()))
    if not math.isfinite(number):
        return None
    if x is not node.input(0) and node.is_op("Div", "Sub"):
        return None
    if node.is_op("Add", "Sub"):
        return Line(x, 1.0, number if node.is_op("Add") else -number)
    slope = number if node.is_op("Mul") else 1 / (number or math.inf)
    return Line(x, slope, 0.0) if 1e-6 < slope < 1e6 else None


def takes_offset(use: Use, target: Target) -> bool:
    """Whether a reader adds up an offset of what it reads in its bias, but for its padding."""
    rule = target.operators.get(use.node.op_type) if not use.node.domain else None
    if rule is None or rule.bias is None or rule.weight is None or use.slot != 0:
        return False
    if not use.node.is_op("Conv", "Gemm"):
        return False
    weight, bias = use.node.input(rule.weight), use.node.input(rule.bias)
    factors = [attribute_value(use.node, a) for a in ("alpha", "beta")]
    return (
        weight is not None
        and weight.is_constant
        and (bias is None or bias.is_constant)
        and (not use.node.is_op("Gemm") or factors == [1.0, 1.0])
    )


def sums_by_channel(node: Node) -> np.ndarray:
    """What a Conv or Gemm with a constant weight gives where it reads nothing but ones."""
    weight = node.input(1)
    assert weight is not None
    numbers = weight.numpy().astype(np.float64)
    by_row = node.is_op("Conv") or attribute_value(node, "transB")
    return np.asarray(numbers.sum(axis=tuple(range(1, numbers.ndim)) if by_row else 0))
