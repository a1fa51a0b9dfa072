"""The integer program against brute force."""

from __future__ import annotations

import ctypes
import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.plan import assignment
from onnxq.plan.assignment import (
    Border,
    Choice,
    Item,
    Problem,
    assign,
    pareto_front,
)

FLOAT = "float32"


def every_assignment(problem: Problem):
    """All possible assignments."""
    names = [item.name for item in problem.items]
    options = [[c.precision for c in item.choices] for item in problem.items]
    for chosen in itertools.product(*options):
        precisions = dict(zip(names, chosen, strict=True))
        if problem.is_possible(precisions):
            yield precisions


numbers = st.floats(0, 10, allow_subnormal=False)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    count = draw(st.integers(1, 6))
    names = [f"n{i}" for i in range(count)]
    items, borders = [], []
    for i, name in enumerate(names):
        choices = [Choice(FLOAT, draw(numbers))]
        if draw(st.booleans()):
            gives = draw(st.sampled_from([True, None]))
            choices.append(Choice("int8", draw(numbers), draw(numbers), True, gives))
            if draw(st.booleans()):
                choices.append(Choice("int16-act", draw(numbers), draw(numbers), True, gives))
        if draw(st.booleans()):
            choices.append(Choice("int8-dynamic", draw(numbers), draw(numbers)))
        producers = draw(st.lists(st.sampled_from(names[:i]), unique=True)) if i else []
        consumers = names[i + 1 :]
        items.append(
            Item(
                name,
                tuple(choices),
                tuple(producers) if draw(st.booleans()) else (),
                tuple(draw(st.lists(st.sampled_from(consumers), unique=True)))
                if consumers and draw(st.booleans())
                else (),
                tuple(producers) if draw(st.booleans()) else (),
            )
        )
    for i, name in enumerate([None, *names]):
        readers = (
            tuple(draw(st.lists(st.sampled_from(names[i:]), unique=True))) if names[i:] else ()
        )
        borders.append(
            Border(f"v{i}", name, readers, draw(st.booleans()), draw(numbers), draw(numbers))
        )
    ties = ()
    full = {FLOAT, "int8", "int8-dynamic"}
    able = [it.name for it in items if {c.precision for c in it.choices} == full]
    if len(able) > 1 and draw(st.booleans()):
        ties = (tuple(able[:2]),)
    return Problem(tuple(items), tuple(borders), ties)


@settings(max_examples=100, deadline=None)
@given(problems(), st.one_of(st.none(), st.floats(0, 30)), st.sampled_from(["cost", "loss"]))
def test_as_good_as_brute_force(problem: Problem, budget: float | None, objective: str) -> None:
    goal, limited = (problem.cost, problem.loss)
    if objective == "loss":
        goal, limited = limited, goal
    within = [
        p for p in every_assignment(problem) if budget is None or limited(p) <= budget * (1 - 1e-5)
    ]
    found = assign(problem, objective=objective, budget=budget)
    if found is None:
        assert not within
        return
    assert found.exact
    assert problem.is_possible(found.precisions)
    assert found.cost == problem.cost(found.precisions)
    assert found.loss == problem.loss(found.precisions)
    if budget is not None:
        assert limited(found.precisions) <= budget * (1 + 1e-5) + 1e-9
    if within:
        assert goal(found.precisions) <= min(map(goal, within)) * (1 + 1e-6) + 1e-6


@settings(max_examples=50, deadline=None)
@given(problems())
def test_front_is_ordered_and_starts_at_the_cheapest(problem: Problem) -> None:
    every = list(every_assignment(problem))
    front = pareto_front(problem, points=6)
    assert bool(front) == bool(every)
    if not every:
        return
    assert front[0].cost == pytest.approx(min(map(problem.cost, every)), abs=1e-6)
    for first, second in itertools.pairwise(front):
        assert second.loss < first.loss
        assert second.cost >= first.cost - 1e-6


@settings(max_examples=20, deadline=None)
@given(problems(), st.floats(0.1, 30), st.sampled_from(["cost", "loss"]))
def test_heuristic_keeps_the_budget(problem: Problem, budget: float, objective: str) -> None:
    found = assignment._tightened(assignment._Program(problem), objective, budget, 10.0)
    if found is not None:
        assert not found.exact
        assert problem.is_possible(found.precisions)
        assert (found.loss if objective == "cost" else found.cost) <= budget


def chain(losses: list[float], border: float) -> Problem:
    """Nodes in a row; int8 halves the cost of each."""
    items = [
        Item(f"n{i}", (Choice(FLOAT, 2.0), Choice("int8", 1.0, loss, True, True)))
        for i, loss in enumerate(losses)
    ]
    borders = [
        Border(
            f"v{i}",
            f"n{i - 1}" if i else None,
            (f"n{i}",) if i < len(losses) else (),
            i == len(losses),
            border,
            border,
        )
        for i in range(len(losses) + 1)
    ]
    return Problem(tuple(items), tuple(borders))


def test_island_is_kept_only_where_its_borders_pay() -> None:
    problem = chain([0.1, 5.0, 0.1, 0.1, 0.1], border=0.7)
    found = assign(problem, budget=1.0)
    assert found is not None
    # The first node alone saves 1 and would pay two borders of 0.7.
    assert [found.precisions[f"n{i}"] for i in range(5)] == [FLOAT, FLOAT, "int8", "int8", "int8"]


def test_dear_borders_leave_everything_in_float() -> None:
    found = assign(chain([0.0] * 5, border=3.0))
    assert found is not None
    assert set(found.precisions.values()) == {FLOAT}


def test_thousand_nodes_are_solved_exactly() -> None:
    rng = np.random.default_rng(0)
    costs, losses = rng.lognormal(0, 1, 1000), rng.lognormal(0, 2, 1000)
    items = tuple(
        Item(f"n{i}", (Choice(FLOAT, float(c)), Choice("int8", float(c) / 3, float(x), True, True)))
        for i, (c, x) in enumerate(zip(costs, losses, strict=True))
    )
    problem = replace(chain([0.0] * 1000, border=0.1), items=items)
    budget = float(losses.sum()) / 10
    found = assign(problem, budget=budget, time_limit=60)
    assert found is not None
    assert found.exact
    assert found.loss <= budget * (1 + 1e-6)
    # A tenth of the loss still buys most of what int8 saves.
    assert found.cost < 0.55 * float(costs.sum())


def test_what_the_solver_prints_does_not_reach_standard_output(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def loud(*program: object, **options: object) -> object:
        os.write(1, b"a line of the solver's own")
        ctypes.CDLL(None).printf(b"and one that C buffers")
        return milp(*program, **options)

    milp = scipy.optimize.milp
    monkeypatch.setattr(scipy.optimize, "milp", loud)
    assert assign(chain([0.1, 0.2], border=0.3)) is not None
    os.write(1, b"ours")
    assert capfd.readouterr().out == "ours"


def test_there_need_not_be_a_standard_output(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdout", None)
    assert assign(chain([0.1, 0.2], border=0.3)) is not None


def test_threads_leave_standard_output_as_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = [*pool.map(lambda _: assign(chain([0.1, 0.2], border=0.3)), range(40))]
    assert None not in found
    os.write(1, b"ours")
    assert capfd.readouterr().out == "ours"


def test_out_of_time_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = chain([0.1 * (1 + i % 7) for i in range(30)], border=0.3)
    solve = assignment._Program.solve

    def slow(self, goal, limited, budget, time_limit):
        if budget is not None:
            return assignment._Solution(1, None)
        return solve(self, goal, limited, budget, time_limit)

    monkeypatch.setattr(assignment._Program, "solve", slow)
    found = assign(problem, budget=3.0)
    assert found is not None
    assert not found.exact
    assert 0 < found.loss <= 3.0


@settings(max_examples=60, deadline=None)
@given(problems(), st.data())
def test_room_is_kept(problem: Problem, data: st.DataObject) -> None:
    items = tuple(
        replace(item, choices=tuple(replace(c, bytes=data.draw(numbers)) for c in item.choices))
        for item in problem.items
    )
    problem = replace(problem, items=items, room=data.draw(st.floats(0, 40)))
    every = list(every_assignment(problem))
    found = assign(problem)
    if found is None:
        assert not any(problem.bytes(chosen) <= problem.room - 1e-4 for chosen in every)
        return
    assert problem.bytes(found.precisions) <= problem.room + 1e-4
    assert found.cost <= min((problem.cost(chosen) for chosen in every), default=np.inf) + 0.01


def test_without_room_bytes_do_not_count() -> None:
    item = Item("n", (Choice(FLOAT, 1.0, bytes=1e9), Choice("int8", 2.0, bytes=1.0)))
    assert assign(Problem((item,))).precisions == {"n": FLOAT}
    assert assign(Problem((item,), room=10.0)).precisions == {"n": "int8"}
    assert assign(Problem((item,), room=0.5)) is None
