"""Agreement of detected boxes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxq.errors import InputError
from onnxq.runtime.specs import Array
from onnxq.verify.metrics.boxes import Boxes, BoxMetric, overlaps
from onnxq.verify.metrics.metric import Floats
from onnxq.verify.metrics.pooled import PooledMetric


@dataclass(eq=False)
class Detection(BoxMetric, PooledMetric):
    """Share of boxes that both models detect: 2 matched / (float's boxes + the candidate's).

    A box is detected where its score is at least `threshold`. From the candidate's best one on each
    takes the box of the float model, of the same class and not taken yet, that it overlaps most, if
    their intersection over union (IoU) is at least `iou`. Labels are not read.

    Attributes:
        iou: See above; for the others see `BoxMetric`.
    """

    name = "detection"
    needs_labels = False
    nothing = (
        "no box is detected in any sample, so nothing tells whether models agree; lower option "
        "'threshold' or give samples that show objects"
    )
    iou: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_option("iou", self.iou, lambda v: 0 < v <= 1, "above 0 and at most 1")

    def add(
        self,
        outputs: Mapping[str, Any],
        labels: Array | None,
        valid: int,
        reference: Mapping[str, Any] | None = None,
    ) -> None:
        """See `Metric`."""
        if reference is None:
            raise InputError(
                f"metric {self.name} compares with the float model, which does not run here; name "
                "another metric with --metric"
            )
        ours_all, theirs_all = (self.detected(side, valid) for side in (reference, outputs))
        if len(ours_all) != len(theirs_all):
            raise InputError(
                f"metric {self.name}: '{self.boxes}' holds {len(theirs_all)} samples of one model "
                f"and {len(ours_all)} of the other; name other outputs with --metric"
            )
        for ours, theirs in zip(ours_all, theirs_all, strict=True):
            both = 2.0 * _matched(ours, theirs, self.iou)
            self._numbers.append(np.array([[both, len(ours.scores) + len(theirs.scores)]]))

    def of(self, sums: Floats) -> Floats:
        """See `PooledMetric`."""
        both, all_ = sums.T
        return np.asarray(np.where(all_ > 0, both / np.maximum(all_, 1), np.nan))


def _matched(ours: Boxes, theirs: Boxes, least: float) -> int:
    """How many boxes of the candidate have one of the float model's for themselves."""
    if not len(ours.scores) or not len(theirs.scores):
        return 0
    overlap = overlaps(theirs.corners, ours.corners)
    overlap[theirs.classes[:, np.newaxis] != ours.classes[np.newaxis]] = -1.0
    count = 0
    for row in overlap:
        at = int(row.argmax())
        if row[at] >= least:
            overlap[:, at] = -1.0
            count += 1
    return count
