"""Top-k accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxq.errors import InputError
from onnxq.runtime.specs import Array
from onnxq.verify.metrics.choosing import first_fitting, float_outputs
from onnxq.verify.metrics.ranked import Ranked


@dataclass(eq=False)
class TopK(Ranked):
    """Share of positions whose label is among the `k` largest outputs.

    Without labels: whether the float model's first choice is.

    Attributes:
        k: How many outputs count.
    """

    name = "top-k"
    needs_labels = False
    k: int = 5

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(f"option 'k' of metric {self.name} is at least 1, not {self.k}")

    def add(
        self,
        outputs: Mapping[str, Any],
        labels: Array | None,
        valid: int,
        reference: Mapping[str, Any] | None = None,
    ) -> None:
        """See `Metric`."""
        if labels is None:
            theirs = float_outputs(reference, self.name)
            is_scores = first_fitting(
                theirs, lambda v: v.ndim > 1 and v.shape[-1] > 1, self.name, "[..., classes]", ""
            )
            labels = np.asarray(theirs[is_scores]).argmax(axis=-1)
        super().add(outputs, labels, valid)
