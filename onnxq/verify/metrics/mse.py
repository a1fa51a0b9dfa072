"""Mean squared error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from onnxq.errors import InputError
from onnxq.runtime.specs import Array
from onnxq.verify.metrics.choosing import numbers_and_wanted, squared_errors
from onnxq.verify.metrics.mean import MeanMetric

ALLOWED_RISE = 0.02
"""Largest rise where none is promised, as a share of the float model's error."""


@dataclass(eq=False)
class MeanSquaredError(MeanMetric):
    """Mean of (output - label)² over all numbers; without labels, of the float model's output.

    Infinite where there is a NaN.

    Attributes:
        output: The output's name; the first that fits where empty.
    """

    name = "mse"
    needs_labels = False
    higher_is_better: ClassVar[bool] = False
    output: str = ""

    @classmethod
    def allowed_drop(cls, value: float) -> float:
        """See `Metric`."""
        if value == 0:
            raise InputError(
                f"metric {cls.name}: the float model's error is 0, which says nothing of how large "
                "the other model's may be; promise it with --max-drop"
            )
        return ALLOWED_RISE * value

    def add(
        self,
        outputs: Mapping[str, Any],
        labels: Array | None,
        valid: int,
        reference: Mapping[str, Any] | None = None,
    ) -> None:
        """See `Metric`."""
        found, wanted = numbers_and_wanted(outputs, labels, reference, self.name, self.output)
        squared = squared_errors(found, wanted).sum(axis=1)[:valid]
        self._scores.append(squared)
        self._weights.append(np.full(len(squared), float(found.shape[1])))
