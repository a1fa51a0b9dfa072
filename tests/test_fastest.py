"""The fastest deployment: what is tried, what is chosen and why, and what cannot be."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxq
from onnxq import InputError, fastest
from onnxq.ir import save
from onnxq.plan import Plan
from onnxq.runtime import Runnable, Session, Timing
from onnxq.runtime.elsewhere import SessionElsewhere
from onnxq.verify.result import DeploymentFacts
from tests.networks import chain, computed, inputs
from tests.runtime.environments import environment

__all__ = ["computed"]

pytestmark = pytest.mark.usefixtures("computed")

Timed = Callable[[Sequence[float]], None]

OPENVINO = """
names = ["OpenVINOExecutionProvider", "CPUExecutionProvider"]
onnxruntime.get_available_providers = lambda: names
made = onnxruntime.InferenceSession
def broken(source, options, providers, **kept):
    asked = providers[0][0]
    session = made(source, options, providers=["CPUExecutionProvider"], **kept)
    session.get_providers = lambda: [asked, "CPUExecutionProvider"]
    return session
"""
"""An environment whose provider openvino is there, and takes no operator."""

FAILING = """
names = [f"{name}ExecutionProvider" for name in ("CUDA", "Tensorrt", "Dml", "CPU")]
onnxruntime.get_available_providers = lambda: names
made = onnxruntime.InferenceSession
def fail(*given):
    raise RuntimeError("the device was removed")
def broken(source, options, providers, **kept):
    if providers[0][0].startswith("Tensorrt"):
        raise RuntimeError("CUDA failure 35: driver is insufficient ; GPU=-1 ;\\n\\n")
    session = made(source, options, providers=["CPUExecutionProvider"], **kept)
    if providers[0][0].startswith("Dml"):
        session.get_providers, session.run = lambda: names, fail
    return session
"""
"""An environment with three providers that are offered, but do not work, as without a GPU: cuda
leaves its place to the CPU provider, tensorrt raises when a model is loaded, directml when it runs.
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "m.onnx"
    save(chain(2), path)
    return path


@pytest.fixture(scope="module")
def data(model: Path) -> dict[str, np.ndarray]:
    feeds = inputs(chain(2), 48)
    labels = Session(model).run(feeds)["y"].argmax(axis=1)
    return {**feeds, "labels": labels, "split": np.arange(48) % 2}


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Timed:
    """Sets the speedups that are measured of all models but the first, in turn."""

    def set(speedups: Sequence[float]) -> None:
        def interleaved(
            sessions: Sequence[Runnable], feeds: Mapping[str, np.ndarray], *, seconds: float
        ) -> list[Timing]:
            assert len(sessions) == 1 + len(speedups)
            return [Timing(1 / s, 1 / s, 1 / s, 9, s, s, s) for s in (1.0, *speedups)]

        monkeypatch.setattr(fastest, "interleaved", interleaved)

    return set


def optimize(
    model: Path, data: dict[str, np.ndarray], *pythons: str | Path, **options: object
) -> onnxq.Optimized:
    options = {"recipe": "int8", "max_drop": 0.5, **options}
    return onnxq.optimize(model, data, target="fastest", pythons=pythons, **options)  # type: ignore[arg-type]


def shown(found: onnxq.Optimized) -> list[tuple[str, str, str, str]]:
    return [(d.python, d.target, d.model, d.reason) for d in found.report.deployments]


def chosen(found: onnxq.Optimized) -> DeploymentFacts:
    (row,) = (row for row in found.report.deployments if row.chosen)
    return row


def test_the_fastest_wins_wherever_it_runs(
    model: Path, data: dict[str, np.ndarray], timed: Timed, tmp_path: Path
) -> None:
    timed([1.2, 0.9, 2.5])
    output, plan = tmp_path / "q.onnx", tmp_path / "plan.toml"
    found = optimize(model, data, sys.executable, output=output, plan_output=plan, throughput=[4])
    cpu = chosen(found).target
    assert shown(found) == [
        ("", cpu, "float", "0.40 times as fast as what was chosen"),
        ("", cpu, "int8", "0.48 times as fast as what was chosen"),
        (sys.executable, cpu, "float", "0.36 times as fast as what was chosen"),
        (sys.executable, cpu, "int8", ""),
    ]
    report = found.report
    assert report.latency is not None
    assert (report.latency.speedup, report.latency.confidence) == (2.5, (2.5, 2.5))
    assert (report.latency.float_ms, report.latency.candidate_ms) == pytest.approx((1.0, 0.4))
    assert found.passed and [g.expr for g in report.gates] == ["drop<=0.5", "speedup>=1"]
    assert report.gates[1].value == 2.5
    assert report.output.path == str(output)
    assert chosen(found).bytes == output.stat().st_size
    assert Plan.load(plan).measured["speedup"] == 2.5
    assert onnxq.Report.from_json(report.to_json()) == report
    assert f"Deploy it in '{sys.executable}' (onnxruntime " in report.notes[0]
    # They were timed against the float model there.
    assert (report.throughput, report.latencies) == ((), (report.latency,))
    assert report.notes[1].startswith("Throughput and further latencies are left out")
    call = ast.parse(report.deploy, mode="eval").body
    assert isinstance(call, ast.Call)
    assert ast.literal_eval(call.args[0]) == str(output)
    assert {k.arg: ast.literal_eval(k.value) for k in call.keywords} == {
        "providers": ["CPUExecutionProvider"],
        "provider_options": [{}],
    }
    code = f"import onnxruntime; print({report.deploy}.get_providers())"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "['CPUExecutionProvider']\n"


def test_of_equals_the_first_wins(model: Path, data: dict[str, np.ndarray], timed: Timed) -> None:
    timed([1.02, 1.0, 1.02])
    found = optimize(model, data, sys.executable)
    assert (chosen(found).python, chosen(found).model) == ("", "float")
    assert found.report.output.sha256 == found.report.model.sha256
    assert {row[3] for row in shown(found)} == {
        "",
        "as fast as what was chosen, as far as measuring tells, which comes before it",
    }


def test_what_breaks_the_promise_is_not_chosen(
    model: Path, data: dict[str, np.ndarray], timed: Timed, tmp_path: Path
) -> None:
    timed([3.0])
    found = optimize(model, data, max_drop=None, min_sqnr=90.0)
    assert chosen(found).model == "float"
    assert shown(found)[1][3].startswith("it breaks the promise: sqnr>=90, measured ")
    output = tmp_path / "q.onnx"
    failed = optimize(model, data, min_speedup=4.0, output=output)
    assert (failed.passed, failed.written) == (False, None)
    assert chosen(failed).model == "int8"
    assert not failed.report.deploy and "Deploy it" not in str(failed.report.notes)
    kept = optimize(*(model, data), max_drop=None, min_sqnr=90.0, min_speedup=4.0, keep_failed=True)
    # Of what breaks the promise that comes first which is only too slow.
    assert chosen(kept).model == "float"
    assert kept.report.deploy and "Deploy it" in kept.report.notes[0]


def test_a_provider_that_takes_nothing_counts_as_the_cpu_provider(
    model: Path, data: dict[str, np.ndarray], timed: Timed, tmp_path: Path
) -> None:
    python = environment(tmp_path, OPENVINO)
    timed([1.1, 1.3, 0.9, 1.2, 1.4, 5.0, 6.0])
    found = optimize(model, data, python, min_speedup=10.0)
    assert not found.passed
    assert [row[:3] for row in shown(found)[6:]] == [
        (str(python), "openvino", "float"),
        (str(python), "openvino", "int8"),
    ]
    for row in found.report.deployments[6:]:
        assert row.reason.startswith("the provider openvino takes no operator of it")
        assert (row.nodes_taken, bool(row.nodes_left)) == (0, True)
    # What was made for that provider is the fastest on the CPU provider beside it.
    assert chosen(found).python == str(python) and chosen(found).target != "openvino"
    assert chosen(found).model == f"int8, made for openvino of '{python}'"
    assert found.plan.target == "openvino"
    assert found.report.latency is not None
    assert (found.report.latency.provider, found.report.latency.speedup) == ("cpu", 1.4)
    assert chosen(found).sqnr_db == found.report.sqnr_db


def test_a_crash_while_all_are_timed_takes_along_nothing_else(
    model: Path, data: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    spend = SessionElsewhere.spend

    def crashing(self: SessionElsewhere, *given: Any, **options: Any) -> float:
        if "entrant" in self._label:
            self._session._process._process.kill()
        return spend(self, *given, **options)

    monkeypatch.setattr(SessionElsewhere, "spend", crashing)
    monkeypatch.setattr(fastest, "_SECONDS", 0.01)
    found = optimize(model, data, sys.executable, min_speedup=0.01)
    speedups = {(d.python, d.model): d.speedup for d in found.report.deployments}
    crashed = [d for d in found.report.deployments if "ended while running" in d.reason]
    assert speedups["", "float"] == 1.0 and speedups[sys.executable, "float"]
    assert [d.model for d in crashed] == ["int8", "int8"]


def test_environments_that_do_not_work_are_told_of(
    model: Path, data: dict[str, np.ndarray], timed: Timed, tmp_path: Path
) -> None:
    crashing = environment(tmp_path, "def broken(*a, **k): os._exit(3)")
    timed([2.0])
    found = optimize(model, data, "/no/python", crashing)
    assert chosen(found).model == "int8"
    reasons = {row[0]: row[3] for row in shown(found)[2:]}
    assert reasons["/no/python"].startswith("'/no/python' cannot be started")
    assert "ended while loading" in reasons[str(crashing)]


def test_providers_that_are_offered_but_fail_are_told_of(
    model: Path, data: dict[str, np.ndarray], timed: Timed, tmp_path: Path
) -> None:
    python = environment(tmp_path, FAILING)
    timed([2.0, 1.1, 1.3])
    found = optimize(model, data, python)
    assert (chosen(found).model, chosen(found).python) == ("int8", "")
    reasons = {row[1]: row[3] for row in shown(found) if row[1] != chosen(found).target}
    loaded, ran = (f"onnxruntime cannot {verb} '{model}': " for verb in ("load", "run"))
    assert reasons == {
        "cuda": "provider 'cuda' could not be started on this machine; check its driver and "
        "libraries",
        "tensorrt": f"{loaded}CUDA failure 35: driver is insufficient ; GPU=-1",
        "directml": f"{ran}the device was removed",
    }


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"provider_options": ["a=b"]}, "--provider-option.* are for one; name its --target"),
        ({"adaptive": "bundle"}, "a bundle is for one target"),
        ({"target": "auto", "pythons": ["python"]}, "are tried by `onnxq optimize --target fast"),
    ],
)
def test_options_for_one_target_are_refused(
    model: Path, data: dict[str, np.ndarray], options: dict[str, object], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        onnxq.optimize(model, data, **{"target": "fastest", **options})  # type: ignore[arg-type]


def test_a_plan_for_a_target_that_is_not_here_is_refused(
    model: Path, data: dict[str, np.ndarray]
) -> None:
    plan = onnxq.make_plan(model, data, recipe="int8", target="qnn")
    with pytest.raises(InputError, match="is for the target 'qnn', whose provider is not here"):
        optimize(model, data, recipe="mixed", candidates=[plan])


def test_only_optimize_knows_it(model: Path, data: dict[str, np.ndarray]) -> None:
    with pytest.raises(InputError, match="the target 'fastest' is for `onnxq optimize`"):
        onnxq.make_plan(model, data, target="fastest")


@pytest.mark.slow
def test_a_search_in_every_environment(tmp_path: Path) -> None:
    models = Path(__file__).parents[1] / "models"
    found = onnxq.optimize(
        models / "digits_resnet.onnx",
        models / "digits.npz",
        output=tmp_path / "q.onnx",
        target="fastest",
        pythons=[sys.executable],
    )
    assert found.passed
    assert chosen(found).model != "float"
    assert len(found.report.deployments) == 4
