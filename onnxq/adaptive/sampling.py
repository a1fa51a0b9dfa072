"""Which requests are looked at more closely."""

from __future__ import annotations

import itertools
import math
import random
import threading
import time
from collections.abc import Callable

from onnxq.errors import InputError


class Sampling:
    """Picks a share of the requests, whatever is in them.

    From one picked request to the next there are on average ``1 / share`` requests, at random, so
    that a stream that repeats itself is sampled in all its parts. Any thread may ask; one thread
    gets the same picks for the same seed, as long as it does not rest.

    Args:
        share: Of the requests, above 0 and at most 1; 0 picks none.
        seed: Of the distances.
        clock: Seconds, which never jump.

    Attributes:
        asked: Requests so far, give or take those of other threads at this moment.
    """

    def __init__(
        self, share: float, seed: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if not 0 <= share <= 1:
            raise InputError(f"the share of requests that are sampled is {share}, not from 0 to 1")
        self._numbers = itertools.count(1)
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._share = self._usual = share
        self._dense = 0
        self._clock, self._rests_until = clock, -math.inf
        self.asked = 0
        self._due = self._distance()

    def begin(self) -> None:
        """Be usable in a process that was forked while another thread picked a request."""
        self._lock = threading.Lock()

    @property
    def share(self) -> float:
        """Of the requests at present."""
        return self._share

    @property
    def is_dense(self) -> bool:
        """Whether more are picked than usual."""
        return self._dense > 0

    def next(self) -> tuple[int, bool]:
        """Number of a request, from 1 on, and whether it is picked."""
        self.asked = number = next(self._numbers)
        return number, number >= self._due and self._pick(number)

    def denser(self, share: float, picks: int) -> None:
        """Pick more for a while.

        Args:
            share: Of the requests.
            picks: After so many picks the share is as before.
        """
        if not self._usual:
            return
        with self._lock:
            self._share, self._dense = max(share, self._usual), picks
            # What was to be picked next may be far off.
            self._due = 0

    def rest(self, seconds: float) -> None:
        """Pick nothing for so long, but what is picked on top of the usual."""
        with self._lock:
            self._rests_until = max(self._rests_until, self._clock()) + seconds

    def usual(self) -> None:
        """Pick as many as in the beginning."""
        with self._lock:
            self._share, self._dense = self._usual, 0

    def _pick(self, number: int) -> bool:
        with self._lock:
            if number < self._due:
                return False
            is_usual = not self._dense
            if self._dense:
                self._dense -= 1
                if not self._dense:
                    self._share = self._usual
            self._due = number + self._distance()
            return not (is_usual and self._clock() < self._rests_until)

    def _distance(self) -> float:
        if not self._share:
            return float("inf")
        most = round(2 / self._share) - 1
        return self._random.randint(1, max(1, most))
