"""``onnxq compare``."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest

from onnxq.verify import QUANTITIES, Report
from tests.cli.conftest import Command, Outcome
from tests.cli.models import SAMPLES, Case, classifier, images
from tests.cli.test_optimize import check_report, strict_json


@pytest.fixture
def run(onnxq: Command, case: Case):  # type: ignore[no-untyped-def]
    """`compare` of the small classifier with its quantized form."""

    def run(*arguments: str | Path, data: Path = case.data) -> Outcome:
        return onnxq("compare", case.model, case.candidate, "--data", data, *arguments)

    return run


def test_the_summary_has_figures_and_weakest_layers(run) -> None:
    found = run()
    assert (found.code, found.err) == (0, "")
    labels = [line.split("  ")[0] for line in found.out.splitlines()]
    wanted = ["accuracy", "latency", "size", "SQNR", "integer", "precision", "weakest layers"]
    assert [label for label in wanted if label not in labels] == []
    assert "gates" not in labels
    assert f"({SAMPLES} samples)" in found.out


def test_every_layer_is_listed_on_request(run) -> None:
    found = run("--layers")
    assert (found.code, found.err) == (0, "")
    names = [line.split(" ")[0] for line in found.out.splitlines() if " int8 " in line]
    assert {"first", "head"} <= set(names)
    assert "weakest layers" not in found.out and "First jump" not in found.out


def test_json(run, case: Case, tmp_path: Path) -> None:
    found = run("--json", "-", "--gate", "drop<=0.5")
    assert (found.code, found.err) == (0, "")
    body = strict_json(found.out)
    assert body.pop("passes") == [], "no pass ran"
    check_report({**body, "passes": [{"name": "", "rewrites": 0, "seconds": 0.0}]})
    path = tmp_path / "r.json"
    assert run("--json", path, "-q").out == ""
    report = Report.from_json(path.read_text())
    assert (report.model.path, report.output.path) == (str(case.model), str(case.candidate))
    assert report.metric is not None
    assert (report.metric.name, report.metric.float) == ("accuracy", 1.0)
    measured = {layer.node: layer.sqnr_db for layer in report.layers}
    assert all(measured[name] is not None for name in ("first", "head"))


def test_gates_that_hold_and_break(run) -> None:
    held = run("--gate", "sqnr>=10", "--gate", "size_ratio > 1", "--gate", "cosine>=0.9")
    assert held.code == 0
    assert held.out.count(": held") == 3
    broken = run("--gate", "sqnr>=10", "--gate", "max_abs==0", "--gate", "candidate_ms<0")
    assert broken.code == 1
    assert (broken.out.count(": held"), broken.out.count(": FAILED")) == (1, 2)
    assert not broken.err


EQUAL = (
    *("drop<=0", "metric.drop<=0", "metric==1", "agreement>=1", "agreement.value==1"),
    *("sqnr==inf", "outputs.*.sqnr_db==inf", "layers.*.sqnr_db==inf", "cosine>=0.999999"),
    *("max_abs==0", "outputs.*.max_abs<=0", "size_ratio==1", "size.ratio>=1"),
    *("output.bytes>0", "latency.speedup>0", "latencies.*.candidate_ms>0"),
)


def test_the_float_model_itself_keeps_every_promise_of_accuracy(onnxq: Command, case: Case) -> None:
    gates = [word for gate in EQUAL for word in ("--gate", gate)]
    found = onnxq("compare", case.model, case.model, "--data", case.data, *gates)
    assert (found.code, found.out.count(": held")) == (0, len(EQUAL)), found


def test_gates_on_what_was_not_measured_break(run, tmp_path: Path) -> None:
    data = tmp_path / "x.npz"
    np.savez(data, x=images())
    found = run("--gate", "drop<=1", "--metric", "sqnr", data=data)
    assert found.code == 1
    assert "measured not measured" not in found.out
    assert "not measured: FAILED" in found.out


@pytest.mark.parametrize(
    ("gate", "part"),
    [
        ("drop", "'drop'"),
        ("drop<=", "'drop<='"),
        ("drop=<0.1", "'drop=<0.1'"),
        ("drop<=much", "'much'"),
        ("drop<=nan", "'nan'"),
        ("beauty>=1", "'beauty'"),
        ("metric.beauty>=1", "'metric' has name, float"),
        ("drop<=0.1 and more", "more"),
    ],
)
def test_gates_that_cannot_be_read(run, gate: str, part: str) -> None:
    run("--gate", gate).refused("gate", part)


def test_help_names_every_quantity_of_gates(onnxq: Command) -> None:
    shown = onnxq("compare", "-h").out
    for name, (meaning, _) in QUANTITIES.items():
        assert f"  {name}" in shown and meaning in shown


def test_junit(run, tmp_path: Path) -> None:
    path = tmp_path / "junit.xml"
    found = run("--junit", path, "--gate", "sqnr>=10", "--gate", "sqnr>=200")
    assert found.code == 1
    root = ElementTree.parse(path).getroot()
    assert (root.get("tests"), root.get("failures")) == ("2", "1")
    (failure,) = root.iter("failure")
    assert "sqnr>=200" in str(failure.get("message"))


def test_a_gate_without_a_value_fails_and_loses_nothing(run, tmp_path: Path) -> None:
    junit, report = tmp_path / "junit.xml", tmp_path / "r"
    found = run("--gate", "outputs.99.sqnr_db>=1", "--junit", junit, "--report", report)
    assert found.code == 1
    (failure,) = ElementTree.parse(junit).getroot().iter("failure")
    assert "it was not measured" in str(failure.get("message")) and (report / "report.md").exists()


def test_markdown_tells_of_gates_that_failed(run, tmp_path: Path) -> None:
    path = tmp_path / "summary.md"
    found = run("--markdown", path, "--gate", "sqnr>=10", "--gate", "sqnr>=200")
    assert found.code == 1
    assert "### ❌ onnxq: 1 of 2 gates failed" in path.read_text("utf-8")


def test_report_folder(run, tmp_path: Path) -> None:
    assert run("--report", tmp_path / "r").code == 0
    names = sorted(p.name for p in (tmp_path / "r").iterdir())
    assert names == ["junit.xml", "report.html", "report.json", "report.md"]


@pytest.mark.parametrize("option", ["--junit", "--markdown", "--report"])
def test_places_that_cannot_be_written(
    run, case: Case, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise AssertionError("the work began")

    monkeypatch.setattr("onnxq.cli.compare.compare", unreachable)
    run(option, case.model / "there").refused(str(case.model))


def test_samples_and_layers_can_be_left_out(run) -> None:
    found = run("--samples", "5", "--no-layers", "--json", "-")
    body = strict_json(found.out)
    assert body["metric"]["samples"] == 5  # type: ignore[index]
    assert {layer["sqnr_db"] for layer in body["layers"]} == {None}  # type: ignore[attr-defined]
    assert "weakest layers" not in run("--no-layers").out
    run("--no-layers", "--layers").refused("--layers", "--no-layers")


def test_only_held_out_samples_are_used(run, case: Case, tmp_path: Path) -> None:
    arrays = np.load(case.data)
    data = tmp_path / "split.npz"
    split = np.zeros(SAMPLES, np.int64)
    split[::5] = 1
    np.savez(data, x=arrays["x"], labels=arrays["labels"], split=split)
    body = strict_json(run("--json", "-", data=data).out)
    assert body["metric"]["samples"] == SAMPLES / 5  # type: ignore[index]


def test_metric_can_be_chosen(run) -> None:
    body = strict_json(run("--metric", "top-k{k=3}", "--json", "-").out)
    assert body["metric"]["name"] == "top-k{k=3}"  # type: ignore[index]
    assert strict_json(run("--metric", "sqnr", "--json", "-").out)["metric"] is None
    run("--metric", "cer").refused("cer", "[N, L]")
    run("--metric", "beauty").refused("'beauty'")


def test_a_provider_is_measured_once_however_it_is_written(run) -> None:
    body = strict_json(
        run("--provider", "cpu", "--provider", "CPUEXECUTIONPROVIDER", "--json", "-").out
    )
    assert len(body["latencies"]) == 1  # type: ignore[arg-type]
    assert body["providers"] == [], "it is not held against itself"
    run("--provider", "abacus").refused("'abacus'", "cpu")


def test_models_of_other_interfaces_are_refused(onnxq: Command, case: Case, tmp_path: Path) -> None:
    other = classifier()
    for node in other.graph.node:
        node.output[:] = ["z" if name == "y" else name for name in node.output]
    other.graph.output[0].name = "z"
    path = tmp_path / "other.onnx"
    onnx.save(other, path)
    found = onnxq("compare", case.model, path, "--data", case.data)
    found.refused("other.onnx", "outputs", "z float32 [N, 5]")


def test_a_model_compared_with_itself(onnxq: Command, case: Case) -> None:
    arguments = ("compare", case.model, case.model, "--data", case.data)
    found = onnxq(*arguments, "--gate", "max_abs==0", "--gate", "drop==0", "--gate", "sqnr>=1e9")
    assert found.code == 0
    assert "exact" in found.out
    body = strict_json(onnxq(*arguments, "--json", "-").out)
    assert body["outputs"][0]["sqnr_db"] == "inf"  # type: ignore[index]
