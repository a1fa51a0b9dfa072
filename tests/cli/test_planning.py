"""The commands `sensitivity`, `cost`, `plan` and `apply`, and the search of `optimize`."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import onnx
import pytest

from onnxq.cost import Costs
from onnxq.plan import Plan
from onnxq.sensitivity import Sensitivity
from tests.cli.conftest import Command, Outcome
from tests.cli.models import Case
from tests.cli.test_optimize import check_report, strict_json
from tests.networks import computed

__all__ = ["computed"]

NODES = ("first", "second", "head")


@pytest.fixture
def run(onnxq: Command, case: Case):  # type: ignore[no-untyped-def]
    """A command on the small classifier and its data."""

    def run(name: str, *arguments: str | Path) -> Outcome:
        return onnxq(name, case.model, "--data", case.data, *arguments)

    return run


# sensitivity


def test_sensitivity_prints_the_ranking(run, tmp_path: Path) -> None:
    found = run("sensitivity", "-o", tmp_path / "s.json", "--precision", "int8")
    assert (found.code, found.err) == (0, "")
    lines = found.out.splitlines()
    assert lines[0].split() == [
        "node",
        "operator",
        "weights",
        "only",
        "activations",
        "only",
        "int8",
    ]
    rows = [line.split() for line in lines[1:] if line.startswith(NODES)]
    totals = [float(row[-2]) for row in rows]
    assert {row[0] for row in rows} == set(NODES) and totals == sorted(totals)
    weights, activations, total = (float(rows[0][at]) for at in (2, 4, 6))
    assert total == pytest.approx(
        -10 * math.log10(10 ** (-weights / 10) + 10 ** (-activations / 10)), abs=0.2
    )
    assert lines[-1] == f"Wrote '{tmp_path}/s.json'."
    saved = Sensitivity.load(tmp_path / "s.json")
    assert [name for name, _ in saved.ranking("int8")][: len(rows)] == [row[0] for row in rows]


def test_sensitivity_as_json_and_as_a_page(run, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "report"
    found = run("sensitivity", "--json", "-", "--report", folder, "--proxy", "kl", "--samples", "8")
    assert (found.code, found.err) == (0, "")
    body = strict_json(found.out)
    assert (body["schema"], body["proxy"], body["output"]) == ("onnxq/sensitivity/2", "kl", None)
    assert {node["node"] for node in body["nodes"]} >= set(NODES)  # type: ignore[attr-defined]
    page = (folder / "sensitivity.html").read_text()
    assert "<svg" in page and all(f">{name}<" in page for name in NODES)
    assert [p.name for p in folder.iterdir()] == ["sensitivity.html"]


def test_sensitivity_one_node_at_a_time(run) -> None:
    found = run("sensitivity", "--method", "exhaustive", "--precision", "int8", "--samples", "6")
    assert found.code == 0
    assert "exhaustive, 6 samples" in found.out


# cost


@pytest.mark.parametrize("kind", ["latency", "size", "flops"])
def test_cost_writes_a_table(onnxq: Command, case: Case, tmp_path: Path, kind: str) -> None:
    found = onnxq("cost", case.model, "--cost", kind, "-o", tmp_path / "c.json")
    assert (found.code, found.err) == (0, "")
    table = Costs.load(tmp_path / "c.json")
    assert table.kind == kind and set(NODES) <= set(table.nodes)
    assert found.out.splitlines()[-1] == f"Wrote '{tmp_path}/c.json'."
    assert any(line.startswith("head") for line in found.out.splitlines())


# plan


def test_plan_and_apply(run, onnxq: Command, case: Case, tmp_path: Path) -> None:
    plan, out = tmp_path / "p.toml", tmp_path / "q.onnx"
    found = run("plan", "-o", plan, "--cost", "size", "--pin", "sec*=float32")
    assert (found.code, found.err) == (0, "")
    assert "pinned by hand" in found.out and found.out.splitlines()[-1] == f"Wrote '{plan}'."
    assert Plan.load(plan).precisions()["second"] == "float32"
    found = onnxq("apply", case.model, plan, "-o", out, "--json", tmp_path / "a.json")
    assert (found.code, found.err) == (0, "")
    onnx.checker.check_model(str(out), full_check=True)
    body = strict_json((tmp_path / "a.json").read_text())
    assert body["pinned_by_hand"] == ["second"]
    found = onnxq("inspect", out, "--nodes")
    (line,) = (line for line in found.out.splitlines() if line.startswith("second"))
    assert line.split() == ["second", "Conv", "float32", "pinned", "by", "hand"]
    (line,) = (line for line in found.out.splitlines() if line.startswith("first"))
    assert line.split()[2] == "int8" and "of the bytes" in line


def test_every_node_of_an_applied_plan_says_why(
    run, onnxq: Command, case: Case, tmp_path: Path
) -> None:
    plan, out = tmp_path / "p.toml", tmp_path / "q.onnx"
    assert run("plan", "-o", plan, "--cost", "size", "--pin", "*=int8", "-q").code == 0
    assert onnxq("apply", case.model, plan, "-o", out, "-q").code == 0
    assert onnxq("inspect", out, "-q", "--json", tmp_path / "i.json").code == 0
    nodes = {n["node"]: n for n in json.loads((tmp_path / "i.json").read_text())["nodes"]}
    assert nodes["relu"]["precision"] == "int8"
    assert nodes["relu"]["reason"] == "has the precision of what it clips"
    assert all(node["reason"] for node in nodes.values())


def test_plan_from_a_table_of_costs(run, tmp_path: Path) -> None:
    assert run("cost", "-o", tmp_path / "c.json", "--cost", "flops", "-q").code == 0
    found = run("plan", "-o", tmp_path / "p.toml", "--cost-table", tmp_path / "c.json")
    assert found.code == 0 and "predicted flops" in found.out
    plan = Plan.load(tmp_path / "p.toml")
    assert plan.cost_kind == "flops"
    reasons = [node.reason for node in plan.nodes if node.precision == "int8" and node.float_cost]
    assert reasons and all("1/4 of the operations" in reason for reason in reasons)
    again = ("plan", "-o", tmp_path / "q.toml", "--cost-table", tmp_path / "c.json")
    assert run(*again, "--cost", "flops", "-q").code == 0
    run(*again, "--cost", "size").refused("c.json", "kind 'flops'", "--cost size")


def test_a_table_of_costs_that_lacks_a_precision(run, tmp_path: Path) -> None:
    table = ("cost", "-o", tmp_path / "c.json", "--cost", "flops", "--precision", "int8-weight")
    assert run(*table, "-q").code == 0
    found = run("plan", "-o", tmp_path / "p.toml", "--cost-table", tmp_path / "c.json")
    found.refused("'int8'", "`onnxq cost`")
    assert not (tmp_path / "p.toml").exists()


def test_plan_prints_the_front(run, tmp_path: Path) -> None:
    found = run("plan", "--pareto", "--cost", "size", "--json", tmp_path / "f.json")
    assert (found.code, found.err) == (0, "")
    lines = found.out.splitlines()
    points = strict_json((tmp_path / "f.json").read_text())["points"]
    assert len(lines) - 1 == len(points) > 2  # type: ignore[arg-type]
    assert lines[0].startswith("size") and "exact" in lines[-1] and "float32" in lines[-1]


def test_plans_compared(run, onnxq: Command, tmp_path: Path) -> None:
    one, other = tmp_path / "one.toml", tmp_path / "other.toml"
    for path, pin in ((one, "head=float32"), (other, "head=int8")):
        assert run("plan", "-o", path, "--cost", "size", "--pin", pin, "-q").code == 0
    found = onnxq("plan", "--diff", one, one)
    assert (found.code, found.out, found.err) == (0, "The plans are equal.\n", "")
    found = onnxq("plan", "--diff", one, other, "--json", tmp_path / "d.json")
    assert (found.code, found.err) == (1, "")
    assert any(line.split() == ["head", "float32", "int8"] for line in found.out.splitlines())
    differences = json.loads((tmp_path / "d.json").read_text())["differences"]
    assert {"what": "head", "first": "float32", "second": "int8"} in differences


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ((), ("-o", "--pareto")),
        (("-o", "p.toml", "--pareto"), ("-o", "--pareto")),
        (("--pareto", "--budget", "1"), ("--pareto", "leave the limit out")),
        (("-o", "p.toml", "--budget", "1", "--min-sqnr", "3"), ("--min-sqnr", "--budget")),
        (("-o", "p.toml", "--budget", "-1", "--cost", "size"), ("-1",)),
        (("-o", "p.toml", "--max-bytes", "9", "--cost", "size"), ("weight_bytes<=9", "least cost")),
        (("-o", "p.toml", "--max-bytes", "9"), ("kind 'size'",)),
        (("-o", "p.toml", "--max-latency", "0"), ("'0'",)),
        (("-o", "p.toml", "--pin", "head"), ("'head'", "PATTERN=PRECISION")),
        (("-o", "p.toml", "--pin", "tail=int8", "--cost", "size"), ("'tail'", "no node")),
        (("-o", "p.toml", "--precision", "int7"), ("'int7'", "int8")),
        (("-o", "p.toml", "--cost-table", "none.json"), ("none.json",)),
        (("-o", "p.toml", "--cost", "beauty"), ("beauty",)),
        (("-o", "no/such/p.toml"), ("no/such",)),
    ],
)
def test_plans_that_cannot_be_made(
    run,
    arguments: tuple[str, ...],
    parts: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    run("plan", *arguments).refused(*parts)
    assert not list(tmp_path.iterdir())


def test_other_uses_of_plan_that_make_no_sense(onnxq: Command, case: Case, tmp_path: Path) -> None:
    onnxq("plan", case.model, "-o", tmp_path / "p.toml").refused("--data", "--diff")
    onnxq("plan", case.model, "--diff", "a", "b").refused("--diff", "nothing else")
    onnxq("plan", "--diff", tmp_path / "a", tmp_path / "b").refused("a", "No such file")


# apply


def test_apply_refuses(run, onnxq: Command, case: Case, tmp_path: Path) -> None:
    plan, out = tmp_path / "p.toml", tmp_path / "q.onnx"
    assert run("plan", "-o", plan, "--cost", "size", "-q").code == 0
    text = plan.read_text()
    other = onnx.load(case.model)
    other.producer_name = "somebody else"
    onnx.save(other, tmp_path / "other.onnx")
    onnxq("apply", tmp_path / "other.onnx", plan, "-o", out).refused("another model")
    onnxq("apply", case.model, tmp_path / "none.toml", "-o", out).refused("none.toml")
    plan.write_text(text.replace('precision = "int8"', 'precision = "int7"', 1))
    onnxq("apply", case.model, plan, "-o", out).refused("'int7'")
    plan.write_text(text.replace('name = "second"', 'name = "third"'))
    onnxq("apply", case.model, plan, "-o", out).refused("'third'")
    plan.write_text("colour = 3\n" + text)
    onnxq("apply", case.model, plan, "-o", out).refused("'colour'")
    assert not out.exists()


# optimize


@pytest.mark.usefixtures("computed")
def test_optimize_writes_the_plan_of_the_model(
    run, onnxq: Command, case: Case, tmp_path: Path
) -> None:
    out, plan = tmp_path / "q.onnx", tmp_path / "p.toml"
    work = tmp_path / "work"
    found = run(
        "optimize",
        "-o",
        out,
        "--plan-out",
        plan,
        "--work-dir",
        work,
        "--report",
        tmp_path / "r",
        "--json",
        tmp_path / "r.json",
        "--pin",
        "head=int8-dynamic",
        "--min-speedup",
        "0",
    )
    assert (found.code, found.err) == (0, "")
    assert found.out.splitlines()[-1].startswith(f"Wrote '{out}'. The plan is in '{plan}'.")
    assert any(line.startswith("candidates") for line in found.out.splitlines())
    assert "certain only up to" in found.out and "held-out samples would prove" in found.out
    body = strict_json((tmp_path / "r.json").read_text())
    check_report(body)
    assert body["candidates"] and body["notes"]
    layers = {layer["node"]: layer for layer in body["layers"]}  # type: ignore[attr-defined]
    assert layers["head"]["reason"] == "pinned by hand"
    assert layers["first"]["reason"] and layers["first"]["sensitivity"] > 0
    assert "Candidates</h2>" in (tmp_path / "r" / "report.html").read_text()
    again = tmp_path / "again.onnx"
    assert onnxq("apply", case.model, plan, "-o", again, "-q").code == 0
    assert again.read_bytes() == out.read_bytes()
    assert {p.name.split("-")[0] for p in work.iterdir()} >= {"ranges", "sensitivity"}


@pytest.mark.usefixtures("computed")
@pytest.mark.parametrize("promise", [("--min-speedup", "50"), ("--max-size-ratio", "0.001")])
def test_optimize_reports_what_an_impossible_promise_lacks(
    run, tmp_path: Path, promise: tuple[str, str]
) -> None:
    plan = tmp_path / "p.toml"
    found = run("optimize", "-o", tmp_path / "q.onnx", "--plan-out", plan, *promise)
    assert (found.code, found.err) == (1, "")
    assert "FAILED" in found.out and "candidates" in found.out
    assert "The plan is in" not in found.out
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("computed")
def test_optimize_may_lose_nothing(run, tmp_path: Path) -> None:
    found = run("optimize", "-o", tmp_path / "q.onnx", "--max-drop", "0")
    assert (found.code, found.err) == (0, "")
    onnx.checker.check_model(str(tmp_path / "q.onnx"), full_check=True)


PLACES = {
    "ranges": "onnxq.prepare.calibrate",
    "sensitivity": "onnxq.study.analyse",
    "costs": "onnxq.study.measure_costs",
}
"""The stages that a search can be interrupted in, in their order."""


@pytest.mark.usefixtures("computed")
@pytest.mark.parametrize("place", list(PLACES))
def test_an_interrupted_search_goes_on_where_it_was(
    run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    arguments = ("-o", tmp_path / "q.onnx", "--plan-out", tmp_path / "p.toml")
    arguments += ("--work-dir", tmp_path / "work", "--min-speedup", "0")  # type: ignore[assignment]
    with monkeypatch.context() as patch:
        patch.setattr(PLACES[place], interrupted)
        found = run("optimize", *arguments)
        assert (found.code, found.out, found.err) == (130, "", "onnxq: error: interrupted\n")
    assert {p.name for p in tmp_path.iterdir()} <= {"work"}
    for done in itertools.takewhile(lambda stage: stage != place, PLACES):
        monkeypatch.setattr(PLACES[done], interrupted)
    assert run("optimize", *arguments).code == 0


@pytest.mark.usefixtures("computed")
def test_debug_prints_the_passes_of_the_search(
    run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ONNXQ_DEBUG", "1")
    found = run("optimize", "-o", tmp_path / "q.onnx", "--min-speedup", "0", "-q")
    assert (found.code, found.out) == (0, "")
    lines = found.err.splitlines()
    assert any(line.strip().startswith("insert-qdq") for line in lines)
    assert any(line.startswith("plan with borders x1:") for line in lines)


def test_tensors_beside_a_plan(run, onnxq: Command, case: Case, tmp_path: Path) -> None:
    plan, beside, out = (tmp_path / name for name in ("p.toml", "p.safetensors", "q.onnx"))
    made = ("plan", "--recipe", "int4-weight", "-o", plan, "--methods")
    assert run(*made, "none", "-q").code == 0
    assert not beside.exists() and "method" not in plan.read_text()
    assert onnxq("apply", case.model, plan, "-o", out, "-q").code == 0
    plain = out.read_bytes()
    found = run(*made, "mse")
    assert (found.code, found.err) == (0, "") and 'method = "mse"' in plan.read_text()
    assert onnxq("apply", case.model, plan, "-o", out, "-q").code == 0
    assert out.read_bytes() != plain
    out.unlink()
    tensors = beside.read_bytes()
    beside.write_bytes(tensors[:-1] + bytes([tensors[-1] ^ 1]))
    onnxq("apply", case.model, plan, "-o", out).refused("p.safetensors", "is not the file")
    beside.unlink()
    onnxq("apply", case.model, plan, "-o", out).refused("p.safetensors", "No such file")
    assert not out.exists()
    run(*made, "magic").refused("no method 'magic'", "mse")


def test_optimize_refuses_what_cannot_be_done(run, tmp_path: Path) -> None:
    out = ("-o", tmp_path / "q.onnx")
    run("optimize", *out, "--pin", "head").refused("PATTERN=PRECISION")
    run("optimize", *out, "--max-size-ratio", "0").refused("size ratio of 0")
    run("optimize", *out, "--work-dir", Path(__file__) / "folder").refused("work folder")
    assert not list(tmp_path.iterdir())
