"""Shapes: reading, making and changing them; cutting and joining along axes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch program uses
from torch import Tensor

from onnxq.ir import DataType, Node, attribute_value
from onnxq.tune.train.dtypes import TORCH_TYPES, to_torch
from onnxq.tune.train.operators.registry import (
    Run,
    UnsupportedError,
    axes_reader,
    ints,
    operator,
)


@operator("Shape")
def _shape(node: Node) -> Run:
    part = slice(attribute_value(node, "start") or 0, attribute_value(node, "end"))
    return lambda x: torch.tensor(list(x.shape)[part], dtype=torch.int64)


@operator("Size")
def _size(node: Node) -> Run:
    return lambda x: torch.tensor(x.numel(), dtype=torch.int64)


@operator("Reshape", host=(1,))
def _reshape(node: Node) -> Run:
    copies = not attribute_value(node, "allowzero")

    def run(x: Tensor, shape: Tensor) -> Tensor:
        wanted = ints(shape)
        if copies:
            wanted = [d or x.shape[at] for at, d in enumerate(wanted)]
        if -1 in wanted and 0 in wanted:
            wanted[wanted.index(-1)] = 0
        return x.reshape(tuple(wanted))

    return run


@operator("Flatten")
def _flatten(node: Node) -> Run:
    axis = attribute_value(node, "axis")

    def run(x: Tensor) -> Tensor:
        first = axis + x.ndim if axis < 0 else axis
        return x.reshape(math.prod(x.shape[:first]), math.prod(x.shape[first:]))

    return run


@operator("Squeeze", host=(1,))
def _squeeze(node: Node) -> Run:
    read = axes_reader(node, 1, 13)

    def run(x: Tensor, axes: Tensor | None = None) -> Tensor:
        given = read(axes)
        return x.squeeze() if given is None else x.squeeze(tuple(given))

    return run


@operator("Unsqueeze", host=(1,))
def _unsqueeze(node: Node) -> Run:
    read = axes_reader(node, 1, 13)

    def run(x: Tensor, axes: Tensor | None = None) -> Tensor:
        given = read(axes) or []
        rank = x.ndim + len(given)
        for axis in sorted(a % rank for a in given):
            x = x.unsqueeze(axis)
        return x

    return run


@operator("Transpose")
def _transpose(node: Node) -> Run:
    order = attribute_value(node, "perm")
    return lambda x: x.permute(order or list(range(x.ndim))[::-1])


@operator("Concat")
def _concat(node: Node) -> Run:
    axis = attribute_value(node, "axis")
    return lambda *parts: torch.cat(parts, axis)


@operator("Split", host=(1,))
def _split(node: Node) -> Run:
    axis, count = attribute_value(node, "axis"), len(node.outputs)
    stated = attribute_value(node, "split")

    def run(x: Tensor, lengths: Tensor | None = None) -> Sequence[Tensor]:
        given = stated if lengths is None else ints(lengths)
        each = -(-x.shape[axis] // count)
        return x.split(each if given is None else list(given), axis)

    return run


@operator("Slice", host=(1, 2, 3, 4))
def _slice(node: Node) -> Run:
    if node.graph.opset >= 10:

        def run(
            x: Tensor,
            starts: Tensor,
            ends: Tensor,
            axes: Tensor | None = None,
            steps: Tensor | None = None,
        ) -> Tensor:
            first, last = ints(starts), ints(ends)
            along = range(len(first)) if axes is None else ints(axes)
            return _sliced(
                x, first, last, along, [1] * len(first) if steps is None else ints(steps)
            )

        return run
    starts, ends = attribute_value(node, "starts"), attribute_value(node, "ends")
    axes = attribute_value(node, "axes") or range(len(starts))
    return lambda x: _sliced(x, starts, ends, axes, [1] * len(starts))


def _sliced(
    x: Tensor,
    starts: Sequence[int],
    ends: Sequence[int],
    axes: Sequence[int],
    steps: Sequence[int],
) -> Tensor:
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        indices = range(*slice(start, end, step).indices(x.shape[axis]))
        if step == 1:
            x = x.narrow(axis, indices.start if indices else 0, len(indices))
        else:
            x = x.index_select(axis, torch.tensor(list(indices), dtype=torch.int64).to(x.device))
    return x


@operator("Expand", host=(1,))
def _expand(node: Node) -> Run:
    return lambda x, shape: x.expand(torch.broadcast_shapes(x.shape, ints(shape)))


@operator("Tile", host=(1,))
def _tile(node: Node) -> Run:
    return lambda x, times: x.repeat(ints(times)) if x.ndim else x


@operator("ConstantOfShape", host=(0,))
def _constant_of_shape(node: Node) -> Run:
    stated = node.get("value")
    element = torch.zeros(1) if stated is None else to_torch(stated.numpy())
    return lambda shape: element.reshape(()).expand(ints(shape)).contiguous()


@operator("Range", host=(0, 1, 2))
def _range(node: Node) -> Run:
    def run(start: Tensor, end: Tensor, step: Tensor) -> Tensor:
        first, last, each = (t.item() for t in (start, end, step))
        count = max(math.ceil((last - first) / each), 0)
        return (first + torch.arange(count) * each).to(start.dtype)

    return run


@operator("EyeLike")
def _eye_like(node: Node) -> Run:
    stated, shift = attribute_value(node, "dtype"), attribute_value(node, "k")
    dtype = TORCH_TYPES[DataType(stated)] if stated else None

    def run(x: Tensor) -> Tensor:
        ones = torch.ones(x.shape, dtype=dtype or x.dtype, device=x.device)
        return ones.tril(shift).triu(shift)

    return run


@operator("Trilu", host=(1,))
def _trilu(node: Node) -> Run:
    upper = bool(attribute_value(node, "upper"))

    def run(x: Tensor, shift: Tensor | None = None) -> Tensor:
        diagonal = 0 if shift is None else ints(shift)[0]
        return x.triu(diagonal) if upper else x.tril(diagonal)

    return run


@operator("Pad", host=(1, 2, 3))
def _pad(node: Node) -> Run:
    mode, stated = attribute_value(node, "mode"), attribute_value(node, "pads")
    number = attribute_value(node, "value")
    if mode not in ("constant", *_INDICES):
        raise UnsupportedError(f"pads in mode '{mode}'")

    def run(
        x: Tensor,
        pads: Tensor | None = None,
        value: Tensor | None = None,
        axes: Tensor | None = None,
    ) -> Tensor:
        given = list(stated) if pads is None else ints(pads)
        along = range(x.ndim) if axes is None else [a % x.ndim for a in ints(axes)]
        before, after = given[: len(along)], given[len(along) :]
        if mode != "constant":
            for axis, first, last in zip(along, before, after, strict=True):
                indices = _INDICES[mode](torch.arange(-first, x.shape[axis] + last), x.shape[axis])
                x = x.index_select(axis, indices.to(x.device))
            return x
        fill = number or 0 if value is None else value.item()
        around = [0] * (2 * x.ndim)
        for axis, first, last in zip(along, before, after, strict=True):
            at = 2 * (x.ndim - 1 - axis)
            around[at : at + 2] = first, last
        return F.pad(x, around, value=fill)

    return run


def _reflected(indices: Tensor, size: int) -> Tensor:
    period = max(2 * (size - 1), 1)
    turned = indices % period
    return torch.where(turned < size, turned, period - turned)


_INDICES = {
    "edge": lambda indices, size: indices.clamp(0, size - 1),
    "reflect": _reflected,
    "wrap": lambda indices, size: indices % size,
}


@operator("DepthToSpace")
def _depth_to_space(node: Node) -> Run:
    size, column_first = attribute_value(node, "blocksize"), attribute_value(node, "mode") == "CRD"

    def run(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        if column_first:
            blocks = x.reshape(n, -1, size, size, h, w).permute(0, 1, 4, 2, 5, 3)
        else:
            blocks = x.reshape(n, size, size, -1, h, w).permute(0, 3, 4, 1, 5, 2)
        return blocks.reshape(n, c // size**2, h * size, w * size)

    return run


@operator("SpaceToDepth")
def _space_to_depth(node: Node) -> Run:
    size, column_first = attribute_value(node, "blocksize"), attribute_value(node, "mode") == "CRD"
    order = (0, 1, 3, 5, 2, 4) if column_first else (0, 3, 5, 1, 2, 4)

    def run(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        blocks = x.reshape(n, c, h // size, size, w // size, size).permute(order)
        return blocks.reshape(n, c * size**2, h // size, w // size)

    return run
