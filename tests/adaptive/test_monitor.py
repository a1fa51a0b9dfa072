"""Monitors on made-up tensors: no model is run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from onnxq.adaptive.baseline import Baseline, TensorBaseline
from onnxq.adaptive.bundle import Bundle, BundleFacts
from onnxq.adaptive.deployment import Deployment, Reference, Sampled
from onnxq.adaptive.monitor import Monitor, Verdict, lately
from onnxq.adaptive.scores import (
    DISAGREEMENT,
    KINDS,
    STREAMS,
    Scoring,
    as_arrays,
    as_usual,
    deviations,
    output_scores,
    streams,
    usual_of,
)
from onnxq.errors import InputError
from onnxq.observe.histogram import Tally
from onnxq.runtime.specs import Array
from onnxq.verify.decisions import Decision

DECISION = Decision("y", "classes", 1, "")
Sample = tuple[Sampled, Reference]
Change = Callable[[dict[str, Array]], dict[str, Array]]


class Source:
    """Samples whose tensors have a level of their own each, as images have."""

    def __init__(self, seed: int, served_noise: float = 0.05, sure: float = 1.0) -> None:
        self.rng, self.noise, self.sure = np.random.default_rng(seed), served_noise, sure

    def sample(self, change: Change = lambda tensors: tensors, favoured: int = -1) -> Sample:
        level = self.rng.lognormal(0.0, 0.3)
        tensors = {
            "a": self.rng.normal(size=256) * level,
            "b": np.maximum(self.rng.normal(size=256) + level, 0.0),
        }
        tensors = {n: t.astype(np.float32) for n, t in change(tensors).items()}
        ours = (self.rng.normal(size=(1, 5)) * 3 * self.sure).astype(np.float32)
        if favoured >= 0:
            # Only what is decided changes, not how surely.
            ours = np.roll(ours, favoured - ours.argmax(), axis=1)
        theirs = ours + self.rng.normal(size=(1, 5)).astype(np.float32) * self.noise
        return (
            Sampled(0, {}, (theirs,), Deployment()),
            Reference((ours,), tensors),
        )


def made(samples: int = 100) -> Bundle:
    """A bundle as `onnxq.bundling` makes it, without models."""
    source = Source(0)
    seen = [source.sample()[1].tensors for _ in range(samples)]
    tensors = {}
    for name in ("a", "b"):
        tally = Tally()
        for own in seen:
            tally.add(own[name])
        low, high = (float(f([f(own[name]) for own in seen])) for f in (np.min, np.max))
        tensors[name] = TensorBaseline(low, high, tally.histogram(), {})
    scoring = Scoring(tensors)
    scores = np.stack([scoring.scores(scoring.see(own)) for own in seen])
    usual = as_usual(scores.mean(axis=0), scores.std(axis=0))
    tensors = {
        name: replace(own, usual=dict(zip(KINDS, row, strict=True)))
        for (name, own), row in zip(tensors.items(), usual, strict=True)
    }
    bag: dict[str, list[float]] = {}
    for sampled, reference in (source.sample() for _ in range(samples)):
        away = deviations(
            scoring.scores(scoring.see(reference.tensors)), *as_arrays(usual_of(tensors))
        )
        outputs = output_scores((DECISION,), ("y",), reference.outputs, sampled.served)
        for name, score in {**streams(away), **outputs}.items():
            bag.setdefault(name, []).append(score)
    facts = BundleFacts((), 0, (DECISION,), ("a", "b"), {}, "onnxruntime", "cpu", 1, "", ("y",))
    baseline = Baseline(samples, tensors, {name: tuple(own) for name, own in bag.items()})
    return Bundle(Path(), facts, baseline)


BUNDLE = made()
EVERY = 10.0
"""Seconds between samples: 8,640 of them a day."""


def watch(monitor: Monitor, samples: Iterator[Sample], start: float = 0.0) -> Iterator[Verdict]:
    for at, (sampled, reference) in enumerate(samples):
        monitor.see(sampled, reference, start + at * EVERY)
        yield monitor.verdict()


def delay(monitor: Monitor, samples: Iterator[Sample], start: float = 0.0) -> int | None:
    """Samples until an alarm."""
    verdicts = watch(monitor, samples, start)
    return next((at for at, verdict in enumerate(verdicts, start=1) if verdict.alarm), None)


def stream(
    source: Source, count: int, change: Change = lambda tensors: tensors
) -> Iterator[Sample]:
    return (source.sample(change) for _ in range(count))


def gained(factor: float) -> Change:
    return lambda tensors: {name: own * factor for name, own in tensors.items()}


def test_undisturbed_samples_raise_no_more_alarms_than_asked_for() -> None:
    """5,000 samples, of which a day has 2,400; 24 alarms a day are one in 100 samples, so 50."""
    monitor, alarms, source = Monitor(BUNDLE, false_alarms_per_day=24.0), 0, Source(1)
    for at in range(5000):
        monitor.see(*source.sample(), at * 36.0)
        if monitor.verdict().alarm:
            alarms += 1
            monitor.renew()
    assert 0 < alarms <= 50


@pytest.mark.parametrize(
    ("change", "kinds"),
    [
        (gained(3.0), {*STREAMS}),
        (gained(0.2), {"unused", "distance"}),
        (lambda tensors: {**tensors, "b": tensors["b"] + 2.0}, {"saturation", "distance"}),
    ],
    ids=["gain", "darker", "offset of one tensor"],
)
def test_a_planted_change_is_found_in_some_samples_and_named(
    change: Change, kinds: set[str]
) -> None:
    found = []
    for seed in range(5):
        monitor, source = Monitor(BUNDLE, seed=seed), Source(seed + 2)
        assert delay(monitor, stream(source, 60)) is None
        found.append(delay(monitor, stream(source, 60, change), 60 * EVERY))
        verdict = monitor.verdict()
        assert verdict.kind in kinds
        assert "b" in verdict.drifted
        details = verdict.details()
        assert json.loads(json.dumps(details))["tensors"][0]["name"] == verdict.drifted[0]
        assert verdict.reason.endswith(
            "late decisions equal float's in " + f"{verdict.agreement:.1%}"
        )
    assert max(n or math.inf for n in found) <= 25


def test_answers_that_move_away_from_float_are_found() -> None:
    monitor = Monitor(BUNDLE)
    assert delay(monitor, stream(Source(3), 40)) is None
    before = monitor.verdict().agreement
    found = delay(monitor, stream(Source(4, served_noise=1.0), 40), 40 * EVERY)
    assert found is not None and found <= 12
    verdict = monitor.verdict()
    assert verdict.kind == "disagreement" and not verdict.tensors
    verdict = [*watch(monitor, stream(Source(4, served_noise=2.0), 40), 800.0)][-1]
    assert before is not None and verdict.agreement is not None and verdict.agreement < before


@pytest.mark.parametrize("sure", [0.2, 5.0])
def test_a_float_model_that_grows_surer_or_less_sure_is_found(sure: float) -> None:
    monitor = Monitor(BUNDLE)
    found = delay(monitor, stream(Source(5, served_noise=0.0, sure=sure), 60))
    verdict = monitor.verdict()
    assert found is not None and verdict.kind == "entropy"
    assert verdict.entropy is not None and verdict.usual_entropy is not None
    assert (verdict.entropy > verdict.usual_entropy) == (sure < 1)


def test_other_classes_are_found() -> None:
    monitor, source = Monitor(BUNDLE), Source(15)
    assert delay(monitor, stream(source, 40)) is None
    found = delay(monitor, (source.sample(favoured=2) for _ in range(60)), 400.0)
    assert found is not None and monitor.verdict().kind == "classes"


def test_feedback_is_a_stream_of_its_own() -> None:
    monitor, rng = Monitor(BUNDLE), np.random.default_rng(6)
    list(watch(monitor, stream(Source(6), 40)))
    for _ in range(200):
        monitor.feedback(bool(rng.uniform() < 0.95))
    assert not monitor.verdict().alarm
    for _ in range(60):
        monitor.feedback(bool(rng.uniform() < 0.3))
    verdict = monitor.verdict()
    assert verdict.alarm and verdict.kind == "feedback"


def test_feedback_on_every_request_raises_no_more_alarms_than_asked_for() -> None:
    """One request in 50 is sampled; 2,000 samples are a day, of which 2 alarms are asked for."""
    monitor, source, alarms = Monitor(BUNDLE, false_alarms_per_day=2.0), Source(16), 0
    rng = np.random.default_rng(16)
    for at in range(2000):
        monitor.see(*source.sample(), at * 43.2)
        for correct in rng.uniform(size=50) < 0.9:
            monitor.feedback(bool(correct))
        verdict = monitor.verdict()
        if verdict.alarm:
            alarms += verdict.kind == "feedback"
            monitor.renew()
    assert alarms <= 2
    for _ in range(400):
        monitor.feedback(False)
    verdict = monitor.verdict()
    streams = len(BUNDLE.baseline.bag) + 1
    assert verdict.alarm and verdict.kind == "feedback"
    assert verdict.threshold == pytest.approx(100_400 / 2 * streams, rel=0.01)


def test_suspicion_comes_before_an_alarm() -> None:
    monitor, source = Monitor(BUNDLE), Source(7)
    list(watch(monitor, stream(source, 40)))
    verdicts = [*watch(monitor, stream(source, 40, gained(2.0)), 400.0)]
    first = [next(at for at, v in enumerate(verdicts) if v.suspicious), 0]
    first[1] = next(at for at, v in enumerate(verdicts) if v.alarm)
    assert first[0] < first[1]
    assert all(v.alarm for v in verdicts[first[1] :]), "an alarm stays until renewal"


def test_after_renewal_what_came_since_the_alarm_is_usual_and_the_way_back_is_drift() -> None:
    monitor, source = Monitor(BUNDLE), Source(8)
    assert delay(monitor, stream(source, 60, gained(3.0))) is not None
    list(watch(monitor, stream(source, 120, gained(3.0)), 600.0))
    monitor.renew()
    assert monitor.verdict().samples == 0
    assert delay(monitor, stream(source, 300, gained(3.0)), 3000.0) is None
    found = delay(monitor, stream(source, 60), 6000.0)
    assert found is not None and found <= 30


def test_with_few_samples_renewal_keeps_what_is_usual() -> None:
    monitor, source = Monitor(BUNDLE), Source(9)
    list(watch(monitor, stream(source, 10)))
    monitor.renew()
    assert delay(monitor, stream(source, 100), 100.0) is None


def test_the_same_seed_gives_the_same_evidence() -> None:
    runs = [
        [v.evidence for v in watch(Monitor(BUNDLE, seed=seed), stream(Source(10), 30))]
        for seed in (0, 0, 1)
    ]
    assert runs[0] == runs[1] != runs[2]


def test_what_is_known_goes_on_after_a_restart() -> None:
    monitor, source = Monitor(BUNDLE), Source(11)
    list(watch(monitor, stream(source, 50)))
    known = json.loads(json.dumps(monitor.to_plain()))
    again = Monitor(BUNDLE, known)
    assert again.to_plain() == monitor.to_plain()
    assert replace(again.verdict(), tensors=()) == replace(monitor.verdict(), tensors=())
    # The clock of another process says something else.
    assert delay(again, stream(source, 30, gained(3.0)), -1e6) is not None


@pytest.mark.parametrize("known", [None, {}, {"streams": 3}, [1], "text"])
def test_what_is_no_state_is_not_used(known: object) -> None:
    assert Monitor(BUNDLE, known).to_plain() == Monitor(BUNDLE).to_plain()


def test_the_state_of_another_bundle_is_not_used() -> None:
    tensors = {"a": BUNDLE.baseline.tensors["a"]}
    other = replace(BUNDLE, baseline=replace(BUNDLE.baseline, tensors=tensors))
    known = Monitor(other).to_plain()
    assert Monitor(BUNDLE, known).to_plain() == Monitor(BUNDLE).to_plain()


def test_few_samples_a_day_are_no_reason_for_many_alarms() -> None:
    monitor, source = Monitor(BUNDLE, false_alarms_per_day=100.0), Source(12)
    for hour in range(24):
        monitor.see(*source.sample(), hour * 3600.0)
    assert monitor.verdict().threshold == 100.0 * len(BUNDLE.baseline.bag) + 100.0


def test_the_threshold_follows_the_rate_of_samples() -> None:
    monitor, source = Monitor(BUNDLE, false_alarms_per_day=2.0), Source(13)
    list(watch(monitor, stream(source, 101)))
    streams = len(BUNDLE.baseline.bag) + 1
    assert monitor.verdict().threshold == pytest.approx(8640 * 1.01 / 2 * streams)


def test_no_false_alarms_at_all_cannot_be_promised() -> None:
    with pytest.raises(InputError, match="give a number above 0"):
        Monitor(BUNDLE, false_alarms_per_day=0.0)


def test_where_values_lay_lately_is_told_of_all_workers_together() -> None:
    """As counting the values of all their samples at once tells."""
    sources = [(Source(14), gained(1.0), 30), (Source(15), gained(3.0), 10)]
    known, values = [None, {"streams": 3}], []
    for source, change, count in sources:
        monitor, samples = Monitor(BUNDLE), [*stream(source, count, change)]
        list(watch(monitor, iter(samples)))
        known.append(json.loads(json.dumps(monitor.to_plain())))
        values += [reference.tensors["b"] for _, reference in samples]
    found, one = lately(BUNDLE, known), lately(BUNDLE, known[:3])
    high = BUNDLE.baseline.tensors["b"].high
    assert found["b"]["above"] == pytest.approx((np.concatenate(values) > high).mean(), abs=0.002)
    assert found["b"]["above"] > 0.02 > one["b"]["above"]
    assert found["a"]["distance"] > one["a"]["distance"] > 0
    assert found["b"]["below"] == 0
    assert lately(BUNDLE, known[:2]) == {}


def test_how_far_unsigned_outputs_are_from_floats() -> None:
    ours, theirs = np.full((1, 4), 100, np.uint8), np.full((1, 4), 101, np.uint8)
    found = output_scores((), ("y",), (ours,), (theirs,))
    assert found[DISAGREEMENT] == pytest.approx(1e-4)
