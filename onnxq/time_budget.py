"""How long the optional work of a run may take, and what it left out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from onnxq.plain import entry

TIME_BUDGET = "time budget"
"""Why something was not tried."""


@dataclass(frozen=True)
class Untried:
    """Something optional that was not tried.

    Attributes:
        what: A method, a candidate of a search, or more samples for its sensitivity analysis.
        nodes: The nodes that it was for; none where it was for the whole model.
        reason: Why.
    """

    what: str
    nodes: tuple[str, ...] = entry(sparse=True, default=())
    reason: str = TIME_BUDGET


class TimeBudget:
    """Time that begins to pass at once. What was begun within it is finished.

    Args:
        seconds: How long; without an end if None.
        clock: Tells the time in seconds.
    """

    def __init__(
        self, seconds: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._end = math.inf if seconds is None else clock() + seconds

    @property
    def is_limited(self) -> bool:
        """Whether it ends at all."""
        return self._end < math.inf

    def is_over(self) -> bool:
        """Whether nothing more is to begin."""
        return self.is_limited and self._clock() >= self._end

    def share(self, part: float) -> TimeBudget:
        """A part of what is left of it, from now on."""
        left = self._end - self._clock() if self.is_limited else None
        return TimeBudget(None if left is None else part * left, self._clock)
