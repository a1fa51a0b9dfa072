"""The fastest deployment of all that is installed: provider, precision and form."""

from __future__ import annotations

import filecmp
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
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
from onnxq.runtime import EQUAL, Runnable, Timing, interleaved, load_backend
from onnxq.runtime.elsewhere import Elsewhere, SessionElsewhere
from onnxq.runtime.onnxruntime import Onnxruntime
from onnxq.runtime.pool import MODELS_BYTES, at_a_time
from onnxq.runtime.providers import provider_alias, provider_arguments, resolve_provider
from onnxq.runtime.specs import Array
from onnxq.targets import Target, available_targets, load_target
from onnxq.verify import Gate, Report, with_gates
from onnxq.verify.result import DeploymentFacts, GateFacts, LatencyFacts

_SECONDS = 1.5
"""Time to spend on each model, when they are timed in turn."""

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

    @property
    def is_own(self) -> bool:
        """Whether the float model that all are held against runs there, on the CPU provider."""
        return self.target.backend == NATIVE

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
        taken, left = self.taken
        return bool(left and not taken)

    def proof(self, report: Report, gates: Sequence[Gate]) -> Report:
        """A report on it with the latency that was measured here, held against the promise.

        Nothing else that was timed stays, unless over the same float model on the same provider.
        """
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
        further = report if self.place.is_own else replace(report, latencies=(), throughput=())
        latencies = (latency, *further.latencies[1:])
        return with_gates(replace(further, latency=latency, latencies=latencies), gates)

    def broken(self, gates: Sequence[Gate]) -> list[GateFacts]:
        """What it breaks of the promise beside the speedup."""
        found = self.proof(self.report, gates).gates
        return [g for g in found if not g.passed and not g.expr.startswith("speedup")]


def fastest(
    job: Job, options: Options, make: Make, name: str, *, keep_failed: bool = False
) -> Found:
    """The fastest model and provider of all that is installed, which keep the promise.

    For every target whose provider this onnxruntime or that of another environment has, a model is
    made as if that target had been named. Each of them on every provider, and the float model, is
    held against the float model on the CPU provider of this environment on held-out data, and all
    are timed in turn, each in a process of its environment. Of those that keep the promise, and
    that measuring cannot tell from the fastest, the first is chosen: this environment and its CPU
    provider come first, and the float model before what was made of it, and that before what was
    made for another one. If none does, those come first that keep all of it but the speedup.

    Args:
        job: The job on the CPU provider of this environment.
        options: What the user wants, with the further environments.
        make: Makes a model in a job.
        name: Where the model will lie, for the line that loads it.
        keep_failed: Whether it will lie there even when a promise broke.

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
    able = [e for e in entrants if not e.falls_back]
    if not able:
        raise InputError(f"no model runs anywhere: {(*broken, *lost)[0].reason}")
    exact = [e for e in able if not e.broken(gates)]
    held = [e for e in exact if e.proof(e.report, gates).passed]
    chosen = _first(held or exact or able)
    rows = tuple(_row(entrant, chosen, gates) for entrant in entrants)
    found = _result(chosen, gates, (*rows, *broken, *lost))
    is_kept = found.report.passed or keep_failed
    return _told(found, chosen, name) if is_kept else found


def find_places(options: Options) -> tuple[list[Place], list[DeploymentFacts]]:
    """What is installed here and in further environments, and what of it cannot be used, with why.

    Of targets that share the CPU provider it is the one that this machine's processor is, and what
    another target of the same provider tries is no place of its own.
    """
    found, lost = list[Place](), list[DeploymentFacts]()
    own = load_target("auto")
    others = [load_target(name) for name in available_targets()]
    others = [t for t in others if t.backend == NATIVE and t.provider != own.provider]
    tried = {(name, t.provider) for t in others for name in t.alternatives}
    others = [t for t in others if (t.name, t.provider) not in tried]
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
    turns; the float model here has one of its own, which nothing else can crash. As many models at
    a time as fit into memory.
    """
    threads = job.options.threads
    own = Elsewhere(sys.executable, job.options.hangs_after)
    base = SessionElsewhere(own, job.runs, threads=threads)
    found, broken = list[Entrant](), list[DeploymentFacts]()
    sizes = {
        at: constant_bytes(job.source if e.found is None else e.found.graph)
        for at, e in enumerate(entrants)
    }
    for group in at_a_time(sizes, MODELS_BYTES):
        opened: dict[int, Callable[[], Runnable]] = {}
        for at in group:
            entrant = entrants[at]
            if entrant.place.is_own and entrant.found is None:
                opened[at] = lambda: base
                continue
            opened[at] = partial(
                load_backend(entrant.place.backend).session,
                job.runs if entrant.path == job.path else entrant.path,
                provider=entrant.job.provider,
                threads=threads,
            )
        timings, failed = _in_turn(base, opened, job.one.feeds)
        found += [replace(entrants[at], timing=timing) for at, timing in timings.items()]
        broken += [entrants[at].place.facts(entrants[at].label, why) for at, why in failed.items()]
    return found, broken


def _in_turn(
    base: Runnable, opened: Mapping[int, Callable[[], Runnable]], feeds: Mapping[str, Array]
) -> tuple[dict[int, Timing], dict[int, str]]:
    """The latency of each model over that of the first, or why it has none.

    A crash takes along all that is loaded in the same process. Then each model is loaded anew and
    timed beside the first alone, so that only what fails by itself has no latency.
    """
    with suppress(InputError):
        return _together(base, opened, feeds), {}
    timings, failed = dict[int, Timing](), dict[int, str]()
    for at, load in opened.items():
        try:
            timings.update(_together(base, {at: load}, feeds))
        except InputError as error:
            failed[at] = str(error)
    return timings, failed


def _together(
    base: Runnable, opened: Mapping[int, Callable[[], Runnable]], feeds: Mapping[str, Array]
) -> dict[int, Timing]:
    others = {at: session for at, load in opened.items() if (session := load()) is not base}
    seconds = _SECONDS * (1 + len(others))
    first, *rest = interleaved([base, *others.values()], feeds, seconds=seconds)
    measured = dict(zip(others, rest, strict=True))
    return {at: measured.get(at, first) for at in opened}


def _first(entrants: Sequence[Entrant]) -> Entrant:
    """The first of those that cannot be told from the fastest."""
    most = max(entrant.speedup for entrant in entrants)
    return next(entrant for entrant in entrants if entrant.speedup * EQUAL >= most)


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
    if broken := entrant.broken(gates):
        said = "; ".join(
            f"{g.expr}, measured {'nothing' if g.value is None else f'{g.value:.4g}'}"
            for g in broken
        )
        return f"it breaks the promise: {said}"
    ratio = entrant.speedup / chosen.speedup
    if ratio * EQUAL >= 1:
        return "as fast as what was chosen, as far as measuring tells, which comes before it"
    return f"{ratio:.2f} times as fast as what was chosen"


def _result(chosen: Entrant, gates: Sequence[Gate], rows: tuple[DeploymentFacts, ...]) -> Found:
    """What was chosen, with its proof."""
    job, place, found = chosen.job, chosen.place, chosen.found
    if found is None:
        found = Found(job.source, verify(job, job.path), left_alone(job))
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
    before, report = found.report, replace(chosen.proof(report, gates), deployments=rows)
    if before.throughput != report.throughput or len(before.latencies) > len(report.latencies):
        note = (
            "Throughput and further latencies are left out: they were not measured over the float "
            "model on the CPU provider of this environment."
        )
        report = replace(report, notes=(note, *report.notes))
    return replace(found, report=report, plan=noted(found.plan, report, gates))


def _told(found: Found, chosen: Entrant, name: str) -> Found:
    """What was chosen, with how to load it from where it will lie."""
    place, threads = chosen.place, chosen.job.options.threads
    runtime = load_backend(place.target.backend).version
    where = f"'{place.python}' (onnxruntime {runtime})" if place.python else "this environment"
    note = (
        f"Deploy it in {where}. It was measured with {threads or 'all'} "
        f"thread{'' if threads == 1 else 's'}, which your session options have to say, and the "
        "speedup is over the float model on the CPU provider of this environment."
    )
    report = replace(
        found.report,
        deploy=deploy_line(place, threads, name),
        notes=(note, *found.report.notes),
    )
    return replace(found, report=report)


def deploy_line(place: Place, threads: int, name: str) -> str:
    """The line of Python that loads a model on the provider, whose options are told of threads.

    Session options are left to the user.
    """
    runs = load_backend(place.target.backend)
    assert isinstance(runs, Onnxruntime)
    provider, options = provider_arguments(place.target.provider, threads, runs.offer)
    what = f"providers=[{json.dumps(provider)}], provider_options=[{json.dumps(options)}]"
    return f"onnxruntime.InferenceSession({json.dumps(name, ensure_ascii=False)}, {what})"
