"""What was usual when a bundle was made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from onnxq.observe import Histogram
from onnxq.observe.histogram import bins_of
from onnxq.saved import SavedAsJson

_CELLS = 16
"""Cells within a tensor's range, which hold about as many of the baseline's values each."""


@dataclass(frozen=True)
class Usual:
    """What a score was like: its mean and its standard deviation from sample to sample."""

    mean: float
    deviation: float


@dataclass(frozen=True)
class TensorBaseline:
    """A tensor on the calibration samples.

    Attributes:
        low: Smallest number that the chosen variant can hold; that was seen, where it quantizes
            none.
        high: The largest one.
        histogram: Its values.
        usual: Its scores, by kind.
    """

    low: float
    high: float
    histogram: Histogram
    usual: Mapping[str, Usual]

    @cached_property
    def edges(self) -> npt.NDArray[np.int32]:
        """The first bin of each cell but the first: the range's own ends, and some between them."""
        first, last = (int(bins_of(np.array([end]))[0]) for end in (self.low, self.high))
        wanted = np.arange(1, _CELLS) * self.histogram.total / _CELLS
        places = np.searchsorted(np.cumsum(self.histogram.counts), wanted, side="right")
        inner = np.unique(self.histogram.bins[places[places < len(self.histogram.bins)]])
        inner = inner[(inner > first) & (inner <= last)]
        return np.concatenate([[first], inner, [last + 1]]).astype(np.int32)


@dataclass(frozen=True)
class Baseline(SavedAsJson):
    """What was usual when a bundle was made.

    Attributes:
        samples: Calibration samples that the tensors were seen on.
        tensors: By name.
        bag: Scores of held-out samples, which nothing was fitted to, by stream.
    """

    schema = "onnxq/baseline/1"
    what = "baseline"
    remedy = "make the bundle again with `onnxq optimize --adaptive`"

    samples: int
    tensors: Mapping[str, TensorBaseline]
    bag: Mapping[str, tuple[float, ...]]
