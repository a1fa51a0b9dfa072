"""Patterns and conditions that LayerNormalization and RMSNormalization have in common."""

from __future__ import annotations

import numpy as np

from onnxq.ir import Builder, DataType, Match, Node, Value
from onnxq.ir.pattern import Either, PatternBuilder, Term, Variable
from onnxq.passes.fusion.fusing import keeps_shape, kept_axes, reduced


def normalized(op: PatternBuilder, d: Term, eps: Variable) -> Either:
    """``d / sqrt(mean(d²) + eps)``."""
    squared = op.either(op.Pow(d, 2.0), op.Mul(d, d))
    v = op.Add(reduced(op, "ReduceMean", squared, "square_mean"), op.number(eps))
    root = op.either(op.Sqrt(v), op.Pow(v, 0.5))
    inverse = op.either(op.Reciprocal(root), op.Div(1.0, root), op.Pow(v, -0.5))
    return op.either(op.Div(d, root), op.Mul(d, inverse))


def normalized_axes(match: Match, *reductions: Node) -> tuple[int, ...] | None:
    """Sizes of the axes normalized over, None if the match is no normalization of ``x``.

    It is one if ``x`` is float32, all means go over the same last axes, their sizes are known, the
    constant added to the variance is a number that is not negative, and scale and bias, as far as
    the match has them, fit the axes.
    """
    x, axes = match["x"], kept_axes(reductions[0])
    if x.dtype is not DataType.FLOAT or x.shape is None or match.number("eps") < 0:
        return None
    if axes is None or axes != list(range(-len(axes), 0)) or len(axes) > len(x.shape):
        return None
    if any(kept_axes(r) != axes for r in reductions[1:]) or not keeps_shape(match, x):
        return None
    sizes = tuple(d for d in x.shape[-len(axes) :] if isinstance(d, int))
    parameters = [v for v in map(match.get, ("scale", "bias")) if v is not None]
    if len(sizes) != len(axes) or any(_parameter(v, sizes) is None for v in parameters):
        return None
    return sizes


def made_parameter(op: Builder, match: Match, name: str) -> Value | None:
    """Input for a scale or bias: what the match has under this name; None if it has none."""
    value = match.get(name)
    if value is None:
        return None
    found = _parameter(value, match.found)
    return op.constant(found, value.name) if isinstance(found, np.ndarray) else found


def made_scale(op: Builder, match: Match) -> Value:
    """Input for the scale: the match's, or one that changes nothing."""
    scale = made_parameter(op, match, "scale")
    if scale is None:
        scale = op.constant(np.ones(match.found, np.float32), f"{match.root.output.name}_scale")
    return scale


def _parameter(value: Value, shape: tuple[int, ...]) -> np.ndarray | Value | None:
    """A scale or bias in exactly this shape: the value as it is, or a constant's numbers.

    None if the value has another shape, or one that is not known.
    """
    if value.shape == shape or not value.is_constant:
        return value if value.shape == shape else None
    numbers = value.numpy()
    ones = (1,) * (numbers.ndim - len(shape))
    return numbers.reshape(shape) if numbers.shape == ones + shape else None
