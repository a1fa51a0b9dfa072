"""Errors of what greedy decoding reads from CTC outputs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from onnxq.errors import InputError
from onnxq.runtime.specs import Array
from onnxq.verify.metrics.choosing import first_fitting, float_outputs
from onnxq.verify.metrics.mean import MeanMetric
from onnxq.verify.metrics.scored import integer_labels

_UNREAD = -2, -3
"""Classes of steps with a NaN, in the true text and in what is held against it: never equal."""


@dataclass(eq=False)
class CtcErrors(MeanMetric):
    """Levenshtein distance between decoded and true text, over the true text's length.

    Outputs are scores [N, T, classes]. Greedy decoding takes the largest class of each step, one
    of equal ones in a row, and leaves the blank out. Labels are classes [N, L], filled up with
    negative ones; without labels the text decoded from the float model's output is the true one.
    A step with a NaN is wrong.

    Attributes:
        blank: The class that stands for nothing.
        output: The output's name; the first [N, T, classes] where empty.
    """

    is_share = True
    needs_labels = False
    higher_is_better: ClassVar[bool] = False
    blank: int = 0
    output: str = ""

    def add(
        self,
        outputs: Mapping[str, Any],
        labels: Array | None,
        valid: int,
        reference: Mapping[str, Any] | None = None,
    ) -> None:
        """See `Metric`."""
        if labels is None:
            wanted = self._decoded(float_outputs(reference, self.name), _UNREAD[0])
        else:
            rows = integer_labels(labels, self.name)
            if rows.ndim != 2:
                raise InputError(
                    f"metric {self.name} needs labels [N, L] of a class a character, not "
                    f"{list(rows.shape)}"
                )
            wanted = [row[row >= 0].tolist() for row in rows]
        found = self._decoded(outputs, _UNREAD[1])[:valid]
        texts = [self._parts(text) for text in wanted[: len(found)]]
        pairs = zip(map(self._parts, found), texts, strict=True)
        self._scores.append(np.array([distance(one, other) for one, other in pairs], np.float64))
        self._weights.append(np.array([len(text) for text in texts], np.float64))

    def _decoded(self, outputs: Mapping[str, Any], unread: int) -> list[list[int]]:
        name = first_fitting(
            outputs,
            lambda v: v.ndim == 3 and v.shape[2] > 1,
            self.name,
            "[N, T, classes]",
            self.output,
        )
        scores = np.asarray(outputs[name])
        if not 0 <= self.blank < scores.shape[2]:
            raise InputError(
                f"option 'blank' of metric {self.name} is {self.blank}, but output '{name}' has "
                f"{scores.shape[2]} classes"
            )
        choices = np.where(np.isnan(scores).any(axis=2), unread, scores.argmax(axis=2))
        return [decoded(row, self.blank) for row in choices]

    @abstractmethod
    def _parts(self, text: list[int]) -> Sequence[Hashable]:
        """What of a text is counted."""


def decoded(classes: Array, blank: int) -> list[int]:
    """What CTC takes a row of classes for: without repetitions, then without blanks."""
    is_first = np.diff(classes, prepend=-1) != 0
    return [int(one) for one in classes[is_first & (classes != blank)]]


def distance(one: Sequence[Hashable], other: Sequence[Hashable]) -> int:
    """The Levenshtein distance: how many have to be inserted, left out or replaced."""
    numbers: dict[Hashable, int] = {}
    short, long = (
        np.array([numbers.setdefault(part, len(numbers)) for part in parts], np.int64)
        for parts in sorted((one, other), key=len)
    )
    steps = np.arange(len(long) + 1)
    row = steps
    for count, part in enumerate(short, 1):
        best = np.minimum(row[1:] + 1, row[:-1] + (long != part))
        # What an insertion costs after the best of all that comes before.
        row = np.minimum.accumulate(np.concatenate([[count], best]) - steps) + steps
    return int(row[-1])
