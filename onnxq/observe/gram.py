"""Gram matrices of what products and convolutions multiply their weights with."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from onnxq.needs import Windows
from onnxq.observe.histogram import Float32Array, Float64Array, as_float32, as_rows
from onnxq.observe.observer import Indices, Observer
from onnxq.runtime.specs import Array

_BLOCK_ELEMENTS = 1 << 17
_BLOCK_ROWS = 256
"""Rows multiplied at a time: at least so many, and where they are short as many as have so many
elements. It depends on nothing else, so that how samples are cut into batches changes no bit, and
is large enough that the product takes the time, not adding it to the sum or waking threads."""


@dataclass(frozen=True, eq=False)
class GramMatrix:
    """The Gram matrix of a tensor's rows, or their products with those of another model.

    Attributes:
        matrix: XᵀX, symmetric, or X̂ᵀX; float64, (groups, columns, columns); one group where no
            windows are taken. Not finite where the values are not.
        rows: Number of rows of X.
    """

    matrix: Float64Array
    rows: int

    def merge(self, other: GramMatrix) -> GramMatrix:
        """That of the rows of both; shards and their order change its last digits.

        Raises:
            ValueError: the rows have different lengths.
        """
        if self.matrix.shape != other.matrix.shape:
            raise ValueError("their rows have different lengths")
        return GramMatrix(np.asarray(self.matrix + other.matrix), self.rows + other.rows)


class GramObserver(Observer):
    """Sums XᵀX, exact products of float32 numbers added up in float64, shard by shard.

    The same samples in the same order give the same bits however they are cut into batches.
    Another order changes the last digits, as do other shards: floating-point sums do.

    Args:
        windows: The windows of a convolution; None for rows along the last axis.
    """

    def __init__(self, windows: Windows | None = None) -> None:
        self._windows = windows
        self._shards: GramMatrix | None = None
        self._sum: Float64Array | None = None
        self._block = np.zeros((0, 0, 0))
        self._filled = 0
        self._rows = 0

    def add(self, values: Array, samples: Indices) -> None:
        """Take in values.

        Raises:
            ValueError: they have no rows or windows, or rows of another length than before.
        """
        windows = self._windows
        for rows in [as_rows(values)[np.newaxis]] if windows is None else _taken(values, windows):
            self._add(rows)

    def _add(self, rows: Float32Array) -> None:
        groups, count, columns = rows.shape
        if not count or not columns:
            return
        known = self._sum if self._shards is None else self._shards.matrix
        if known is not None and known.shape != (groups, columns, columns):
            raise ValueError(
                f"by rows: they have {columns} columns, and had {known.shape[-1]} before"
            )
        if self._sum is None:
            self._sum = np.zeros((groups, columns, columns))
            self._block = np.empty((groups, _rows_at_a_time(groups * columns), columns))
        self._rows += count
        done = 0
        while done < count:
            taken = min(count - done, self._block.shape[1] - self._filled)
            self._block[:, self._filled : self._filled + taken] = rows[:, done : done + taken]
            self._filled += taken
            done += taken
            if self._filled == self._block.shape[1]:
                self._sum += _gram(self._block)
                self._filled = 0

    def end_shard(self) -> None:
        """Add the shard's matrix to that of those before."""
        self._shards, self._sum, self._filled, self._rows = self.result(), None, 0, 0

    def result(self) -> GramMatrix | None:
        """The matrix so far."""
        if self._sum is None:
            return self._shards
        own = GramMatrix(self._sum + _gram(self._block[:, : self._filled]), self._rows)
        return own if self._shards is None else self._shards.merge(own)

    def bytes_for(self, shape: tuple[int, ...]) -> int:
        """Two sums, a product to add to one, two blocks of rows, and padded values."""
        if self._windows is None:
            groups, columns, padded = 1, math.prod(shape[-1:]), 0
        else:
            groups, padded = self._windows.group, 8 * math.prod(shape)
            columns = math.prod(self._windows.kernel_shape) * math.prod(shape[1:2]) // groups
        rows = 3 * columns + 2 * _rows_at_a_time(groups * columns)
        return 8 * groups * columns * rows + padded


class CrossGram:
    """Sums X̂ᵀX of two models' values, see `onnxq.needs.CrossGramOf`, in float64.

    Args:
        windows: The windows of a convolution; None for rows along the last axis.
    """

    def __init__(self, windows: Windows | None = None) -> None:
        self._windows = windows
        self._sum: Float64Array | None = None
        self._rows = 0

    def add(self, ours: Array, exact: Array) -> None:
        """Take in what both models have in one place for the same samples.

        Raises:
            ValueError: they have no rows or windows.
        """
        for pair in zip(self._parts(ours), self._parts(exact), strict=True):
            a, b = (part.astype(np.float64) for part in pair)
            with np.errstate(invalid="ignore", over="ignore"):
                product = a.transpose(0, 2, 1) @ b
            self._sum = product if self._sum is None else self._sum + product
            self._rows += a.shape[1]

    def _parts(self, values: Array) -> Iterator[Float32Array]:
        if self._windows is not None:
            yield from _taken(values, self._windows)
            return
        rows = as_rows(values)
        step = _rows_at_a_time(rows.shape[-1])
        yield from (rows[np.newaxis, at : at + step] for at in range(0, len(rows), step))

    def result(self) -> GramMatrix | None:
        """The matrix so far."""
        return None if self._sum is None else GramMatrix(self._sum, self._rows)


def _rows_at_a_time(columns: int) -> int:
    return max(_BLOCK_ROWS, _BLOCK_ELEMENTS // max(1, columns))


def _gram(rows: Float64Array) -> Float64Array:
    # Values that are not finite give a matrix that is not, which says enough.
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(rows.transpose(0, 2, 1) @ rows)


def _taken(values: Array, windows: Windows) -> Iterator[Float32Array]:
    """The windows of values (samples, channels, *spatial), some at a time.

    Each is (groups, positions, columns), with columns in the order of a weight's elements.

    Raises:
        ValueError: the values do not fit the windows.
    """
    kernel, axes = windows.kernel_shape, len(windows.kernel_shape)
    if values.ndim != axes + 2 or values.shape[1] % windows.group:
        raise ValueError(
            f"by windows of {axes} axes in {windows.group} groups: its shape is {values.shape}"
        )
    strides, dilations = (given or (1,) * axes for given in (windows.strides, windows.dilations))
    pads = windows.pads or (0,) * (2 * axes)
    around = [(0, 0), (0, 0), *zip(pads[:axes], pads[axes:], strict=True)]
    extents = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    view = np.lib.stride_tricks.sliding_window_view(
        np.pad(as_float32(values), around), extents, axis=tuple(range(2, axes + 2))
    )
    steps = [slice(None, None, step) for step in (1, 1, *strides, *dilations)]
    view = view[tuple(steps)]
    columns = view.shape[1] // windows.group * math.prod(kernel)
    # To (samples, positions, channels, kernel); copied no more than a block at a time.
    view = np.moveaxis(view, 1, axes + 1)
    line = columns * windows.group * max(1, math.prod(view.shape[2 : axes + 1]))
    lines = max(1, _BLOCK_ELEMENTS // line)
    for sample in view:
        for start in range(0, len(sample), lines):
            some = sample[start : start + lines].reshape(-1, windows.group, columns)
            yield some.transpose(1, 0, 2)
