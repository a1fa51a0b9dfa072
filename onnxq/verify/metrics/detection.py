"""Agreement of detected boxes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxq.errors import InputError
from onnxq.runtime.specs import Array
from onnxq.verify.metrics.metric import Floats
from onnxq.verify.metrics.pooled import PooledMetric

Detected = tuple[Floats, Array]
"""Boxes [D, 4] and classes [D], best first."""


@dataclass(eq=False)
class Detection(PooledMetric):
    """Share of boxes that both models detect: 2 matched / (float's boxes + the candidate's).

    A box is detected where its score is at least `threshold`. From the candidate's best one on each
    takes the box of the float model, of the same class and not taken yet, that it overlaps most, if
    their intersection over union (IoU) is at least `iou`. Labels are not read.

    Attributes:
        boxes: Output [N, M, 4], or [M, 4] of one sample.
        scores: Output [N, M] or [N, M, classes], of which the largest is the box's class.
        threshold: See above.
        iou: See above.
        nms: First boxes are left out that overlap a better one of their class with a larger IoU;
            none are if None.
        background: The class that is no object.
        centers: Whether boxes are centre x, centre y, width, height, instead of two corners.
    """

    name = "detection"
    is_share = True
    needs_labels = False
    nothing = (
        "no box is detected in any sample, so nothing tells whether models agree; lower option "
        "'threshold' or give samples that show objects"
    )
    boxes: str
    scores: str
    threshold: float = 0.5
    iou: float = 0.5
    nms: float | None = None
    background: int | None = None
    centers: bool = False

    def __post_init__(self) -> None:
        for option, value, fits, wanted in (
            ("threshold", self.threshold, math.isfinite(self.threshold), "a finite number"),
            ("iou", self.iou, 0 < self.iou <= 1, "above 0 and at most 1"),
            ("nms", self.nms, self.nms is None or 0 <= self.nms <= 1, "from 0 to 1"),
        ):
            if not fits:
                raise InputError(
                    f"option '{option}' of metric {self.name} is {wanted}, not {value}"
                )

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
        ours_all, theirs_all = (self._detected(side, valid) for side in (reference, outputs))
        if len(ours_all) != len(theirs_all):
            raise InputError(
                f"metric {self.name}: '{self.boxes}' holds {len(theirs_all)} samples of one model "
                f"and {len(ours_all)} of the other; name other outputs with --metric"
            )
        for ours, theirs in zip(ours_all, theirs_all, strict=True):
            both = 2.0 * _matched(ours, theirs, self.iou)
            self._numbers.append(np.array([[both, len(ours[0]) + len(theirs[0])]]))

    def of(self, sums: Floats) -> Floats:
        """See `PooledMetric`."""
        both, all_ = sums.T
        return np.asarray(np.where(all_ > 0, both / np.maximum(all_, 1), np.nan))

    def _detected(self, outputs: Mapping[str, Any], valid: int) -> list[Detected]:
        """What is detected in each sample."""
        boxes, scores = (self._named(outputs, name) for name in (self.boxes, self.scores))
        if boxes.ndim == 2 and boxes.shape[1] == 4:
            boxes, scores = boxes[np.newaxis], scores[np.newaxis]
        is_batch = boxes.ndim == 3 and boxes.shape[2] == 4 and scores.ndim in (2, 3)
        if not is_batch or scores.shape[:2] != boxes.shape[:2] or 0 in scores.shape[2:]:
            raise InputError(
                f"metric {self.name} needs boxes [N, M, 4] and scores [N, M] or [N, M, classes]; "
                f"'{self.boxes}' is {list(boxes.shape)} and '{self.scores}' {list(scores.shape)}"
            )
        scores = scores if scores.ndim == 3 else scores[..., np.newaxis]
        if self.background is not None:
            if not 0 <= self.background < scores.shape[2]:
                raise InputError(
                    f"option 'background' of metric {self.name} is {self.background}, but "
                    f"'{self.scores}' has {scores.shape[2]} classes"
                )
            scores[..., self.background] = -np.inf
        if self.centers:
            middle, half = boxes[..., :2], boxes[..., 2:] / 2
            boxes = np.concatenate([middle - half, middle + half], axis=2)
        return [self._best(*sample) for sample in zip(boxes[:valid], scores[:valid], strict=True)]

    def _best(self, boxes: Floats, scores: Floats) -> Detected:
        classes, best = scores.argmax(axis=1), scores.max(axis=1)
        order = np.argsort(-best, kind="stable")
        order = order[best[order] >= self.threshold]
        boxes, classes = boxes[order], classes[order]
        if self.nms is None:
            return boxes, classes
        kept: list[int] = []
        for at in range(len(boxes)):
            same = [k for k in kept if classes[k] == classes[at]]
            if not (overlaps(boxes[at : at + 1], boxes[same]) > self.nms).any():
                kept.append(at)
        return boxes[kept], classes[kept]

    def _named(self, outputs: Mapping[str, Any], name: str) -> Floats:
        if name not in outputs:
            raise InputError(
                f"metric {self.name}: the model has no output '{name}'; it has: "
                f"{', '.join(outputs)}"
            )
        return np.array(outputs[name], np.float64)


def overlaps(ours: Floats, theirs: Floats) -> Floats:
    """Intersection over union of boxes with each other, [A, 4] and [B, 4] -> [A, B]."""
    one, other = ours[:, np.newaxis], theirs[np.newaxis]
    low, high = np.maximum(one[..., :2], other[..., :2]), np.minimum(one[..., 2:], other[..., 2:])
    shared = np.maximum(high - low, 0).prod(axis=2)
    areas = [np.maximum(b[..., 2:] - b[..., :2], 0).prod(axis=2) for b in (one, other)]
    union = areas[0] + areas[1] - shared
    same = (one == other).all(axis=2).astype(np.float64)
    return np.asarray(np.where(union > 0, shared / np.where(union > 0, union, 1), same))


def _matched(ours: Detected, theirs: Detected, least: float) -> int:
    """How many boxes of the candidate have one of the float model's for themselves."""
    if not len(ours[0]) or not len(theirs[0]):
        return 0
    overlap = overlaps(theirs[0], ours[0])
    overlap[theirs[1][:, np.newaxis] != ours[1][np.newaxis]] = -1.0
    count = 0
    for row in overlap:
        at = int(row.argmax())
        if row[at] >= least:
            overlap[:, at] = -1.0
            count += 1
    return count
