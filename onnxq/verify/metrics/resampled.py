"""Metrics over all samples that are no mean of them."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt

from onnxq.errors import InputError
from onnxq.registry import to_form
from onnxq.verify.metrics.metric import Floats, Metric, MetricResult


@dataclass(eq=False)
class ResampledMetric(Metric):
    """A metric of a set of samples, in which some may be several times, for intervals.

    Attributes:
        nothing: What it says where there is nothing to count.
    """

    higher_is_better: ClassVar[bool] = True
    nothing: ClassVar[str]

    def result(self) -> MetricResult:
        """See `Metric`."""
        count = self.samples()
        (value,) = self.resampled(np.ones((1, count)))
        if math.isnan(value):
            raise InputError(f"metric {to_form(self)}: {self.nothing}")
        return MetricResult(to_form(self), float(value), count, self.higher_is_better)

    @abstractmethod
    def samples(self) -> int:
        """How many were added.

        Raises:
            InputError: no batch was added.
        """

    @abstractmethod
    def resampled(self, times: Floats) -> Floats:
        """The metric by how often each sample counts, [R, N] -> [R]; NaN of nothing counted."""


@dataclass(eq=False)
class UnpooledMetric(ResampledMetric):
    """A metric of a set of samples that is no ratio of sums over them either."""

    @abstractmethod
    def differs(self, other: Self) -> npt.NDArray[np.bool_]:
        """Which of the same samples are others to the metric with another model's outputs, [N]."""

    @abstractmethod
    def with_nothing_found(self) -> Self:
        """The same samples as they are of a model that finds nothing in any."""
