"""What was usual when a bundle was made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from onnxq.observe import Histogram
from onnxq.saved import SavedAsJson

_COARSE = 16
"""Bins that hold about as many of the baseline's values each."""


@dataclass(frozen=True, eq=False)
class Coarse:
    """A few bins.

    Attributes:
        edges: The first bin of a histogram in each of them but the first.
        shares: Of the baseline's values in each.
    """

    edges: npt.NDArray[np.int32]
    shares: npt.NDArray[np.float64]

    @classmethod
    def made(cls, baseline: Histogram) -> Coarse:
        """Bins that hold about as many values each, as far as values differ."""
        wanted = np.arange(1, _COARSE) * baseline.total / _COARSE
        places = np.searchsorted(np.cumsum(baseline.counts), wanted, side="right")
        edges = np.unique(baseline.bins[places]) if baseline.total else baseline.bins
        coarse = cls(edges, np.zeros(0))
        return cls(edges, coarse.of(baseline))

    def of(self, seen: Histogram) -> npt.NDArray[np.float64]:
        """Share of a histogram's values in each bin."""
        places = np.searchsorted(self.edges, seen.bins, side="right")
        return np.bincount(places, seen.counts, len(self.edges) + 1) / max(seen.total, 1)


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
    def coarse(self) -> Coarse:
        """Its values in few bins."""
        return Coarse.made(self.histogram)


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
