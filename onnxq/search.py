"""Mixed precision: plan, apply, verify, and tighten until the fastest candidate holds."""

from __future__ import annotations

import filecmp
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from onnxq.errors import InputError
from onnxq.ir import Graph, PassRecord
from onnxq.ir.saving import constant_bytes
from onnxq.job import Job
from onnxq.observe import parse_calibrator
from onnxq.plan import Assignment, Plan
from onnxq.plan.apply import parsed, remake
from onnxq.precision import FLOAT
from onnxq.precision.int8 import Int8
from onnxq.prepare import Prepared, observed, prepare
from onnxq.proof import verify
from onnxq.proposals import Proposals
from onnxq.recipe import Recipe
from onnxq.runtime import EQUAL, load_backend
from onnxq.runtime.pool import MODELS_BYTES, at_a_time
from onnxq.study import Study, apply_to, study, uniform, uniform_plan
from onnxq.targets import load_target
from onnxq.time_budget import Untried
from onnxq.verify import Gate, Report, with_gates
from onnxq.verify.metrics import paired_drop
from onnxq.verify.result import MetricFacts

BORDER_FACTORS = (1.0, 0.3, 3.0)
"""Borders cost more or less than by themselves, depending on what stands beside them; a proposal
is made for each of these multiples, and measurement decides."""

REWRITTEN = "float, rewritten"
"""Label of the candidate in which nothing is quantized."""

ROUNDS = 4
"""Times that the budget of loss is tightened, or moved between what held and what did not."""

_SECONDS_EACH, _SECONDS_CLOSE = 0.25, 0.6
"""Time to measure each candidate for, and those again that are `_CLOSE` to the fastest."""

_NEARER_DB = 1.0
"""SQNR, or divergence in decibels, by which the outputs of one candidate are nearer to the float
model's than another's."""

_VISIBLE_DB = 30.0
"""SQNR below which the fastest candidate is tried with `_CLIPPING` ranges, too."""

_CLIPPING = "mse"
"""Calibrator of ranges that leave out what is rare, where that lowers the error of the rest."""

_FEWEST = 2
"""Candidates that are made however short time is: the float model, rewritten, and a first plan."""

_CLOSE = 1.15
"""Candidates that are at most so many times slower than the fastest are timed again."""


@dataclass
class Candidate:
    """A model that was made and measured.

    Attributes:
        label: What it is, in a few words.
        graph: The model.
        path: Its file.
        plan: The plan that made it.
        records: What the quantizing passes did.
        prepared: What it was made of, of the target's own table or of another one; None where the
            plan is somebody else's.
        study: What the plan rests on; None where nothing was predicted.
        speedup: Measured, over the float model.
        is_timed_well: Whether it was measured twice, the second time for longer.
        report: Its accuracy, once verified.
    """

    label: str
    graph: Graph
    path: Path
    plan: Plan
    records: list[PassRecord] = field(default_factory=list)
    prepared: Prepared | None = None
    study: Study | None = None
    speedup: float = 0.0
    is_timed_well: bool = False
    report: Report | None = None

    @property
    def is_given(self) -> bool:
        """Whether nothing was predicted of it."""
        return self.study is None

    @property
    def loss(self) -> float:
        """Predicted loss; where nothing was predicted the noise that was measured."""
        if self.is_given:
            assert self.report is not None
            return float(10 ** (-self.report.sqnr_db / 10))
        return self.plan.loss


def preferred(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Candidates in the order in which they are wanted.

    The fastest first, but of those that are as fast as it within what measuring can tell, the one
    with the least predicted loss before it.
    """
    left = sorted(candidates, key=lambda c: -c.speedup)
    ordered = []
    while left:
        equal = [c for c in left if c.speedup * EQUAL >= left[0].speedup]
        ordered.append(min(equal, key=lambda c: c.loss))
        left.remove(ordered[-1])
    return ordered


def is_lucky(lucky: Report, other: Report, between: MetricFacts) -> bool:
    """Whether a model lost less than one whose outputs are nearer to the float model's by chance.

    How near outputs are needs no labels and has little noise; drops on some hundred samples have
    much. So a smaller drop of the model that is farther off has to be shown, sample by sample. What
    is nearer agrees more often and diverges less in the decisions; where outputs decide nothing, or
    labels alone say what they decide, it has the higher SQNR.

    Args:
        lucky: Of the model that lost less.
        other: Of the one that lost more.
        between: What the second one loses against the first on the same samples.
    """
    mine, theirs = lucky.agreement, other.agreement
    if mine is None or theirs is None or mine.kl is None or theirs.kl is None:
        is_nearer = other.sqnr_db >= lucky.sqnr_db + _NEARER_DB
    else:
        is_nearer = theirs.kl * 10 ** (_NEARER_DB / 10) <= mine.kl
    if mine is not None and theirs is not None:
        is_nearer = is_nearer and theirs.value >= mine.value
    return is_nearer and between.confidence is not None and between.confidence[0] <= 0


def check_pinned(plans: Mapping[str, Plan], pinned: Mapping[str, str]) -> None:
    """Refuse plans, by name, in which a node has another precision than it was pinned to.

    Raises:
        InputError: naming the plan and the node.
    """
    for name, plan in plans.items():
        chosen = plan.precisions()
        for node, precision in pinned.items():
            given = chosen.get(node, FLOAT)
            if given != precision:
                raise InputError(
                    f"{name} gives the node '{node}' the precision '{given}', and it is pinned to "
                    f"'{precision}'; leave the plan or the pin out"
                )


def _as_on(prepared: Prepared, job: Job) -> str:
    """What to say of a plan of another target's table."""
    name = prepared.target.name
    return "" if name == job.target.name else f" as on {name}"


class Search:
    """Looks for the fastest model that keeps a promise.

    Args:
        study: What is known of the model.
        gates: The promise.
    """

    def __init__(self, study: Study, gates: Sequence[Gate]) -> None:
        self.job = study.prepared.job
        self._own = Proposals(study, gates)
        self._gates = tuple(gates)
        self._accuracy = tuple(g for g in gates if g.quantity not in ("speedup", "candidate_ms"))
        self._tables: list[Candidate] = []
        self._left_out: list[str] = []
        self.candidates: list[Candidate] = []
        self.untried: list[Untried] = []

    def run(self) -> Candidate:
        """The fastest candidate that keeps the promise, else the one that comes closest to it.

        Plans that were given are tried as well, as they are, and what other tables make whose
        models run on the target.

        A drop that is kept by luck alone, see `is_lucky`, is not kept.

        Proposals without a budget come first: the optimum of the integer program for each of
        `BORDER_FACTORS`, every node in one precision, and what a promised SQNR leaves room for;
        where a size is promised all of that size, and what loses least in it. While one that is
        faster than the best verified one, or any if none holds, breaks the promise of accuracy, the
        budget moves between the predicted loss of what held and of what did not, and new proposals
        are made; then likewise by every other table whose model of all nodes in int8 is such a one.
        In the end the best one is tried with ranges that clip, unless somebody chose the
        calibrator.
        """
        own, free = self._own, self._own.free
        self._propose_floats()
        if own.bound is not None:
            plan = own.smallest_loss() or own.plan(free, free)
            self._make("plan of least loss in so few bytes", plan, own.study)
        self._propose(own, None)
        for precision in dict.fromkeys(self.job.precisions):
            chosen = uniform(own.program, precision)
            if own.bound is None or own.program.bytes(chosen.precisions) <= own.bound:
                self._add(f"all {precision}", chosen, own, free)
        promised = [10 ** (-g.bound / 10) for g in self._gates if g.quantity == "sqnr"]
        is_noise = own.study.sensitivity.proxy == "noise"
        if is_noise and promised and min(promised) < free.loss:
            self._propose(own, min(promised))
        self._try_given()
        self._try_tables()
        best = self._tightened(own, self._measured_and_verified())
        for whole in self._tables:
            best = self._mixed(whole, best)
        best = best or max(self.candidates, key=self._closeness)
        return self._clipped(best) or best

    def _tightened(self, proposals: Proposals, best: Candidate | None) -> Candidate | None:
        """The best candidate after proposals between what held and what broke the promise.

        Losses are those that one study predicts: what another one predicts, or what is measured,
        may be in other units.

        Args:
            proposals: Where they come from.
            best: The best candidate so far; None if none holds.
        """
        for _ in range(ROUNDS):
            fastest = 0.0 if best is None else best.speedup * EQUAL
            own = preferred([c for c in self.candidates if c.study is proposals.study])
            least = next((c.loss for c in own if self._holds(c)), 0.0)
            broken = [
                c for c in own if c.speedup > fastest and c.loss > least and not self._holds(c)
            ]
            if not broken:
                break
            upper = min(c.loss for c in broken)
            lower = max(least, upper * self._excess(broken, upper) / 4)
            before = len(self.candidates)
            self._propose(proposals, math.sqrt(lower * upper))
            if len(self.candidates) == before:
                break
            best = self._measured_and_verified()
        return best

    def _mixed(self, whole: Candidate, best: Candidate | None) -> Candidate | None:
        """The best candidate after what another table makes of some of the nodes.

        That takes a sensitivity analysis and costs of its own. So it is done where all nodes in
        int8 are faster there than the best candidate, and more than the promise allows; not where
        costs were given, which are those of one table.
        """
        is_faster = best is None or whole.speedup > best.speedup * EQUAL
        if not is_faster or self._holds(whole) or self.job.options.cost_table is not None:
            return best
        assert whole.prepared is not None
        what = f"mixed plans{_as_on(whole.prepared, self.job)}"
        if self._is_late(what):
            return best
        try:
            found = study(whole.prepared)
        except InputError as error:
            self._left_out.append(f"No {what} were tried: {error}.")
            return best
        proposals = Proposals(found, self._gates)
        loss = uniform(proposals.program, Int8.name).loss
        whole.plan = replace(whole.plan, proxy=found.sensitivity.proxy, loss=loss)
        whole.study = found
        return self._tightened(proposals, best)

    def prove(self, winner: Candidate) -> tuple[Candidate, Report]:
        """The full report on a candidate: accuracy, layers, latency, gates.

        Where only the speed, measured again, is not what it looked like, others that keep the
        promise of accuracy are tried, the fastest first. If none holds, the first one stays.
        """
        first = self._report(winner)
        if first.passed or any(not gate.check(first).passed for gate in self._accuracy):
            return winner, first
        held = [c for c in self.candidates if self._holds(c) and c is not winner]
        for candidate in preferred(held):
            report = self._report(candidate)
            if report.passed:
                return candidate, report
        return winner, first

    def _report(self, candidate: Candidate) -> Report:
        own = candidate.prepared.records if candidate.prepared else []
        records = [*own, *candidate.records]
        return with_gates(verify(self.job, candidate.path, records), self._gates)

    def _closeness(self, candidate: Candidate) -> tuple[float, int, float, float]:
        """How near a candidate comes to the promises, first to that of a size."""
        report = candidate.report
        assert report is not None
        held = sum(gate.check(report).passed for gate in self._accuracy)
        sizes = [g.bound for g in self._accuracy if g.quantity == "size_ratio"]
        smaller = min(report.size.ratio, *sizes) if sizes else 0.0
        return smaller, held, -report.metric.drop if report.metric else 0.0, report.sqnr_db

    def _clipped(self, best: Candidate) -> Candidate | None:
        """The candidate with clipped ranges, where that holds and is nearer to the float model.

        Ranges change numbers and no operator, so it is as fast.
        """
        job, report = self.job, best.report
        assert report is not None
        is_chosen = job.options.calibrator or job.recipe.calibrator != Recipe.calibrator
        is_static = any(p.is_static for p in parsed(best.plan.precisions()).values())
        if is_chosen or best.study is None or not is_static or report.sqnr_db >= _VISIBLE_DB:
            return None
        label, calibrator = f"{best.label}, ranges by {_CLIPPING}", parse_calibrator(_CLIPPING)
        if self._is_late(f"candidate '{label}'"):
            return None
        made = best.study.prepared
        prepared = observed(replace(made, job=replace(made.job, calibrator=calibrator)))
        ranges = {**best.plan.ranges, **prepared.finite_bounds()}
        before = len(self.candidates)
        plan = replace(best.plan, calibrator=str(calibrator), ranges=ranges)
        self._make(label, plan, best.study)
        for candidate in self.candidates[before:]:
            candidate.speedup = best.speedup
            found = candidate.report = verify(job, candidate.path, full=False)
            if self._holds(candidate) and found.sqnr_db > report.sqnr_db:
                return candidate
        return None

    def _try_given(self) -> None:
        """Make and verify the plans that were given."""
        job = self.job
        for name, plan in job.candidates.items():
            made = remake(job.source, plan, job.target, job.context, job.progress)
            self._enter(name, plan, *made)

    def _try_tables(self) -> None:
        """Make and verify what the target's `Target.alternatives` make of all nodes in int8."""
        job = self.job
        for name in job.target.alternatives if Int8.name in job.precisions else ():
            label = f"all int8 as on {name}"
            if self._is_late(f"candidate '{label}'"):
                continue
            other = replace(
                job,
                target=replace(
                    load_target(name), backend=job.target.backend, provider=job.target.provider
                ),
                recipe=replace(job.recipe, precision=Int8.name, precisions=()),
                precisions=(Int8.name,),
            )
            try:
                prepared = observed(prepare(other))
                plan = uniform_plan(prepared, Int8.name)
                self._enter(label, plan, *apply_to(prepared, plan, job.context), prepared)
            except InputError as error:
                # A pin or method, say, may be for nodes that the own table alone quantizes.
                self._left_out.append(f"'{label}' was not tried: {error}.")
                continue
            self._tables.append(self.candidates[-1])

    def _enter(
        self,
        label: str,
        plan: Plan,
        graph: Graph,
        records: list[PassRecord],
        prepared: Prepared | None = None,
    ) -> None:
        """Verify a model that this search did not predict."""
        path = self.job.files.save(graph, f"candidate-{len(self.candidates)}.onnx")
        report = verify(self.job, path, full=False)
        self.candidates.append(
            Candidate(label, graph, path, plan, records, prepared, report=report)
        )

    def _propose_floats(self) -> None:
        floats = uniform(self._own.program, FLOAT)
        if not set(floats.precisions.values()) <= {FLOAT}:
            # Something is pinned to integers.
            return
        self._make(REWRITTEN, self._own.plan(floats, floats), self._own.study)

    def _propose(self, proposals: Proposals, budget: float | None) -> None:
        table = _as_on(proposals.study.prepared, self.job)
        for factor in BORDER_FACTORS:
            limit = "" if budget is None else f", loss at most {budget:.3g}"
            label = f"plan{table} with borders x{factor:g}{limit}"
            is_late = self._is_late(f"candidate '{label}'")
            chosen = None if is_late else proposals.cheapest(factor, budget)
            if chosen is not None:
                self._add(label, chosen, proposals, proposals.unlimited(factor))

    def _add(self, label: str, chosen: Assignment, proposals: Proposals, free: Assignment) -> None:
        target = proposals.study.prepared.target.name
        known = [c.plan.precisions() for c in self.candidates if c.plan.target == target]
        if set(chosen.precisions.values()) <= {FLOAT} or chosen.precisions in known:
            return
        if not self._is_late(f"candidate '{label}'"):
            self._make(label, proposals.plan(chosen, free), proposals.study)

    def _is_late(self, what: str) -> bool:
        """Whether there is no time for more candidates, which is noted, beside those needed."""
        is_late = len(self.candidates) >= _FEWEST and self.job.time.is_over()
        if is_late:
            self.untried.append(Untried(what))
        return is_late

    def _make(self, label: str, plan: Plan, study: Study) -> None:
        """Build a candidate, unless it turns out to be the same model as another one."""
        context = self.job.context
        if context.debug:
            context.log(f"{label}:")
        graph, records = apply_to(study.prepared, plan, context)
        path = self.job.files.save(graph, f"candidate-{len(self.candidates)}.onnx")
        if any(filecmp.cmp(c.path, path, shallow=False) for c in self.candidates):
            path.unlink()
            return
        self.candidates.append(Candidate(label, graph, path, plan, records, study.prepared, study))

    def _measured_and_verified(self) -> Candidate | None:
        """The fastest candidate that keeps the promise of accuracy; None if none does.

        Times what has no time yet, and once more, for longer, what is close to the fastest. Then
        verifies from the fastest on until one holds.
        """
        fresh = [c for c in self.candidates if not c.speedup]
        self.job.progress.stage("measuring candidates")
        self._time(fresh, _SECONDS_EACH)
        fastest = max(c.speedup for c in self.candidates)
        close = [c for c in self.candidates if c.speedup * _CLOSE >= fastest]
        if len(close) > 1 and not all(c.is_timed_well for c in close):
            self._time([c for c in close if not c.is_timed_well], _SECONDS_CLOSE)
            for candidate in close:
                candidate.is_timed_well = True
        for candidate in preferred(self.candidates):
            if candidate.report is None:
                candidate.report = verify(self.job, candidate.path, full=False)
            if self._holds(candidate):
                return candidate
        return None

    def _time(self, candidates: Sequence[Candidate], seconds: float) -> None:
        """Time candidates in turn with the float model, in one process.

        As many at a time as fit into memory.
        """
        job = self.job
        backend, threads = load_backend(job.target.backend), job.options.threads
        sizes = {at: constant_bytes(c.graph) for at, c in enumerate(candidates)}
        for group in at_a_time(sizes, MODELS_BYTES):
            sessions = [
                backend.session(path, provider=job.provider, threads=threads)
                for path in (job.runs, *(candidates[at].path for at in group))
            ]
            timings = backend.time(sessions, job.one.feeds, seconds=seconds * len(sessions))
            for at, timing in zip(group, timings[1:], strict=True):
                candidates[at].speedup = timing.speedup

    def notes(self) -> tuple[str, ...]:
        """Sentences on what was not tried, or was not taken though it seems to keep the promise."""
        lucky = (
            f"'{candidate.label}' was not taken: that it loses less than '{other.label}', whose "
            "outputs are nearer to the float model's, may be luck on these samples; more held-out "
            "samples would tell."
            for candidate in self.candidates
            if self._keeps(candidate, self._accuracy)
            and (other := self._unluckier(candidate)) is not None
        )
        return (*self._left_out, *lucky)

    def _holds(self, candidate: Candidate) -> bool:
        return self._keeps(candidate, self._accuracy) and self._unluckier(candidate) is None

    def _keeps(self, candidate: Candidate, gates: Sequence[Gate]) -> bool:
        report = candidate.report
        return report is not None and all(gate.check(report).passed for gate in gates)

    def _unluckier(self, candidate: Candidate) -> Candidate | None:
        """One that breaks the promised drop, where the candidate keeps it by luck alone."""
        drops = [gate for gate in self._accuracy if gate.quantity == "drop"]
        scored = self.job.reference.scored if drops else {}
        for other in self.candidates if candidate.path in scored else ():
            if candidate.report is None or other.report is None or self._keeps(other, drops):
                continue
            between = paired_drop(scored[candidate.path], scored[other.path])
            if is_lucky(candidate.report, other.report, between):
                return other
        return None

    def _excess(self, broken: Sequence[Candidate], loss: float) -> float:
        """Promised noise over measured noise of the candidate of a predicted loss, at most 1."""
        report = next(c.report for c in broken if c.loss == loss)
        promised = [g.bound for g in self._accuracy if g.quantity == "sqnr"]
        if report is None or not promised or not math.isfinite(report.sqnr_db):
            return 0.25
        return min(1.0, 10 ** ((report.sqnr_db - max(promised)) / 10))
