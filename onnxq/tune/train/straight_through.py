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


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor | None, low: int, high: int) -> Tensor:
    """The integers of QuantizeLinear, in floats; gradients pass where nothing is clipped.

    Together with `dequantize` the gradient of the scale is that of LSQ (Esser et al., 2020): the
    rounding error where a number is between the ends, the end where it is clipped.
    """
    steps = x / scale
    if zero_point is None:
        return round_through(torch.clamp(steps, low, high))
    return round_through(torch.clamp(steps, low - zero_point, high - zero_point)) + zero_point


def dequantize(steps: Tensor, scale: Tensor, zero_point: Tensor | None) -> Tensor:
    """What integers stand for."""
    held = steps.to(scale.dtype)
    if zero_point is not None:
        held = held - zero_point.to(scale.dtype)
    return held * scale
