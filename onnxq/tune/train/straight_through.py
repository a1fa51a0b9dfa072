"""Rounding whose gradient is that of the identity (Bengio et al., 2013)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


class _AtLeast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, least: Tensor) -> Tensor:
        return torch.maximum(x, least)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def at_least(x: Tensor, least: Tensor) -> Tensor:
    """The larger of both; gradients pass as if there was no limit, so that numbers come back."""
    limited: Tensor = _AtLeast.apply(x, least)
    return limited


def scaled_gradient(x: Tensor, factor: float) -> Tensor:
    """The same numbers; their gradient is multiplied."""
    same: Tensor = _ScaledGradient.apply(x, factor)
    return same


def round_through(x: Tensor) -> Tensor:
    """Round half to even; gradients pass as if nothing was done."""
    rounded: Tensor = _Round.apply(x)
    return rounded


def quantize(x: Tensor, scale: Tensor, offset: Tensor | float, low: int, high: int) -> Tensor:
    """The integers of QuantizeLinear, in floats; gradients pass where nothing is clipped.

    Together with `dequantize` the gradient of the scale is that of LSQ (Esser et al., 2020): the
    rounding error where a number is between the ends, the end where it is clipped.

    Args:
        x: What is quantized.
        scale: Of a shape that goes with it.
        offset: The zero-point, in floats.
        low: Smallest integer.
        high: Largest integer.
    """
    ends: tuple[Any, Any] = (low - offset, high - offset)
    steps = round_through(torch.clamp(x / scale, *ends))
    return steps if _is_zero(offset) else steps + offset


class _FakeQuantize(torch.autograd.Function):
    """`quantize` and `dequantize` in few passes over memory, with the gradients of LSQ."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: float, high: float) -> Tensor:
        y = torch.div(x, scale).clamp_(low, high).round_().mul_(scale)
        ctx.save_for_backward(x, scale, y)
        ctx.ends = low, high
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,), (x, scale, y) = gradients, ctx.saved_tensors
        low, high = (end * float(scale) for end in ctx.ends)
        of_x = torch.ops.aten.hardtanh_backward(gradient, x, low, high)
        if not ctx.needs_input_grad[1]:
            return of_x, None, None, None
        return of_x, (_dot(gradient, y) - _dot(of_x, x)) / scale, None, None


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """The sum of products, in the order of memory."""
    if a.ndim == 4 and a.is_contiguous(memory_format=torch.channels_last):
        a, b = a.permute(0, 2, 3, 1), b.permute(0, 2, 3, 1)
    return torch.dot(a.reshape(-1), b.reshape(-1))


def fake_quantize(x: Tensor, scale: Tensor, offset: Tensor | float, low: int, high: int) -> Tensor:
    """What `dequantize` gives of `quantize`, with one scale for all numbers."""
    if isinstance(offset, Tensor):
        return dequantize(quantize(x, scale, offset, low, high), scale, offset)
    result: Tensor = _FakeQuantize.apply(x, scale, low - offset, high - offset)
    return result


def signs(x: Tensor, scale: Tensor, offset: Tensor | float, slope: float) -> Tensor:
    """The integers of binary numbers: one below the zero-point and one above, 0 is above.

    Their gradient is that of k tanh(t x) with ``slope`` for t, and k the larger one of 1/t and 1
    (error decay estimator: Qin et al., 2020). That of the scale is the sign itself.
    """
    soft = torch.tanh(slope * x / scale.detach()) * max(1 / slope, 1.0)
    hard = torch.where(x < 0, -1.0, 1.0).to(soft.dtype)
    steps = soft + (hard - soft).detach()
    return steps if _is_zero(offset) else steps + offset


def dequantize(steps: Tensor, scale: Tensor, offset: Tensor | float) -> Tensor:
    """What integers stand for, with the zero-point in floats."""
    held = steps.to(scale.dtype)
    return (held if _is_zero(offset) else held - offset) * scale


def _is_zero(offset: Tensor | float) -> bool:
    return not isinstance(offset, Tensor) and offset == 0
