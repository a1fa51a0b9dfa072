"""What a session sees and does on samples in a row: the same each time, and what a clock says."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxq.adaptive.baseline import Baseline, TensorBaseline
from onnxq.adaptive.bundle import Bundle
from onnxq.adaptive.judge import Amounts
from onnxq.adaptive.replay import Replay, Rules, Stretch, replay
from onnxq.data import Dataset, read
from onnxq.observe.histogram import histogram_of
from onnxq.plain import to_plain
from onnxq.runtime import as_stored
from onnxq.verify.metrics import Metric, MetricResult
from tests.adaptive import fakes

USUAL, LOUD = 100, 300
ADAPTED = USUAL + 1 + Amounts().gathered
"""The alarm's own request is not gathered."""


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    own = fakes.bundle(tmp_path / "bundle")
    values = histogram_of(np.linspace(0.5, 1.5, 900, dtype=np.float32))
    usual = TensorBaseline(low=0.0, high=10.0, histogram=values, usual={})
    return replace(own, baseline=Baseline(900, {"x": usual}, {}))


def stream(values: Sequence[float]) -> Dataset:
    """Samples that are all of one number each."""
    x = np.repeat(np.array(values, np.float32)[:, None], 3, axis=1)
    specs = as_stored(fakes.model(1)).inputs
    return read({"x": x, "labels": np.zeros(len(x), np.int64)}, specs).in_parts(1, specs)


@dataclass
class Monitor(fakes.Monitor):
    """Names the input."""

    def verdict(self) -> fakes.Verdict:
        found = super().verdict()
        return replace(found, drifted=("x",)) if found.alarm else found


class Mean(Metric):
    """Mean of the answers' sums."""

    name = "mean"

    def __init__(self) -> None:
        self.seen: list[float] = []

    def add(self, outputs: Any, labels: Any, valid: int) -> None:
        self.seen += outputs["total"][:valid].tolist()

    def result(self) -> MetricResult:
        return MetricResult("mean", float(np.mean(self.seen)), len(self.seen), True)


Replayed = Callable[..., Replay]


@pytest.fixture
def replayed(bundle: Bundle) -> Replayed:
    def replayed(*values: float, tell: Any = lambda stretch: None, **rules: Any) -> Replay:
        parts = fakes.parts(monitor=lambda bundle, known: Monitor(known))
        given = Rules(**{"sampling": 1.0, "requests_per_second": 0.5, **rules})
        return replay(bundle, stream(values), given, parts, Mean, tell=tell)

    return replayed


CHANGING = [1.0] * USUAL + [20.0] * LOUD


def test_a_change_is_told_done_and_measured(replayed: Replayed) -> None:
    found = replayed(*CHANGING)
    assert (found.requests, found.samples, found.alarms, found.changes) == (400, 400, 1, 1)
    drift, adapted = found.happenings
    assert (drift.kind, drift.request, drift.seconds) == ("drift", USUAL + 1, (USUAL + 1) * 2.0)
    assert drift.reason == "the values are above 10" and drift.before is drift.after is None
    assert (adapted.kind, adapted.request) == ("adapted", ADAPTED)
    # Half of what it should be, and then just that.
    assert adapted.before is not None and adapted.after is not None
    assert adapted.before.sampled == ADAPTED - USUAL and adapted.after.sampled == 400 - ADAPTED
    assert adapted.before.sqnr_db == pytest.approx(20 * math.log10(2))
    assert adapted.after.sqnr_db == math.inf
    assert found.nearness.sampled == 400 and found.nearness.agreement is None


def test_stretches_say_what_answered_and_how_well(replayed: Replayed) -> None:
    told: list[Stretch] = []
    found = replayed(*CHANGING, tell=told.append)
    assert tuple(told) == found.stretches
    assert [(own.first, own.last) for own in told] == [(n, n + 19) for n in range(1, 400, 20)]
    changed = (ADAPTED - 1) // 20
    assert [own.variant for own in told] == ["factor1"] * changed + ["factor2"] * (20 - changed)
    assert [own.generation for own in told] == [0] * changed + [1] * (20 - changed)
    assert told[0].value == 3.0 and told[5].value == 60.0 and told[-1].value == 120.0
    assert told[0].evidence == pytest.approx(0.1) and told[5].evidence == 2.0
    assert found.value == pytest.approx(np.mean([own.value for own in told]))


def test_values_of_what_drifted_are_kept(replayed: Replayed) -> None:
    (found,) = replayed(*CHANGING).distributions
    assert (found.tensor, found.request, found.requests) == ("x", USUAL + 1, ADAPTED - USUAL)
    assert (found.low, found.high) == (0.0, 10.0)
    assert len(found.edges) == len(found.usual) + 1 == len(found.now) + 1
    assert sum(found.usual) == pytest.approx(1) and sum(found.now) == pytest.approx(1)
    middle = np.searchsorted(found.edges, 10.0)
    assert sum(found.usual[middle:]) == 0 and sum(found.now[: middle - 1]) == 0


def test_a_replay_is_repeatable_and_leaves_nothing(replayed: Replayed, bundle: Bundle) -> None:
    before = sorted(bundle.folder.iterdir())
    first, second = (replayed(*CHANGING, sampling=0.3, seed=4) for _ in range(2))
    assert to_plain(first) == to_plain(second)
    assert first.happenings and 0 < first.nearness.sampled < 400
    assert to_plain(replayed(*CHANGING, sampling=0.3, seed=5)) != to_plain(first)
    assert sorted(bundle.folder.iterdir()) == before


def test_a_state_goes_on(replayed: Replayed, tmp_path: Path) -> None:
    state = str(tmp_path / "state.sqlite")
    first = replayed(*CHANGING, state=state)
    second = replayed(*[1.0] * 40, state=state)
    assert first.changes == 1 and Path(state).exists()
    assert second.happenings == () and {own.variant for own in second.stretches} == {"factor2"}
    (again,) = replayed(*[1.0] * 39, 20.0, state=state).happenings
    assert (again.kind, again.request, again.seconds) == ("drift", 40, 80.0)


def test_fewer_samples_than_stretches(replayed: Replayed) -> None:
    found = replayed(1.0, 2.0)
    assert [(own.first, own.last) for own in found.stretches] == [(1, 1), (2, 2)]


def test_unsampled_requests_are_near_to_nothing(replayed: Replayed) -> None:
    found = replayed(*[1.0] * 4, sampling=1e-9)
    assert to_plain(found.nearness) == {"sampled": 0, "agreement": None, "sqnr_db": None}
