"""Squared errors of groups of values under trial scales, and the least-squares scale."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from onnxq.quant._arrays import PIECE
from onnxq.quant._rounding import round_to
from onnxq.quant.formats import Format
from onnxq.quant.scheme import Scheme

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]

Weighting = Literal["even", "square", "magnitude"]
"""How much the error of a value counts: 1, `x**2`, or `sqrt(mean(x**2)) + |x|`."""

_LARGEST = 2.0**120
_SMALLEST = 2.0**-60
"""Groups whose largest magnitude is beyond these keep the scale of their whole range, which may
stand at the limit of what a scale can be."""


@dataclass(frozen=True, eq=False)
class Problem:
    """Groups of values for which scales are wanted.

    Attributes:
        values: Finite, of shape (length, groups) or (groups, length).
        axis: Axis of `values` on which the values of one group lie.
        scale: The scale of each group's whole range, shape (groups,).
        zero_point: The zero-point that goes with it, shape (groups,).
        format: Format of the quantized values.
        low: Smallest value of the format that may be used.
        high: Largest value of the format that may be used.
        scheme: Absmax or zero-point, with options.
        importance: How much the squared error of each value counts, of their shape; None for all
            alike.
    """

    values: Float32Array
    axis: int
    scale: Float32Array
    zero_point: Float32Array
    format: Format
    low: float
    high: float
    scheme: Scheme
    importance: Float32Array | None = None


class Solution(NamedTuple):
    """Scales and zero-points found, each of shape (groups,)."""

    scale: Float32Array
    zero_point: Float32Array


@dataclass(eq=False)
class Best:
    """The best scale found so far for each group, in the units of `TrialGroups`, and its error."""

    scale: Float32Array
    zero_point: Float32Array
    error: Float64Array


class TrialGroups:
    """Groups of values, each multiplied by a power of two so that no square leaves float32.

    Such a factor changes no quantized value. Scales given and taken are multiplied by it as well;
    its sign is that of the scale of the whole range, so that they are positive here.

    Args:
        problem: The groups. Scales of power-of-two schemes are not refined by least squares.
        weighting: How much the error of a value counts, times its importance.
    """

    def __init__(self, problem: Problem, weighting: Weighting = "even") -> None:
        self._problem, self._weighting = problem, weighting
        self._axis = axis = problem.axis
        values = problem.values
        low = np.minimum(values.min(axis=axis), np.float32(0))
        high = np.maximum(values.max(axis=axis), np.float32(0))
        largest = np.maximum(-low, high)
        self._usable = (largest >= _SMALLEST) & (largest <= _LARGEST)
        _, exponent = np.frexp(np.where(self._usable, largest, np.float32(1)))
        factor = np.copysign(np.ldexp(np.float32(1), -exponent), problem.scale)
        self._factor = np.where(self._usable, factor, np.float32(0))
        self._plain = np.where(self._usable, problem.scale * self._factor, np.float32(1))
        self._length = values.shape[axis]
        self._step = max(1, PIECE // max(values.size // self._length, 1))
        self._whole = values * self._spread(self._factor) if self._length <= self._step else None
        ends = [(end * self._factor).astype(np.float64) for end in (low, high)]
        self.low: Float64Array = np.minimum(*ends)
        self.high: Float64Array = np.maximum(*ends)
        self.largest: Float64Array = np.maximum(-self.low, self.high)
        total, squares = np.zeros(largest.shape), np.zeros(largest.shape)
        for piece, _ in self._pieces():
            total += np.abs(piece).sum(axis=axis)
            squares += self._sum(piece, piece)
        self.mean_magnitude: Float64Array = total / self._length
        self._root_mean_square = np.sqrt(squares / self._length).astype(np.float32)

    def plain(self) -> Best:
        """The scale of the whole range."""
        error, _, _ = self._sums(self._plain, self._problem.zero_point)
        return Best(self._plain, self._problem.zero_point, error)

    def consider(self, scale: Float64Array, zero_point: Float32Array, best: Best) -> Float64Array:
        """Try a scale for each group, refined, and keep it where it is the best so far.

        Returns:
            The error of each group.
        """
        trial = scale.astype(np.float32)
        error, slope, curvature = self._sums(trial, zero_point)
        if not self._problem.scheme.power_of_two:
            shift = np.divide(slope, curvature, out=np.zeros_like(slope), where=curvature > 0)
            trial = (trial + shift).astype(np.float32)
            error = np.maximum(error - shift * slope, 0.0)
        better = (error < best.error) & (trial > 0)
        best.scale = np.where(better, trial, best.scale)
        best.zero_point = np.where(better, zero_point, best.zero_point)
        best.error = np.where(better, error, best.error)
        return error

    def span(
        self, zero_point: Float32Array, error: Float64Array
    ) -> tuple[Float64Array, Float64Array, Float64Array]:
        """Scales between which the one with the least error lies, for given zero-points.

        Args:
            zero_point: Zero-point of each group.
            error: Error of the best scale known.

        Returns:
            The smallest scale, the one that clips nothing, and the largest.
        """
        below = zero_point.astype(np.float64) - self._problem.low
        above = self._problem.high - zero_point.astype(np.float64)
        reach = np.maximum(below, above)

        def needed(clipped: Float64Array) -> Float64Array:
            up = np.divide(self.high - clipped, above, out=np.zeros_like(above), where=above > 0)
            down = np.divide(-self.low - clipped, below, out=np.zeros_like(below), where=below > 0)
            return np.asarray(np.maximum(up, down))

        plain = needed(np.zeros_like(error))
        plain = np.where(plain > 0, plain, np.where(self._usable, self.largest, 1.0))
        # Least squares with |y| growing as |x| does gives no less than this; where y reaches less
        # far on one side, |y| grows in proportion at least.
        evenness = np.maximum(np.minimum(below, above) / reach, 0.1)
        lowest = np.maximum(needed(np.sqrt(error)), evenness * self.mean_magnitude / reach)
        lowest = np.where(lowest > 0, np.minimum(lowest, plain), plain)
        further = 2.0 if self._problem.format.is_float else reach / np.maximum(reach - 2, reach / 2)
        highest = plain * np.where(reach > 1, further, 1.0)
        return lowest, plain, highest

    def solution(self, best: Best) -> Solution:
        """Scale and zero-point of each group: the best, unless the plain ones err no more."""
        error, _, _ = self._sums(best.scale, best.zero_point, np.float64)
        plain, _, _ = self._sums(self._plain, self._problem.zero_point, np.float64)
        better = self._usable & (error < plain)
        factor = np.where(self._usable, self._factor, np.float32(1))
        return Solution(
            np.where(better, best.scale / factor, self._problem.scale),
            np.where(better, best.zero_point, self._problem.zero_point),
        )

    def _sums(
        self,
        scale: Float32Array,
        zero_point: Float32Array,
        dtype: type[np.float32] | type[np.float64] = np.float32,
    ) -> tuple[Float64Array, Float64Array, Float64Array]:
        """Sums of `w d d`, `w d y` and `w y y` of each group."""
        ends = self._problem.low, self._problem.high
        low, high = (self._spread(np.float32(end) - zero_point) for end in ends)
        wide = self._spread(scale)
        error, slope, curvature = (np.zeros(scale.shape) for _ in range(3))
        for x, importance in self._pieces():
            y = x / wide
            np.maximum(y, low, out=y)
            np.minimum(y, high, out=y)
            round_to(y, self._problem.format)
            d = y * wide
            np.subtract(x, d, out=d)
            weighted, other = self._weigh(x, importance, d.astype(dtype, copy=False), y)
            error += self._sum(weighted, d.astype(dtype, copy=False))
            if dtype is np.float32:
                slope += self._sum(weighted, y)
                curvature += self._sum(other, y)
        return error, slope, curvature

    def _weigh(
        self, x: Float32Array, importance: Float32Array | None, d: Float32Array, y: Float32Array
    ) -> tuple[Float32Array, ...]:
        if importance is not None:
            d, y = importance * d, importance * y
        if self._weighting == "even":
            return d, y
        weight = np.abs(x)
        if self._weighting == "square":
            weight *= weight
        else:
            weight += self._spread(self._root_mean_square)
        return weight * d, weight * y

    def _pieces(self) -> Iterator[tuple[Float32Array, Float32Array | None]]:
        importance = self._problem.importance
        if self._whole is not None:
            yield self._whole, importance
            return
        factor = self._spread(self._factor)
        for start in range(0, self._length, self._step):
            cut = (slice(None),) * self._axis + (slice(start, start + self._step),)
            part = None if importance is None else importance[cut]
            yield self._problem.values[cut] * factor, part

    def _spread(self, of_groups: Float32Array) -> Float32Array:
        return np.asarray(np.expand_dims(of_groups, self._axis))

    def _sum(self, a: Float32Array, b: Float32Array) -> Float64Array:
        subscripts = "ng,ng->g" if self._axis == 0 else "gn,gn->g"
        return np.asarray(np.einsum(subscripts, a, b)).astype(np.float64)
