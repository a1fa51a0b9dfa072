"""Equivalent transformations in the chain: made once, kept in the plan, and made again from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest

from onnxq.errors import InputError
from onnxq.ir import save
from onnxq.job import open_job
from onnxq.needs import ChannelsOf, Need
from onnxq.observe import Observations
from onnxq.optimization import optimize
from onnxq.options import Options
from onnxq.plan import Plan, PlanTransformation, difference
from onnxq.planning import apply_plan, find_sensitivity, make_plan
from onnxq.prepare import observed, prepare
from onnxq.time_budget import TimeBudget, Untried
from onnxq.tune import Change, Subject, Transformation, available_methods, parse_method
from tests.helpers import assert_equivalent
from tests.networks import chain, computed, inputs, shared

__all__ = ["computed"]

pytestmark = pytest.mark.usefixtures("computed")

NETWORK = chain(4, planted=1)
DATA = inputs(NETWORK, 16)
ANYTHING = {"min_speedup": 0.0, "min_sqnr": -100.0}


@dataclass(frozen=True)
class Even(Transformation):
    """Brings all channels of a group to one magnitude."""

    name: ClassVar[str] = "even"
    description: ClassVar[str] = "channels of one magnitude"

    def refusal(self, subject: Subject) -> str:
        return "" if subject.precisions and subject.groups.folded else "it has no groups"

    def needs(self, subject: Subject) -> Sequence[Need]:
        return [ChannelsOf(g.tensor.name, g.axis) for g in subject.groups.folded.values()]

    def transform(self, subject: Subject, observations: Observations) -> Sequence[Change]:
        changes = []
        for group in subject.groups.folded.values():
            seen = observations.get(ChannelsOf(group.tensor.name, group.axis))
            changes.append(
                Change("scale-channels", group.tensor.name, seen.absmax, group.nodes, 1.5)
            )
        return changes


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {**available_methods(), "even": Even}
    monkeypatch.setattr("onnxq.tune.method.available_methods", lambda: kinds)
    parse_method.cache_clear()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("transforming") / "model.onnx"
    save(NETWORK, path)
    return path


def test_without_time_nothing_is_transformed(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxq.job.TimeBudget", lambda _: TimeBudget(0, lambda: 1.0))
    plan = make_plan(model, DATA, recipe="int8", methods=("even",), time_budget=1)
    assert plan.untried == (Untried("even"),) and not plan.transformations


def test_a_plan_makes_the_same_bytes_again(model: Path, tmp_path: Path) -> None:
    out, plan = tmp_path / "q.onnx", tmp_path / "p.toml"
    given = {"recipe": "int8", "methods": ("even",), "pins": ("conv0=float32",)}
    made = optimize(model, DATA, output=out, plan_output=plan, **given, **ANYTHING)
    saved = Plan.load(plan)
    first, *_ = saved.transformations
    assert len(saved.transformations) == 4
    assert first == PlanTransformation(
        *("scale-channels", saved.transformations[0].tensor, "even", ("conv0", "conv1"), 1.5)
    )
    assert saved.tuned[first.tensor].keys() == {"scale-channels"} and not saved.weights
    apply_plan(model, plan, output=tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == out.read_bytes()
    assert saved.by_hand() == ["conv0"]
    plain = optimize(model, DATA, recipe="int8", methods=("none",), **ANYTHING)
    assert not plain.plan.transformations
    assert made.report.sqnr_db > plain.report.sqnr_db + 10, "the planted channel hides no other"
    found = [d for d in difference(saved, plain.plan) if d.what.startswith("scale-channels of ")]
    assert [(d.first, d.second) for d in found] == [("by even", "absent")] * 4


def test_the_float_graph_stays_equal_and_its_changed_tensors_get_new_names(model: Path) -> None:
    with open_job(model, DATA, Options(recipe="int8", methods=("even",))) as job:
        before = prepare(job)
        after = observed(before)
        assert observed(after).graph is after.graph, "it is transformed once"
        assert_equivalent(before.graph, after.graph, exact=False)
        names = [{node.name for node in p.graph.nodes()} for p in (before, after)]
        assert names[0] == names[1]
        assert after.ranges is not None
        assert any(name.endswith("_scaled") for name in after.ranges.ranges)
        assert not {t.tensor for t in after.transformed.transformations} & set(after.graph.values)


def test_what_was_found_of_a_transformed_graph_is_kept_apart(model: Path, tmp_path: Path) -> None:
    files = []
    for methods in (("none",), ("even",), ("even",)):
        options = Options(recipe="int8", methods=methods, work_folder=tmp_path)
        with open_job(model, DATA, options) as job:
            observed(prepare(job))
        files.append({path.name for path in tmp_path.iterdir()})
    assert len(files[0]) == 1 and len(files[1]) == 2 and files[1] == files[2]


def test_sensitivity_is_that_of_the_transformed_graph(model: Path) -> None:
    plain, even = (
        find_sensitivity(model, DATA, recipe="int8", methods=(method,)).losses()
        for method in ("none", "even")
    )
    assert even["conv1"]["int8"] < plain["conv1"]["int8"] / 10


def test_a_plan_that_lacks_numbers_is_refused(model: Path) -> None:
    plan = make_plan(model, DATA, recipe="int8", methods=("even",))
    tensor = plan.transformations[0].tensor
    wrong = {name: own for name, own in plan.tuned.items() if name != tensor}
    with pytest.raises(InputError, match=f"nothing for scale-channels of '{tensor}'; plan again"):
        apply_plan(model, replace(plan, tuned=wrong))
    odd = (replace(plan.transformations[0], kind="turn"),)
    with pytest.raises(InputError, match=r"no transformation 'turn'; .*scale-channels"):
        apply_plan(model, replace(plan, transformations=odd))
    twice = {"transformation": [{"kind": "a", "tensor": "b"}] * 2}
    with pytest.raises(InputError, match=r"'transformation' .* transforms one tensor twice"):
        Plan.from_dict(replace(plan, tuned={}).to_dict() | twice)


def test_a_method_that_can_do_nothing_is_named(model: Path) -> None:
    lonely = model.with_name("lonely.onnx")
    save(shared(), lonely)
    with pytest.raises(InputError, match="none of the methods even is for a node"):
        make_plan(lonely, inputs(shared(), 8), recipe="int8", methods=("even",))
