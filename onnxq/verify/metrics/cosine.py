"""Cosine similarity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxq.runtime.specs import Array
from onnxq.verify.metrics.choosing import numbers_and_wanted
from onnxq.verify.metrics.mean import MeanMetric


@dataclass(eq=False)
class Cosine(MeanMetric):
    """Cosine of the angle between each sample's output and its label, in the mean over samples.

    Without labels the float model's output takes their place. 0 where one side is all zero, -1
    where the output is not finite.

    Attributes:
        output: The output's name; the first that fits where empty.
    """

    name = "cosine"
    needs_labels = False
    output: str = ""

    def add(
        self,
        outputs: Mapping[str, Any],
        labels: Array | None,
        valid: int,
        reference: Mapping[str, Any] | None = None,
    ) -> None:
        """See `Metric`."""
        found, wanted = numbers_and_wanted(outputs, labels, reference, self.name, self.output)
        with np.errstate(invalid="ignore"):
            product = (found * wanted).sum(axis=1)
            lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1)
            cosine = product / np.where(lengths > 0, lengths, 1.0)
        cosine = np.where(np.isfinite(found).all(axis=1), cosine, -1.0)[:valid]
        self._scores.append(cosine)
        self._weights.append(np.ones(len(cosine)))
