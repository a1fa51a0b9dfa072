"""The squared error that quantization makes, computed from a histogram."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt

from onnxq.observe.histogram import Float64Array, Histogram


class SquaredError:
    """Squared error of quantizing values with a scale, summed over all values.

    Values are taken to be spread evenly over their bin, as far as smallest and largest value
    allow, and the error is integrated over that: with u = x / scale, n the integer nearest to u
    and r = u - n, the integral of (u - n)**2 from 0 to u is n / 12 + r**3 / 3.

    Args:
        histogram: How often values fell where.
        low: Smallest value.
        high: Largest value.
    """

    def __init__(self, histogram: Histogram, low: float, high: float) -> None:
        lower = np.maximum(histogram.lower, low)
        upper = np.minimum(histogram.upper, high)
        above, below = histogram.bins > 0, histogram.bins < 0
        self._above = _Side(lower[above], upper[above], histogram.counts[above])
        self._below = _Side(-upper[below][::-1], -lower[below][::-1], histogram.counts[below][::-1])

    def rounding(self, scale: float, low: float, high: float) -> float:
        """Error of the values from ``low`` to ``high``, which are rounded to multiples of scale."""
        return self._above.rounding(scale, high) + self._below.rounding(scale, -low)

    def clipping(self, low: float, high: float) -> float:
        """Error of the values outside, which become ``low`` or ``high``."""
        return self._above.clipping(high) + self._below.clipping(-low)


class _Side:
    """Values of one sign, as magnitudes: bins from ``a`` to ``b`` with ``counts`` values each."""

    def __init__(self, a: Float64Array, b: Float64Array, counts: npt.NDArray[np.int64]) -> None:
        self._a, self._b, self._counts = a, b, counts.astype(np.float64)

    @cached_property
    def _squares_below(self) -> Float64Array:
        """Sum of the squares of the values in the first 0, 1, 2, ... bins."""
        a, b = self._a, self._b
        squares = self._counts * (a * a + a * b + b * b) / 3
        return np.concatenate([[0.0], np.cumsum(squares)])

    def rounding(self, scale: float, limit: float) -> float:
        inside = int(np.searchsorted(self._a, limit))
        # What rounds to zero has itself as its error.
        tiny = min(inside, int(np.searchsorted(self._b, scale / 2, side="right")))
        a = self._a[tiny:inside] / scale
        b = np.minimum(self._b[tiny:inside], limit) / scale
        share = self._counts[tiny:inside] * self._share_inside(tiny, inside, limit)
        at_points = np.square(a - np.rint(a))
        mean = np.divide(_integral(b) - _integral(a), b - a, out=at_points, where=b > a)
        return float(self._squares_below[tiny]) + float((mean * share).sum()) * scale**2

    def clipping(self, limit: float) -> float:
        first = int(np.searchsorted(self._b, limit, side="right"))
        a = np.maximum(self._a[first:] - limit, 0.0)
        b = self._b[first:] - limit
        share = self._counts[first:].copy()
        if first < len(self._a) and self._a[first] < limit:
            share[0] *= b[0] / (self._b[first] - self._a[first])
        return float((share * (a * a + a * b + b * b)).sum()) / 3

    def _share_inside(self, first: int, last: int, limit: float) -> Float64Array:
        """Share of each bin's values that are not above the limit."""
        share = np.ones(last - first)
        if last > first and self._b[last - 1] > limit:
            a, b = self._a[last - 1], self._b[last - 1]
            share[-1] = (limit - a) / (b - a)
        return share


def _integral(u: Float64Array) -> Float64Array:
    nearest = np.rint(u)
    rest = u - nearest
    return np.asarray(nearest / 12 + rest * rest * rest / 3)
