"""Methods that compete: which wins, and what of it lands in plan and report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from onnxq.ir import save
from onnxq.observe import Observations
from onnxq.optimization import optimize
from onnxq.plan import Plan
from onnxq.planning import make_plan
from onnxq.precision.int4_weight import Int4Weight
from onnxq.tune import Layer, Tuner, available_methods, parse_method
from onnxq.tune.weight_matrix import matrix_of
from tests.networks import chain, computed, inputs

__all__ = ["computed"]

pytestmark = pytest.mark.usefixtures("computed")

NETWORK = chain(2)
DATA = inputs(NETWORK, 16)
ANYTHING = {"min_speedup": 0.0, "min_sqnr": -100.0}


@dataclass(frozen=True)
class Worse(Tuner):
    """Scales that are wrong by a factor."""

    name: ClassVar[str] = "worse"
    description: ClassVar[str] = "wrong scales"

    def refusal(self, layer: Layer) -> str:
        return ""

    def tune(self, layer: Layer, observations: Observations) -> Mapping[str, np.ndarray]:
        matrix = matrix_of(layer)
        made = matrix.rounding(matrix.numbers(), matrix.layout.own_granularity, "w").qparams
        return {"scale": made.scale * np.float32(3), "zero_point": made.zero_point}


@dataclass(frozen=True)
class Later(Worse):
    """The same, from what the quantized layers before give."""

    name: ClassVar[str] = "later"
    is_sequential: ClassVar[bool] = True


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {**available_methods(), "worse": Worse, "later": Later}
    monkeypatch.setattr("onnxq.tune.method.available_methods", lambda: kinds)
    parse_method.cache_clear()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    save(NETWORK, path)
    return path


@pytest.mark.parametrize(
    ("tuners", "winner"),
    [
        (("worse", "gptq"), "gptq"),
        (("gptq", "worse"), "gptq"),
        (("later", "gptq"), "gptq"),
        (("later", "worse", "mse"), "mse"),
    ],
)
def test_the_best_wins(
    model: Path, tuners: tuple[str, ...], winner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Int4Weight, "tuners", tuners)
    plan = make_plan(model, DATA, recipe="int4-weight")
    # Where plain rounding is better, it wins.
    assert {node.method for node in plan.nodes} <= {winner, ""}
    assert any(node.method for node in plan.nodes)
    assert all((node.gain_db > 0) == bool(node.method) for node in plan.nodes)


@pytest.mark.parametrize("tuners", [("worse",), ("later",), ("later", "worse")])
def test_plain_rounding_can_win(
    model: Path, tuners: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Int4Weight, "tuners", tuners)
    plan = make_plan(model, DATA, recipe="int4-weight")
    assert not plan.tuned and not any(node.method or node.gain_db for node in plan.nodes)
    assert plan.to_toml() == make_plan(model, DATA, recipe="int4-weight", methods="none").to_toml()


def test_what_somebody_asks_for_is_done(model: Path) -> None:
    plan = make_plan(model, DATA, recipe="int4-weight", methods="worse")
    assert {node.method for node in plan.nodes} == {"worse"}


def test_with_few_samples_the_first_is_taken(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Int4Weight, "tuners", ("worse", "gptq"))
    few = {name: values[:3] for name, values in DATA.items()}
    plan = make_plan(model, few, recipe="int4-weight")
    assert {node.method for node in plan.nodes} == {"worse"}


def test_the_report_says_what_was_gained(model: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    made = optimize(model, DATA, recipe="int4-weight", plan_output=plan, **ANYTHING)
    facts = {found.node: found for found in made.report.methods}
    tuned = {node.name: node for node in Plan.load(plan).nodes if node.method}
    assert facts.keys() == tuned.keys() and facts
    for name, found in facts.items():
        assert found.method == tuned[name].method and found.seconds > 0
        assert found.gain_db == pytest.approx(tuned[name].gain_db, rel=1e-5)
