"""Operators on quantized numbers, whose integers are held in floats so that gradients pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from onnxq.ir import DataType, Node, Value, attribute_value
from onnxq.tune.train.dtypes import TORCH_TYPES
from onnxq.tune.train.operators.convolutions import convolution
from onnxq.tune.train.operators.registry import Run, UnsupportedError, operator
from onnxq.tune.train.straight_through import dequantize, quantize, round_through


def ends_of(dtype: DataType) -> tuple[int, int]:
    """Smallest and largest integer of a type."""
    if dtype.name.startswith("UINT"):
        return 0, (1 << dtype.bits) - 1
    return -(1 << (dtype.bits - 1)), (1 << (dtype.bits - 1)) - 1


def format_of(value: Value | None, node: Node) -> DataType:
    """The type of what a node quantizes to: its zero-point's, or as it states."""
    stated = attribute_value(node, "output_dtype")
    known = (None if value is None else value.dtype) or (DataType(stated) if stated else None)
    dtype = known or (DataType.UINT8 if value is None else node.output.dtype)
    if dtype is None:
        raise UnsupportedError("has a zero-point whose type is not known")
    if dtype.is_float and dtype not in TORCH_TYPES:
        raise UnsupportedError(f"quantizes to {dtype.label}, which torch does not have")
    return dtype


def spread(x: Tensor, like: Tensor, axis: int, block: int) -> Tensor:
    """Scales or zero-points so that they go with every element of a tensor."""
    if x.numel() == 1 and not block:
        return x.reshape(())
    if block:
        return x.repeat_interleave(block, axis).narrow(axis, 0, like.shape[axis])
    around = [1] * like.ndim
    around[axis] = -1
    return x.reshape(around)


def offset_of(
    zero_point: Tensor | None, like: Tensor, dtype: torch.dtype, axis: int, block: int
) -> Tensor | float:
    """A zero-point as it goes with a tensor: a number where it is one that nobody trains."""
    if zero_point is None:
        return 0.0
    if zero_point.numel() == 1 and not block and not zero_point.requires_grad:
        return float(zero_point)
    return spread(zero_point.to(like.device, dtype), like, axis, block)


@operator("QuantizeLinear", host=(2,))
def _quantize_linear(node: Node) -> Run:
    axis, block = attribute_value(node, "axis"), attribute_value(node, "block_size") or 0
    dtype = format_of(node.input(2), node)

    def run(x: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
        along = 0 if axis is None else axis
        scale = spread(scale, x, along, block)
        if dtype.is_float:
            return _to_narrow_float(x / scale, TORCH_TYPES[dtype])
        offset = offset_of(zero_point, x, scale.dtype, along, block)
        return quantize(x.to(scale.dtype), scale, offset, *ends_of(dtype))

    return run


def _to_narrow_float(x: Tensor, dtype: torch.dtype) -> Tensor:
    end = torch.finfo(dtype).max
    clipped = torch.clamp(x, -end, end)
    return clipped + (clipped.to(dtype).to(x.dtype) - clipped).detach()


@operator("DequantizeLinear", host=(2,))
def _dequantize_linear(node: Node) -> Run:
    axis, block = attribute_value(node, "axis"), attribute_value(node, "block_size") or 0
    stated = attribute_value(node, "output_dtype")
    dtype = TORCH_TYPES[DataType(stated)] if stated else None

    def run(x: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
        along = 0 if axis is None else axis
        offset = offset_of(zero_point, x, scale.dtype, along, block)
        y = dequantize(x, spread(scale, x, along, block), offset)
        return y if dtype is None else y.to(dtype)

    return run


@operator("DynamicQuantizeLinear")
def _dynamic_quantize_linear(node: Node) -> Run:
    def run(x: Tensor) -> Any:
        low, high = torch.clamp(x.amin(), max=0), torch.clamp(x.amax(), min=0)
        width = high - low
        scale = torch.where(width == 0, 1.0, width / 255)
        zero_point = torch.clamp(round_through(-low / scale), 0, 255)
        return quantize(x, scale, zero_point, 0, 255), scale, zero_point

    return run


def _centred(x: Tensor, zero_point: Tensor | None, axis: int) -> Tensor:
    """Integers less their zero-point, in floats in which sums of their products are exact."""
    held = x.double()
    if zero_point is None:
        return held
    return held - spread(zero_point.double(), held, axis, 0) if zero_point.numel() else held


@operator("MatMulInteger")
def _mat_mul_integer(node: Node) -> Run:
    def run(
        a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None
    ) -> Tensor:
        return _centred(a, a_zero, -2) @ _centred(b, b_zero, -1)

    return run


@operator("ConvInteger")
def _conv_integer(node: Node) -> Run:
    convolve = convolution(node)

    def run(
        x: Tensor, w: Tensor, x_zero: Tensor | None = None, w_zero: Tensor | None = None
    ) -> Tensor:
        return convolve(_centred(x, x_zero, 1), _centred(w, w_zero, 0), None)

    return run


@operator("QLinearMatMul")
def _q_linear_mat_mul(node: Node) -> Run:
    ends = ends_of(format_of(node.input(7), node))

    def run(
        a: Tensor,
        a_scale: Tensor,
        a_zero: Tensor,
        b: Tensor,
        b_scale: Tensor,
        b_zero: Tensor,
        y_scale: Tensor,
        y_zero: Tensor,
    ) -> Tensor:
        sums = _centred(a, a_zero, -2) @ _centred(b, b_zero, -1)
        factor = spread(a_scale, a, -2, 0) * spread(b_scale, b, -1, 0)
        zero_point = spread(y_zero.double(), sums, -2, 0)
        return quantize(sums * factor, spread(y_scale, sums, -2, 0), zero_point, *ends).float()

    return run


@operator("QLinearConv")
def _q_linear_conv(node: Node) -> Run:
    ends, convolve = ends_of(format_of(node.input(7), node)), convolution(node)

    def run(
        x: Tensor,
        x_scale: Tensor,
        x_zero: Tensor,
        w: Tensor,
        w_scale: Tensor,
        w_zero: Tensor,
        y_scale: Tensor,
        y_zero: Tensor,
        bias: Tensor | None = None,
    ) -> Tensor:
        added = None if bias is None else bias.double()
        sums = convolve(_centred(x, x_zero, 1), _centred(w, w_zero, 0), added)
        factor = x_scale.reshape(()) * spread(w_scale, sums, 1, 0)
        zero_point = y_zero.reshape(()).double()
        return quantize(sums * factor, y_scale.reshape(()), zero_point, *ends).float()

    return run
