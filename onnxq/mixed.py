"""Mixed precision: plan, apply, verify, and tighten until the fastest candidate holds."""

from __future__ import annotations

import filecmp
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from onnxq.cost.measure import size_costs
from onnxq.data import Batch, Dataset
from onnxq.errors import InputError
from onnxq.ir import Graph, PassRecord, save
from onnxq.plan import Assignment, Plan, Problem, assign
from onnxq.precision import FLOAT
from onnxq.progress import SILENT, Progress
from onnxq.runtime import Session, interleaved
from onnxq.study import Study, uniform
from onnxq.verify import CompareOptions, Gate, Report, compare_files, with_gates

BORDER_FACTORS = (1.0, 0.3, 3.0)
"""Borders cost more or less than by themselves, depending on what stands beside them; a proposal
is made for each of these multiples, and measurement decides."""

ROUNDS = 4
"""Times that the budget of loss is tightened, or moved between what held and what did not."""

_SIZE_WEIGHTS = (0.5, 2.0, 8.0)
"""What all weights together count, where a size is promised: multiples of the float latency."""

_SECONDS_EACH = 0.7
_EQUAL = 1.015
"""Candidates whose speeds differ by no more than this factor count as equally fast."""

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
        speedup: Measured, over the float model.
        is_timed_well: Whether it was measured twice, the second time for longer.
        report: Its accuracy, once verified.
    """

    label: str
    graph: Graph
    path: Path
    plan: Plan
    records: list[PassRecord] = field(default_factory=list)
    speedup: float = 0.0
    is_timed_well: bool = False
    report: Report | None = None

    @property
    def loss(self) -> float:
        """Predicted loss."""
        return self.plan.loss


def preferred(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Candidates in the order in which they are wanted.

    The fastest first, but of those that are as fast as it within what measuring can tell, the one
    with the least predicted loss before it.
    """
    left = sorted(candidates, key=lambda c: -c.speedup)
    ordered = []
    while left:
        equal = [c for c in left if c.speedup * _EQUAL >= left[0].speedup]
        ordered.append(min(equal, key=lambda c: c.loss))
        left.remove(ordered[-1])
    return ordered


class Search:
    """Looks for the fastest model that keeps a promise.

    Args:
        study: What is known of the model.
        float_path: The float model's file.
        held_out: Samples to verify with.
        one: The feed that latency is measured with.
        gates: The promise.
        metric: Name of the metric, None to choose by the labels.
        folder: Where candidates are written.
        progress: Told of stages.
    """

    def __init__(
        self,
        study: Study,
        float_path: Path,
        held_out: Dataset,
        one: Batch,
        gates: Sequence[Gate],
        metric: str | None,
        folder: Path,
        progress: Progress = SILENT,
    ) -> None:
        self._study = study
        self._float_path = float_path
        self._held_out = held_out
        self._one = one
        self._gates = tuple(gates)
        self._accuracy = tuple(g for g in gates if g.quantity not in ("speedup", "candidate_ms"))
        self._metric = metric
        self._folder = folder
        self._progress = progress
        self._float = Session(
            float_path, provider=study.table.provider, threads=study.options.threads
        )
        self.candidates: list[Candidate] = []

    def run(self) -> Candidate:
        """The fastest candidate that keeps the promise, else the best one there is.

        Proposals without a budget come first: the optimum of the integer program for each of
        `BORDER_FACTORS`, every node in one precision, what a promised SQNR leaves room for, and
        smaller files where a size is promised. While one that is faster than the best
        verified one breaks the promise of accuracy, the budget moves between the predicted loss
        of what held and of what did not, and new proposals are made.
        """
        program = self._study.problem()
        free = assign(program)
        if free is None:
            raise InputError("no plan has all the precisions that are pinned; pin fewer nodes")
        self._propose_floats(program, free)
        self._propose(None, free)
        for precision in self._study.precisions:
            self._add(f"all {precision}", uniform(program, precision), program, free)
        promised = [10 ** (-g.bound / 10) for g in self._gates if g.quantity == "sqnr"]
        if self._study.sensitivity.proxy == "noise" and promised and min(promised) < free.loss:
            self._propose(min(promised), free)
        if any(g.quantity == "size_ratio" for g in self._gates):
            self._propose_small(program, free)
        self._measure()
        best = self._verify()
        for _ in range(ROUNDS):
            broken = [
                c
                for c in self.candidates
                if c.speedup > best.speedup * _EQUAL and c.loss > best.loss and not self._holds(c)
            ]
            if not broken:
                break
            upper = min(c.loss for c in broken)
            lower = max(best.loss, upper * self._excess(broken, upper) / 4)
            before = len(self.candidates)
            self._propose(math.sqrt(lower * upper), free)
            if len(self.candidates) == before:
                break
            self._measure()
            best = self._verify()
        return best

    def order(self) -> list[Candidate]:
        """Candidates verified to keep the promise of accuracy, the fastest first."""
        held = [c for c in self.candidates if c.report is not None and self._holds(c)]
        return preferred(held)

    def prove(self, candidate: Candidate) -> Report:
        """The full report on a candidate: accuracy, layers, latency, gates."""
        report = compare_files(
            self._float_path,
            candidate.path,
            self._held_out,
            self._one,
            CompareOptions(
                metric=self._metric,
                providers=(self._study.table.provider,),
                threads=self._study.options.threads,
            ),
            passes=[*self._study.records, *candidate.records],
            progress=self._progress,
        )
        return with_gates(report, self._gates)

    def _propose_floats(self, program: Problem, free: Assignment) -> None:
        floats = uniform(program, FLOAT)
        if not set(floats.precisions.values()) <= {FLOAT}:
            # Something is pinned to integers.
            return
        plan = self._study.plan(program, floats, free, [str(g) for g in self._gates])
        graph, records = self._study.apply(plan)
        source = self._folder / "float.onnx"
        save(graph, source)
        self.candidates.append(Candidate("float, rewritten", graph, source, plan, records))

    def _propose(self, budget: float | None, free: Assignment) -> None:
        exact = self._study.problem()
        for factor in BORDER_FACTORS:
            problem = self._study.problem(factor)
            chosen = assign(problem, budget=budget)
            if chosen is not None:
                chosen = Assignment(
                    chosen.precisions,
                    exact.cost(chosen.precisions),
                    chosen.loss,
                    chosen.exact,
                )
                limit = "" if budget is None else f", loss at most {budget:.3g}"
                self._add(f"plan with borders x{factor:g}{limit}", chosen, exact, free)

    def _propose_small(self, exact: Problem, free: Assignment) -> None:
        """Assignments that weigh bytes against time, from little to much."""
        study = self._study
        sizes = size_costs(study.graph, study.placed, study.precisions)
        largest = sum(max(c.values(), default=0.0) for c in sizes.nodes.values())
        floats = sum(c.get(FLOAT, 0.0) for c in study.costs.nodes.values())
        for weight in _SIZE_WEIGHTS:
            price = weight * floats / largest if largest else 0.0
            items = tuple(
                replace(
                    item,
                    choices=tuple(
                        replace(c, cost=c.cost + price * sizes.of(item.name, c.precision))
                        for c in item.choices
                    ),
                )
                for item in exact.items
            )
            chosen = assign(replace(exact, items=items))
            if chosen is not None:
                chosen = replace(chosen, cost=exact.cost(chosen.precisions))
                self._add(f"plan with bytes x{weight:g}", chosen, exact, free)

    def _add(self, label: str, chosen: Assignment, problem: Problem, free: Assignment) -> None:
        known = [c.plan.precisions() for c in self.candidates]
        if set(chosen.precisions.values()) <= {FLOAT} or chosen.precisions in known:
            return
        plan = self._study.plan(problem, chosen, free, [str(g) for g in self._gates])
        graph, records = self._study.apply(plan)
        path = self._folder / f"candidate-{len(self.candidates)}.onnx"
        save(graph, path)
        if any(filecmp.cmp(c.path, path, shallow=False) for c in self.candidates):
            path.unlink()
            return
        self.candidates.append(Candidate(label, graph, path, plan, records))

    def _measure(self) -> None:
        """Time what has no time yet, and once more, for longer, what is close to the fastest."""
        fresh = [c for c in self.candidates if not c.speedup]
        self._progress.stage("measuring candidates")
        self._time(fresh, _SECONDS_EACH)
        fastest = max(c.speedup for c in self.candidates)
        close = [c for c in self.candidates if c.speedup * _CLOSE >= fastest]
        if len(close) > 1 and not all(c.is_timed_well for c in close):
            self._time([c for c in close if not c.is_timed_well], 2 * _SECONDS_EACH)
            for candidate in close:
                candidate.is_timed_well = True

    def _time(self, candidates: Sequence[Candidate], seconds: float) -> None:
        """Time candidates in turn with the float model, in one process."""
        options = self._study.options
        sessions = [
            Session(c.path, provider=self._study.table.provider, threads=options.threads)
            for c in candidates
        ]
        timings = interleaved(
            [self._float, *sessions],
            self._one.feeds,
            seconds=seconds * (1 + len(sessions)),
        )
        for candidate, timing in zip(candidates, timings[1:], strict=True):
            candidate.speedup = timing.speedup

    def _verify(self) -> Candidate:
        """Verify candidates from the fastest on until one holds; gives that, or the best one."""
        ordered = preferred(self.candidates)
        for candidate in ordered:
            if candidate.report is None:
                candidate.report = compare_files(
                    self._float_path,
                    candidate.path,
                    self._held_out,
                    self._one,
                    CompareOptions(
                        metric=self._metric,
                        providers=(self._study.table.provider,),
                        threads=self._study.options.threads,
                        layers=False,
                        latency=False,
                    ),
                    progress=self._progress,
                )
            if self._holds(candidate):
                return candidate
        return ordered[0]

    def _holds(self, candidate: Candidate) -> bool:
        report = candidate.report
        return report is not None and all(gate.check(report).passed for gate in self._accuracy)

    def _excess(self, broken: Sequence[Candidate], loss: float) -> float:
        """Promised noise over measured noise of the candidate of a predicted loss, at most 1."""
        report = next(c.report for c in broken if c.loss == loss)
        promised = [g.bound for g in self._accuracy if g.quantity == "sqnr"]
        if report is None or not promised or not math.isfinite(report.sqnr_db):
            return 0.25
        return min(1.0, 10 ** ((report.sqnr_db - max(promised)) / 10))
