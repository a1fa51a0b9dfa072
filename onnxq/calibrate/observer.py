"""Observers: what is kept of a tensor's values while batches stream by.

An observer's state may be merged with that of another one that saw other batches; neither
order nor sharding of the batches changes the result.
"""

from __future__ import annotations

from typing import Protocol, Self

import numpy as np

from onnxq.calibrate.ranges import Range


class Observer(Protocol):
    """Sees every value of one tensor, batch by batch, in bounded memory."""

    def add(self, values: np.ndarray) -> None:
        """Take in one batch's values, of any shape."""

    def merge(self, other: Self) -> None:
        """Take in what another observer of the same tensor saw."""

    def range(self) -> Range:
        """The range to quantize with.

        Raises:
            ValueError: no value was seen.
        """


class MinMaxObserver:
    """Keeps the smallest and the largest value; a NaN makes both NaN."""

    def __init__(self) -> None:
        self._min = np.float32(np.inf)
        self._max = np.float32(-np.inf)
        self._seen = False

    def add(self, values: np.ndarray) -> None:
        """Take in one batch's values, of any shape."""
        if values.size:
            self._seen = True
            self._min = np.minimum(self._min, np.float32(values.min()))
            self._max = np.maximum(self._max, np.float32(values.max()))

    def merge(self, other: Self) -> None:
        """Take in what another observer of the same tensor saw."""
        self._seen |= other._seen
        self._min = np.minimum(self._min, other._min)
        self._max = np.maximum(self._max, other._max)

    def range(self) -> Range:
        """The range from the smallest to the largest value seen.

        Raises:
            ValueError: no value was seen.
        """
        if not self._seen:
            raise ValueError("no value was seen")
        # Adding 0 makes one zero of -0 and 0, between which minimum and maximum choose by order.
        return Range(float(self._min) + 0.0, float(self._max) + 0.0)


OBSERVERS: dict[str, type[Observer]] = {"minmax": MinMaxObserver}
"""Observers by the name of their calibrator."""
