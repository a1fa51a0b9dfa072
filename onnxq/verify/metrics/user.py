"""A metric that is a function of the user's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np

from onnxq.data.functions import failure
from onnxq.errors import InputError
from onnxq.runtime.specs import Array
from onnxq.verify.metrics.metric import Floats, Metric, MetricResult


class UserMetric(Metric):
    """A function of the user's, called once with the outputs of all samples and their labels.

    The function gets a dict of arrays by output name and the labels (None without any), batches
    joined along the first axis, and returns a number, or one a sample, of which the mean is taken
    and the drop has an interval. Larger counts as better unless the function has an attribute
    `higher_is_better` that is false.
    """

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name = name
        self._function = function
        self._outputs: dict[str, list[Array]] = {}
        self._labels: list[Array] = []
        self._samples = 0
        self._found: Floats | None = None

    def add(
        self,
        outputs: Mapping[str, Any],
        labels: Array | None,
        valid: int,
        reference: Mapping[str, Any] | None = None,
    ) -> None:
        """Keep one batch's outputs and labels; `valid` is the number of real samples."""
        for name, value in outputs.items():
            self._outputs.setdefault(name, []).append(np.atleast_1d(np.asarray(value))[:valid])
        if labels is not None:
            self._labels.append(labels[:valid])
        self._samples += valid
        self._found = None

    def merge(self, other: Self) -> None:
        """See `Metric`."""
        for name, values in other._outputs.items():
            self._outputs.setdefault(name, []).extend(values)
        self._labels += other._labels
        self._samples += other._samples
        self._found = None

    def result(self) -> MetricResult:
        """Return what the function gives, or the mean of that.

        Raises:
            InputError: no batch was added, batches cannot be joined, or the function fails or
                returns neither a number nor one a sample.
        """
        higher = bool(getattr(self._function, "higher_is_better", True))
        return MetricResult(self.name, float(self._call().mean()), self._samples, higher)

    def scores(self) -> Floats | None:
        """The number of each sample; None where the function gives one for all."""
        found = self._call()
        return found if found.ndim else None

    def _call(self) -> Floats:
        """What the function gives, called once."""
        if self._found is not None:
            return self._found
        if not self._samples:
            raise InputError(f"metric {self.name}: there are no samples")
        try:
            outputs = {name: np.concatenate(parts) for name, parts in self._outputs.items()}
            labels = np.concatenate(self._labels) if self._labels else None
        except ValueError as error:
            raise InputError(
                f"metric {self.name}: the outputs of the batches differ in shape and cannot be "
                "joined"
            ) from error
        try:
            found = np.asarray(self._function(outputs, labels), np.float64)
        except Exception as error:
            raise InputError(f"metric {self.name}: {failure(error, 'calling it')}") from error
        if found.size == 1:
            found = found.reshape(())
        elif found.shape != (self._samples,):
            raise InputError(
                f"metric {self.name}: it gives {list(found.shape)} instead of a number, or of one "
                f"for each of the {self._samples} samples"
            )
        self._found = found
        return found
