"""Mixed precision: plan, apply, verify, and tighten until the fastest candidate holds."""

from __future__ import annotations

import filecmp
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from onnxq.errors import InputError, NothingToQuantizeError
from onnxq.ir import Graph, PassRecord
from onnxq.ir.saving import constant_bytes, saved_bytes
from onnxq.observe import parse_calibrator
from onnxq.plan import Assignment, Plan, Problem, assign
from onnxq.plan.apply import apply_precisions, parsed, remake
from onnxq.precision import FLOAT, Given
from onnxq.precision.int8 import Int8
from onnxq.prepare import observed, prepare
from onnxq.proof import verify
from onnxq.recipe import Recipe
from onnxq.runtime import EQUAL, load_backend
from onnxq.runtime.pool import MODELS_BYTES, at_a_time
from onnxq.study import Study, apply_to, uniform, uniform_plan
from onnxq.targets import load_target
from onnxq.time_budget import Untried
from onnxq.verify import Gate, Report, with_gates
from onnxq.verify.facts import model_bytes
from onnxq.verify.metrics import paired_drop
from onnxq.verify.result import MetricFacts

BORDER_FACTORS = (1.0, 0.3, 3.0)
"""Borders cost more or less than by themselves, depending on what stands beside them; a proposal
is made for each of these multiples, and measurement decides."""

REWRITTEN = "float, rewritten"
"""Label of the candidate in which nothing is quantized."""

ROUNDS = 4
"""Times that the budget of loss is tightened, or moved between what held and what did not."""

_FITTINGS = 8
"""Times that the room for nodes is corrected, where a size is promised."""

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
        is_given: Whether the plan is somebody else's or another table's, of which nothing was
            predicted.
        speedup: Measured, over the float model.
        is_timed_well: Whether it was measured twice, the second time for longer.
        report: Its accuracy, once verified.
    """

    label: str
    graph: Graph
    path: Path
    plan: Plan
    records: list[PassRecord] = field(default_factory=list)
    is_given: bool = False
    speedup: float = 0.0
    is_timed_well: bool = False
    report: Report | None = None

    @property
    def loss(self) -> float:
        """Predicted loss; of somebody else's plan the noise that was measured."""
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


class Search:
    """Looks for the fastest model that keeps a promise.

    Args:
        study: What is known of the model.
        gates: The promise.
    """

    def __init__(self, study: Study, gates: Sequence[Gate]) -> None:
        self.job = study.prepared.job
        self._study = study
        self._gates = tuple(gates)
        self._accuracy = tuple(g for g in gates if g.quantity not in ("speedup", "candidate_ms"))
        ratios = [g.bound for g in gates if g.quantity == "size_ratio"]
        self._bound: float | None = None
        self._margin = 0.0
        if ratios:
            self._bound = model_bytes(self.job.source, self.job.path) / max(ratios)
        self._cheapest: dict[float, Assignment] = {}
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
        are made. In the end the best one is tried with ranges that clip, unless somebody chose the
        calibrator.
        """
        program = self._study.problem()
        free = self.fitting(program) or self._smallest(program)
        if free is None:
            raise InputError("no plan has all the precisions that are pinned; pin fewer nodes")
        self._propose_floats(program, free)
        if self._bound is not None:
            plan = self.smallest_loss(program) or self._plan(free, program, free)
            self._make("plan of least loss in so few bytes", plan)
        self._propose(None, free)
        for precision in dict.fromkeys(self.job.precisions):
            chosen = uniform(program, precision)
            if self._bound is None or program.bytes(chosen.precisions) <= self._bound:
                self._add(f"all {precision}", chosen, program, free)
        promised = [10 ** (-g.bound / 10) for g in self._gates if g.quantity == "sqnr"]
        if self._study.sensitivity.proxy == "noise" and promised and min(promised) < free.loss:
            self._propose(min(promised), free)
        self._try_given()
        self._try_tables()
        best = self._measured_and_verified()
        for _ in range(ROUNDS):
            fastest, least = (0.0, 0.0) if best is None else (best.speedup * EQUAL, best.loss)
            broken = [
                c
                for c in self.candidates
                if c.speedup > fastest and not c.is_given and c.loss > least and not self._holds(c)
            ]
            if not broken:
                break
            upper = min(c.loss for c in broken)
            lower = max(least, upper * self._excess(broken, upper) / 4)
            before = len(self.candidates)
            self._propose(math.sqrt(lower * upper), free)
            if len(self.candidates) == before:
                break
            best = self._measured_and_verified()
        best = best or max(self.candidates, key=self._closeness)
        return self._clipped(best) or best

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

    def fitting(self, problem: Problem, **limits: Any) -> Assignment | None:
        """The best assignment, where a size is promised of those whose files are as small.

        A file holds more than its nodes account for, so one is made with rounded weights to see
        what is left for these.

        Args:
            problem: The integer program.
            **limits: What else counts, see `onnxq.plan.assign`.

        Returns:
            The assignment; None if there is none.
        """
        if self._bound is None:
            return assign(problem, **limits)
        bound, prepared = self._bound - self._margin, self._study.prepared
        # With the lower room there is no assignment, with the upper one its file is too large.
        lower, upper, room = 0.0, bound, bound
        for _ in range(_FITTINGS):
            chosen = assign(replace(problem, room=room), **limits)
            if chosen is None and room == upper:
                return None
            if chosen is None:
                lower, room = room, (room + upper) / 2
                continue
            graph = prepared.graph.copy()
            given = Given(prepared.target, prepared.bounds())
            apply_precisions(graph, chosen.precisions, given)
            excess = saved_bytes(graph) - bound
            if excess <= 0:
                return chosen
            # Less than what was chosen takes, so that it is not chosen again.
            upper = min(room, problem.bytes(chosen.precisions))
            room = upper - excess
            room = room if room > lower else (lower + upper) / 2
        return None

    def smallest_loss(self, problem: Problem) -> Plan | None:
        """The plan of least loss whose file is as small as promised; None if there is none.

        What methods add to a file, as biases, is left room for from then on.
        """
        assert self._bound is not None
        for _ in range(_FITTINGS):
            chosen = self.fitting(problem, objective="loss")
            if chosen is None:
                return None
            plan = self._plan(chosen, problem, chosen)
            graph, _ = apply_to(self._study.prepared, plan, self.job.context)
            excess = saved_bytes(graph) - self._bound
            if excess <= 0:
                return plan
            self._margin += excess
        return None

    def _report(self, candidate: Candidate) -> Report:
        own = [] if candidate.is_given else self._study.prepared.records
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
        if is_chosen or best.is_given or not is_static or report.sqnr_db >= _VISIBLE_DB:
            return None
        label, calibrator = f"{best.label}, ranges by {_CLIPPING}", parse_calibrator(_CLIPPING)
        if self._is_late(label):
            return None
        prepared = observed(replace(self._study.prepared, job=replace(job, calibrator=calibrator)))
        ranges = {**best.plan.ranges, **prepared.finite_bounds()}
        before = len(self.candidates)
        self._make(label, replace(best.plan, calibrator=str(calibrator), ranges=ranges))
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
            if self._is_late(label):
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
            except NothingToQuantizeError:
                continue
            plan = uniform_plan(prepared, Int8.name)
            graph, records = apply_to(prepared, plan, job.context)
            self._enter(label, plan, graph, [*prepared.records, *records])

    def _enter(self, label: str, plan: Plan, graph: Graph, records: list[PassRecord]) -> None:
        """Verify a model that this search did not predict."""
        path = self.job.files.save(graph, f"candidate-{len(self.candidates)}.onnx")
        report = verify(self.job, path, full=False)
        found = Candidate(label, graph, path, plan, records, is_given=True, report=report)
        self.candidates.append(found)

    def _propose_floats(self, program: Problem, free: Assignment) -> None:
        floats = uniform(program, FLOAT)
        if not set(floats.precisions.values()) <= {FLOAT}:
            # Something is pinned to integers.
            return
        self._make(REWRITTEN, self._plan(floats, program, floats))

    def _propose(self, budget: float | None, free: Assignment) -> None:
        exact = self._study.problem()
        for factor in BORDER_FACTORS:
            problem = self._study.problem(factor)
            limit = "" if budget is None else f", loss at most {budget:.3g}"
            label = f"plan with borders x{factor:g}{limit}"
            chosen = None if self._is_late(label) else self.fitting(problem, budget=budget)
            if chosen is not None:
                chosen = Assignment(
                    chosen.precisions,
                    exact.cost(chosen.precisions),
                    chosen.loss,
                    chosen.exact,
                )
                if budget is None:
                    self._cheapest[factor] = chosen
                self._add(label, chosen, exact, self._cheapest.get(factor, free))

    def _smallest(self, problem: Problem) -> Assignment | None:
        """The assignment of fewest bytes, which comes closest to a promised size."""
        items = tuple(
            replace(item, choices=tuple(replace(c, cost=c.bytes) for c in item.choices))
            for item in problem.items
        )
        found = assign(replace(problem, items=items, borders=()))
        return found and replace(found, cost=problem.cost(found.precisions))

    def _add(self, label: str, chosen: Assignment, problem: Problem, free: Assignment) -> None:
        known = [c.plan.precisions() for c in self.candidates]
        if set(chosen.precisions.values()) <= {FLOAT} or chosen.precisions in known:
            return
        if not self._is_late(label):
            self._make(label, self._plan(chosen, problem, free))

    def _is_late(self, label: str) -> bool:
        """Whether there is no time for another candidate, which is noted, beside those needed."""
        is_late = len(self.candidates) >= _FEWEST and self.job.time.is_over()
        if is_late:
            self.untried.append(Untried(f"candidate '{label}'"))
        return is_late

    def _plan(self, chosen: Assignment, problem: Problem, free: Assignment) -> Plan:
        return self._study.plan(problem, chosen, free, [str(g) for g in self._gates])

    def _make(self, label: str, plan: Plan) -> None:
        """Build a candidate, unless it turns out to be the same model as another one."""
        context = self.job.context
        if context.debug:
            context.log(f"{label}:")
        graph, records = apply_to(self._study.prepared, plan, context)
        path = self.job.files.save(graph, f"candidate-{len(self.candidates)}.onnx")
        if any(filecmp.cmp(c.path, path, shallow=False) for c in self.candidates):
            path.unlink()
            return
        self.candidates.append(Candidate(label, graph, path, plan, records))

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
        """Sentences on candidates that keep the promise as measured, but were not taken."""
        return tuple(
            f"'{candidate.label}' was not taken: that it loses less than '{other.label}', whose "
            "outputs are nearer to the float model's, may be luck on these samples; more held-out "
            "samples would tell."
            for candidate in self.candidates
            if self._keeps(candidate, self._accuracy)
            and (other := self._unluckier(candidate)) is not None
        )

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
