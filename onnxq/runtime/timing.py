"""Latency of several sessions measured against each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter, thread_time

import numpy as np

from onnxq.ir.collector import collector_paused
from onnxq.runtime.alone import alone
from onnxq.runtime.specs import Array, Away, Runnable

Feeds = Mapping[str, Array]
Clock = Callable[[], float]

SHORTEST_SLOT = 0.002
"""Seconds that the inferences of a slot fill."""

FEWEST_ROUNDS = 5

EQUAL = 1.03
"""Models whose speeds differ by no more than this factor count as equally fast: of four sessions of
one model, timed in turn, the fastest is up to 1.025 times as fast as the slowest."""

_GROUPS = 10

_PLACEMENT = 0.01
"""Standard deviation of the ratio of two sessions of one model, of the same run in the same
process: where their memory lies makes one faster. Measured on four models, in 20 pairs of each, it
was 0.003 to 0.010 (onnxruntime 1.32)."""

LONGEST_WARMUP = 0.1
"""Seconds after which a session is warm, however few its inferences."""


@dataclass(frozen=True)
class Timing:
    """Latency of one session: milliseconds per inference, and its ratio to the first session.

    `median_ms`, `p10_ms` and `p90_ms` are over the rounds; `runs` is the number of inferences
    timed; `speedup` is `p10_ms` of the first session over that of this one. Other work on the
    machine only ever adds time, so the least disturbed tenth of the rounds tells models apart
    best. `low` and `high` are the ends of the 95 % interval of `speedup`; 0 and infinity after a
    single round.
    """

    median_ms: float
    p10_ms: float
    p90_ms: float
    runs: int
    speedup: float
    low: float = 0.0
    high: float = math.inf


def interleaved(
    sessions: Sequence[Runnable],
    feeds: Feeds | Sequence[Feeds],
    *,
    warmup: int = 3,
    rounds: int | None = None,
    seconds: float = 2.0,
) -> list[Timing]:
    """Time sessions in turn, A B C, B C A, C A B, ..., in one process.

    Each round gives every session one slot, beginning with another session each time. A slot holds
    as many inferences as fill about 2 ms, so that the clock's grain does not matter. Python's
    garbage collector rests meanwhile. Sessions that all run on the calling thread are timed by
    that thread's processor time, which on a quiet machine is the time that passes, and on a busy
    one leaves out what other processes take. A session of another process takes the time itself,
    so that what lies between the processes does not count.

    Args:
        sessions: the sessions; the first is the reference of `speedup`.
        feeds: one feed for all, or one feed per session.
        warmup: inferences of each session before timing, at least one, and no more than take a
            tenth of a second.
        rounds: number of rounds; when None, as many as fit into `seconds`, at least five.
        seconds: time to spend over all sessions.

    Returns:
        One Timing per session, in order.

    Raises:
        InputError: a session cannot run on its feed.
    """
    per_session = [feeds] * len(sessions) if isinstance(feeds, Mapping) else list(feeds)
    if len(per_session) != len(sessions):
        raise ValueError("one feed for all sessions or one per session")
    with alone(), collector_paused():
        clock = thread_time if all(s.runs_in_caller for s in sessions) else perf_counter
        repeats = [
            _repeats(session, feed, warmup, clock)
            for session, feed in zip(sessions, per_session, strict=True)
        ]
        times = _rounds(sessions, per_session, repeats, rounds, seconds, clock)
    return summarized(times, repeats)


def _repeats(session: Runnable, feed: Feeds, warmup: int, clock: Clock) -> int:
    """Warm a session up and return how many inferences fill a slot."""
    shortest, end = math.inf, perf_counter() + LONGEST_WARMUP
    for number in range(max(1, warmup)):
        if number and perf_counter() > end:
            break
        shortest = min(shortest, _spent(session, feed, 1, clock))
    return max(1, math.ceil(SHORTEST_SLOT / max(shortest, 1e-6)))


def _rounds(
    sessions: Sequence[Runnable],
    feeds: Sequence[Feeds],
    repeats: Sequence[int],
    rounds: int | None,
    seconds: float,
    clock: Clock,
) -> Array:
    """Return seconds per inference, [rounds, sessions]."""
    count = len(sessions)
    fewest = FEWEST_ROUNDS if rounds is None else max(1, rounds)
    end = perf_counter() + seconds if rounds is None else 0.0
    times: list[list[float]] = []
    while len(times) < fewest or perf_counter() < end:
        row = [0.0] * count
        for position in range(count):
            index = (position + len(times)) % count
            session, feed, inferences = sessions[index], feeds[index], repeats[index]
            row[index] = _spent(session, feed, inferences, clock) / inferences
        times.append(row)
    return np.asarray(times, dtype=np.float64)


def _spent(session: Runnable, feed: Feeds, inferences: int, clock: Clock) -> float:
    """Seconds that some inferences take."""
    if isinstance(session, Away):
        return session.spend(feed, inferences, own=clock is thread_time)
    start = clock()
    for _ in range(inferences):
        session.run(feed)
    return clock() - start


def summarized(times: Array, repeats: Sequence[int]) -> list[Timing]:
    """Summarise seconds per inference, [rounds, sessions], and the inferences of their slots."""
    p10, median, p90 = np.percentile(times * 1e3, [10, 50, 90], axis=0)
    widths = _widths(times)
    return [
        Timing(
            median_ms=float(median[index]),
            p10_ms=float(p10[index]),
            p90_ms=float(p90[index]),
            runs=len(times) * inferences,
            speedup=float(p10[0] / p10[index]),
            low=float(p10[0] / p10[index] / widths[index]),
            high=float(p10[0] / p10[index] * widths[index]),
        )
        for index, inferences in enumerate(repeats)
    ]


def of_several_sessions(timings: Sequence[Timing], models: int) -> list[Timing]:
    """Timing of each model, which was timed in several sessions: A B, A B, ... in `timings`.

    Where its memory lies makes a session of a model faster than another one for as long as it
    lives, however long it is timed. So the interval is that of the mean over sessions, with their
    variance as they show it, taken for the same for all models; of the logarithm of `p10_ms`.
    """
    logarithms = np.log([t.p10_ms for t in timings]).reshape(-1, models)
    count, means = len(logarithms), logarithms.mean(axis=0)
    deviation = math.sqrt(2 * logarithms.var(axis=0, ddof=1).mean() / count)
    width = math.exp(_student(models * (count - 1)) * deviation)
    found = []
    for index in range(models):
        own = timings[index::models]
        median, p90 = (
            math.exp(np.log([getattr(t, what) for t in own]).mean())
            for what in ("median_ms", "p90_ms")
        )
        speedup = math.exp(means[0] - means[index])
        ends = (speedup / width, speedup * width) if index else (1.0, 1.0)
        runs = sum(t.runs for t in own)
        found.append(Timing(median, math.exp(means[index]), p90, runs, speedup, *ends))
    return found


def _widths(times: Array) -> Array:
    """The factor by which each session's ratio to the first one may be off, with 95 % confidence.

    Of the logarithm of the ratio, from what it is without each of ten stretches of rounds that
    follow each other (the delete-a-group jackknife; Kunsch, "The Jackknife and the Bootstrap for
    General Stationary Observations", 1989), for disturbances last longer than a round; and from
    what makes sessions of one model differ.
    """
    groups = np.array_split(np.arange(len(times)), min(_GROUPS, len(times)))
    if len(groups) < 2:
        return np.full(times.shape[1], math.inf)
    without = [np.percentile(np.delete(times, group, axis=0), 10, axis=0) for group in groups]
    logarithms = np.log(without) - np.log(without)[:, :1]
    spread = np.sqrt((len(groups) - 1) * logarithms.var(axis=0) + _PLACEMENT**2)
    spread[0] = 0.0
    return np.asarray(np.exp(_student(len(groups) - 1) * spread))


def _student(freedom: int) -> float:
    """The 97.5th percentile of Student's distribution."""
    # Here as everywhere scipy is loaded where it is needed: it takes as long as half of what a
    # command loads.
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.975))
