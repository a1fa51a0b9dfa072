"""Observers: what is kept of a tensor's values while batches stream by."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.observe.histogram import TABLE_BYTES, Float32Array, Tally
from onnxq.observe.statistics import ChannelStatistics, Moving, Statistics


class Observer:
    """Sees every value of one tensor, batch by batch, in bounded memory.

    Values of any float type are taken as float32. Neither order nor sharding of the batches
    changes a bit of the statistics, except of the moving average and of the channels' sums.

    Args:
        histogram: Whether to count values into a histogram.
        momentum: Weight of a new batch in the moving average of the ends; None keeps none.
        axis: Axis for statistics by channel; None keeps none.
    """

    def __init__(
        self, *, histogram: bool = False, momentum: float | None = None, axis: int | None = None
    ) -> None:
        self._count = 0
        self._min = np.float32(np.inf)
        self._max = np.float32(-np.inf)
        self._not_finite = 0
        self._tally = Tally() if histogram else None
        self._momentum = momentum
        self._batch: tuple[float, float] | None = None
        self._moving: Moving | None = None
        self._axis = axis
        self._channels: ChannelStatistics | None = None

    @property
    def has_values(self) -> bool:
        """Whether any value was seen."""
        return self._count > 0

    @property
    def table_bytes(self) -> int:
        """Memory that the histogram may take while values are counted."""
        return 0 if self._tally is None else TABLE_BYTES

    def add(self, values: npt.NDArray[Any]) -> None:
        """Take in values of any shape: a batch, or a part of one.

        Raises:
            ValueError: the tensor has no such axis, or another number of channels than before.
        """
        if not values.size:
            return
        with np.errstate(over="ignore"):
            numbers = np.ascontiguousarray(values, dtype=np.float32)
        low, high = numbers.min(), numbers.max()
        self._count += numbers.size
        self._min, self._max = np.minimum(self._min, low), np.maximum(self._max, high)
        if self._tally is not None:
            self._tally.add(numbers.reshape(-1))
        if not np.isfinite([low, high]).all():
            self._not_finite += int(np.count_nonzero(~np.isfinite(numbers)))
        if self._momentum is not None:
            before_low, before_high = self._batch or (low, high)
            self._batch = (float(np.minimum(before_low, low)), float(np.maximum(before_high, high)))
        if self._axis is not None:
            self._add_channels(numbers, self._axis)

    def end_batch(self) -> None:
        """Say that a batch is complete: the moving average moves on."""
        if self._batch is None or self._momentum is None:
            return
        low, high = self._batch
        before, m = self._moving, self._momentum
        if before is None:
            self._moving = Moving(m, low, high, 1)
        else:
            self._moving = Moving(
                m,
                (1 - m) * before.min + m * low,
                (1 - m) * before.max + m * high,
                before.batches + 1,
            )
        self._batch = None

    def statistics(self) -> Statistics:
        """What was seen so far.

        Raises:
            ValueError: no value was seen.
        """
        if not self._count:
            raise ValueError("no value was seen")
        return Statistics(
            self._count,
            # Adding 0 makes one zero of -0 and 0, between which minimum and maximum choose by
            # order.
            float(self._min) + 0.0,
            float(self._max) + 0.0,
            self._not_finite,
            None if self._tally is None else self._tally.histogram(),
            self._moving,
            self._channels,
        )

    def _add_channels(self, numbers: Float32Array, axis: int) -> None:
        if not -numbers.ndim <= axis < numbers.ndim:
            raise ValueError(f"it has {numbers.ndim} axes, and none is axis {axis}")
        others = tuple(a for a in range(numbers.ndim) if a != axis % numbers.ndim)
        absmax = np.maximum(numbers.max(axis=others), -numbers.min(axis=others))
        seen = ChannelStatistics(
            axis,
            absmax,
            numbers.sum(axis=others, dtype=np.float64),
            numbers.size // absmax.size,
        )
        self._channels = seen if self._channels is None else self._channels.merge(seen)
