"""Peak signal-to-noise ratio."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxq.errors import InputError
from onnxq.runtime.specs import Array
from onnxq.verify.metrics.choosing import numbers_and_wanted, squared_errors
from onnxq.verify.metrics.mean import MeanMetric

ALLOWED_DROP_DB = 0.1
"""Largest drop where none is promised."""


@dataclass(eq=False)
class Psnr(MeanMetric):
    """10 log10(peak² / MSE) of each sample in dB, in the mean over samples.

    It needs labels: held against its own outputs the float model's is infinite.

    Attributes:
        peak: The largest number there can be, as 255 for images of bytes.
        output: The output's name; the first that fits where empty.
    """

    name = "psnr"
    peak: float = 1.0
    output: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.peak < np.inf:
            raise InputError(f"option 'peak' of metric {self.name} is above 0, not {self.peak:g}")

    @classmethod
    def allowed_drop(cls, value: float) -> float:
        """See `Metric`."""
        return ALLOWED_DROP_DB

    def add(
        self,
        outputs: Mapping[str, Any],
        labels: Array | None,
        valid: int,
        reference: Mapping[str, Any] | None = None,
    ) -> None:
        """See `Metric`."""
        if labels is None:
            raise InputError(f"metric {self.name} needs labels; the data has no array 'labels'")
        found, wanted = numbers_and_wanted(outputs, labels, None, self.name, self.output)
        error = squared_errors(found, wanted).mean(axis=1)[:valid]
        with np.errstate(divide="ignore"):
            ratio = 10 * np.log10(self.peak**2 / error)
        self._scores.append(ratio)
        self._weights.append(np.ones(len(ratio)))
