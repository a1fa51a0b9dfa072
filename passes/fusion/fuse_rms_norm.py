"""Fusing the parts of a root-mean-square normalization to RMSNormalization."""

from __future__ import annotations

from dataclasses import dataclass

from onnxq.ir import Builder, Match, Rule, RulePass, Value
from onnxq.ir.pattern import Either, PatternBuilder, Variable
from onnxq.passes.fusion.normalization import made_scale, normalized, normalized_axes
from onnxq.passes.nodes import made_by


def _pattern(op: PatternBuilder, x: Variable, eps: Variable, scale: Variable) -> Either:
    norm = normalized(op, x, eps)
    return op.either(op.Mul(norm, scale), norm)


def _shape(match: Match) -> tuple[int, ...] | None:
    difference = made_by(match["x"], "Sub")
    mean = difference and made_by(difference.input(1), "ReduceMean")
    if difference and mean and mean.input(0) is difference.input(0):
        return None
    return normalized_axes(match, match.node("square_mean"))


def _replacement(op: Builder, match: Match) -> Value:
    scale, axis = made_scale(op, match), -len(match.found)
    return op.RMSNormalization(match["x"], scale, axis=axis, epsilon=match.number("eps"))


@dataclass(frozen=True)
class FuseRmsNorm(RulePass):
    """Fuse mean square, division and scale to one RMSNormalization.

    Rewritten, in float32 and from opset 23 on: ``x / sqrt(mean(x²) + eps) * scale``, the mean over
    one or several last axes of known sizes. The square is Pow or Mul; the division is Div, or Mul
    by Reciprocal, by ``1 / sqrt`` or by a power of -1/2. The scale may be missing; it must have
    exactly the shape of the normalized axes, a constant may have dimensions of 1 before them.

    Not rewritten:

    - Below opset 23, which does not have the operator; raise the model's opset first.
    - ``x`` that has its mean taken off right before: that is fuse-layer-norm's.
    - Other axes than the last, a scale of another shape (then the Mul stays), other element types.
    - Anything between that is also read elsewhere.

    onnxruntime itself fuses the forms with Pow and Div only; fused, the others run at 1.5 to 3.6
    times the speed alone, 1.01 to 1.09 times between float MatMuls and 1.04 to 1.22 times between
    integer ones, and no form at less than 0.98.
    """

    name = "fuse-rms-norm"
    numerics = "reassociates"
    default = True
    after = ("fuse-layer-norm",)
    needs_types = True
    last_first = True
    rules = (Rule(_pattern, _replacement, _shape, "is one RMSNormalization", opset=23),)
