"""What an adaptive session sees and does on samples in a row, by a clock that goes with them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from onnxq.adaptive.bundle import Bundle
from onnxq.adaptive.deployment import Reference, Sampled
from onnxq.adaptive.parts import Monitoring, Parts, Verdict
from onnxq.adaptive.scores import agreement
from onnxq.adaptive.session import AdaptiveSession
from onnxq.adaptive.worker import Clock, Intervals
from onnxq.data import Batch, Dataset
from onnxq.observe import Histogram
from onnxq.observe.histogram import as_float32, histogram_of
from onnxq.progress import SILENT, Progress
from onnxq.scratch import scratch_folder
from onnxq.verify.metrics import Metric

_STRETCHES = 20
_DRAWN = 8
"""Tensors of an alarm whose values are drawn."""

_BARS = 48
"""Into which the values of a tensor are parted."""

_CHANGES = ("adapted", "rolled-back", "followed")

_RARELY = Intervals(share=1e6, keep=1e6, retry=1e6)
"""Nobody else is told while samples are replayed: what happens is kept at the end."""


@dataclass(frozen=True)
class Rules:
    """How a session watches.

    Attributes:
        sampling: Share of the requests that are looked at.
        false_alarms_per_day: That may be raised where nothing changes.
        requests_per_second: By which a day is measured.
        seed: Of what is left to chance.
        state: File of what goes on after the last sample; None keeps nothing.
    """

    sampling: float = 0.02
    false_alarms_per_day: float = 1.0
    requests_per_second: float = 1.0
    seed: int = 0
    state: str | None = None


@dataclass(frozen=True)
class Nearness:
    """How near to the float model answers were that were looked at.

    Attributes:
        sampled: How many.
        agreement: Share of their decisions that equal float's; None where nothing is decided.
        sqnr_db: Of all outputs together; infinite where they are equal, None without any.
    """

    sampled: int
    agreement: float | None
    sqnr_db: float | None


@dataclass(frozen=True)
class Stretch:
    """Some requests in a row.

    Attributes:
        first: Number of the first one, from 1 on.
        last: Of the last one.
        nearness: To the float model.
        evidence: The most that there was for drift; 1 raises an alarm.
        value: The metric of what was answered; None without labels.
        generation: Number of changes so far.
        variant: Name of what answered in the end.
    """

    first: int
    last: int
    nearness: Nearness
    evidence: float
    value: float | None
    generation: int
    variant: str


@dataclass(frozen=True)
class Happening:
    """Something that a session tells.

    Attributes:
        request: Number of the last request before.
        seconds: Since the first request.
        kind: See `onnxq.adaptive.events.Kind`.
        reason: One sentence.
        before: Of a change, how near to float answers were since the alarm before it.
        after: And until the next change.
        details: Numbers behind the sentence.
    """

    request: int
    seconds: float
    kind: str
    reason: str
    before: Nearness | None
    after: Nearness | None
    details: Mapping[str, Any]


@dataclass(frozen=True)
class Distribution:
    """The values of a tensor when the bundle was made, and of requests from an alarm on.

    Attributes:
        tensor: Its name.
        request: When the alarm was raised.
        requests: How many were looked at since, until something was done about it.
        edges: Of equally wide bars, one more than there are bars.
        usual: Shares of the values in each bar when the bundle was made.
        now: And of those requests.
        low: Smallest number that the chosen variant can hold as it was made.
        high: The largest one.
    """

    tensor: str
    request: int
    requests: int
    edges: tuple[float, ...]
    usual: tuple[float, ...]
    now: tuple[float, ...]
    low: float
    high: float


@dataclass(frozen=True)
class Replay:
    """What was seen and done.

    Attributes:
        requests: How many there were.
        samples: In them.
        alarms: Times that drift was seen.
        changes: Times that something else answered than before.
        metric: Name of the metric; None without labels.
        value: The metric of all that was answered.
        nearness: Of all answers that were looked at.
        stretches: The requests in parts.
        happenings: What was told, in order.
        distributions: Tensors that drifted, by alarm.
    """

    requests: int
    samples: int
    alarms: int
    changes: int
    metric: str | None
    value: float | None
    nearness: Nearness
    stretches: tuple[Stretch, ...]
    happenings: tuple[Happening, ...]
    distributions: tuple[Distribution, ...]


def replay(
    bundle: Bundle,
    samples: Dataset,
    rules: Rules,
    parts: Parts,
    metric: Callable[[], Metric | None],
    *,
    progress: Progress = SILENT,
    tell: Callable[[Stretch], None] = lambda stretch: None,
) -> Replay:
    """Ask a session one sample after the other, and note what it sees and does.

    Every request that is picked is judged before the next one is asked, and all clocks go by the
    number of requests, so that the same samples and rules give the same result. Looking at requests
    takes no time by these clocks: a session that would look at fewer, as they come too fast for
    its share of the time, does not show here.

    Args:
        bundle: What answers.
        samples: What is asked, in order.
        rules: How the session watches.
        parts: What it watches and adapts with.
        metric: Begins to measure answers against labels; gives None without labels.
        progress: Told how many samples are done.
        tell: Given every stretch of requests when it is over.

    Raises:
        InputError: the bundle is damaged, or the data does not fit it.
    """
    began = 0.0 if rules.state is None else time.time()
    asked = 0

    def seconds() -> float:
        return asked / rules.requests_per_second

    with scratch_folder() as scratch:
        looks = _Looks(bundle)
        session = AdaptiveSession(
            bundle,
            sampling=rules.sampling,
            state=rules.state or scratch / "state.sqlite",
            seed=rules.seed,
            parts=replace(parts, monitor=lambda *known: looks.over(parts.monitor(*known))),
            clock=Clock(seconds, lambda: began + seconds()),
            intervals=_RARELY,
        )
        with session:
            # Times of an earlier replay may lie ahead of now.
            earlier = len([event for event in session.events() if event["time"] != began])
            overall, stretches = metric(), []
            names = [spec.name for spec in session.get_outputs()]
            done, total = 0, len(samples)
            progress.stage("watching", total)
            for batches in _parted(samples):
                own, first = metric(), asked + 1
                for batch in batches:
                    asked += 1
                    answers = dict(zip(names, session.run(None, batch.feeds), strict=True))
                    session.flush()
                    for measured in (overall, own):
                        if measured is not None:
                            measured.add(batch.trim(answers), batch.labels, batch.valid)
                    done += batch.valid
                    progress.advance(done)
                found = session.statistics()
                between = looks.between(first, asked)
                stretches.append(
                    Stretch(
                        first,
                        asked,
                        _nearness(between),
                        max((look.evidence for look in between), default=0.0),
                        None if own is None else own.result().value,
                        found["generation"],
                        bundle.variants[found["variant"]].name,
                    )
                )
                tell(stretches[-1])
        events = session.events()[earlier:]
    happenings = _happenings(events, began, rules.requests_per_second, looks)
    kinds = [happening.kind for happening in happenings]
    return Replay(
        asked,
        done,
        kinds.count("drift"),
        sum(kind in _CHANGES for kind in kinds),
        None if overall is None else overall.name,
        None if overall is None else overall.result().value,
        _nearness(looks.all),
        tuple(stretches),
        happenings,
        looks.distributions(),
    )


@dataclass(frozen=True)
class _Look:
    """A request that was looked at."""

    request: int
    agreement: float | None
    signal: float
    noise: float
    evidence: float


@dataclass
class _Alarm:
    """What was seen of the tensors of an alarm since."""

    request: int
    requests: int
    seen: dict[str, Histogram]


@dataclass
class _Looks:
    """Notes what a monitor sees and says.

    Attributes:
        bundle: Whose monitor it is.
        all: What was seen.
        alarms: What was said.
    """

    bundle: Bundle
    all: list[_Look] = field(default_factory=list)
    alarms: list[_Alarm] = field(default_factory=list)

    def over(self, monitor: Monitoring) -> Monitoring:
        """A monitor that does as another one, whose eyes these are."""
        return _Overseen(monitor, self)

    def between(self, first: float, last: float) -> list[_Look]:
        """What was seen of some requests."""
        return [look for look in self.all if first <= look.request <= last]

    def note(self, sampled: Sampled, reference: Reference, verdict: Verdict) -> None:
        """Take in a request, and what was said then."""
        facts = self.bundle.facts
        agreed = agreement(facts.decisions, facts.outputs, reference.outputs, sampled.served)
        pairs = [
            (ours.astype(np.float64), theirs.astype(np.float64))
            for ours, theirs in zip(reference.outputs, sampled.served, strict=True)
            if ours.dtype.kind in "fiu" and ours.shape == theirs.shape
        ]
        signal = sum(float(np.square(ours).sum()) for ours, _ in pairs)
        noise = sum(float(np.square(ours - theirs).sum()) for ours, theirs in pairs)
        share = verdict.evidence / verdict.threshold if verdict.threshold > 0 else 0.0
        self.all.append(_Look(sampled.request, agreed, signal, noise, share))

    def begin(self, request: int, tensors: Iterable[str]) -> None:
        """An alarm is raised."""
        self.alarms.append(_Alarm(request, 0, {name: _EMPTY for name in tensors}))

    def gather(self, reference: Reference) -> None:
        """Take in the values of tensors of the last alarm."""
        alarm = self.alarms[-1]
        alarm.requests += 1
        for name, seen in alarm.seen.items():
            values = as_float32(reference.tensors[name]).reshape(-1)
            alarm.seen[name] = seen.merge(histogram_of(values))

    def distributions(self) -> tuple[Distribution, ...]:
        """Of the tensors of all alarms."""
        return tuple(
            self._distribution(alarm, name)
            for alarm in self.alarms
            for name in alarm.seen
            if alarm.seen[name].total
        )

    def _distribution(self, alarm: _Alarm, name: str) -> Distribution:
        usual, now = self.bundle.baseline.tensors[name], alarm.seen[name]
        both = usual.histogram.merge(now)
        edges = np.linspace(both.lower[0], both.upper[-1], _BARS + 1)
        was, is_now = (side.shares(edges) for side in (usual.histogram, now))
        request, requests = alarm.request, alarm.requests
        places = tuple(edges.tolist())
        return Distribution(name, request, requests, places, was, is_now, usual.low, usual.high)


_EMPTY = Histogram(np.zeros(0, np.int32), np.zeros(0, np.int64))


@dataclass
class _Overseen:
    """A monitor whose eyes and words are noted."""

    monitor: Monitoring
    looks: _Looks
    is_alarmed: bool = False

    def see(self, sampled: Sampled, reference: Reference, now: float) -> None:
        self.monitor.see(sampled, reference, now)
        verdict = self.monitor.verdict()
        self.looks.note(sampled, reference, verdict)
        if verdict.alarm and not self.is_alarmed:
            self.looks.begin(sampled.request, verdict.drifted[:_DRAWN])
        self.is_alarmed |= verdict.alarm
        if self.is_alarmed:
            self.looks.gather(reference)

    def feedback(self, correct: bool) -> None:
        self.monitor.feedback(correct)

    def verdict(self) -> Verdict:
        return self.monitor.verdict()

    def renew(self) -> None:
        self.is_alarmed = False
        self.monitor.renew()

    def to_plain(self) -> Any:
        return self.monitor.to_plain()


def _parted(samples: Dataset) -> Iterable[list[Batch]]:
    """Stretches of about as many samples each."""
    part: list[Batch] = []
    done, total, ended = 0, len(samples), 0
    for batch in samples.batches():
        part.append(batch)
        done += batch.valid
        if done * _STRETCHES // total > ended:
            ended = done * _STRETCHES // total
            yield part
            part = []
    if part:
        yield part


def _nearness(looks: Sequence[_Look]) -> Nearness:
    decided = [look.agreement for look in looks if look.agreement is not None]
    signal, noise = sum(look.signal for look in looks), sum(look.noise for look in looks)
    sqnr_db = None
    if signal > 0:
        sqnr_db = 10 * math.log10(signal / noise) if noise > 0 else math.inf
    return Nearness(len(looks), sum(decided) / len(decided) if decided else None, sqnr_db)


def _happenings(
    events: Sequence[Mapping[str, Any]], began: float, rate: float, looks: _Looks
) -> tuple[Happening, ...]:
    """What was told, with what changes brought."""
    found: list[Happening] = []
    requests = [round((event["time"] - began) * rate) for event in events]
    changed = [r for r, event in zip(requests, events, strict=True) if event["kind"] in _CHANGES]
    alarmed = 0
    for request, event in zip(requests, events, strict=True):
        kind, before, after = event["kind"], None, None
        if kind == "drift":
            alarmed = request
        elif kind in _CHANGES:
            until = next((later for later in changed if later > request), math.inf)
            before = _nearness(looks.between(alarmed, request))
            after = _nearness(looks.between(request + 1, until))
        found.append(
            Happening(
                request,
                request / rate,
                kind,
                event["reason"],
                before,
                after,
                event.get("details", {}),
            )
        )
    return tuple(found)
