"""Metrics that score a class at every position of the labels."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxq.errors import InputError
from onnxq.runtime.specs import Array
from onnxq.verify.metrics.choosing import first_fitting
from onnxq.verify.metrics.mean import MeanMetric
from onnxq.verify.metrics.metric import Floats


class ScoredMetric(MeanMetric):
    """A mean of one score of each position that has a label.

    Subclasses score positions; a sample's score is their sum, and its weight their number.
    """

    def add(
        self,
        outputs: Mapping[str, Any],
        labels: Array | None,
        valid: int,
        reference: Mapping[str, Any] | None = None,
    ) -> None:
        """Add one batch, of which the first `valid` samples count.

        Args:
            outputs: the model's outputs; the scored one is the first of floating-point type
                whose shape is that of `labels` and one axis of classes behind it.
            labels: integers, one class per position; negative ones are not counted.
            valid: number of real samples.
            reference: not read: there is nothing to score without labels.

        Raises:
            InputError: there are no integer labels, no such output, or a label is no class.
        """
        labels = integer_labels(labels, self.name)
        logits = class_scores(outputs, labels, self.name)[:valid]
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

    @abstractmethod
    def _score(self, logits: Floats, labels: Array) -> Floats:
        """Return the score of each position, in the shape of the labels."""


def integer_labels(labels: Array | None, metric: str) -> Array:
    """Labels that are classes.

    Raises:
        InputError: there are none, or they are other numbers.
    """
    if labels is None:
        raise InputError(f"metric {metric} needs labels; the data has no array 'labels'")
    if labels.dtype.kind not in "iu":
        raise InputError(f"metric {metric} needs integer labels, not {labels.dtype}")
    return labels.astype(np.int64)


def class_scores(outputs: Mapping[str, Any], labels: Array, metric: str) -> Array:
    """The output that scores the labels' positions.

    Raises:
        InputError: there is none.
    """
    wanted = ", ".join([*(str(size) for size in labels.shape), "classes"])
    name = first_fitting(
        outputs,
        lambda value: value.shape[:-1] == labels.shape and value.shape[-1] > 1,
        metric,
        f"[{wanted}] for labels {list(labels.shape)}",
        "",
    )
    return np.asarray(outputs[name])
