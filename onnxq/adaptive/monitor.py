"""Watching sampled requests: whether they are still what they were, and where they are not."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxq.adaptive.baseline import Usual
from onnxq.adaptive.bundle import Bundle
from onnxq.adaptive.deployment import Reference, Sampled
from onnxq.adaptive.detector import Detector, MixDetector, Pool
from onnxq.adaptive.forgetting import Forgotten
from onnxq.adaptive.scores import (
    CLASSES,
    DISAGREEMENT,
    ENTROPY,
    KINDS,
    STREAMS,
    Floats,
    Scoring,
    Seen,
    agreement,
    as_arrays,
    as_usual,
    deviations,
    output_scores,
    streams,
    usual_of,
)
from onnxq.errors import InputError
from onnxq.plain import read, to_plain

FEEDBACK = "feedback"

_SAID = {
    "saturation": "the share of values outside of the ranges that the model was made for",
    "distance": "how values are distributed",
    "unused": "how much of their ranges values use",
    ENTROPY: "how sure the float model is of its decisions",
    CLASSES: "what the float model decides for, and how often,",
    DISAGREEMENT: "how far answers are from the float model's",
    FEEDBACK: "the share of answers that are said to be wrong",
}
"""What a stream is about."""

_BOTH_WAYS = (*STREAMS, ENTROPY)
"""Streams that drift down as well as up."""

_SHORTEST = 100.0
"""Samples between false alarms at least, however few requests a day there are."""

_SUSPICION = 500.0
"""Evidence that makes it worth while to look at more requests, where an alarm takes more."""

_LATELY = 64
"""Samples after which what is told of late ones counts half."""

_BRIEFLY = 0.9
"""What a sample counts, against the next one, in where drift is looked for."""

_FAR = 4.0
"""Standard deviations that a tensor's late scores are away in the mean where they drifted."""

_MOST_TOLD = 16
_KEPT = 256
"""Samples whose scores are kept, to be what is usual next."""

_FEWEST = 16
"""Samples without which nothing else becomes usual."""

_DAY = 86400.0


@dataclass(frozen=True)
class Drifted:
    """A tensor that is not what it was: the score that is farthest off, and by how much.

    ``score`` is in standard deviations of the mean of late samples; negative where it fell.
    """

    name: str
    kind: str
    score: float


@dataclass(frozen=True)
class Verdict:
    """What is thought of the requests.

    Attributes:
        alarm: Whether they are no longer what they were.
        suspicious: Whether it is worth while to look at more of them.
        kind: Stream whose evidence is nearest to an alarm, or farthest beyond: of `STREAMS`,
            ``entropy``, ``classes``, ``disagreement``, or ``feedback``.
        evidence: Of that stream.
        threshold: What raises an alarm there.
        tensors: Those that drifted, the farthest first.
        agreement: Share of late decisions that equal float's; None where nothing is decided.
        entropy: Of the float model's late decisions in the mean; None where there are none.
        usual_entropy: What it was in the mean when the bundle was made, or after a renewal.
        samples: Samples seen since then.
        reason: One sentence.
    """

    alarm: bool
    suspicious: bool
    kind: str
    evidence: float
    threshold: float
    tensors: tuple[Drifted, ...]
    agreement: float | None
    entropy: float | None
    usual_entropy: float | None
    samples: int
    reason: str

    @property
    def drifted(self) -> tuple[str, ...]:
        """Names of the tensors that drifted."""
        return tuple(tensor.name for tensor in self.tensors)

    def details(self) -> dict[str, Any]:
        """Everything but the reason, as plain data."""
        found: dict[str, Any] = to_plain(self)
        del found["reason"]
        return found


@dataclass
class _Mean:
    """A mean in which late values count more."""

    total: float = 0.0
    weight: float = 0.0

    def add(self, value: float) -> None:
        if not math.isfinite(value):
            # It would be all that counts for ever.
            return
        faded = 0.5 ** (1 / _LATELY)
        self.total, self.weight = faded * self.total + value, faded * self.weight + 1.0

    @property
    def value(self) -> float | None:
        return self.total / self.weight if self.weight else None


@dataclass
class _Stream:
    """Scores of one kind: those to rank among, and the evidence that they changed."""

    pool: Pool
    detector: Detector | MixDetector

    @classmethod
    def of(cls, name: str, scores: Iterable[float]) -> _Stream:
        pool = Pool.of(scores)
        if name == CLASSES:
            return cls(pool, MixDetector.new())
        return cls(pool, Detector.new(2 if name in _BOTH_WAYS else 1))


@dataclass
class _State:
    """What goes on after a restart.

    Attributes:
        streams: By name.
        usual: Mean and deviation of all tensors' scores, by tensor and kind.
        usual_entropy: Of the float model's decisions, in the mean.
        samples: Seen since what is usual became so.
        all_samples: Seen in all, for their number a day.
        all_said: Answers of which somebody said whether they were right, in all.
        seconds: In which these were seen.
        agreement: Of late answers.
        entropy: Of the float model's late decisions.
        lately: Values of late samples by cells.
    """

    streams: dict[str, _Stream]
    usual: tuple[tuple[Usual, ...], ...]
    usual_entropy: float | None
    lately: Forgotten
    agreement: _Mean = field(default_factory=_Mean)
    entropy: _Mean = field(default_factory=_Mean)
    samples: int = 0
    all_samples: int = 0
    all_said: int = 0
    seconds: float = 0.0


class Monitor:
    """Looks at one sampled request after the other; has no thread and no clock.

    Whatever the streams of scores are like, they raise false alarms at most as often as was asked
    for: the detector of each has its share of them. The numbers of samples and of answers that
    somebody judges a day are as measured.

    Args:
        bundle: What was usual at first.
        known: What `to_plain` gave in an earlier run; None without one. That of another bundle, or
            of another version, is not used.
        seed: Ties are broken by.
        false_alarms_per_day: That all streams of this monitor may raise together.
    """

    def __init__(
        self,
        bundle: Bundle,
        known: Any = None,
        *,
        seed: int = 0,
        false_alarms_per_day: float = 1.0,
    ) -> None:
        check_false_alarms(false_alarms_per_day)
        self._facts, baseline = bundle.facts, bundle.baseline
        self._scoring, self._false_alarms = Scoring(baseline.tensors), false_alarms_per_day
        bag = {**baseline.bag, FEEDBACK: ()}
        entropies = baseline.bag.get(ENTROPY)
        self._state = _State(
            {name: _Stream.of(name, scores) for name, scores in bag.items()},
            usual_of(baseline.tensors),
            float(np.mean(entropies)) if entropies else None,
            Forgotten(_LATELY, np.zeros_like(self._scoring.usual)),
        )
        with suppress(InputError):
            # None, as anything else, is no state.
            earlier = _read(known)
            if _shape(earlier) == _shape(self._state):
                self._state = earlier
        self._chance = random.Random(f"{seed}/{self._state.all_samples}")
        self._last: float | None = None
        self._begin()

    def _begin(self) -> None:
        """Look for drift from what is usual."""
        self._usual = as_arrays(self._state.usual)
        self._near, self._weights = np.zeros_like(self._usual[0]), 0.0
        self._alarmed = False
        self._kept: deque[tuple[Floats, dict[str, float]]] = deque(maxlen=_KEPT)

    def see(self, sampled: Sampled, reference: Reference, now: float) -> None:
        """Look at a request.

        Args:
            sampled: The request.
            reference: What the float model says of it.
            now: Seconds on a clock that never jumps.
        """
        state, facts = self._state, self._facts
        state.seconds += 0.0 if self._last is None else max(0.0, now - self._last)
        self._last = now
        state.samples += 1
        state.all_samples += 1
        seen = self._scoring.see(reference.tensors)
        scores = self._scoring.scores(seen)
        state.lately.add(seen.counts)
        away = deviations(scores, *self._usual)
        self._near = _BRIEFLY * self._near + away
        self._weights = _BRIEFLY**2 * self._weights + 1.0
        outputs = facts.decisions, facts.outputs, reference.outputs, sampled.served
        own = output_scores(*outputs)
        if ENTROPY in own:
            state.entropy.add(own[ENTROPY])
        if (agreed := agreement(*outputs)) is not None:
            state.agreement.add(agreed)
        for stream, score in {**streams(away), **own}.items():
            self._place(stream, score)
        self._kept.append((scores, own))
        if not self._alarmed and self._is_enough():
            # What was before the change is not to be what is usual next.
            self._alarmed = True
            self._kept.clear()

    def feedback(self, correct: bool) -> None:
        """Take in whether an answer was right, as somebody says."""
        self._state.all_said += 1
        self._place(FEEDBACK, float(not correct))

    def _place(self, stream: str, score: float) -> None:
        own = self._state.streams[stream]
        own.detector.see(own.pool.place(score, self._chance))

    def _threshold(self, stream: str) -> float:
        """Evidence that raises an alarm: scores of a stream between its false ones."""
        state = self._state
        scores = state.all_said if stream == FEEDBACK else state.all_samples
        a_day = _DAY * scores / max(state.seconds, 1.0)
        return max(_SHORTEST, a_day / self._false_alarms) * len(state.streams)

    def _evidence(self) -> tuple[str, float, float]:
        """The stream whose evidence is nearest to an alarm, that, and what raises one there."""
        found = [
            (name, own.detector.value, self._threshold(name))
            for name, own in self._state.streams.items()
        ]
        return max(found, key=lambda own: own[1] / own[2])

    def _is_enough(self) -> bool:
        _, evidence, threshold = self._evidence()
        return evidence >= threshold

    def verdict(self) -> Verdict:
        """What is thought now; an alarm stays until `renew`."""
        state = self._state
        kind, evidence, threshold = self._evidence()
        alarm = self._alarmed or evidence >= threshold
        tensors = self._drifted() if alarm else ()
        return Verdict(
            alarm,
            alarm or evidence >= _SUSPICION,
            kind,
            evidence,
            threshold,
            tensors,
            state.agreement.value,
            state.entropy.value,
            state.usual_entropy,
            state.samples,
            self._reason(kind, tensors) if alarm else "requests are what they were",
        )

    def _drifted(self) -> tuple[Drifted, ...]:
        """Tensors whose late scores are off in the mean by more than chance makes them."""
        scores = self._near / np.sqrt(max(self._weights, 1.0))
        places = np.abs(scores).argmax(axis=1) if len(scores) else np.zeros(0, np.intp)
        found = [
            Drifted(name, KINDS[kind], float(row[kind]))
            for name, kind, row in zip(self._scoring.names, places, scores, strict=True)
            if abs(row[kind]) >= _FAR
        ]
        return tuple(sorted(found, key=lambda own: -abs(own.score))[:_MOST_TOLD])

    def _reason(self, kind: str, tensors: Sequence[Drifted]) -> str:
        state = self._state
        where = ", most in " + ", ".join(f"'{t.name}'" for t in tensors[:3]) if tensors else ""
        agreed = state.agreement.value
        equal = "" if agreed is None else f"; late decisions equal float's in {agreed:.1%}"
        return f"{_SAID[kind]} is no longer what it was after {state.samples} samples{where}{equal}"

    def renew(self) -> None:
        """Take what comes from now on as usual: something was done about what came before.

        Half of the samples since the alarm, or of the last ones where there was none, say what
        scores are like; the other half, to which that was not fitted, is what new ones are ranked
        among. With few of them what was usual stays, and ranks come from what comes.
        """
        state, kept = self._state, [*self._kept]
        fitted, ranked = kept[::2], kept[1::2]
        pools: dict[str, list[float]] = {name: [] for name in state.streams}
        if len(fitted) >= _FEWEST and self._scoring.names:
            scores = np.stack([own for own, _ in fitted])
            mean, deviation = scores.mean(axis=0), scores.std(axis=0)
            state.usual = as_usual(mean, deviation)
            for own, _ in ranked:
                for stream, score in streams(deviations(own, mean, deviation)).items():
                    pools[stream].append(score)
        for _, outputs in kept:
            # These do not depend on what answers.
            for stream in outputs.keys() & {ENTROPY, CLASSES}:
                pools[stream].append(outputs[stream])
        if entropies := pools.get(ENTROPY):
            state.usual_entropy = float(np.mean(entropies))
        state.streams = {name: _Stream.of(name, own) for name, own in pools.items()}
        state.samples, state.agreement, state.entropy = 0, _Mean(), _Mean()
        self._begin()

    def to_plain(self) -> Any:
        """What goes on after a restart, as plain data."""
        return to_plain(self._state)


def lately(bundle: Bundle, known: Iterable[Any]) -> dict[str, dict[str, float]]:
    """Where values of tensors lay lately, by what several monitors saw.

    Args:
        bundle: What the monitors were of.
        known: What `to_plain` of each gave; what is of another version is passed over.

    Returns:
        By tensor the shares of its values below and above what the model can hold, and the distance
        of their distribution from the baseline's, from 0 to 1; nothing where nothing was seen.
    """
    scoring = Scoring(bundle.baseline.tensors)
    all_seen = Forgotten(_LATELY, np.zeros_like(scoring.usual))
    for own in known:
        with suppress(InputError, ValueError):
            all_seen = all_seen.merge(_read(own).lately)
    if not all_seen.samples:
        return {}
    # Together they have no smallest and largest value, and nothing is said of these.
    ends = np.zeros(len(scoring.names), np.int32)
    scores = scoring.scores(Seen(all_seen.parts, ends, ends))
    told = [(at, kind) for at, kind in enumerate(KINDS) if kind != "unused"]
    return {
        name: {kind: float(row[at]) for at, kind in told}
        for name, row in zip(scoring.names, scores, strict=True)
    }


def check_false_alarms(a_day: float) -> None:
    """Find out before work begins whether so few false alarms can be kept.

    Raises:
        InputError: they cannot.
    """
    if not a_day > 0:
        raise InputError(
            f"{a_day:g} false alarms a day cannot be kept, because chance can look like drift; "
            "give a number above 0, however small"
        )


def _read(known: Any) -> _State:
    earlier: _State = read(_State, known, "the statistics of an earlier run")
    return earlier


def _shape(state: _State) -> object:
    """What the states of one bundle have in common."""
    kinds = {name: np.shape(own.detector.to_plain()) for name, own in state.streams.items()}
    return kinds, state.lately.parts.shape, [len(row) for row in state.usual]
