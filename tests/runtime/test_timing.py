"""Interleaved timing: order of the runs and arithmetic of the summary, on a clock of its own."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from typing import cast

import numpy as np
import onnx.parser
import pytest
from scipy.stats import ttest_ind

from onnxq.runtime import Session, Timing, interleaved, timing


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Fake:
    """A session that takes a scripted time per run and records that it ran."""

    runs_in_caller = False

    def __init__(self, name: str, clock: Clock, seconds: list[float], log: list[str]) -> None:
        self.name, self.clock, self.seconds, self.log = name, clock, seconds, log
        self.runs = 0
        self.feeds: Mapping[str, np.ndarray] = {}
        self.collecting = False

    def run(self, feeds: Mapping[str, np.ndarray]) -> None:
        self.clock.now += self.seconds[min(self.runs, len(self.seconds) - 1)]
        self.runs += 1
        self.feeds = feeds
        self.collecting |= gc.isenabled()
        self.log.append(self.name)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing, "perf_counter", clock)
    return clock


def measure(sessions: list[Fake], **options: float) -> list[Timing]:
    return interleaved(cast("list[Session]", sessions), {}, **options)


def test_each_round_begins_with_another_session(clock: Clock) -> None:
    log: list[str] = []
    sessions = [Fake(name, clock, [0.01], log) for name in "ABC"]
    measure(sessions, warmup=1, rounds=4)
    assert "".join(log) == "ABC" + "ABC" + "BCA" + "CAB" + "ABC"
    assert not any(session.collecting for session in sessions)
    assert gc.isenabled()


def test_summary_is_in_milliseconds_and_speedup_is_of_the_least_disturbed(clock: Clock) -> None:
    # Something else slows most of the rounds down.
    reference = Fake("A", clock, [0.4, 0.4, 0.8, 1.2, 0.4, 0.4], [])
    faster = Fake("B", clock, [0.1, 0.1, 0.2, 0.3, 0.1, 0.4], [])
    first, second = measure([reference, faster], warmup=1, rounds=5)
    assert first.speedup == 1.0
    assert second.speedup == pytest.approx(4.0)
    assert first.median_ms == pytest.approx(400)
    assert second.median_ms == pytest.approx(200)
    assert second.p10_ms == pytest.approx(100)
    assert second.p90_ms == pytest.approx(360)
    assert (first.runs, second.runs) == (5, 5)


def test_the_interval_of_a_speedup_is_that_of_stretches_of_rounds(clock: Clock) -> None:
    # In every second stretch of a hundred rounds the candidate takes a tenth longer.
    rounds = np.arange(1000)
    times = np.stack([np.full(1000, 2.0), np.where(rounds // 100 % 2, 1.1, 1.0)], axis=1)
    times *= 1 + 1e-3 * np.random.default_rng(0).random(times.shape)
    first, second = timing.summarized(times, [1, 1])
    assert (first.low, first.high) == (1.0, 1.0)
    assert second.low < 1.96 and 2.04 < second.high < 2.5
    assert second.low * second.high == pytest.approx(second.speedup**2)
    # Rounds that know nothing of each other leave what makes equal sessions differ.
    _, second = timing.summarized(np.random.default_rng(0).normal(1.0, 0.01, (1000, 2)), [1, 1])
    assert 1.02 < second.high / second.speedup < 1.04
    (_, alone) = timing.summarized(np.ones((1, 2)), [1, 1])
    assert (alone.low, alone.high) == (0.0, np.inf)


def test_what_runs_on_one_thread_is_timed_by_its_processor_time(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    worked = Clock()
    monkeypatch.setattr(timing, "thread_time", worked)

    class Preempted(Fake):
        runs_in_caller = True

        def run(self, feeds: Mapping[str, np.ndarray]) -> None:
            super().run(feeds)
            worked.now += 0.1

    first, second = measure(
        [Preempted("A", clock, [0.3, 5.0, 0.2], []), Preempted("B", clock, [9.0], [])], rounds=3
    )
    assert first.median_ms == pytest.approx(100)
    assert second.speedup == pytest.approx(1.0)


def test_short_inferences_are_repeated_to_fill_a_slot(clock: Clock) -> None:
    short, long = Fake("A", clock, [0.0005], []), Fake("B", clock, [0.005], [])
    first, second = measure([short, long], warmup=2, rounds=3)
    assert (first.runs, second.runs) == (3 * 4, 3)
    assert (short.runs, long.runs) == (2 + 12, 2 + 3)
    assert first.median_ms == pytest.approx(0.5)
    assert second.speedup == pytest.approx(0.1)


def test_long_inferences_need_no_second_one_to_be_warm(clock: Clock) -> None:
    long, short = Fake("A", clock, [0.25], []), Fake("B", clock, [0.03125], [])
    measure([long, short], warmup=3, rounds=2)
    assert (long.runs, short.runs) == (1 + 2, 3 + 2)


def test_seconds_bound_the_time_and_five_rounds_are_the_least(clock: Clock) -> None:
    (timing_,) = measure([Fake("A", clock, [0.0625], [])], seconds=0.625)
    assert timing_.runs == 10
    (timing_,) = measure([Fake("A", clock, [10.0], [])], seconds=0.1)
    assert timing_.runs == 5


def test_every_session_gets_its_own_feed(clock: Clock) -> None:
    sessions = [Fake(name, clock, [0.01], []) for name in "AB"]
    feeds = [{"x": np.zeros(1)}, {"z": np.ones(1)}]
    interleaved(cast("list[Session]", sessions), feeds, rounds=1)
    assert [list(session.feeds) for session in sessions] == [["x"], ["z"]]
    with pytest.raises(ValueError, match="one feed"):
        interleaved(cast("list[Session]", sessions), feeds[:1])


def test_the_collector_comes_back_after_a_failure(clock: Clock) -> None:
    class Failing(Fake):
        def run(self, feeds: Mapping[str, np.ndarray]) -> None:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        measure([Failing("A", clock, [0.1], [])])
    assert gc.isenabled()


def test_the_interval_over_sessions_is_that_of_the_t_test() -> None:
    rng, held = np.random.default_rng(0), 0
    for _ in range(400):
        a, b = np.exp(rng.normal(0, 0.02, (2, 4)))
        timings = [Timing(t, t, t, 5, 1.0) for t in np.stack([a, b], axis=1).ravel()]
        first, second = timing.of_several_sessions(timings, 2)
        wanted = ttest_ind(np.log(a), np.log(b)).confidence_interval()
        assert np.log([second.low, second.high]) == pytest.approx(wanted)
        held += second.low <= 1 <= second.high
    assert first == Timing(*[pytest.approx(np.exp(np.log(a).mean()))] * 3, 20, 1.0, 1.0, 1.0)
    assert second.speedup == pytest.approx(first.p10_ms / second.p10_ms)
    assert 0.93 * 400 <= held <= 0.97 * 400


def test_real_sessions() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) { y = Relu(x) }'
    )
    timings = interleaved([Session(model)] * 2, {"x": np.ones(2, np.float32)}, rounds=5)
    assert all(0 < entry.p10_ms <= entry.median_ms <= entry.p90_ms for entry in timings)
    assert timings[0].speedup == 1.0
    assert timings[0].runs > 5
