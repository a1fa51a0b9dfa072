"""Sums, means, extremes and norms along axes, and what orders or accumulates along one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from onnxq.ir import Node, attribute_value
from onnxq.tune.train.operators.registry import Run, axes_reader, ints, operator

_Reduce: TypeAlias = Callable[[Tensor, list[int], bool], Tensor]


def _sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.sum(x, axes, keep, dtype=x.dtype)


def _mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if x.is_floating_point():
        return torch.mean(x, axes, keep)
    count = math.prod(x.shape[axis] for axis in axes)
    return torch.div(_sum(x, axes, keep), count, rounding_mode="trunc")


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((a % x.ndim for a in axes), reverse=True):
        x = torch.prod(x, axis, keep, dtype=x.dtype)
    return x


def _norm(order: int) -> _Reduce:
    def run(x: Tensor, axes: list[int], keep: bool) -> Tensor:
        if x.is_floating_point():
            return torch.linalg.vector_norm(x, order, axes, keep)
        return torch.linalg.vector_norm(x.double(), order, axes, keep).to(x.dtype)

    return run


def _extreme(compute: Callable[..., Tensor], empty: float) -> _Reduce:
    def run(x: Tensor, axes: list[int], keep: bool) -> Tensor:
        if x.numel():
            return compute(x, axes, keep)
        # torch knows no extreme of nothing.
        rest = torch.sum(x, axes, keep)
        end = empty
        if not x.is_floating_point() and x.dtype is not torch.bool:
            limits = torch.iinfo(x.dtype)
            end = limits.min if empty < 0 else limits.max
        return torch.full_like(rest, end > 0 if x.dtype is torch.bool else end, dtype=x.dtype)

    return run


_REDUCTIONS: dict[str, _Reduce] = {
    "ReduceL1": _norm(1),
    "ReduceL2": _norm(2),
    "ReduceLogSum": lambda x, axes, keep: torch.log(torch.sum(x, axes, keep)),
    "ReduceLogSumExp": lambda x, axes, keep: torch.logsumexp(x, axes, keep),
    "ReduceMax": _extreme(torch.amax, -math.inf),
    "ReduceMean": _mean,
    "ReduceMin": _extreme(torch.amin, math.inf),
    "ReduceProd": _product,
    "ReduceSum": _sum,
    "ReduceSumSquare": lambda x, axes, keep: _sum(x * x, axes, keep),
}


@operator(*_REDUCTIONS, host=(1,))
def _reduction(node: Node) -> Run:
    reduce, keep = _REDUCTIONS[node.op_type], bool(attribute_value(node, "keepdims"))
    read = axes_reader(node, 1, 13 if node.op_type == "ReduceSum" else 18)
    nothing = bool(attribute_value(node, "noop_with_empty_axes"))

    def run(x: Tensor, axes: Tensor | None = None) -> Tensor:
        given = read(axes)
        if not given:
            given = [] if nothing else list(range(x.ndim))
        # Elementwise what is done to a sum is still done: the square, the logarithm.
        if not given:
            return reduce(x.unsqueeze(-1), [x.ndim], False)
        return reduce(x, given, keep)

    return run


@operator("ArgMax", "ArgMin")
def _arg_extreme(node: Node) -> Run:
    find: Callable[..., Tensor] = torch.argmax if node.op_type == "ArgMax" else torch.argmin
    axis, keep = attribute_value(node, "axis"), bool(attribute_value(node, "keepdims"))
    last = bool(attribute_value(node, "select_last_index"))

    def run(x: Tensor) -> Tensor:
        if last:
            return x.shape[axis] - 1 - find(x.flip(axis), axis, keep)
        return find(x, axis, keep)

    return run


_CUMULATED: dict[str, Callable[..., Tensor]] = {"CumProd": torch.cumprod, "CumSum": torch.cumsum}


@operator(*_CUMULATED, host=(1,))
def _cumulated(node: Node) -> Run:
    cumulate = _CUMULATED[node.op_type]
    reverse = bool(attribute_value(node, "reverse"))
    exclusive = bool(attribute_value(node, "exclusive"))

    def run(x: Tensor, along: Tensor) -> Tensor:
        (axis,) = ints(along)
        ordered = x.flip(axis) if reverse else x
        if exclusive:
            size = ordered.shape[axis]
            first = torch.full_like(ordered.narrow(axis, 0, 1), node.is_op("CumProd"))
            ordered = torch.cat([first, ordered.narrow(axis, 0, size - 1)], axis)
        found = cumulate(ordered, axis, dtype=x.dtype)
        return found.flip(axis) if reverse else found

    return run


@operator("TopK", host=(1,))
def _top(node: Node) -> Run:
    axis, stated = attribute_value(node, "axis"), attribute_value(node, "k")
    largest = attribute_value(node, "largest") != 0

    def run(x: Tensor, k: Tensor | None = None) -> Any:
        count = stated if k is None else ints(k)[0]
        # Of equal numbers the first comes first.
        values, indices = torch.sort(x, dim=axis, descending=largest, stable=True)
        return values.narrow(axis, 0, count), indices.narrow(axis, 0, count)

    return run
