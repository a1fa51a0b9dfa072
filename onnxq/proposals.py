"""Plans of one table that a search tries: optima of the integer program within limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from onnxq.errors import InputError
from onnxq.ir.saving import saved_bytes
from onnxq.plan import Assignment, Plan, Problem, assign
from onnxq.plan.apply import apply_precisions
from onnxq.precision import Given
from onnxq.study import Study, apply_to
from onnxq.verify import Gate
from onnxq.verify.facts import model_bytes

_FITTINGS = 8
"""Times that the room for nodes is corrected, where a size is promised."""


class Proposals:
    """Plans that rest on one study.

    Attributes:
        study: What is known of the model on a target's table.
        bound: Bytes that a file may take, where a size is promised.

    Args:
        study: The study.
        gates: The promise.
    """

    def __init__(self, study: Study, gates: Sequence[Gate]) -> None:
        self.study = study
        self._promise = [str(gate) for gate in gates]
        ratios = [g.bound for g in gates if g.quantity == "size_ratio"]
        job = study.prepared.job
        self.bound = model_bytes(job.source, job.path) / max(ratios) if ratios else None
        self._margin = 0.0
        self._unlimited: dict[float, Assignment] = {}

    @cached_property
    def program(self) -> Problem:
        """The integer program, with borders that cost what was measured."""
        return self.study.problem()

    @cached_property
    def free(self) -> Assignment:
        """The cheapest assignment, where a size is promised of those that are as small, if any is.

        Raises:
            InputError: no assignment has all the precisions that are pinned.
        """
        found = self.fitting(self.program) or self._smallest()
        if found is None:
            raise InputError("no plan has all the precisions that are pinned; pin fewer nodes")
        return found

    def plan(self, chosen: Assignment, free: Assignment) -> Plan:
        """The plan of an assignment, with reasons for what differs from a free one."""
        return self.study.plan(self.program, chosen, free, self._promise)

    def cheapest(self, factor: float, budget: float | None) -> Assignment | None:
        """The cheapest assignment within a budget of loss; None if there is none.

        Args:
            factor: By what borders cost more than was measured.
            budget: Largest predicted loss; any if None.
        """
        chosen = self.fitting(self.study.problem(factor), budget=budget)
        if chosen is None:
            return None
        cost = self.program.cost(chosen.precisions)
        chosen = Assignment(chosen.precisions, cost, chosen.loss, chosen.exact)
        if budget is None:
            self._unlimited[factor] = chosen
        return chosen

    def unlimited(self, factor: float) -> Assignment:
        """What was `cheapest` without a budget; `free` if that was not asked for."""
        return self._unlimited.get(factor) or self.free

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
        if self.bound is None:
            return assign(problem, **limits)
        bound, prepared = self.bound - self._margin, self.study.prepared
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

    def smallest_loss(self) -> Plan | None:
        """The plan of least loss whose file is as small as promised; None if there is none.

        What methods add to a file, as biases, is left room for from then on.
        """
        assert self.bound is not None
        for _ in range(_FITTINGS):
            chosen = self.fitting(self.program, objective="loss")
            if chosen is None:
                return None
            plan = self.plan(chosen, chosen)
            graph, _ = apply_to(self.study.prepared, plan, self.study.prepared.job.context)
            excess = saved_bytes(graph) - self.bound
            if excess <= 0:
                return plan
            self._margin += excess
        return None

    def _smallest(self) -> Assignment | None:
        """The assignment of fewest bytes, which comes closest to a promised size."""
        items = tuple(
            replace(item, choices=tuple(replace(c, cost=c.bytes) for c in item.choices))
            for item in self.program.items
        )
        found = assign(replace(self.program, items=items, borders=()))
        return found and replace(found, cost=self.program.cost(found.precisions))
