"""``onnxq targets``, and ``onnxq optimize`` for a target whose provider is not here."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest

from onnxq.runtime import available_providers, missing_provider
from onnxq.targets import available_targets, load_target
from onnxq.verify import Report
from tests.cli.conftest import Command
from tests.cli.models import Case

pytestmark = pytest.mark.skipif(
    "QNNExecutionProvider" in available_providers(), reason="QNN is here"
)


def test_the_list_names_every_target(onnxq: Command) -> None:
    found = onnxq("targets")
    assert (found.code, found.err) == (0, "")
    lines = found.out.splitlines()
    assert lines[0].split() == ["target", "activations", "weights", "provider", "measured"]
    rows = {line.split()[0]: line for line in lines[1:-2] if not line.startswith(" ")}
    assert set(rows) == set(available_targets())
    assert rows["tensorrt"].split()[1:7] == ["int8", "int8", "tensorrt,", "not", "here", "no"]
    assert rows["cpu-x64"].split()[1:5] == ["uint8", "int8", "cpu", "yes"]
    assert rows["cuda"].split()[1:4] == ["float", "int4,", "int3,"]
    assert lines[-1] == f"auto is {load_target('auto').name} on this machine."


@pytest.mark.parametrize("name", available_targets())
def test_a_name_shows_the_whole_table(onnxq: Command, name: str) -> None:
    found = onnxq("targets", name)
    assert (found.code, found.err) == (0, "")
    target = load_target(name)
    shown = {line.split()[0]: line for line in found.out.splitlines() if line}
    assert target.description in " ".join(found.out.split())
    for op_type, rule in target.operators.items():
        assert shown[op_type].split()[1] == rule.role
    for op_type in set(target.reasons) - set(target.operators):
        assert shown[op_type].split()[1] == "float"


def test_a_name_shows_what_is_special(onnxq: Command) -> None:
    tensorrt = onnxq("targets", "tensorrt").out
    assert "int8 absmax, narrow range, one scale for each output channel" in tensorrt
    assert "biases       float" in tensorrt
    assert "package onnxruntime-gpu" in " ".join(tensorrt.split())
    qnn = " ".join(onnxq("targets", "qnn").out.split())
    assert "every operator that has a rule, wherever it stands" in qnn
    assert "one scale for the weight; also of two activations" in qnn
    assert "reduced range" in onnxq("targets", "cpu-x64-avx2").out
    assert "it has no integer kernels" in onnxq("targets", "cuda").out
    assert "not run where it is for" in onnxq("targets", "coreml").out
    assert "measured     onnxruntime-openvino 1.24.1" in onnxq("targets", "openvino").out


def test_json(onnxq: Command, tmp_path: Path) -> None:
    path = tmp_path / "targets.json"
    assert onnxq("targets", "--json", path, "-q").out == ""
    body = json.loads(path.read_text())
    assert body["schema"] == "onnxq/targets/1"
    facts = {target["name"]: target for target in body["targets"]}
    assert tuple(facts) == available_targets()
    assert facts["cpu-x64"]["available"] and not facts["qnn"]["available"]
    assert facts["tensorrt"]["operators"]["Add"]["role"] == "residual"
    assert facts["qnn-a16"]["activations"]["format"] == "uint16"
    assert facts["tensorrt"]["bias"] == "float"
    assert facts["openvino"]["measured"] and not facts["directml"]["measured"]
    one = json.loads(onnxq("targets", "qnn", "--json", "-").out)
    assert one["targets"] == [facts["qnn"]]


def test_a_file_is_shown_and_checked(onnxq: Command, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('extends = "qnn"\ndescription = "mine"\nfinish = "keep-float-weights"\n')
    found = onnxq("targets", path)
    assert found.code == 0
    shown = " ".join(found.out.split())
    assert "mine.toml: mine" in shown and "keep-float-weights, when all integers are in" in shown
    (facts,) = json.loads(onnxq("targets", path, "--json", "-").out)["targets"]
    qnn = json.loads(onnxq("targets", "qnn", "--json", "-").out)["targets"][0]
    own = {"name": str(path), "description": "mine", "finish": "keep-float-weights"}
    assert facts == {**qnn, **own, "digest": facts["digest"]} != qnn
    for line, part in (
        ("passes = 'fuse-everything'", "fuse-everything"),
        ("finish = 'keep'", "keep"),
        ("backend = 'abacus'", "there is no backend 'abacus'; available: onnx.reference"),
        ("precisions = 'int8'", "entry 'precisions'"),
    ):
        path.write_text(f'extends = "qnn"\n{line}\n')
        onnxq("targets", path).refused(part)


def test_an_unknown_target(onnxq: Command) -> None:
    onnxq("targets", "tpu").refused("no target 'tpu'", "available: auto, coreml")


@pytest.mark.parametrize("target", ["qnn", "tensorrt", "openvino"])
def test_a_model_for_a_device_that_is_not_here(
    onnxq: Command, case: Case, tmp_path: Path, target: str
) -> None:
    if not missing_provider(load_target(target).provider):
        pytest.skip("the device is here")
    out, path = tmp_path / "out.onnx", tmp_path / "r.json"
    found = onnxq(
        "optimize", case.model, "--data", case.data, "-o", out, "--recipe", "int8",
        "--target", target, "--json", path,
    )  # fmt: skip
    assert (found.code, found.err) == (0, "")
    assert f"Latency on target {target} was not measured" in " ".join(found.out.split())
    onnx.checker.check_model(out, full_check=True)
    report = Report.from_json(path.read_text())
    assert report.latency is None and not report.latencies
    assert report.metric is not None and report.metric.samples
    assert [gate.expr for gate in report.gates] == ["drop<=0.01"]
    assert report.notes[0].startswith("Verified on the CPU provider.")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--recipe", "mixed", "--target", "qnn"), ("onnxruntime-qnn", "--cost flops", "as int8")),
        (
            ("--recipe", "int8", "--target", "qnn", "--min-speedup", "1.5"),
            ("smallest speedup", "leave --min-speedup away"),
        ),
        (
            ("--recipe", "int8", "--target", "cuda"),
            ("target cuda has no integer kernels", "float16 or int4-weight"),
        ),
    ],
)
def test_what_cannot_be_done_without_the_device(
    onnxq: Command, case: Case, tmp_path: Path, arguments: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    out = tmp_path / "out.onnx"
    found = onnxq("optimize", case.model, "--data", case.data, "-o", out, *arguments)
    found.refused(*parts)
    assert not out.exists()


def test_providers_are_told_their_options(
    onnxq: Command, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = ("optimize", case.model, "--data", case.data, "-o", tmp_path / "out.onnx")
    onnxq(*made, "--provider-option", "a=b").refused("the CPU provider takes no options")
    openvino = (*made, "--target", "openvino", "--provider-option")
    onnxq(*openvino, "a").refused("provider option 'a'; write KEY=VALUE")
    bench = ("bench", case.model, "--seconds", "0.01", "--provider-option", "a=b")
    onnxq(*bench).refused("the CPU provider takes no options")
    asked: list[tuple[str, dict[str, str]]] = []

    def session(*_: object, providers: list[tuple[str, dict[str, str]]], **__: object) -> None:
        asked.extend(providers)
        raise RuntimeError("no such option")

    monkeypatch.setattr(ort, "get_available_providers", lambda: ["OpenVINOExecutionProvider"])
    monkeypatch.setattr(ort, "InferenceSession", session)
    onnxq(*openvino, "a=b").refused("provider 'openvino{a=b}' does not take its options")
    onnxq(*bench, "--provider", "openvino").refused("no such option")
    told = {"num_of_threads": "1", "a": "b"}
    assert asked == [("OpenVINOExecutionProvider", told)] * 2


def test_a_plan_for_a_device_needs_costs_that_can_be_had(
    onnxq: Command, case: Case, tmp_path: Path
) -> None:
    out = tmp_path / "plan.toml"
    arguments = ("plan", case.model, "--data", case.data, "--target", "tensorrt", "-o", out)
    onnxq(*arguments).refused("latency of target tensorrt", "`--cost flops`", "onnxruntime-gpu")
    found = onnxq(*arguments, "--cost", "size")
    assert (found.code, found.err) == (0, "")
    made = tmp_path / "out.onnx"
    assert onnxq("apply", case.model, out, "-o", made).code == 0
    onnx.checker.check_model(made, full_check=True)


def test_a_model_for_a_target_of_the_users_own(onnxq: Command, case: Case, tmp_path: Path) -> None:
    made = []
    for number, text in enumerate(("", 'without = ["Gemm", "MatMul"]')):
        folder = tmp_path / str(number)
        folder.mkdir()
        table, out = folder / "mine.toml", folder / "out.onnx"
        table.write_text(f'extends = "cpu-x64"\n{text}\n')
        found = onnxq(
            "optimize", case.model, "--data", case.data, "-o", out, "--recipe", "int8",
            "--target", table, "--min-speedup", "0",
        )  # fmt: skip
        assert (found.code, found.err) == (0, "")
        made.append(onnx.load(out))
    kinds = [[node.op_type for node in model.graph.node] for model in made]
    assert kinds[0].count("DequantizeLinear") > kinds[1].count("DequantizeLinear") > 0
    notes = [{p.key: p.value for p in model.metadata_props} for model in made]
    assert [n["onnxq.target"] for n in notes] == ["mine.toml"] * 2
    assert "target mine.toml does not quantize" in notes[1]["onnxq.left_in_float"]
    assert str(tmp_path) not in str(notes), "models tell nothing of the machine"
