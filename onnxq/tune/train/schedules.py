"""Learning rates by how much of the training is done."""

from __future__ import annotations

import math

_RISING, _FIRST, _LAST = 0.3, 1 / 25, 1e-4
"""Of one cycle: the share in which it rises, and where it begins and ends."""


def factor(schedule: str, done: float, warmup: float) -> float:
    """The learning rate as a part of the largest.

    Args:
        schedule: ``cosine`` or ``one-cycle`` (Smith and Topin, 2018).
        done: Share of the updates that are over.
        warmup: Share in which the rate rises first; one cycle rises for at least 30 %.
    """
    if schedule == "one-cycle":
        rising = max(warmup, _RISING)
        if done < rising:
            return _between(_FIRST, 1.0, done / rising)
        return _between(1.0, _LAST, (done - rising) / (1 - rising))
    if done < warmup:
        return max(done / warmup, 1e-3)
    return _between(1.0, 0.0, (done - warmup) / (1 - warmup))


def _between(start: float, end: float, done: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2
