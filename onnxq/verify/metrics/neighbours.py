"""Nearest neighbours of embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxq.errors import InputError
from onnxq.runtime.specs import Array
from onnxq.verify.agreement import FEWEST, nearest
from onnxq.verify.decisions import UNDECIDED
from onnxq.verify.metrics.choosing import numbers_and_wanted
from onnxq.verify.metrics.mean import MeanMetric
from onnxq.verify.metrics.metric import Floats


@dataclass(eq=False)
class Neighbours(MeanMetric):
    """Share of samples whose nearest other sample, by cosine, is that of the labels' embeddings.

    Without labels the float model's embeddings take their place.

    Attributes:
        output: The output's name; the first that fits where empty.
    """

    name = "neighbours"
    is_share = True
    needs_labels = False
    output: str = ""

    _rows: list[tuple[Floats, Floats]] = field(default_factory=list, init=False, repr=False)

    def add(
        self,
        outputs: Mapping[str, Any],
        labels: Array | None,
        valid: int,
        reference: Mapping[str, Any] | None = None,
    ) -> None:
        """See `Metric`."""
        found, wanted = numbers_and_wanted(outputs, labels, reference, self.name, self.output)
        self._rows.append((found[:valid], wanted[:valid]))

    def scores(self) -> tuple[Floats, Floats]:
        """See `MeanMetric`."""
        count = sum(len(found) for found, _ in self._rows)
        if count < FEWEST:
            raise InputError(
                f"metric {self.name} needs at least {FEWEST} samples, not {count}, to choose among"
            )
        found, wanted = (nearest(np.concatenate(side)) for side in zip(*self._rows, strict=True))
        same = (found == wanted) & (found != UNDECIDED)
        return same.astype(np.float64), np.ones(count)

    def right_or_wrong(self) -> bool:
        """See `MeanMetric`."""
        return True
