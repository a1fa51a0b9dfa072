"""Metrics that are a mean of one score a sample."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from onnxq.errors import InputError
from onnxq.registry import to_form
from onnxq.verify.metrics.metric import Floats, Metric, MetricResult


@dataclass(eq=False)
class MeanMetric(Metric):
    """A metric that is sum of scores / sum of weights over the samples.

    Subclasses add one score and one weight per sample; that is what intervals and paired
    differences are computed from. Weights are the same for every model.
    """

    higher_is_better: ClassVar[bool] = True

    _scores: list[Floats] = field(default_factory=list, init=False, repr=False)
    _weights: list[Floats] = field(default_factory=list, init=False, repr=False)

    def scores(self) -> tuple[Floats, Floats]:
        """Return each sample's score and weight, [N] and [N].

        Raises:
            InputError: nothing was counted.
        """
        if not self._scores or not sum(float(weights.sum()) for weights in self._weights):
            raise InputError(f"metric {self.name}: there are no labels to count")
        return np.concatenate(self._scores), np.concatenate(self._weights)

    def result(self) -> MetricResult:
        """Return sum of scores / sum of weights.

        Raises:
            InputError: nothing was counted.
        """
        scores, weights = self.scores()
        with np.errstate(invalid="ignore"):
            value = self.value(float(scores.sum() / weights.sum()))
        return MetricResult(to_form(self), value, len(scores), self.higher_is_better)

    def right_or_wrong(self) -> bool:
        """Tell whether each sample that counts is right (1) or wrong (0), as for a proportion."""
        return False

    def value(self, mean: float) -> float:
        """The metric by the mean score."""
        return mean

    def change(self, mean: float, by: float) -> float:
        """How much the metric changes where the mean score changes."""
        return by
