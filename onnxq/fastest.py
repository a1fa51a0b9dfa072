"""The fastest deployment of all that is installed: provider, precision and form."""

from __future__ import annotations

import filecmp
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from onnxq.benchmark import NATIVE
from onnxq.errors import InputError
from onnxq.found import Found, left_alone, noted
from onnxq.ir.saving import constant_bytes
from onnxq.job import Job, read_candidates
from onnxq.options import Options
from onnxq.plan import Plan
from onnxq.promise import promise
from onnxq.proof import verify
from onnxq.registry import to_form
from onnxq.runtime import Runnable, Timing, interleaved, load_backend
from onnxq.runtime.onnxruntime import Onnxruntime
from onnxq.runtime.pool import MODELS_BYTES, at_a_time
from onnxq.runtime.providers import provider_alias, provider_arguments, resolve_provider
from onnxq.runtime.specs import Array
from onnxq.targets import Target, available_targets, load_target
from onnxq.verify import Gate, Report, with_gates
from onnxq.verify.result import DeploymentFacts, LatencyFacts

FASTEST = "fastest"

_SECONDS = 1.5
"""Time to spend on each model, when they are timed in turn."""

_EQUAL = 1.03
"""Models whose speeds differ by no more than this factor count as equally fast, as in a search."""

_CALLS_OUT = "azure"
"""The provider that calls a service, and runs nothing here."""

_FILE = "entrant.onnx"
"""Name of what was made for a place."""

Make = Callable[[Job], Found]


@dataclass(frozen=True)
class Place:
    """A provider of an environment.

    Attributes:
        python: The environment's interpreter; this one's if empty.
        target: What the provider computes, on the backend that runs models there.
        backend: What runs models there in a process of its own, even in this environment.
    """

    python: str
    target: Target
    backend: str

    @property
    def name(self) -> str:
        """What messages call it."""
        where = f" of '{self.python}'" if self.python else ""
        return f"{self.target.label}{where}"

    def facts(self, model: str, reason: str = "") -> DeploymentFacts:
        """What is known of a model there before it ran."""
        target = self.target
        runtime = load_backend(target.backend).version
        return DeploymentFacts(
            self.python, runtime, target.label, target.provider, model, reason=reason
        )


@dataclass(frozen=True)
class Entrant:
    """A model at a place, which may be the fastest.

    Attributes:
        place: Where.
        job: The job there.
        path: Its file.
        report: Its accuracy and size.
        label: What it is, in a few words.
        found: What was made; None for the float model as it is.
        taken: Operators that the provider takes, and those that it leaves to another one.
        timing: Its latency, once measured.
    """

    place: Place
    job: Job
    path: Path
    report: Report
    label: str
    found: Found | None
    taken: tuple[int, int]
    timing: Timing | None = None

    @property
    def speedup(self) -> float:
        """Over the float model on the CPU provider here."""
        assert self.timing is not None
        return self.timing.speedup

    @property
    def falls_back(self) -> bool:
        """Whether the provider takes nothing, so that it is the CPU provider's model after all."""
        return not self.taken[0]

    def proof(self, report: Report, gates: Sequence[Gate]) -> Report:
        """A report on it with the latency that was measured here, held against the promise."""
        assert self.timing is not None
        timing, options = self.timing, self.job.options
        latency = LatencyFacts(
            self.job.provider,
            options.threads,
            timing.p10_ms * timing.speedup,
            timing.p10_ms,
            timing.speedup,
            self.job.one.size,
            self.job.workload.of,
            (timing.low, timing.high),
        )
        latencies = (latency, *report.latencies[1:])
        return with_gates(replace(report, latency=latency, latencies=latencies), gates)


def fastest(job: Job, options: Options, make: Make, name: str) -> Found:
    """The fastest model and provider of all that is installed, which keep the promise.

    For every target whose provider this onnxruntime or that of another environment has, a model is
    made as if that target had been named. Each of them on every provider, and the float model, is
    held against the float model on the CPU provider of this environment on held-out data, and all
    are timed in turn, each in a process of its environment. Of those that keep the promise, and
    that measuring cannot tell from the fastest, the first is chosen: this environment and its CPU
    provider come first, and the float model before what was made of it, and that before what was
    made for another one.

    Args:
        job: The job on the CPU provider of this environment.
        options: What the user wants, with the further environments.
        make: Makes a model in a job.
        name: Where the model will lie, for the line that loads it.

    Raises:
        InputError: an option is for one target alone, a plan to try is for none that is here, or
            nothing can be run anywhere.
    """
    if options.provider_options:
        raise InputError(
            "options of an execution provider (--provider-option) are for one; name its --target"
        )
    places, lost = find_places(options)
    plans = _by_target(read_candidates(options), places)
    baseline = verify(job, job.path, full=False)
    gates = promise(baseline, options)
    entered: list[list[Entrant]] = []
    for at, place in enumerate(places):
        pair = job.at(
            place.target,
            folder=job.folder / f"place-{at}",
            candidates=plans.get(place.target.name, {}),
            time=job.time.share(1 / (len(places) - at)),
        )
        job.progress.stage(f"trying {place.name}")
        entered.append([])
        _sort(_entering(place, pair, make), entered[-1], lost)
    made = [e for own in entered for e in own if e.found is not None]
    for own in entered:
        if own and not own[0].falls_back:
            _sort(_others(own[0], [e for e in made if e not in own]), own, lost)
    job.progress.stage("measuring all in turn")
    entrants, broken = _timed(job, [e for own in entered for e in own])
    if not entrants:
        raise InputError(f"no model runs anywhere: {(*broken, *lost)[0].reason}")
    held = [e for e in entrants if e.proof(e.report, gates).passed and not e.falls_back]
    chosen = _first(held) if held else max(entrants, key=lambda e: e.speedup)
    rows = tuple(_row(entrant, chosen, gates) for entrant in entrants)
    return _result(chosen, gates, (*rows, *broken, *lost), name)


def find_places(options: Options) -> tuple[list[Place], list[DeploymentFacts]]:
    """What is installed here and in further environments, and what of it cannot be used, with why.

    Of targets that share the CPU provider it is the one that this machine's processor is.
    """
    found, lost = list[Place](), list[DeploymentFacts]()
    own = load_target("auto")
    others = [load_target(name) for name in available_targets()]
    others = [t for t in others if t.backend == NATIVE and t.provider != own.provider]
    for python in ("", *(os.fspath(given) for given in options.pythons)):
        there = to_form(Onnxruntime(python or sys.executable, options.hangs_after))
        try:
            runs = load_backend(there if python else NATIVE)
            assert isinstance(runs, Onnxruntime)
            names = {provider_alias(name) for name in runs.offer.providers} - {_CALLS_OUT}
        except InputError as error:
            lost.append(DeploymentFacts(python, "", "", "", "", reason=str(error)))
            continue
        targets = [t for t in (own, *others) if not runs.missing(t.provider)]
        for target in targets:
            # What crashes must not end this process.
            is_here = not python and target is own
            apart = target if is_here else replace(target, backend=there)
            found.append(Place(python, apart, there))
        known = {provider_alias(resolve_provider(t.provider, runs.offer)) for t in targets}
        for name in sorted(names - known):
            reason = "onnxq has no target for it"
            lost.append(DeploymentFacts(python, runs.version, "", name, "", reason=reason))
    return found, lost


def _by_target(plans: Mapping[str, Plan], places: Sequence[Place]) -> dict[str, dict[str, Plan]]:
    """Plans to try, by the target that they are for."""
    found: dict[str, dict[str, Plan]] = {place.target.name: {} for place in places}
    for name, plan in plans.items():
        if plan.target not in found:
            raise InputError(
                f"{name} is for the target '{plan.target}', whose provider is not here; there are "
                f"{', '.join(found)}"
            )
        found[plan.target][name] = plan
    return found


def _sort(
    tried: Iterable[Entrant | DeploymentFacts], able: list[Entrant], lost: list[DeploymentFacts]
) -> None:
    for each in tried:
        if isinstance(each, Entrant):
            able.append(each)
        else:
            lost.append(each)


def _entering(place: Place, job: Job, make: Make) -> Iterator[Entrant | DeploymentFacts]:
    """The float model and what is made of it, or why one of them cannot run."""
    model = "float"
    try:
        yield _entrant(place, job, job.path, verify(job, job.path, full=False), model)
        model = job.recipe.precision or "mixed"
        found = make(job)
        if found.graph is job.source:
            return
        model = next((c.label for c in found.report.candidates if c.chosen), model)
        path = job.files.save(found.graph, _FILE)
        yield _entrant(place, job, path, found.report, model, found)
    except InputError as error:
        yield place.facts(model, str(error))


def _others(own: Entrant, made: Sequence[Entrant]) -> Iterator[Entrant | DeploymentFacts]:
    """What was made for other places, where one's own is, or why it cannot run there."""
    place, job = own.place, own.job
    known = [job.folder / _FILE]
    for other in made:
        if any(path.exists() and filecmp.cmp(path, other.path, shallow=False) for path in known):
            continue
        known.append(other.path)
        label = f"{other.label}, made for {other.place.name}"
        try:
            report = verify(job, other.path, full=False)
            yield _entrant(place, job, other.path, report, label, other.found)
        except InputError as error:
            yield place.facts(label, str(error))


def _entrant(
    place: Place, job: Job, path: Path, report: Report, label: str, found: Found | None = None
) -> Entrant:
    backend = load_backend(place.target.backend)
    taken, left = backend.left(path, provider=job.provider)
    return Entrant(place, job, path, report, label, found, (taken, left.total()))


def _timed(job: Job, entrants: Sequence[Entrant]) -> tuple[list[Entrant], list[DeploymentFacts]]:
    """The models with their latencies, and those that cannot be timed.

    Every model runs in a process of its environment, those of this one, too, and the processes take
    turns. As many models at a time as fit into memory.
    """
    threads = job.options.threads
    own = to_form(Onnxruntime(sys.executable, job.options.hangs_after))
    base = load_backend(own).session(job.runs, threads=threads)
    found, broken = list[Entrant](), list[DeploymentFacts]()
    sizes = {
        at: constant_bytes(job.source if e.found is None else e.found.graph)
        for at, e in enumerate(entrants)
    }
    for group in at_a_time(sizes, MODELS_BYTES):
        sessions: dict[int, Runnable] = {}
        for at in group:
            entrant = entrants[at]
            if entrant.place.target.backend == NATIVE and entrant.found is None:
                sessions[at] = base
                continue
            path = job.runs if entrant.path == job.path else entrant.path
            try:
                sessions[at] = load_backend(entrant.place.backend).session(
                    path, provider=entrant.job.provider, threads=threads
                )
            except InputError as error:
                broken.append(entrant.place.facts(entrant.label, str(error)))
        timings, failed = _in_turn(base, sessions, job.one.feeds)
        found += [replace(entrants[at], timing=timing) for at, timing in timings.items()]
        broken += [entrants[at].place.facts(entrants[at].label, why) for at, why in failed.items()]
    return found, broken


def _in_turn(
    base: Runnable, sessions: dict[int, Runnable], feeds: Mapping[str, Array]
) -> tuple[dict[int, Timing], dict[int, str]]:
    """The latency of each session over that of the first, or why it has none."""
    failed: dict[int, str] = {}
    while True:
        others = {at: session for at, session in sessions.items() if session is not base}
        seconds = _SECONDS * (1 + len(others))
        try:
            first, *rest = interleaved([base, *others.values()], feeds, seconds=seconds)
        except InputError:
            known = len(failed)
            for at, session in others.items():
                try:
                    session.run(feeds)
                except InputError as error:
                    failed[at] = str(error)
                    del sessions[at]
            if len(failed) == known:
                raise
        else:
            measured = dict(zip(others, rest, strict=True))
            return {at: measured.get(at, first) for at in sessions}, failed


def _first(entrants: Sequence[Entrant]) -> Entrant:
    """The first of those that cannot be told from the fastest."""
    most = max(entrant.speedup for entrant in entrants)
    return next(entrant for entrant in entrants if entrant.speedup * _EQUAL >= most)


def _row(entrant: Entrant, chosen: Entrant, gates: Sequence[Gate]) -> DeploymentFacts:
    report, timing = entrant.report, entrant.timing
    assert timing is not None
    return replace(
        entrant.place.facts(entrant.label, _why_not(entrant, chosen, gates)),
        ms=timing.p10_ms,
        speedup=timing.speedup,
        confidence=(timing.low, timing.high),
        sqnr_db=report.sqnr_db,
        drop=None if report.metric is None else report.metric.drop,
        bytes=report.size.candidate_bytes,
        nodes_taken=entrant.taken[0],
        nodes_left=entrant.taken[1],
        chosen=entrant is chosen,
    )


def _why_not(entrant: Entrant, chosen: Entrant, gates: Sequence[Gate]) -> str:
    if entrant is chosen:
        return ""
    if entrant.falls_back:
        return (
            f"the provider {entrant.place.target.provider} takes no operator of it: all runs on "
            "the CPU provider beside it, which onnxruntime does not tell"
        )
    proven = entrant.proof(entrant.report, gates).gates
    broken = [g for g in proven if not g.passed and not g.expr.startswith("speedup")]
    if broken:
        said = "; ".join(
            f"{g.expr}, measured {'nothing' if g.value is None else f'{g.value:.4g}'}"
            for g in broken
        )
        return f"it breaks the promise: {said}"
    ratio = entrant.speedup / chosen.speedup
    if ratio * _EQUAL >= 1:
        return "as fast as what was chosen, as far as measuring tells, which comes before it"
    return f"{ratio:.2f} times as fast as what was chosen"


def _result(
    chosen: Entrant, gates: Sequence[Gate], rows: tuple[DeploymentFacts, ...], name: str
) -> Found:
    """What was chosen, with its proof."""
    job, place, found = chosen.job, chosen.place, chosen.found
    if found is None:
        found = Found(job.source, verify(job, job.path), left_alone(job))
    line = deploy_line(place, job.options.threads, name)
    runtime = next(row.runtime for row in rows if row.chosen)
    where = f"'{place.python}' (onnxruntime {runtime})" if place.python else "this environment"
    threads = job.options.threads or "all"
    note = (
        f"Deploy it in {where} by `{line}`; it was measured with {threads} "
        f"thread{'' if threads == 1 else 's'}, and the speedup is over the float model on the CPU "
        "provider of this environment."
    )
    report = found.report
    if chosen.found is not None and chosen.report is not report:
        # It was made for another place, and is to be told of as it runs here.
        own, backend = chosen.report, place.target.backend
        report = replace(
            report,
            output=job.reference.facts(
                found.graph, chosen.path, job.provider, backend, operators=True
            ),
            metric=own.metric,
            agreement=own.agreement,
            outputs=own.outputs,
            versions=own.versions,
            latencies=(),
            throughput=(),
        )
    report = chosen.proof(report, gates)
    report = replace(report, deployments=rows, deploy=line, notes=(note, *report.notes))
    return replace(found, report=report, plan=noted(found.plan, report, gates))


def deploy_line(place: Place, threads: int, name: str) -> str:
    """The line of Python that loads a model as it was measured."""
    runs = load_backend(place.target.backend)
    assert isinstance(runs, Onnxruntime)
    provider, options = provider_arguments(place.target.provider, threads, runs.offer)
    what = f"providers=[{json.dumps(provider)}], provider_options=[{json.dumps(options)}]"
    return f"onnxruntime.InferenceSession({json.dumps(name, ensure_ascii=False)}, {what})"
