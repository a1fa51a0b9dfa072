"""The boxes that a detector's outputs hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from onnxq.errors import InputError
from onnxq.runtime.specs import Array
from onnxq.verify.metrics.metric import Floats
from onnxq.verify.metrics.resampled import ResampledMetric


class Boxes(NamedTuple):
    """What is detected in a sample, best first: boxes [D, 4], classes [D] and scores [D]."""

    corners: Floats
    classes: Array
    scores: Floats


@dataclass(eq=False)
class BoxMetric(ResampledMetric):
    """A metric of boxes with a class and a score each.

    Attributes:
        boxes: Output [N, M, 4], or [M, 4] of one sample.
        scores: Output [N, M] or [N, M, classes], of which the largest is the box's class.
        threshold: Boxes whose score is less are left out.
        nms: First boxes are left out that overlap a better one of their class with a larger
            intersection over union (IoU); none are if None.
        background: The class that is no object.
        centers: Whether boxes are centre x, centre y, width, height, instead of two corners.
    """

    is_share = True
    boxes: str
    scores: str
    threshold: float = 0.5
    nms: float | None = None
    background: int | None = None
    centers: bool = False

    def __post_init__(self) -> None:
        self._check_option("threshold", self.threshold, math.isfinite, "a finite number")
        if self.nms is not None:
            self._check_option("nms", self.nms, lambda v: 0 <= v <= 1, "from 0 to 1")

    def _check_option(
        self, option: str, value: float, fits: Callable[[float], bool], wanted: str
    ) -> None:
        if not fits(value):
            raise InputError(f"option '{option}' of metric {self.name} is {wanted}, not {value}")

    def detected(self, outputs: Mapping[str, Any], valid: int) -> list[Boxes]:
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

    def _best(self, boxes: Floats, scores: Floats) -> Boxes:
        classes, best = scores.argmax(axis=1), scores.max(axis=1)
        order = np.argsort(-best, kind="stable")
        order = order[best[order] >= self.threshold]
        found = Boxes(boxes[order], classes[order], best[order])
        if self.nms is None:
            return found
        kept: list[int] = []
        for at in range(len(found.scores)):
            same = [k for k in kept if found.classes[k] == found.classes[at]]
            if not (overlaps(found.corners[at : at + 1], found.corners[same]) > self.nms).any():
                kept.append(at)
        return Boxes(*(part[kept] for part in found))

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
