"""Observers: what is kept of a tensor's values while samples stream by."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from onnxq.observe.histogram import TABLE_BYTES, Tally, as_float32
from onnxq.observe.statistics import Moving, Statistics
from onnxq.runtime.specs import Array

Indices = npt.NDArray[np.int64]


class Result(Protocol):
    """What an observer finds out: a dataclass of numbers and arrays."""

    def merge(self, other: Self) -> Self:
        """What one pass over the values of both would find out.

        Raises:
            ValueError: they do not go together.
        """


class Observer(ABC):
    """Sees every value of one tensor, in bounded memory.

    Values of any float type are taken as float32.
    """

    @abstractmethod
    def add(self, values: Array, samples: Indices) -> None:
        """Take in values of any shape: a batch, or a part of one.

        Args:
            values: The values.
            samples: Places, in the whole data, of the samples that they belong to.

        Raises:
            ValueError: they cannot be observed; the message goes on from "cannot be observed".
        """

    def end_batch(self) -> None:  # noqa: B027, few have anything to do
        """Say that a batch is complete."""

    def end_shard(self) -> None:  # noqa: B027, few have anything to do
        """Say that a shard of the data is complete: what floats add up to depends on where."""

    @property
    def is_complete(self) -> bool:
        """Whether further values would change nothing."""
        return False

    @abstractmethod
    def result(self) -> Result | None:
        """What was found out, or None where there was no value."""

    def bytes_for(self, shape: tuple[int, ...]) -> int:
        """Memory that it takes where it is shown values of a shape, beyond the values."""
        return 0


class RangeObserver(Observer):
    """Ends and histogram. Neither order, batches nor shards change a bit of them.

    Args:
        histogram: Whether to count values into a histogram.
    """

    def __init__(self, histogram: bool = False) -> None:
        self._count = 0
        self._min = np.float32(np.inf)
        self._max = np.float32(-np.inf)
        self._not_finite = 0
        self._tally = Tally() if histogram else None

    def add(self, values: Array, samples: Indices) -> None:
        """Take in values of any shape."""
        if not values.size:
            return
        numbers = as_float32(values)
        low, high = numbers.min(), numbers.max()
        self._count += numbers.size
        self._min, self._max = np.minimum(self._min, low), np.maximum(self._max, high)
        if self._tally is not None:
            self._tally.add(numbers.reshape(-1))
        if not np.isfinite([low, high]).all():
            self._not_finite += int(np.count_nonzero(~np.isfinite(numbers)))

    def result(self) -> Statistics | None:
        """The statistics, without a moving average."""
        if not self._count:
            return None
        return Statistics(
            self._count,
            # Adding 0 makes one zero of -0 and 0, between which minimum and maximum choose by
            # order.
            float(self._min) + 0.0,
            float(self._max) + 0.0,
            self._not_finite,
            None if self._tally is None else self._tally.histogram(),
        )

    def bytes_for(self, shape: tuple[int, ...]) -> int:
        """The histogram's table."""
        return 0 if self._tally is None else TABLE_BYTES


@dataclass(frozen=True)
class BatchEnds:
    """Smallest and largest value of each batch, in their order.

    Attributes:
        momentum: Weight of a new batch in their moving average.
        ends: The values.
    """

    momentum: float
    ends: tuple[tuple[float, float], ...]

    def merge(self, other: BatchEnds) -> BatchEnds:
        """Those of the batches of both, of which these come first."""
        return BatchEnds(self.momentum, self.ends + other.ends)

    def moving(self) -> Moving:
        """Their moving average."""
        (low, high), *others = self.ends
        m = self.momentum
        for lower, upper in others:
            low, high = (1 - m) * low + m * lower, (1 - m) * high + m * upper
        return Moving(m, low, high, len(self.ends))


@dataclass
class MovingObserver(Observer):
    """The batches' ends, whose moving average is wanted.

    Attributes:
        momentum: Weight of a new batch.
    """

    momentum: float
    _batch: tuple[float, float] | None = None
    _ends: list[tuple[float, float]] = field(default_factory=list)

    def add(self, values: Array, samples: Indices) -> None:
        """Take in values of any shape."""
        if values.size:
            numbers = as_float32(values)
            low, high = numbers.min(), numbers.max()
            before_low, before_high = self._batch or (low, high)
            self._batch = (float(np.minimum(before_low, low)), float(np.maximum(before_high, high)))

    def end_batch(self) -> None:
        """Note the ends."""
        if self._batch is not None:
            self._ends.append(self._batch)
        self._batch = None

    def result(self) -> BatchEnds | None:
        """All ends so far."""
        return BatchEnds(self.momentum, tuple(self._ends)) if self._ends else None


@dataclass
class Folding(Observer):
    """Merges what is found out of each batch, or part of one.

    Attributes:
        find: Gives the result of some values, of which there are any, and their samples.
        memory: What `bytes_for` gives: memory that it takes to find it in values of a shape.
    """

    find: Callable[[Array, Indices], Result]
    memory: Callable[[tuple[int, ...]], int]
    _shards: Result | None = None
    _seen: Result | None = None

    def add(self, values: Array, samples: Indices) -> None:
        """Find out and merge."""
        if values.size:
            seen = self.find(values, samples)
            self._seen = seen if self._seen is None else self._seen.merge(seen)

    def end_shard(self) -> None:
        """Merge what was found out of the shard with what was before."""
        self._shards, self._seen = self.result(), None

    def result(self) -> Result | None:
        """What was merged."""
        if self._shards is None or self._seen is None:
            return self._seen or self._shards
        return self._shards.merge(self._seen)

    def bytes_for(self, shape: tuple[int, ...]) -> int:
        """As given."""
        return self.memory(shape)
