"""F1 score."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxq.errors import InputError
from onnxq.runtime.specs import Array
from onnxq.verify.decisions import UNDECIDED
from onnxq.verify.metrics.choosing import first_fitting, float_outputs
from onnxq.verify.metrics.metric import Floats
from onnxq.verify.metrics.pooled import PooledMetric
from onnxq.verify.metrics.scored import integer_labels


@dataclass(eq=False)
class F1(PooledMetric):
    """2 TP / (2 TP + FP + FN) of each class, in the mean over classes that occur (macro).

    The class is the largest output of each position; of an output with one number a position it is
    1 from `threshold` on, else 0. Negative labels are not counted. Without labels the float model's
    classes take their place. A NaN is of no class.

    Attributes:
        positive: The class whose F1 alone is taken; it has to occur.
        threshold: See above.
        output: The output's name; the first that fits where empty.
    """

    name = "f1"
    is_share = True
    needs_labels = False
    nothing = (
        "there is nothing to count: no position has a label, or the class of option 'positive' "
        "occurs nowhere"
    )
    positive: int | None = None
    threshold: float = 0.5
    output: str = ""

    def __post_init__(self) -> None:
        if self.positive is not None and self.positive < 0:
            raise InputError(
                f"option 'positive' of metric {self.name} is a class from 0 on, not {self.positive}"
            )
        if not math.isfinite(self.threshold):
            raise InputError(
                f"option 'threshold' of metric {self.name} is a finite number, not {self.threshold}"
            )

    def add(
        self,
        outputs: Mapping[str, Any],
        labels: Array | None,
        valid: int,
        reference: Mapping[str, Any] | None = None,
    ) -> None:
        """See `Metric`."""
        if labels is None:
            wanted, _ = self._choices(float_outputs(reference, self.name), None)
        else:
            wanted = integer_labels(labels, self.name)
        found, classes = self._choices(outputs, wanted.shape)
        largest = max(int(wanted.max(initial=0)), self.positive or 0)
        if largest >= classes:
            raise InputError(
                f"metric {self.name}: class {largest} is beyond the model's {classes} classes"
            )
        wanted, found = (side[:valid].reshape(valid, -1) for side in (wanted, found))
        found = np.where(wanted < 0, UNDECIDED, found)
        both = np.where(found == wanted, found, UNDECIDED)
        hits, mine, theirs = (_counts(side, classes) for side in (both, found, wanted))
        self._numbers.append(np.concatenate([2 * hits, mine + theirs], axis=1))

    def of(self, sums: Floats) -> Floats:
        """See `PooledMetric`."""
        hits, all_ = np.split(sums, 2, axis=1)
        if self.positive is not None:
            hits, all_ = (side[:, self.positive :][:, :1] for side in (hits, all_))
        scores, occur = hits / np.maximum(all_, 1), (all_ > 0).sum(axis=1)
        return np.asarray(np.where(occur > 0, scores.sum(axis=1) / np.maximum(occur, 1), np.nan))

    def _choices(
        self, outputs: Mapping[str, Any], shape: tuple[int, ...] | None
    ) -> tuple[Array, int]:
        """The class at each position, and how many there are; of any shape if None."""

        def is_single(value: Array) -> bool:
            return value.ndim == 1 or value.shape[-1] == 1 or value.shape == shape

        def fits(value: Array) -> bool:
            return value.ndim > 0 and (shape in (None, value.shape, value.shape[:-1]))

        wanted = "of classes" if shape is None else f"of labels {list(shape)}"
        value = np.asarray(outputs[first_fitting(outputs, fits, self.name, wanted, self.output)])
        unknown = np.isnan(value)
        if is_single(value):
            single = np.where(unknown, UNDECIDED, value >= self.threshold)
            return single if shape is None else single.reshape(shape), 2
        return np.where(unknown.any(axis=-1), UNDECIDED, value.argmax(axis=-1)), value.shape[-1]


def _counts(choices: Array, classes: int) -> Floats:
    """How often each class occurs in each row."""
    rows = np.broadcast_to(np.arange(len(choices))[:, np.newaxis], choices.shape)
    cells = (rows * classes + choices)[choices >= 0]
    counts = np.bincount(cells, minlength=len(choices) * classes)
    return counts.reshape(len(choices), classes).astype(np.float64)
