"""Searching for the range to quantize with, on a tensor's histogram.

Candidates for an end are the tensor's largest magnitude divided by powers of 2**(1/16), and the
exact smallest or largest value; ranges always hold 0, as quantization needs. Candidates lie 4.4 %
apart, which is fine enough: at the best range of normally distributed values in 8 bits, an end
2.2 % off makes 0.03 dB of difference.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from onnxq.observe.histogram import Float64Array, Histogram
from onnxq.observe.squared_error import SquaredError
from onnxq.quant import Format, Scheme, qparams_from_range

STEPS = 16
"""Candidates in an octave."""

MSE_OCTAVES = 8
"""How far below the largest magnitude `RangeSearch.mse` goes: to 0.4 % of it."""

ENTROPY_OCTAVES = 4
"""How far below it `RangeSearch.entropy` goes: to 6 %, as its source does."""

_HOPELESS = 2.0
"""So much more than the best range costs: the ends that are represented differ by up to a step
from those asked for, so what clipping costs does not rise quite steadily as ranges get narrower."""


@dataclass(frozen=True)
class RangeSearch:
    """Search for the range of one tensor.

    Attributes:
        histogram: The tensor's values.
        low: Smallest value.
        high: Largest value.
        format: Number format.
        scheme: Absmax or zero-point, with options.
        clipping: Weight of the squared error of values outside the range.
    """

    histogram: Histogram
    low: float
    high: float
    format: Format
    scheme: Scheme
    clipping: float = 1.0

    def mse(self) -> tuple[float, float]:
        """The candidate range whose expected squared error is smallest.

        First both ends are lowered to one magnitude. With a zero-point, the ends are then varied
        one after the other until nothing gets better.
        """
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        limits = _candidates(max(-low, high), MSE_OCTAVES)
        best = self._cheapest([(max(low, -limit), min(high, limit)) for limit in limits])
        if self.scheme.symmetric or low == 0 or high == 0:
            return best[1:]
        lows = [low, *(-limit for limit in limits if limit < -low)]
        highs = [high, *(limit for limit in limits if limit < high)]
        while True:
            _, *ends = best
            varied = self._cheapest([(end, ends[1]) for end in lows], best)
            varied = self._cheapest([(varied[1], end) for end in highs], varied)
            if varied == best:
                return best[1:]
            best = varied

    def best_of(self, ranges: list[tuple[float, float]]) -> tuple[float, float]:
        """The one of several ranges whose expected squared error is smallest, first of equals."""
        costs = [self._cost(ends, np.inf) for ends in self._represented(ranges)]
        return ranges[int(np.argmin(costs))]

    def entropy(self) -> tuple[float, float]:
        """The candidate range whose quantized distribution diverges least from the original one.

        After S. Migacz, "8-bit inference with TensorRT", GTC 2017: P is the distribution of the
        values, with those outside the range counted at its ends. Q is that of the quantized
        values: the values inside the range, each level's spread evenly over the places that its
        values had. The range with the smallest Kullback-Leibler divergence, the sum of
        P log(P / Q), wins.

        Here the distributions are over the bins of the bit-pattern histogram, so that Q spreads a
        level over the bins with values in them in proportion to their width. Zeros take no part,
        since every range represents them exactly.
        """
        histogram = self.histogram
        some = histogram.bins != 0
        lower = np.maximum(histogram.lower[some], self.low)
        upper = np.minimum(histogram.upper[some], self.high)
        middle, width = (lower + upper) / 2, histogram.upper[some] - histogram.lower[some]
        counts = histogram.counts[some].astype(np.float64)
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        limits = _candidates(max(-low, high), ENTROPY_OCTAVES)
        ranges = [(max(low, -limit), min(high, limit)) for limit in limits]
        divergences = [
            _divergence(middle, width, counts, *represented)
            for represented in self._represented(ranges)
        ]
        return ranges[int(np.argmin(divergences))]

    @cached_property
    def _error(self) -> SquaredError:
        return SquaredError(self.histogram, self.low, self.high)

    def _cost(self, represented: Float64Array, best: float) -> float:
        """What a scale, and the smallest and largest number it represents, cost.

        Infinite where clipping alone costs so much more than ``best`` that no narrower range can
        be cheaper.
        """
        scale, lowest, highest = map(float, represented)
        outside = self.clipping * self._error.clipping(lowest, highest)
        if outside >= _HOPELESS * best:
            return np.inf
        return outside + self._error.rounding(scale, lowest, highest)

    def _cheapest(
        self,
        ranges: list[tuple[float, float]],
        best: tuple[float, float, float] = (np.inf, 0.0, 0.0),
    ) -> tuple[float, float, float]:
        """The cheapest of some ranges, the widest first, and the best one so far, with its cost."""
        for (low, high), represented in zip(ranges, self._represented(ranges), strict=True):
            found = self._cost(represented, best[0])
            if found == np.inf:
                break
            if found < best[0]:
                best = (found, low, high)
        return best

    def _represented(self, ranges: list[tuple[float, float]]) -> Float64Array:
        """Scale, smallest and largest number represented for each range, (ranges, 3)."""
        lows, highs = np.array(ranges).T
        params = qparams_from_range(lows, highs, self.format, self.scheme, axis=0)
        scale = params.scale.astype(np.float64)
        zero_point = params.zero_point.astype(np.int64)
        ends = [(end - zero_point) * scale for end in (self.format.qmin, self.format.qmax)]
        return np.stack([scale, *ends], axis=1)


def _divergence(
    middle: Float64Array,
    width: Float64Array,
    counts: Float64Array,
    scale: float,
    lowest: float,
    highest: float,
) -> float:
    first = int(np.searchsorted(middle, lowest - scale / 2))
    last = int(np.searchsorted(middle, highest + scale / 2, side="right"))
    inside = counts[first:last]
    if not inside.size:
        return np.inf
    p = inside.copy()
    p[0] += counts[:first].sum()
    p[-1] += counts[last:].sum()
    # Neighbours of one level are next to each other, for bins are in order.
    levels = np.rint(middle[first:last] / scale)
    starts = np.flatnonzero(np.diff(levels, prepend=np.nan))
    sizes = np.diff(starts, append=len(levels))
    density = np.add.reduceat(inside, starts) / np.add.reduceat(width[first:last], starts)
    q = np.repeat(density, sizes) * width[first:last]
    p /= p.sum()
    q /= q.sum()
    return float((p * np.log(p / q)).sum())


def _candidates(largest: float, octaves: int) -> list[float]:
    return [float(largest * 2.0 ** (-i / STEPS)) for i in range(STEPS * octaves + 1)]
