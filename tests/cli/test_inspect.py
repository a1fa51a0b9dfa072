"""``onnxq inspect``."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import helper

from tests.cli.conftest import Command
from tests.cli.models import Case
from tests.cli.test_optimize import strict_json


def rows(out: str) -> dict[str, str]:
    return {line[:14].strip(): " ".join(line[14:].split()) for line in out.splitlines()}


def test_a_float_model(onnxq: Command, case: Case) -> None:
    found = onnxq("inspect", case.model)
    assert (found.code, found.err) == (0, "")
    shown = " ".join(found.out.split())
    for fact in (
        "IR version 8, opset ai.onnx 17",
        "made by tests",
        "inputs x float[N, 2, 6, 6]",
        "outputs y float[N, 5]",
        "operators 6 Conv 2, BatchNormalization 1, Flatten 1, Gemm 1, Relu 1",
        "parameters 2,189 float32 8.76 kB in 7 tensors",
        "precision float32 6 operators",
    ):
        assert fact in shown
    assert "left in float" not in shown


def test_functions_are_counted(onnxq: Command, tmp_path: Path) -> None:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    values = [helper.make_tensor_value_info(name, 1, ["N"]) for name in "xy"]
    nodes = [helper.make_node("F", ["x"], ["y"], domain="mine")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:])
    proto = helper.make_model(graph, ir_version=8, opset_imports=opsets)
    body = [helper.make_node("Relu", ["p"], ["q"])]
    proto.functions.append(helper.make_function("mine", "F", ["p"], ["q"], body, opsets[:1]))
    onnx.save(proto, tmp_path / "m.onnx")
    lines = [line.split() for line in onnxq("inspect", tmp_path / "m.onnx").out.splitlines()]
    assert ["operators", "1", "mine:F", "1"] in lines and ["functions", "1"] in lines


def test_every_node_of_a_quantized_model(onnxq: Command, case: Case) -> None:
    assert "second" not in onnxq("inspect", case.candidate).out
    found = onnxq("inspect", case.candidate, "--nodes")
    table = found.out.split("\n\n")[1].splitlines()
    assert table[0].split("  ")[0] == "node"
    nodes = {line.split()[0]: line.split()[1:] for line in table[1:]}
    assert nodes["first"][:2] == ["Conv", "int8"]
    assert nodes["head"][:2] == ["Gemm", "int8"]
    body = strict_json(onnxq("inspect", case.candidate, "--json", "-").out)
    assert set(nodes) == {n["node"] for n in body["nodes"]}  # type: ignore[attr-defined]


def test_json(onnxq: Command, case: Case, tmp_path: Path) -> None:
    path = tmp_path / "i.json"
    found = onnxq("inspect", case.candidate, "--json", path, "-q")
    assert (found.code, found.out, found.err) == (0, "", "")
    body = strict_json(path.read_text())
    assert body["schema"] == "onnxq/inspect/1"
    assert body["path"] == str(case.candidate)
    assert body["bytes"] == case.candidate.stat().st_size
    wanted = {"int8", "float32", "int32"}
    assert wanted <= {p["dtype"] for p in body["parameters"]}  # type: ignore[attr-defined]
    operators = body["operators"]
    assert isinstance(operators, dict)
    assert operators["Conv"] == 2 and operators["QuantizeLinear"] >= 3


@pytest.mark.parametrize("name", ["<script>", "a\nb", "\x1b[2J", "[red]x[/red]", ":smile:", "é"])
def test_names_are_shown_as_they_are(onnxq: Command, tmp_path: Path, name: str) -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", [name], ["out"], name)],
        "g",
        [helper.make_tensor_value_info(name, 1, ["N"])],
        [helper.make_tensor_value_info("out", 1, ["N"])],
    )
    opsets = [helper.make_opsetid("", 17)]
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=opsets), path)
    found = onnxq("inspect", path, "--nodes")
    assert found.code == 0
    shown = name.replace("\n", "\\n").replace("\x1b", "\\x1b")
    assert found.out.count(shown) == 2, "once as input, once as node"
    assert "\x1b" not in found.out


def test_a_reason_to_stay_in_float_is_shown(onnxq: Command, case: Case) -> None:
    body = strict_json(onnxq("inspect", case.candidate, "--json", "-").out)
    reasons = {n["reason"] for n in body["nodes"]} - {""}  # type: ignore[attr-defined]
    shown = onnxq("inspect", case.candidate).out
    assert ("left in float" in shown) == bool(reasons)
    for reason in reasons:
        assert reason in " ".join(shown.split())
