"""Statistics as observers find them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from onnxq.observe import Statistics
from onnxq.observe.observer import BatchEnds, MovingObserver, Observer, RangeObserver


def shown(observer: Observer, batches: Sequence[np.ndarray], first: int = 0) -> Observer:
    """An observer after some batches, whose first axis runs over samples."""
    for batch in batches:
        samples = len(batch) if batch.ndim else 1
        observer.add(batch, np.arange(first, first + samples))
        observer.end_batch()
        first += samples
    return observer


def observed(
    batches: Sequence[np.ndarray], histogram: bool = False, momentum: float | None = None
) -> Statistics:
    """Statistics of a tensor that has values."""
    seen = shown(RangeObserver(histogram), batches).result()
    assert isinstance(seen, Statistics)
    if momentum is None:
        return seen
    ends = shown(MovingObserver(momentum), batches).result()
    return replace(seen, moving=ends.moving() if isinstance(ends, BatchEnds) else None)
