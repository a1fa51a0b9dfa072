"""Metrics of sums over all samples that are no mean of them."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from onnxq.errors import InputError
from onnxq.registry import to_form
from onnxq.verify.metrics.metric import Floats, Metric, MetricResult


@dataclass(eq=False)
class PooledMetric(Metric):
    """A metric that follows from some numbers of each sample, summed over the samples.

    Subclasses add the numbers and say what their sums mean; intervals draw samples.

    Attributes:
        nothing: What it says where there is nothing to count.
    """

    higher_is_better: ClassVar[bool] = True
    nothing: ClassVar[str]

    _numbers: list[Floats] = field(default_factory=list, init=False, repr=False)

    def numbers(self) -> Floats:
        """The numbers of each sample, [N, K].

        Raises:
            InputError: no batch was added.
        """
        if not self._numbers:
            raise InputError(f"metric {self.name}: there are no samples")
        return np.concatenate(self._numbers)

    def result(self) -> MetricResult:
        """See `Metric`."""
        numbers = self.numbers()
        value = float(self.of(numbers.sum(axis=0, keepdims=True))[0])
        if math.isnan(value):
            raise InputError(f"metric {to_form(self)}: {self.nothing}")
        return MetricResult(to_form(self), value, len(numbers), self.higher_is_better)

    @abstractmethod
    def of(self, sums: Floats) -> Floats:
        """The metric by sums of the samples' numbers, [R, K] -> [R]; NaN of nothing counted."""
