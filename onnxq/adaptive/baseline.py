"""What was usual when a bundle was made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnxq.observe import Histogram
from onnxq.saved import SavedAsJson


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
