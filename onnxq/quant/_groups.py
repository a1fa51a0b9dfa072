"""Where the values that share a scale lie in a tensor, and going through them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.errors import InputError
from onnxq.quant._arrays import PIECE, label, pieces
from onnxq.quant.scheme import Granularity

Array = npt.NDArray[Any]
Index = tuple[slice, ...]

_SHORT = 256
"""Groups up to this length lie side by side in a batch, so that inner loops run over groups."""

_CHANNELS = 16
"""Channels gathered at a time from another axis than the first, to use whole cache lines."""


@dataclass(frozen=True)
class Batch:
    """All values of some groups, as two axes.

    Attributes:
        values: Of shape (length, groups) or (groups, length).
        axis: Axis of `values` on which the values of one group lie.
        part: Which of the views of `Grouping.aligned_scales` holds the groups' scales.
        index: Where in that view.
    """

    values: npt.NDArray[np.float32]
    axis: int
    part: int
    index: Index


@dataclass(frozen=True)
class Grouping:
    """Where the values that share a scale lie in a tensor.

    A tensor is seen as one or two arrays of four axes, of which the second holds the shorter
    blocks at the end of the axis. Scales are seen with four axes too, and broadcast against them.

    Attributes:
        shape: The tensor's.
        axis: Axis of channels or blocks, not negative; None per tensor.
        block_size: None per tensor and per channel.
    """

    shape: tuple[int, ...]
    axis: int | None
    block_size: int | None

    @classmethod
    def of(cls, shape: tuple[int, ...], granularity: Granularity, name: str) -> Grouping:
        """That of a granularity in a tensor, ``name`` in messages.

        Raises:
            InputError: the tensor has no such axis.
        """
        axis, rank = granularity.axis, len(shape)
        if axis is not None and not -rank <= axis < rank:
            raise InputError(f"{label(name)} has {rank} axes, and none is axis {axis}")
        return cls(shape, None if axis is None else axis % rank, granularity.block_size)

    @property
    def scale_shape(self) -> tuple[int, ...]:
        """Shape of the scales."""
        return Granularity(self.axis, self.block_size).scale_shape(self.shape)

    @property
    def value_axes(self) -> tuple[int, ...]:
        """Axes of the views of `aligned` on which the values of one group lie."""
        return (0, 2) if self.axis is not None and self.block_size is None else (2,)

    def aligned(self, values: Array) -> list[Array]:
        """Views of a tensor with four axes; a copy where it does not lie in memory in order."""
        if self.axis is None:
            return [values.reshape(1, 1, -1, 1)]
        before, length, after = self._around(self.axis)
        if self.block_size is None:
            return [values.reshape(before, length, after, 1)]
        lines = values.reshape(before, length, after)
        size = self.block_size
        whole = length // size
        views = [lines[:, : whole * size].reshape(before, whole, size, after)]
        if length % size:
            views.append(lines[:, whole * size :].reshape(before, 1, length % size, after))
        return views

    def aligned_scales(self, scales: Array) -> list[Array]:
        """Views of scales, zero-points or whatever else there is one of for each group."""
        if self.axis is None or self.block_size is None:
            return [scales.reshape(1, -1, 1, 1)]
        before, length, after = self._around(self.axis)
        whole = length // self.block_size
        blocks = scales.reshape(before, -(-length // self.block_size), 1, after)
        return [blocks[:, :whole], blocks[:, whole:]] if length % self.block_size else [blocks]

    def pieces(
        self, values: Array, *scales: Array, size: int = PIECE
    ) -> Iterator[tuple[Array, ...]]:
        """Neighbourhoods of `values` that fit the cache, each with its part of `scales`.

        All are views with four axes. Writing to `values` needs it to be contiguous.
        """
        for view, *grouped in zip(
            self.aligned(values), *(self.aligned_scales(scale) for scale in scales), strict=True
        ):
            for index in pieces(view.shape, size):
                yield view[index], *(g[_broadcast(index, g.shape)] for g in grouped)

    def batches(self, values: npt.NDArray[np.float32]) -> Iterator[Batch]:
        """All groups that have values, some whole groups at a time, as many as fit the cache."""
        channels = self.value_axes == (0, 2)
        for part, view in enumerate(self.aligned(values)):
            if not view.size:
                continue
            length = math.prod(view.shape[a] for a in self.value_axes)
            groups = tuple(1 if a in self.value_axes else n for a, n in enumerate(view.shape))
            at_least = _CHANNELS if channels and view.shape[0] > 1 else 1
            for index in pieces(groups, max(at_least, PIECE // length)):
                chosen = view[
                    tuple(
                        slice(None) if a in self.value_axes else cut for a, cut in enumerate(index)
                    )
                ]
                if length <= _SHORT:
                    order = (0, 2, 1, 3) if channels else (2, 0, 1, 3)
                    yield Batch(chosen.transpose(order).reshape(length, -1), 0, part, index)
                else:
                    order = (1, 0, 2, 3) if channels else (0, 1, 3, 2)
                    yield Batch(chosen.transpose(order).reshape(-1, length), 1, part, index)

    def _around(self, axis: int) -> tuple[int, int, int]:
        return math.prod(self.shape[:axis]), self.shape[axis], math.prod(self.shape[axis + 1 :])


def _broadcast(index: Index, shape: tuple[int, ...]) -> Index:
    return tuple(slice(0, 1) if n == 1 else cut for cut, n in zip(index, shape, strict=True))
