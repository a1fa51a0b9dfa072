"""Reading and writing at computed places."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from onnxq.ir import Node, attribute_value
from onnxq.tune.train.operators.registry import Run, UnsupportedError, ints, operator

_REDUCE = {"mul": "prod", "max": "amax", "min": "amin", "add": "sum"}


def _from_start(indices: Tensor, size: int) -> Tensor:
    """Indices that count from the beginning; negative ones count from the end."""
    indices = indices.long()
    return torch.where(indices < 0, indices + size, indices)


@operator("Gather")
def _gather(node: Node) -> Run:
    axis = attribute_value(node, "axis")

    def run(x: Tensor, indices: Tensor) -> Tensor:
        at = axis % x.ndim
        flat = _from_start(indices, x.shape[at]).reshape(-1)
        picked = x.index_select(at, flat)
        return picked.reshape(x.shape[:at] + indices.shape + x.shape[at + 1 :])

    return run


@operator("GatherElements")
def _gather_elements(node: Node) -> Run:
    axis = attribute_value(node, "axis")
    return lambda x, indices: torch.gather(x, axis, _from_start(indices, x.shape[axis]))


@operator("GatherND")
def _gather_nd(node: Node) -> Run:
    shared = attribute_value(node, "batch_dims") or 0

    def run(x: Tensor, indices: Tensor) -> Tensor:
        depth = indices.shape[-1]
        count = math.prod(x.shape[:shared])
        data = x.reshape(count, *x.shape[shared:])
        places = [
            _from_start(i, size)
            for i, size in zip(
                indices.reshape(count, -1, depth).unbind(-1), data.shape[1:], strict=False
            )
        ]
        batch = torch.arange(count, device=x.device).reshape(-1, 1)
        picked = data[(batch, *places)]
        return picked.reshape(indices.shape[:-1] + x.shape[shared + depth :])

    return run


@operator("ScatterElements", "Scatter")
def _scatter_elements(node: Node) -> Run:
    axis, reduction = attribute_value(node, "axis"), attribute_value(node, "reduction") or "none"

    def run(x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
        places = _from_start(indices, x.shape[axis])
        if reduction == "none":
            return x.scatter(axis, places, updates)
        return x.scatter_reduce(axis, places, updates, _REDUCE[reduction])

    return run


@operator("ScatterND")
def _scatter_nd(node: Node) -> Run:
    reduction = attribute_value(node, "reduction") or "none"

    def run(x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
        depth = indices.shape[-1]
        rows = x.reshape(math.prod(x.shape[:depth]), -1)
        place = torch.zeros((), dtype=torch.int64, device=x.device)
        for at, size in zip(indices.unbind(-1), x.shape, strict=False):
            place = place * size + _from_start(at, size)
        place, new = place.reshape(-1), updates.reshape(-1, rows.shape[1])
        if reduction in ("none", "add"):
            rows = rows.index_put((place,), new, accumulate=reduction == "add")
        else:
            places = place.unsqueeze(1).expand_as(new)
            rows = rows.scatter_reduce(0, places, new, _REDUCE[reduction])
        return rows.reshape(x.shape)

    return run


@operator("OneHot", host=(1,))
def _one_hot(node: Node) -> Run:
    axis = attribute_value(node, "axis")

    def run(indices: Tensor, depth: Tensor, values: Tensor) -> Tensor:
        (size,) = ints(depth)
        places = torch.arange(size, device=indices.device)
        hot = _from_start(indices, size).unsqueeze(-1) == places
        return torch.where(hot, values[1], values[0]).movedim(-1, axis)

    return run


@operator("NonZero")
def _non_zero(node: Node) -> Run:
    return lambda x: torch.nonzero(x).T if x.ndim else torch.nonzero(x.reshape(1)).T


@operator("Compress")
def _compress(node: Node) -> Run:
    axis = attribute_value(node, "axis")

    def run(x: Tensor, condition: Tensor) -> Tensor:
        kept = condition.nonzero().reshape(-1)
        return x.reshape(-1)[kept] if axis is None else x.index_select(axis, kept)

    return run


@operator("ReverseSequence", host=(1,))
def _reverse_sequence(node: Node) -> Run:
    batch, time = attribute_value(node, "batch_axis"), attribute_value(node, "time_axis")

    def run(x: Tensor, lengths: Tensor) -> Tensor:
        parts = []
        for one, length in zip(x.unbind(batch), ints(lengths), strict=True):
            along = time - (time > batch)
            head, tail = one.split([length, one.shape[along] - length], along)
            parts.append(torch.cat([head.flip(along), tail], along))
        return torch.stack(parts, batch)

    return run


@operator("Unique")
def _unique(node: Node) -> Run:
    axis, ordered = attribute_value(node, "axis"), bool(attribute_value(node, "sorted"))
    if not ordered:
        raise UnsupportedError("keeps the order of what occurs once")

    def run(x: Tensor) -> Any:
        values, inverse, counts = torch.unique(x, return_inverse=True, return_counts=True, dim=axis)
        places = torch.arange(inverse.numel(), device=x.device)
        first = torch.full_like(counts, inverse.numel()).scatter_reduce(
            0, inverse.reshape(-1), places, "amin"
        )
        return values, first, inverse.reshape(-1), counts

    return run
