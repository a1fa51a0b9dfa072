"""Metrics of sums over all samples."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field

import numpy as np

from onnxq.errors import InputError
from onnxq.verify.metrics.metric import Floats
from onnxq.verify.metrics.resampled import ResampledMetric


@dataclass(eq=False)
class PooledMetric(ResampledMetric):
    """A metric that follows from some numbers of each sample, summed over the samples.

    Subclasses add the numbers and say what their sums mean; intervals draw samples.
    """

    _numbers: list[Floats] = field(default_factory=list, init=False, repr=False)

    def numbers(self) -> Floats:
        """The numbers of each sample, [N, K]: what counts, and behind it out of how much.

        Raises:
            InputError: no batch was added.
        """
        if not self._numbers:
            raise InputError(f"metric {self.name}: there are no samples")
        return np.concatenate(self._numbers)

    def samples(self) -> int:
        """See `ResampledMetric`."""
        return len(self.numbers())

    def resampled(self, times: Floats) -> Floats:
        """See `ResampledMetric`."""
        return self.of(times @ self.numbers())

    @abstractmethod
    def of(self, sums: Floats) -> Floats:
        """The metric by sums of the samples' numbers, [R, K] -> [R]; NaN of nothing counted."""
