"""Mean average precision of detected boxes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from onnxq.errors import InputError
from onnxq.runtime.specs import Array
from onnxq.verify.metrics.boxes import Boxes, BoxMetric, overlaps
from onnxq.verify.metrics.metric import Floats
from onnxq.verify.metrics.resampled import UnpooledMetric

_RECALLS = np.linspace(0.0, 1.0, 101)
_OVERLAPS = np.linspace(0.5, 0.95, 10)
_NUMBERS_AT_ONCE = 1 << 21


@dataclass(eq=False)
class MeanAveragePrecision(BoxMetric, UnpooledMetric):
    """Mean over classes, and over IoU from 0.5 to 0.95, of the average precision, as COCO has it.

    Of each class the `most` best boxes of a sample count. From the best on, each takes the labelled
    box of its class, not taken yet, that it overlaps most, if their IoU is large enough; precision
    is the largest at any higher recall, its mean that of 101 recalls. Classes without a label are
    left out. Labels are [N, L, 5]: two corners and the class, filled up with the class -1.

    Attributes:
        threshold: Boxes whose score is less are left out.
        iou: One IoU in the place of the ten.
        most: See above; for the others see `BoxMetric`.
    """

    name = "map"
    nothing = "no box is labelled in any sample; give samples that show objects"
    threshold: float = 0.0
    iou: float | None = None
    most: int = 100

    _found: list[Boxes] = field(default_factory=list, init=False, repr=False)
    _hits: list[Array] = field(default_factory=list, init=False, repr=False)
    _true: list[Array] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_option("most", self.most, lambda v: v > 0, "above 0")
        if self.iou is not None:
            self._check_option("iou", self.iou, lambda v: 0 < v <= 1, "above 0 and at most 1")

    def add(
        self,
        outputs: Mapping[str, Any],
        labels: Array | None,
        valid: int,
        reference: Mapping[str, Any] | None = None,
    ) -> None:
        """See `Metric`."""
        if labels is None or labels.ndim != 3 or labels.shape[2] != 5:
            shape = "there are none" if labels is None else f"theirs is {list(labels.shape)}"
            raise InputError(
                f"metric {self.name} needs labels [N, L, 5], two corners and the class of each "
                f"box, filled up with the class -1; {shape}"
            )
        for found, true in zip(self.detected(outputs, valid), labels[:valid], strict=True):
            true = np.asarray(true[true[:, 4] >= 0], np.float64)
            best = Boxes(*(part[self._best_of_each(found)] for part in found))
            self._found.append(best)
            self._hits.append(self._matched(best, true))
            self._true.append(true[:, 4].astype(np.int64))

    def differs(self, other: Self) -> npt.NDArray[np.bool_]:
        """See `UnpooledMetric`: whether boxes are other ones, of what class and right or not."""
        pairs = zip(self._found, self._hits, other._found, other._hits, strict=True)
        same = [
            np.array_equal(one.classes, two.classes) and np.array_equal(hits, theirs)
            for one, hits, two, theirs in pairs
        ]
        return ~np.array(same, bool)

    def with_nothing_found(self) -> Self:
        """See `UnpooledMetric`."""
        empty = replace(self)
        empty._found += [Boxes(*(part[:0] for part in found)) for found in self._found]
        empty._hits += [hits[:0] for hits in self._hits]
        empty._true += self._true
        return empty

    def samples(self) -> int:
        """See `ResampledMetric`."""
        if not self._found:
            raise InputError(f"metric {self.name}: there are no samples")
        return len(self._found)

    def resampled(self, times: Floats) -> Floats:
        """See `ResampledMetric`."""
        sample = np.repeat(np.arange(self.samples()), [len(b.scores) for b in self._found])
        classes, scores = (
            np.concatenate([getattr(b, part) for b in self._found])
            for part in ("classes", "scores")
        )
        hits = np.concatenate(self._hits)
        order = np.argsort(-scores, kind="stable")
        values = np.full((len(times), len(self._ious()), 0), np.nan)
        found = [values]
        for kind in np.unique(np.concatenate(self._true)):
            amounts = times @ np.array([(true == kind).sum() for true in self._true])
            own = order[classes[order] == kind]
            found.append(self._precision(times, sample[own], hits[own], amounts)[..., np.newaxis])
        each = np.concatenate(found, axis=2).reshape(len(times), -1)
        is_known = ~np.isnan(each)
        counts = is_known.sum(axis=1)
        sums = np.where(is_known, each, 0.0).sum(axis=1)
        return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)

    def _ious(self) -> Floats:
        return _OVERLAPS if self.iou is None else np.array([self.iou])

    def _best_of_each(self, found: Boxes) -> Array:
        """Which boxes count, as numbers."""
        kept = [np.flatnonzero(found.classes == kind) for kind in np.unique(found.classes)]
        return np.sort(np.concatenate([np.arange(0), *(own[: self.most] for own in kept)]))

    def _matched(self, found: Boxes, true: Floats) -> Array:
        """Whether each box takes a labelled one, by IoU: [D, ious]."""
        hits = np.zeros((len(found.scores), len(self._ious())), bool)
        overlap = overlaps(found.corners, true[:, :4])
        overlap[found.classes[:, np.newaxis] != true[:, 4][np.newaxis]] = -1.0
        for at, least in enumerate(self._ious()):
            left = overlap.copy()
            for number, row in enumerate(left):
                # Of equal ones the last, as in COCO's own program.
                place = len(row) - 1 - int(row[::-1].argmax()) if len(row) else -1
                if len(row) and row[place] >= least - 1e-10:
                    hits[number, at] = True
                    left[:, place] = -1.0
        return hits

    def _precision(self, times: Floats, sample: Array, hits: Array, amounts: Floats) -> Floats:
        """Average precision of a class, [R, ious]; NaN where nothing is labelled."""
        values = np.full((len(times), hits.shape[1]), np.nan)
        for rows in _slices(len(times), max(1, len(sample))):
            weights, amount = times[rows][:, sample], amounts[rows]
            all_ = np.cumsum(weights, axis=1)
            for at in range(hits.shape[1]):
                right = np.cumsum(weights * hits[:, at], axis=1)
                precision = right / np.maximum(all_, 1.0)
                best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
                recall = right / np.maximum(amount, 1.0)[:, np.newaxis]
                # How many of the recalls are reached up to each box.
                reached = np.searchsorted(_RECALLS, recall, side="right")
                steps = np.diff(reached, axis=1, prepend=0)
                values[rows, at] = (steps * best).sum(axis=1) / len(_RECALLS)
            values[rows][amount == 0] = np.nan
        return values


def _slices(count: int, width: int) -> Iterator[slice]:
    """Parts of so many rows that are not too much at a time."""
    at_once = max(1, _NUMBERS_AT_ONCE // width)
    yield from (slice(start, start + at_once) for start in range(0, count, at_once))
