"""Arithmetic, functions of single numbers, comparisons and logic."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from onnxq.ir import DataType, Node, attribute_value
from onnxq.tune.train.dtypes import TORCH_TYPES
from onnxq.tune.train.operators.registry import Run, UnsupportedError, functions, operator

functions(
    {
        "Abs": torch.abs,
        "Acos": torch.acos,
        "Acosh": torch.acosh,
        "Add": torch.add,
        "And": torch.logical_and,
        "Asin": torch.asin,
        "Asinh": torch.asinh,
        "Atan": torch.atan,
        "Atanh": torch.atanh,
        "BitwiseAnd": torch.bitwise_and,
        "BitwiseNot": torch.bitwise_not,
        "BitwiseOr": torch.bitwise_or,
        "BitwiseXor": torch.bitwise_xor,
        "Ceil": torch.ceil,
        "Cos": torch.cos,
        "Cosh": torch.cosh,
        "Equal": torch.eq,
        "Erf": torch.erf,
        "Exp": torch.exp,
        "Floor": torch.floor,
        "Greater": torch.gt,
        "GreaterOrEqual": torch.ge,
        "IsNaN": torch.isnan,
        "Less": torch.lt,
        "LessOrEqual": torch.le,
        "Log": torch.log,
        "Mul": torch.mul,
        "Neg": torch.neg,
        "Not": torch.logical_not,
        "Or": torch.logical_or,
        "Reciprocal": torch.reciprocal,
        "Round": torch.round,
        "Sign": torch.sign,
        "Sin": torch.sin,
        "Sinh": torch.sinh,
        "Sqrt": torch.sqrt,
        "Sub": torch.sub,
        "Tan": torch.tan,
        "Tanh": torch.tanh,
        "Where": torch.where,
        "Xor": torch.logical_xor,
    }
)


def _folded(function: Callable[[Tensor, Tensor], Tensor]) -> Run:
    return lambda *inputs: functools.reduce(function, inputs)


functions(
    {
        "Max": _folded(torch.maximum),
        "Mean": lambda *inputs: functools.reduce(torch.add, inputs) / len(inputs),
        "Min": _folded(torch.minimum),
        "Sum": _folded(torch.add),
    }
)


@operator("Div")
def _div(node: Node) -> Run:
    dtype = node.output.dtype

    def run(a: Tensor, b: Tensor) -> Tensor:
        whole = not a.is_floating_point() or (dtype is not None and not dtype.is_float)
        return torch.div(a, b, rounding_mode="trunc" if whole else None)

    return run


@operator("Pow")
def _pow(node: Node) -> Run:
    return lambda a, b: torch.pow(a, b).to(a.dtype)


@operator("Mod")
def _mod(node: Node) -> Run:
    return torch.fmod if attribute_value(node, "fmod") else torch.remainder


@operator("BitShift")
def _bit_shift(node: Node) -> Run:
    left = attribute_value(node, "direction") == "LEFT"
    return torch.bitwise_left_shift if left else torch.bitwise_right_shift


@operator("IsInf")
def _is_inf(node: Node) -> Run:
    negative = bool(attribute_value(node, "detect_negative"))
    positive = bool(attribute_value(node, "detect_positive"))
    return lambda x: torch.isinf(x) & ((x > 0) & positive | (x < 0) & negative)


@operator("Clip")
def _clip(node: Node) -> Run:
    if node.graph.opset >= 11:
        return _clipped
    low, high = attribute_value(node, "min"), attribute_value(node, "max")
    return lambda x: torch.clamp(x, low, high)


def _clipped(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    return x if low is None and high is None else torch.clamp(x, low, high)


@operator("Identity")
def _identity(node: Node) -> Run:
    return lambda x: x


@operator("Cast", "CastLike")
def _cast(node: Node) -> Run:
    source = node.input(0)
    given = None if source is None else source.dtype
    like = node.input(1)
    stated = attribute_value(node, "to")
    to = DataType(stated) if stated else (like.dtype if like else None) or node.output.dtype
    if to is None:
        raise UnsupportedError("casts to a type that is not known")
    if DataType.STRING in (to, given):
        raise UnsupportedError("casts strings, which torch does not have")
    dtype = TORCH_TYPES.get(to)
    if dtype is None:
        raise UnsupportedError(f"casts to {to.label}, which torch does not have")
    saturating = to.is_float and to.bits == 8
    if saturating and attribute_value(node, "saturate") == 0:
        raise UnsupportedError(f"casts to {to.label} without saturation")
    whole = not to.is_float and to is not DataType.BOOL
    was_whole = given is not None and not given.is_float

    def run(x: Tensor, like: Tensor | None = None) -> Tensor:
        if saturating:
            end = torch.finfo(dtype).max
            x = torch.clamp(x, -end, end)
        # Integers that floats hold stay there, for gradients.
        return x if whole and was_whole and x.is_floating_point() else x.to(dtype)

    return run
