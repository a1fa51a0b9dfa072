"""Calibrators: choosing the range that a tensor is to represent."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np

from onnxq.errors import InputError
from onnxq.needs import MovingRangeOf, Need, RangeOf
from onnxq.observe.histogram import Histogram
from onnxq.observe.search import RangeSearch
from onnxq.observe.statistics import Statistics
from onnxq.quant import Format, Scheme
from onnxq.registry import from_form, to_form


@dataclass(frozen=True)
class Calibrator(ABC):
    """Chooses a range from what one pass over the data found out.

    Fields of a subclass are its options; their text form is ``percentile{percentile=99.9}``.

    Attributes:
        name: As on the command line.
        needs_histogram: Whether smallest and largest value are not enough.
    """

    name: ClassVar[str]
    needs_histogram: ClassVar[bool] = True

    def needs(self, tensor: str) -> Sequence[Need]:
        """What it has to know of a tensor."""
        return [RangeOf(tensor, self.needs_histogram)]

    def range(self, seen: Statistics, format: Format, scheme: Scheme) -> tuple[float, float]:
        """Smallest and largest value to represent.

        A tensor with NaN or infinite values has their extremes for its range whatever the
        calibrator, so that whoever quantizes it sees them and refuses.

        Args:
            seen: The tensor's statistics.
            format: Number format it is to be quantized to.
            scheme: How the range is to be laid over the format.

        Raises:
            InputError: the statistics lack what this calibrator needs.
        """
        if not seen.is_finite:
            return seen.min, seen.max
        low, high = self._choose(seen, format, scheme)
        # A range of nothing but 0 would turn all of a tensor to zero.
        return (low, high) if low < 0 or high > 0 else (seen.min, seen.max)

    @abstractmethod
    def _choose(self, seen: Statistics, format: Format, scheme: Scheme) -> tuple[float, float]:
        """The range of a tensor whose values are finite."""

    def __str__(self) -> str:
        return to_form(self)

    def _histogram(self, seen: Statistics) -> Histogram:
        if seen.histogram is None:
            raise InputError(
                f"calibrator '{self.name}' needs histograms, and these ranges were found without; "
                "calibrate again with it"
            )
        return seen.histogram

    def _search(
        self, seen: Statistics, format: Format, scheme: Scheme, clipping: float = 1.0
    ) -> RangeSearch:
        histogram = self._histogram(seen)
        return RangeSearch(histogram, seen.min, seen.max, format, scheme, clipping)

    def _require(self, option: str, holds: bool, limits: str) -> None:
        if not holds:
            raise InputError(
                f"option '{option}' of calibrator {self.name} is {getattr(self, option):g}; it "
                f"has to be {limits}"
            )


@dataclass(frozen=True)
class MinMax(Calibrator):
    """From the smallest to the largest value: nothing is clipped."""

    name: ClassVar[str] = "minmax"
    needs_histogram: ClassVar[bool] = False

    def _choose(self, seen: Statistics, format: Format, scheme: Scheme) -> tuple[float, float]:
        return seen.min, seen.max


@dataclass(frozen=True)
class MovingAverage(Calibrator):
    """Moving average of the batches' smallest and largest values, see `Moving`.

    The only calibrator whose result depends on the order and the size of the batches.

    Attributes:
        momentum: Weight of a new batch, above 0 and at most 1.
    """

    name: ClassVar[str] = "moving-average"
    needs_histogram: ClassVar[bool] = False

    momentum: float = 0.1

    def __post_init__(self) -> None:
        self._require("momentum", 0 < self.momentum <= 1, "above 0 and at most 1")

    def needs(self, tensor: str) -> Sequence[Need]:
        """The ends, for tensors that are not finite, and their moving average."""
        return [*super().needs(tensor), MovingRangeOf(tensor, self.momentum)]

    def _choose(self, seen: Statistics, format: Format, scheme: Scheme) -> tuple[float, float]:
        if seen.moving is None or seen.moving.momentum != self.momentum:
            raise InputError(
                f"the ranges were found without a moving average of momentum {self.momentum:g}; "
                f"calibrate again with '{self}'"
            )
        return seen.moving.min, seen.moving.max


@dataclass(frozen=True)
class Percentile(Calibrator):
    """Clips the same share of values at both ends.

    The upper end is the smallest value that at least ``percentile`` per cent of all values do not
    exceed, the lower end its mirror image. Inside the histogram's bin that holds it, the value is
    found by its rank, as if values were spread evenly: it is off by less than the bin's width.

    Attributes:
        percentile: Above 50 and at most 100.
    """

    name: ClassVar[str] = "percentile"

    percentile: float = 99.99

    def __post_init__(self) -> None:
        self._require("percentile", 50 < self.percentile <= 100, "above 50 and at most 100")

    def _choose(self, seen: Statistics, format: Format, scheme: Scheme) -> tuple[float, float]:
        histogram = self._histogram(seen)
        # Exact, for 0.9999 * 10_000 is not 9_999 in floating point.
        share = Fraction(str(self.percentile)) / 100
        rank = -(-histogram.total * share.numerator // share.denominator)
        high = _ranked(histogram, rank, seen)
        low = _ranked(histogram, histogram.total + 1 - rank, seen)
        return low, high


@dataclass(frozen=True)
class Entropy(Calibrator):
    """The range whose quantized distribution tells most about the original one.

    See `onnxq.observe.search.RangeSearch.entropy`.
    """

    name: ClassVar[str] = "entropy"

    def _choose(self, seen: Statistics, format: Format, scheme: Scheme) -> tuple[float, float]:
        return self._search(seen, format, scheme).entropy()


@dataclass(frozen=True)
class Mse(Calibrator):
    """The range with the smallest expected squared error.

    See `onnxq.observe.search.RangeSearch.mse`.

    Attributes:
        clipping: Weight of the squared error of clipped values against that of rounded ones.
    """

    name: ClassVar[str] = "mse"

    clipping: float = 1.0

    def __post_init__(self) -> None:
        self._require("clipping", 0 < self.clipping < np.inf, "above 0")

    def _choose(self, seen: Statistics, format: Format, scheme: Scheme) -> tuple[float, float]:
        return self._search(seen, format, scheme, self.clipping).mse()


@dataclass(frozen=True)
class Auto(Calibrator):
    """Of the ranges of the others, the one with the smallest expected error, tensor by tensor.

    Candidates are minmax, percentile at 99.99 and at 99.999, entropy and mse. They are compared
    by the squared error expected on the histogram, that of clipped values weighted: rounding
    errors have either sign and average out where the next operator sums products of many values,
    while those of clipped values all point to zero, and add up.

    Attributes:
        clipping: Weight of the squared error of clipped values, in the search of mse, too. With 2
            every example model's outputs came out at least as exact as with minmax.
    """

    name: ClassVar[str] = "auto"

    clipping: float = 2.0

    def __post_init__(self) -> None:
        self._require("clipping", 0 < self.clipping < np.inf, "above 0")

    def _choose(self, seen: Statistics, format: Format, scheme: Scheme) -> tuple[float, float]:
        candidates = (MinMax(), Percentile(), Percentile(99.999), Entropy(), Mse(self.clipping))
        ranges = [candidate.range(seen, format, scheme) for candidate in candidates]
        return self._search(seen, format, scheme, self.clipping).best_of(ranges)


CALIBRATORS: dict[str, type[Calibrator]] = {
    kind.name: kind for kind in (MinMax, MovingAverage, Percentile, Entropy, Mse, Auto)
}
"""Calibrators by name."""


def parse_calibrator(text: str) -> Calibrator:
    """Read a calibrator's text form, ``percentile{percentile=99.9}``.

    Raises:
        InputError: naming the calibrator, option or value that is wrong.
    """
    return from_form(text, CALIBRATORS, "calibrator")


def _ranked(histogram: Histogram, rank: int, seen: Statistics) -> float:
    """The value of a rank, counted from 1."""
    before = np.cumsum(histogram.counts)
    at = int(np.searchsorted(before, rank))
    inside = (rank - (int(before[at]) - int(histogram.counts[at])) - 0.5) / histogram.counts[at]
    if histogram.bins[at] == 0:
        return 0.0
    low = max(float(histogram.lower[at]), seen.min)
    high = min(float(histogram.upper[at]), seen.max)
    return float(np.float32(low + (high - low) * inside))
