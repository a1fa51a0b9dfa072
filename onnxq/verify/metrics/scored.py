"""Metrics that are a mean of one score a sample."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxq.errors import InputError
from onnxq.runtime.specs import Array, is_floating
from onnxq.verify.metrics.metric import Floats, Metric, MetricResult


class ScoredMetric(Metric):
    """A metric that is sum of scores / sum of weights over the samples.

    Subclasses give one score and one weight per sample; that is what intervals and paired
    differences are computed from.
    """

    higher_is_better = True

    def __init__(self) -> None:
        self._scores: list[Floats] = []
        self._weights: list[Floats] = []

    def add(self, outputs: Mapping[str, Any], labels: Array | None, valid: int) -> None:
        """Add one batch, of which the first `valid` samples count.

        Args:
            outputs: the model's outputs; the scored one is the first of floating-point type
                whose shape is that of `labels` and one axis of classes behind it.
            labels: integers, one class per position; negative ones are not counted.
            valid: number of real samples.

        Raises:
            InputError: there are no integer labels, no such output, or a label is no class.
        """
        labels = _integer_labels(labels, self.name)
        logits = _logits(outputs, labels, self.name)[:valid]
        labels = labels[:valid]
        counted = labels >= 0
        if labels.size and int(labels.max()) >= logits.shape[-1]:
            raise InputError(
                f"metric {self.name}: label {int(labels.max())} is beyond the model's "
                f"{logits.shape[-1]} classes"
            )
        scores = self._score(logits.astype(np.float64), np.where(counted, labels, 0))
        axes = tuple(range(1, labels.ndim))
        self._scores.append(np.where(counted, scores, 0.0).sum(axis=axes))
        self._weights.append(counted.sum(axis=axes).astype(np.float64))

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
        value = self.value(float(scores.sum() / weights.sum()))
        return MetricResult(self.name, value, len(scores), self.higher_is_better)

    def right_or_wrong(self) -> bool:
        """Tell whether each sample is either right (1) or wrong (0), as for a proportion."""
        return False

    def value(self, mean: float) -> float:
        """The metric by the mean score."""
        return mean

    def change(self, mean: float, by: float) -> float:
        """How much the metric changes where the mean score changes."""
        return by

    @abstractmethod
    def _score(self, logits: Floats, labels: Array) -> Floats:
        """Return the score of each position, in the shape of the labels."""


def _integer_labels(labels: Array | None, metric: str) -> Array:
    if labels is None:
        raise InputError(f"metric {metric} needs labels; the data has no array 'labels'")
    if labels.dtype.kind not in "iu":
        raise InputError(f"metric {metric} needs integer labels, not {labels.dtype}")
    return labels.astype(np.int64)


def _logits(outputs: Mapping[str, Any], labels: Array, metric: str) -> Array:
    """Return the output that scores the labels' positions."""
    for value in outputs.values():
        if (
            isinstance(value, np.ndarray)
            and is_floating(value.dtype)
            and value.shape[:-1] == labels.shape
            and value.shape[-1] > 1
        ):
            return value
    wanted = ", ".join([*(str(size) for size in labels.shape), "classes"])
    have = ", ".join(f"{name} {list(np.shape(value))}" for name, value in outputs.items())
    raise InputError(
        f"metric {metric} needs a floating-point output [{wanted}] for labels "
        f"{list(labels.shape)}; the model's outputs are: {have}; name another metric with --metric"
    )
