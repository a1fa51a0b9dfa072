"""Telling that scores are no longer what they were, with as many false alarms as were asked for.

A new score's p-value is its rank among all earlier ones. As long as all come from one source in any
order, these p-values are independent and uniform, whatever the source is and however few scores
there were before (Vovk, Gammerman, Shafer: Algorithmic Learning in a Random World, chapter 8). A
fixed collection to rank among would not do: over many requests its own sampling error would count
as drift. Bets against uniform p-values win by luck only, so their Shiryaev-Roberts sum, over all
times at which they could have begun, grows by one a sample in the mean, and reaches a number c no
earlier than after c samples on average (Shin, Ramdas, Rinaldo: E-detectors, 2023).
"""

from __future__ import annotations

import bisect
import math
import random
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MOST = 1024
"""Scores that a pool holds; then a random half of it goes, which leaves p-values independent."""

_EXPONENTS = np.array([0.1, 0.2, 0.3, 0.5, 0.7, 0.9])
"""A bet pays ``e * p ** (e - 1)``, 1 in the mean: the smaller e, the more on the smallest p."""

_LEAST, _LARGEST = 1e-20, 1e200
"""Where p-values and sums end, so that numbers stay finite."""

_CELLS = 8
_FADING = 0.98
"""What a p-value counts, against the next one, in what `MixDetector` bets on."""

Sums = npt.NDArray[np.float64]


@dataclass
class Pool:
    """Scores that were seen, to rank new ones among.

    Attributes:
        scores: The scores, rising.
    """

    scores: list[float]

    @classmethod
    def of(cls, scores: Iterable[float]) -> Pool:
        """A pool of some scores in any order."""
        return cls(sorted(scores))

    def place(self, score: float, chance: random.Random) -> float:
        """The p-value of a new score, above 0 and at most 1, small for a large one; pools it.

        Ties are broken at random: with few or equal scores the p-value is as uniform.
        """
        score = math.inf if math.isnan(score) else score
        first, last = (
            bisect.bisect_left(self.scores, score),
            bisect.bisect_right(self.scores, score),
        )
        larger, equal = len(self.scores) - last, last - first + 1
        p = (larger + (1.0 - chance.random()) * equal) / (len(self.scores) + 1)
        self.scores.insert(last, score)
        if len(self.scores) > MOST:
            self.scores = sorted(chance.sample(self.scores, MOST // 2))
        return p

    def to_plain(self) -> list[float]:
        """The scores."""
        return self.scores

    @classmethod
    def from_plain(cls, scores: tuple[float, ...]) -> Pool:
        """A pool of what `to_plain` gave."""
        return cls.of(scores)


@dataclass
class Detector:
    """The sums of bets that begin anew at every sample.

    Attributes:
        sums: By side and exponent. The first side bets on small p-values, a second one on large
            ones, which are those of scores that fell.
    """

    sums: Sums

    @classmethod
    def new(cls, sides: int) -> Detector:
        """One that has seen nothing; with 2 sides it sees scores fall, too."""
        return cls(np.zeros((sides, len(_EXPONENTS))))

    def see(self, p: float) -> None:
        """Take in a p-value."""
        ends = np.array([p, 1.0 - p])[: len(self.sums), None]
        paid = _EXPONENTS * np.maximum(ends, _LEAST) ** (_EXPONENTS - 1)
        self.sums = np.minimum((1 + self.sums) * paid, _LARGEST)

    @property
    def value(self) -> float:
        """Reaches c after c samples or more on average, while nothing changes."""
        return float(self.sums.mean())

    def to_plain(self) -> list[list[float]]:
        """All sums."""
        found: list[list[float]] = self.sums.tolist()
        return found

    @classmethod
    def from_plain(cls, sums: tuple[tuple[float, ...], ...]) -> Detector:
        """The detector of what `to_plain` gave.

        Raises:
            ValueError: it is something else.
        """
        if len(sums) not in (1, 2) or any(len(side) != len(_EXPONENTS) for side in sums):
            raise ValueError("holds other sums than a detector has")
        return cls(np.array(sums, np.float64))


@dataclass
class MixDetector:
    """The sum of bets, begun anew at every sample, that p-values lie where they lay lately.

    For scores whose order means nothing, such as numbers of classes: of other shares of these,
    p-values are more frequent at some places than at others.

    Attributes:
        sum: Of the bets.
        counts: Late p-values in each of a few cells; older ones count less.
    """

    sum: float
    counts: tuple[float, ...]

    @classmethod
    def new(cls) -> MixDetector:
        """One that has seen nothing."""
        return cls(0.0, (0.0,) * _CELLS)

    def see(self, p: float) -> None:
        """Take in a p-value."""
        cell = min(int(p * _CELLS), _CELLS - 1)
        # As if there had been one p-value in each cell at first; it pays 1 in the mean.
        paid = _CELLS * (self.counts[cell] + 1) / (sum(self.counts) + _CELLS)
        self.sum = min((1 + self.sum) * paid, _LARGEST)
        faded = [_FADING * count for count in self.counts]
        faded[cell] += 1
        self.counts = tuple(faded)

    @property
    def value(self) -> float:
        """Reaches c after c samples or more on average, while nothing changes."""
        return self.sum

    def to_plain(self) -> list[float]:
        """All numbers."""
        return [self.sum, *self.counts]

    @classmethod
    def from_plain(cls, form: tuple[float, ...]) -> MixDetector:
        """The detector of what `to_plain` gave.

        Raises:
            ValueError: it is something else.
        """
        if len(form) != 1 + _CELLS:
            raise ValueError("holds other numbers than a detector has")
        return cls(form[0], form[1:])
