"""What one pass over the data finds out about a tensor."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.observe.histogram import Float32Array, Float64Array, Histogram, as_float32
from onnxq.plain import entry


@dataclass(frozen=True)
class Moving:
    """Moving average of the batches' smallest and largest values.

    With momentum m, each batch's value x changes the average to (1 - m) average + m x; the first
    batch's value is the first average. It depends on the order of the batches and on their size.
    """

    momentum: float
    min: float
    max: float
    batches: int

    def merge(self, other: Moving) -> Moving:
        """The average of two parts of the data, each weighted by its number of batches.

        That is not the average that one pass over both would give, but a fair one.

        Raises:
            ValueError: they have different momentums.
        """
        if self.momentum != other.momentum:
            raise ValueError("moving averages with different momentums cannot be merged")
        batches = self.batches + other.batches
        share = other.batches / batches
        return Moving(
            self.momentum,
            (1 - share) * self.min + share * other.min,
            (1 - share) * self.max + share * other.max,
            batches,
        )


@dataclass(frozen=True, eq=False)
class ChannelStatistics:
    """Statistics of each index on one axis of a tensor.

    Attributes:
        axis: The axis.
        absmax: Largest magnitude, float32, (channels,).
        sum: Sum of the values, float64, (channels,). Unlike `absmax` it depends in its last digits
            on the order of the samples and on how they are cut into batches and shards.
        magnitude: Sum of the magnitudes, the same.
        square: Sum of the squares, the same.
        count: Number of values in each channel.
        lowest: Smallest value, float32, (channels,).
    """

    axis: int
    absmax: Float32Array
    sum: Float64Array
    magnitude: Float64Array
    square: Float64Array
    count: int
    lowest: Float32Array

    @classmethod
    def of(cls, values: npt.NDArray[Any], axis: int) -> ChannelStatistics:
        """Statistics of some values.

        Raises:
            ValueError: they have no such axis.
        """
        if not -values.ndim <= axis < values.ndim:
            raise ValueError(f"by channel: it has {values.ndim} axes, and none is axis {axis}")
        numbers = as_float32(values)
        others = tuple(a for a in range(numbers.ndim) if a != axis % numbers.ndim)
        magnitudes = np.abs(numbers)
        absmax = magnitudes.max(axis=others)
        total, magnitude = (n.sum(axis=others, dtype=np.float64) for n in (numbers, magnitudes))
        with np.errstate(over="ignore"):
            square = np.square(magnitudes, out=magnitudes).sum(axis=others, dtype=np.float64)
        count = numbers.size // absmax.size
        return cls(axis, absmax, total, magnitude, square, count, numbers.min(axis=others))

    @property
    def mean(self) -> Float64Array:
        """Mean of the values of each channel."""
        return np.asarray(self.sum / self.count)

    def merge(self, other: ChannelStatistics) -> ChannelStatistics:
        """Statistics of the values of both.

        Raises:
            ValueError: they are of different axes, or numbers of channels.
        """
        if self.axis != other.axis or self.absmax.shape != other.absmax.shape:
            raise ValueError("by channel: the numbers of channels differ")
        return ChannelStatistics(
            self.axis,
            np.maximum(self.absmax, other.absmax),
            self.sum + other.sum,
            self.magnitude + other.magnitude,
            self.square + other.square,
            self.count + other.count,
            np.minimum(self.lowest, other.lowest),
        )


@dataclass(frozen=True)
class Statistics:
    """What is known about one tensor's values.

    Attributes:
        count: Number of values, NaN and infinite ones included.
        min: Smallest value, exactly; NaN if any value is.
        max: Largest value, exactly; NaN if any value is.
        not_finite: Number of values that are NaN or infinite; 0 where they were not counted.
        histogram: How often finite values fell where; None where that was not wanted.
        moving: Moving average of the ends; None where that was not wanted.
    """

    count: int
    min: float
    max: float
    not_finite: int = 0
    histogram: Histogram | None = None
    moving: Moving | None = None

    @property
    def is_finite(self) -> bool:
        """Whether all values were finite numbers."""
        return math.isfinite(self.min) and math.isfinite(self.max)

    def merge(self, other: Statistics) -> Statistics:
        """Statistics of the values of both; what only one of them has is dropped.

        Raises:
            ValueError: moving averages do not go together.
        """
        histogram = moving = None
        if self.histogram is not None and other.histogram is not None:
            histogram = self.histogram.merge(other.histogram)
        if self.moving is not None and other.moving is not None:
            moving = self.moving.merge(other.moving)
        return Statistics(
            self.count + other.count,
            # minimum and maximum of numpy keep NaN, unlike Python's.
            float(np.minimum(self.min, other.min)),
            float(np.maximum(self.max, other.max)),
            self.not_finite + other.not_finite,
            histogram,
            moving,
        )

    def to_plain(self) -> _Entry:
        """What files hold of it."""
        moving = None if self.moving is None else astuple(self.moving)
        return _Entry(self.count, (self.min, self.max), self.not_finite, self.histogram, moving)

    @classmethod
    def from_plain(cls, entry: _Entry) -> Statistics:
        """The statistics that a file holds."""
        moving = entry.moving and Moving(*entry.moving)
        return cls(entry.count, *entry.seen, entry.not_finite, entry.histogram, moving)


@dataclass(frozen=True)
class _Entry:
    """Statistics as they stand in a file."""

    count: int
    seen: tuple[float, float]
    not_finite: int
    histogram: Histogram | None = entry(sparse=True, default=None)
    moving: tuple[float, float, float, int] | None = entry(sparse=True, default=None)
