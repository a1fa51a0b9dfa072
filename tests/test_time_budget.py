"""A time budget: what is begun within it, what is left out, and that plan and report say so."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from onnxq.errors import InputError
from onnxq.ir import save
from onnxq.job import open_job
from onnxq.optimization import optimize
from onnxq.options import Options
from onnxq.plan import Plan
from onnxq.planning import apply_plan, make_plan
from onnxq.precision.int4_weight import Int4Weight
from onnxq.prepare import Prepared, prepare
from onnxq.time_budget import TIME_BUDGET, TimeBudget, Untried
from onnxq.transforming import _methods
from onnxq.tuning import gains
from tests.networks import chain, computed, inputs

__all__ = ["computed"]

NETWORK = chain(3)
DATA = inputs(NETWORK, 16)
ANYTHING = {"min_speedup": 0.0, "min_sqnr": -100.0}

Ticking = Callable[[float], None]


class Clock:
    """One second passes whenever somebody looks."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> Ticking:
    """Gives jobs so many looks at the clock."""

    def tick(looks: float) -> None:
        monkeypatch.setattr("onnxq.job.TimeBudget", lambda _: TimeBudget(looks + 0.5, Clock()))

    return tick


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    save(NETWORK, path)
    return path


def planned(model: Path, **options: object) -> Plan:
    return make_plan(model, DATA, **options)  # type: ignore[arg-type]


def test_time_passes() -> None:
    clock = Clock()
    budget = TimeBudget(3, clock)
    assert budget.is_limited
    assert [budget.is_over() for _ in range(4)] == [False, False, True, True]


def test_a_share_is_of_what_is_left() -> None:
    now = [100.0]
    budget = TimeBudget(10, lambda: now[0])
    now[0] = 104.0
    half = budget.share(0.5)
    now[0] = 106.5
    assert not half.is_over()
    now[0] = 107.0
    assert half.is_over() and not budget.is_over()


def test_without_an_end_nobody_looks_at_the_clock() -> None:
    def clock() -> float:
        raise AssertionError

    budget = TimeBudget(None, clock)
    assert not budget.is_limited and not budget.is_over() and not budget.share(0.5).is_limited


@pytest.mark.parametrize("recipe", ["int4-weight", "int2-weight", "int8"])
def test_enough_time_changes_nothing(model: Path, recipe: str) -> None:
    plan, free = planned(model, recipe=recipe, time_budget=1e6), planned(model, recipe=recipe)
    assert plan.time_budget == 1e6 and not plan.untried
    assert plan.tuned_sha256 == free.tuned_sha256
    assert plan.to_toml().replace("time_budget = 1000000.0\n", "") == free.to_toml()


def test_without_time_weights_are_rounded(model: Path, ticking: Ticking) -> None:
    ticking(0)
    plan = planned(model, recipe="int4-weight")
    products = tuple(node.name for node in plan.nodes if node.op_type == "Gemm")
    assert plan.untried == (
        Untried("gptq", tuple(node.name for node in plan.nodes)),
        Untried("weighted-mse", products),
    )
    assert not plan.tuned and not any(node.method for node in plan.nodes)
    assert plan.ranges == planned(model, recipe="int4-weight", methods="none").ranges


def test_what_promises_most_is_tried_first(
    model: Path, ticking: Ticking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Int4Weight, "tuners", ("hqq", "mse"))
    count = len(planned(model, recipe="int4-weight").nodes)
    # One look before the data is read, and one before each.
    ticking(1 + count)
    plan = planned(model, recipe="int4-weight")
    assert [entry.what for entry in plan.untried] == ["hqq"]
    assert len(plan.untried[0].nodes) == count
    assert "mse" in {node.method for node in plan.nodes}


@pytest.mark.usefixtures("computed")
def test_all_is_tried_or_listed_and_the_plan_makes_the_same_bytes(
    model: Path, ticking: Ticking, tmp_path: Path
) -> None:
    tried = []
    for looks in (0, 1, 2, 3, 5, 8, 11):
        ticking(looks)
        paths = {"output": tmp_path / "q.onnx", "plan_output": tmp_path / "plan.toml"}
        made = optimize(model, DATA, recipe="int4-weight", time_budget=1, **paths, **ANYTHING)
        saved = Plan.load(paths["plan_output"])
        assert saved.untried == made.report.untried and saved.time_budget == 1
        listed = {(node, entry.what) for entry in saved.untried for node in entry.nodes}
        used = {(node.name, node.method) for node in saved.nodes if node.method}
        assert not used & listed
        assert {entry.reason for entry in saved.untried} <= {TIME_BUDGET}
        if saved.untried:
            assert made.report.notes[-1].startswith("The time budget was over")
            assert all(entry.what in made.report.notes[-1] for entry in saved.untried)
        apply_plan(model, paths["plan_output"], output=tmp_path / "again.onnx")
        assert (tmp_path / "again.onnx").read_bytes() == paths["output"].read_bytes()
        tried.append(5 - len(listed))
    assert tried == sorted(tried) and {*tried} >= {0, 1, 2, 5}


@pytest.mark.usefixtures("computed")
def test_a_search_makes_what_it_has_to(model: Path, ticking: Ticking, tmp_path: Path) -> None:
    free = optimize(model, DATA, **ANYTHING)
    ticking(0)
    short = optimize(model, DATA, plan_output=tmp_path / "plan.toml", **ANYTHING)
    labels = [candidate.label for candidate in short.report.candidates]
    assert sorted(labels) == ["float, rewritten", "plan with borders x1"]
    assert len(free.report.candidates) > 2 and not free.report.untried
    listed = [entry.what for entry in short.report.untried]
    assert "candidate 'all int8-dynamic'" in listed
    assert any(what.startswith("sensitivity of more than") for what in listed)
    assert Plan.load(tmp_path / "plan.toml").untried == short.report.untried


def test_what_was_cut_short_is_not_kept_for_others(
    model: Path, ticking: Ticking, tmp_path: Path
) -> None:
    given = {"cost": "size", "work_folder": tmp_path / "work", "samples": 12}
    ticking(0)
    assert planned(model, **given).untried
    assert not [*(tmp_path / "work").glob("sensitivity-*")]
    ticking(math.inf)
    assert not planned(model, **given).untried
    assert [*(tmp_path / "work").glob("sensitivity-*")]


def test_methods_that_build_on_each_other_keep_their_order() -> None:
    wanted = ("rotate", "smooth-quant", "awq")
    for seconds in (None, 1e6):
        job = SimpleNamespace(methods=wanted, time=TimeBudget(seconds))
        assert [method.name for method in _methods(job)] == [*wanted]  # type: ignore[arg-type]


def test_what_methods_gain_leaves_half_of_the_time_for_using_them(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = []

    def tune(prepared: Prepared, *wanted: object, **options: object) -> dict[str, object]:
        ends.append(prepared.job.time._end)
        return {}

    monkeypatch.setattr("onnxq.tuning.tune", tune)
    monkeypatch.setattr("onnxq.job.TimeBudget", lambda _: TimeBudget(100, lambda: 20.0))
    with open_job(model, DATA, Options(max_size_ratio=0.2, time_budget=1)) as job:
        gains(prepare(job))
        assert len(ends) > 5 and {*ends} == {20.0 + 50.0} and job.time._end == 120.0


@pytest.mark.parametrize("minutes", [0.0, -1.0, math.nan])
def test_no_time_at_all_is_refused(model: Path, minutes: float) -> None:
    with pytest.raises(InputError, match="time budget of"):
        planned(model, recipe="int8", time_budget=minutes)
