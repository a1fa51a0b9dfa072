"""Fusing the parts of a Gaussian error linear unit to Gelu."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from onnxq.ir import Builder, Context, DataType, Graph, Match, Numerics, Pass, Rule, Value
from onnxq.ir.pattern import Operator, PatternBuilder, PatternFunction, Replacement, Variable
from onnxq.passes.fusion.fusing import fuse, keeps_shape

_FIRST_OPSET = 20

_SLOPE = math.sqrt(2 / math.pi)
_CUBIC = 0.044715

Inner = Callable[[PatternBuilder, Variable], Operator]
Halved = Callable[[PatternBuilder, "Variable | Operator"], Operator]


@dataclass(frozen=True)
class FuseGelu(Pass):
    """Fuse the exact Gelu written with Erf, and the approximate one written with Tanh, to Gelu.

    Rewritten, in float32 and from opset 20 on:

    - ``x * 0.5 * (1 + erf(x / sqrt(2)))`` with its three factors multiplied in any order, halved
      by Mul or Div, ``x`` divided by the root or multiplied by its reciprocal, and with the half
      already multiplied in: ``x * (0.5 + 0.5 * erf(...))``.
    - The same with ``tanh(sqrt(2 / pi) * (x + 0.044715 * x³))`` in place of ``erf``; the cube is
      Pow or Mul, and ``x`` may stand outside: ``x * sqrt(2 / pi) * (1 + 0.044715 * x²)``.

    Not rewritten:

    - Below opset 20, which does not have the operator; raise the model's opset first.
    - Other numbers than these (to the precision of their dtype): another function.
    - Other element types: their intermediate results are rounded otherwise than the operator's.
    - Parts that are also read elsewhere, and constants that add dimensions.

    onnxruntime itself fuses, of the forms with Erf, those with Div only. Fused, the forms that it
    leaves run at 1.4 to 3.1 times the speed alone, 1.02 to 1.15 times between float MatMuls with
    128 rows and more, and 1.06 to 1.37 times between integer ones.
    """

    name: ClassVar[str] = "fuse-gelu"
    numerics: ClassVar[Numerics] = "reassociates"
    default: ClassVar[bool] = True
    needs_types: ClassVar[bool] = True

    def run(self, graph: Graph, ctx: Context) -> int:
        """See `Pass.run`; counts the Gelus made."""
        return fuse(graph, [_RULES], ctx, _FIRST_OPSET)


_ERF: tuple[Inner, ...] = (
    lambda op, x: op.Erf(op.Div(x, math.sqrt(2))),
    lambda op, x: op.Erf(op.Mul(x, 1 / math.sqrt(2))),
)

_CUBED: tuple[Inner, ...] = (
    lambda op, x: op.Pow(x, 3.0),
    lambda op, x: op.Mul(x, op.Mul(x, x)),
)

_SQUARED_SCALED: tuple[Inner, ...] = (
    lambda op, x: op.Mul(op.Mul(x, _CUBIC), x),
    lambda op, x: op.Mul(op.Mul(x, x), _CUBIC),
    lambda op, x: op.Mul(op.Pow(x, 2.0), _CUBIC),
)


def _tanh_of_sum(cubed: Inner) -> Inner:
    return lambda op, x: op.Tanh(op.Mul(op.Add(x, op.Mul(cubed(op, x), _CUBIC)), _SLOPE))


def _tanh_of_product(squared: Inner) -> Inner:
    return lambda op, x: op.Tanh(op.Mul(op.Mul(x, _SLOPE), op.Add(squared(op, x), 1.0)))


_TANH = (*map(_tanh_of_sum, _CUBED), *map(_tanh_of_product, _SQUARED_SCALED))

_HALVED: tuple[Halved, ...] = (
    lambda op, term: op.Mul(term, 0.5),
    lambda op, term: op.Div(term, 2.0),
)


def _patterns(inner: Inner) -> list[PatternFunction]:
    """Every way to multiply ``x``, the half and one more than the inner function."""
    made: list[PatternFunction] = [
        lambda op, x: op.Mul(x, op.Add(op.Mul(inner(op, x), 0.5), 0.5)),
    ]
    for halved in _HALVED:
        made += _products(inner, halved)
    return made


def _products(inner: Inner, halved: Halved) -> list[PatternFunction]:
    return [
        lambda op, x: op.Mul(halved(op, x), op.Add(inner(op, x), 1.0)),
        lambda op, x: op.Mul(x, halved(op, op.Add(inner(op, x), 1.0))),
        lambda op, x: halved(op, op.Mul(x, op.Add(inner(op, x), 1.0))),
    ]


def _is_gelu(match: Match) -> bool:
    x = match["x"]
    return x.dtype is DataType.FLOAT and keeps_shape(match, x)


def _gelu(approximate: str) -> Replacement:
    def replacement(op: Builder, match: Match) -> Value:
        if approximate == "none":
            return op.Gelu(match["x"])
        return op.Gelu(match["x"], approximate=approximate)

    return replacement


_RULES = [
    Rule(pattern, _gelu(approximate), _is_gelu, "is one Gelu")
    for approximate, inners in (("none", _ERF), ("tanh", _TANH))
    for inner in inners
    for pattern in _patterns(inner)
]
