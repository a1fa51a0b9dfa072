"""What was seen lately, counted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]

_UNITS = 1 << 20
"""Parts in which a value is counted, so that one that fades is still a whole number of them."""


@dataclass
class Forgotten:
    """Counts that are halved again and again: histograms of all tensors, or anything else.

    They are whole numbers of parts of a value, so what several threads or processes saw adds up to
    the same in any order.

    Attributes:
        half_life: Samples after which counts are halved.
        parts: What was counted, in parts of a value.
        samples: How many samples are remembered, in parts: faded ones count for less.
        since: Samples since the last halving.
    """

    half_life: int
    parts: Counts
    samples: int = 0
    since: int = 0

    def add(self, counts: Counts) -> None:
        """Take in a sample."""
        if self.since >= self.half_life:
            self.parts, self.samples, self.since = self.parts >> 1, self.samples >> 1, 0
        self.parts = self.parts + counts * _UNITS
        self.samples += _UNITS
        self.since += 1

    def merge(self, other: Forgotten) -> Forgotten:
        """What both saw.

        Raises:
            ValueError: they count something else.
        """
        if (self.half_life, self.parts.shape) != (other.half_life, other.parts.shape):
            raise ValueError("counts of different things cannot be merged")
        return Forgotten(
            self.half_life,
            self.parts + other.parts,
            self.samples + other.samples,
            self.since + other.since,
        )

    def to_plain(self) -> list[int | list[list[int]]]:
        """All numbers."""
        return [self.half_life, self.samples, self.since, self.parts.tolist()]

    @classmethod
    def from_plain(cls, form: tuple[int, int, int, tuple[tuple[int, ...], ...]]) -> Forgotten:
        """What `to_plain` gave."""
        half_life, samples, since, parts = form
        return cls(half_life, np.array(parts, np.int64), samples, since)
