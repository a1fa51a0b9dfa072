"""``onnxq rewrite``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import pytest

from onnxq.ir import Context, Graph, Pass, Tensor, available_passes
from onnxq.runtime import Session
from tests.cli.conftest import Command
from tests.cli.models import Case, classifier, images
from tests.cli.test_optimize import strict_json


def outputs(path: Path) -> np.ndarray:
    return Session(path, optimization="none").run({"x": images(4)})["y"]


def test_the_default_pipeline(onnxq: Command, case: Case, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    found = onnxq("rewrite", case.model, "-o", out)
    assert (found.code, found.err) == (0, "")
    operators = [node.op_type for node in onnx.load(out).graph.node]
    assert "BatchNormalization" not in operators and operators.count("Conv") == 2
    np.testing.assert_allclose(outputs(out), outputs(case.model), rtol=1e-5, atol=1e-5)
    row = next(line for line in found.out.splitlines() if line.startswith("fuse-batch-norm"))
    assert row.split()[1] == "1"
    assert found.out.splitlines()[-1] == f"Wrote '{out}'."
    assert list(tmp_path.iterdir()) == [out]


def test_only_the_passes_that_are_named(onnxq: Command, case: Case, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    arguments = ("-p", "fold-constants{limit=1024},eliminate-dead", "--json", "-")
    body = strict_json(onnxq("rewrite", case.model, "-o", out, *arguments).out)
    assert (body["schema"], body["model"]) == ("onnxq/rewrite/1", str(case.model))
    assert body["output"] == str(out)
    assert [p["name"] for p in body["passes"]] == [  # type: ignore[attr-defined]
        "fold-constants",
        "eliminate-dead",
    ]
    keys = {"name", "rewrites", "seconds", "nodes_before", "nodes_after"}
    assert all(set(p) == keys for p in body["passes"])  # type: ignore[attr-defined]
    assert [n.op_type for n in onnx.load(out).graph.node] == [
        n.op_type for n in onnx.load(case.model).graph.node
    ]


def test_json_file_and_quiet(onnxq: Command, case: Case, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    found = onnxq("rewrite", case.model, "-o", tmp_path / "o.onnx", "--json", path, "-q")
    assert (found.code, found.out, found.err) == (0, "", "")
    assert strict_json(path.read_text())["schema"] == "onnxq/rewrite/1"


@pytest.mark.parametrize(
    ("passes", "part"),
    [
        ("fold-everything", "'fold-everything'"),
        ("fold-constants{size=3}", "'size'"),
        ("fold-constants{limit=much}", "'much'"),
        ("fold constants", "'fold constants'"),
        ("", "no pass is named"),
    ],
)
def test_passes_that_cannot_be_read(
    onnxq: Command, case: Case, tmp_path: Path, passes: str, part: str
) -> None:
    for more in ((), ("--bisect-passes",)):
        arguments = ("-o", tmp_path / "o.onnx", "-p", passes, *more)
        onnxq("rewrite", case.model, *arguments).refused(part)
    assert not list(tmp_path.iterdir())


def test_a_pass_that_approximates_needs_a_promise(
    onnxq: Command, case: Case, tmp_path: Path
) -> None:
    found = onnxq("rewrite", case.model, "-o", tmp_path / "o.onnx", "-p", "insert-qdq")
    found.refused("'insert-qdq'", "onnxq optimize")
    assert not list(tmp_path.iterdir())


def test_model_and_output_have_to_be_named(onnxq: Command, case: Case, tmp_path: Path) -> None:
    onnxq("rewrite").refused("MODEL", "--list")
    onnxq("rewrite", case.model).refused("-o OUT")
    onnxq("rewrite", case.model, "--list").refused("--list", "MODEL")
    onnxq("rewrite", "-o", tmp_path / "o.onnx").refused("MODEL")
    onnxq("rewrite", case.model, "-o", tmp_path).refused("is a folder")
    onnxq("rewrite", case.model, "-o", tmp_path / "a" / "o").refused("does not exist")
    assert not list(tmp_path.iterdir())


def test_the_input_can_be_replaced(onnxq: Command, case: Case, tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(case.model.read_bytes())
    assert onnxq("rewrite", model, "-o", model, "-q").code == 0
    assert len(onnx.load(model).graph.node) < len(onnx.load(case.model).graph.node)
    np.testing.assert_allclose(outputs(model), outputs(case.model), rtol=1e-5, atol=1e-5)
    assert list(tmp_path.iterdir()) == [model]


def test_the_input_and_its_external_data_can_be_replaced(
    onnxq: Command, case: Case, tmp_path: Path
) -> None:
    model = tmp_path / "m.onnx"
    options = {"save_as_external_data": True, "location": "m.onnx.data", "size_threshold": 0}
    onnx.save(classifier(), model, **options)
    assert onnxq("rewrite", model, "-o", model, "--external-data", "-q").code == 0
    np.testing.assert_allclose(outputs(model), outputs(case.model), rtol=1e-5, atol=1e-5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]


def test_external_data(onnxq: Command, case: Case, tmp_path: Path) -> None:
    out = tmp_path / "o.onnx"
    assert onnxq("rewrite", case.model, "-o", out, "--external-data", "-q").code == 0
    weights = onnx.load(out, load_external_data=False).graph.initializer
    external = [w.name for w in weights if w.data_location == onnx.TensorProto.EXTERNAL]
    assert "w2" in external
    np.testing.assert_allclose(outputs(out), outputs(case.model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("level", [1, 2, 3])
def test_debug_levels(
    onnxq: Command, case: Case, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, level: int
) -> None:
    monkeypatch.setenv("ONNXQ_DEBUG", str(level))
    found = onnxq("rewrite", case.model, "-o", tmp_path / "o.onnx", "-q", "-p", "fuse-batch-norm")
    assert (found.code, found.out) == (0, "")
    lines = found.err.splitlines()
    # Once with a rewrite, once without: the pipeline then stops.
    of_passes = [line for line in lines if line.startswith("  fuse-batch-norm: ")]
    assert [line.split()[1] for line in of_passes] == ["1", "0"]
    assert any(line.startswith("    ") and "norm" in line for line in lines) == (level >= 2)
    assert any("= Gemm" in line for line in lines) == (level >= 3)
    if level == 1:
        assert lines == of_passes


def test_the_list_has_every_pass(onnxq: Command) -> None:
    body = strict_json(onnxq("rewrite", "--list", "--json", "-").out)
    assert body["schema"] == "onnxq/passes/1"
    listed = {entry["name"]: entry for entry in body["passes"]}  # type: ignore[attr-defined]
    assert set(listed) == set(available_passes())
    shown = onnxq("rewrite", "--list")
    assert shown.code == 0
    for name, kind in available_passes().items():
        entry = listed[name]
        assert entry["default"] == kind.default and entry["numerics"] == kind.numerics
        assert entry["options"] == [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
        assert entry["what"] and "`" not in entry["what"]
        row = next(line for line in shown.out.splitlines() if line.startswith(f"{name} "))
        assert ("yes" in row.split()) == kind.default
        assert entry["what"].split()[0] in row


@dataclass(frozen=True)
class Double(Pass):
    """Double the first bias, which is wrong."""

    name: ClassVar[str] = "double"

    def run(self, graph: Graph, ctx: Context) -> int:
        bias = graph.values["b0"]
        bias.data = Tensor(bias.numpy() * 2)
        return 1


@dataclass(frozen=True)
class Swap(Pass):
    """Feed the head a tensor of another shape: valid as a graph, no model for onnxruntime."""

    name: ClassVar[str] = "swap"

    def run(self, graph: Graph, ctx: Context) -> int:
        (head,) = (node for node in graph.nodes() if node.name == "head")
        head.set_input(1, graph.values["w0"])
        return 1


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {**available_passes(), "double": Double, "swap": Swap}
    monkeypatch.setattr("onnxq.ir.passes.available_passes", lambda: known)


def test_bisecting_correct_passes(onnxq: Command, case: Case) -> None:
    found = onnxq("rewrite", case.model, "--bisect-passes")
    assert (found.code, found.err) == (0, "")
    assert found.out.splitlines()[-1] == "No pass changes the outputs."
    assert "fuse-batch-norm" in found.out


@pytest.mark.usefixtures("wrong")
def test_bisecting_finds_the_wrong_pass(onnxq: Command, case: Case, tmp_path: Path) -> None:
    passes = "fold-constants,fuse-batch-norm,double,eliminate-dead"
    arguments = ("rewrite", case.model, "--bisect-passes", "-p", passes, "-o", tmp_path / "o.onnx")
    found = onnxq(*arguments)
    assert (found.code, found.err) == (1, "")
    assert found.out.splitlines()[-1] == "The first pass that changes the outputs is double."
    assert "eliminate-dead" not in found.out
    assert not list(tmp_path.iterdir()), "bisecting writes nothing"
    body = strict_json(onnxq(*arguments, "--json", "-").out)
    assert (body["schema"], body["first_bad"]) == ("onnxq/bisect/1", "double")
    differences = {c["name"]: c["difference"] for c in body["checked"]}  # type: ignore[attr-defined]
    assert list(differences) == ["fold-constants", "fuse-batch-norm", "double"]
    assert differences["fold-constants"] == 0
    assert differences["fuse-batch-norm"] < 1e-5 < differences["double"]


@pytest.mark.usefixtures("wrong")
def test_bisecting_finds_the_pass_that_breaks_the_model(onnxq: Command, case: Case) -> None:
    arguments = ("rewrite", case.model, "--bisect-passes", "-p", "eliminate-dead,swap")
    found = onnxq(*arguments)
    assert (found.code, found.err) == (1, "")
    assert "onnxruntime cannot" in found.out
    assert found.out.splitlines()[-1].endswith("is swap.")
    body = strict_json(onnxq(*arguments, "--json", "-").out)
    assert body["checked"][-1]["difference"] == "inf"  # type: ignore[index]
    assert body["checked"][-1]["error"]  # type: ignore[index]


def test_bisecting_a_pass_that_drops_an_input_or_output(onnxq: Command, tmp_path: Path) -> None:
    model = classifier()
    model.graph.input.append(onnx.helper.make_tensor_value_info("idle", 1, ["N"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("f1", 1, ["N", 288]))
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    bisect = ("rewrite", path, "--bisect-passes", "-p")
    assert onnxq(*bisect, "remove-unused-interface").code == 0
    found = onnxq(*bisect, "remove-unused-interface{outputs=f1}")
    assert found.code == 1
    assert "the output 'f1' is gone" in found.out


def test_bisecting_a_missing_model(onnxq: Command, tmp_path: Path) -> None:
    onnxq("rewrite", tmp_path / "no.onnx", "--bisect-passes").refused("no.onnx")


@pytest.mark.usefixtures("wrong")
def test_a_pass_that_never_settles_is_a_defect_in_one_sentence(
    onnxq: Command, case: Case, tmp_path: Path
) -> None:
    found = onnxq("rewrite", case.model, "-o", tmp_path / "o.onnx", "-p", "double")
    assert (found.code, found.out) == (70, "")
    assert "double" in found.err and found.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_interrupt_while_writing_leaves_the_old_file(
    onnxq: Command, case: Case, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = tmp_path / "o.onnx"
    out.write_text("an older one")

    def interrupted(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    found = onnxq("rewrite", case.model, "-o", out)
    assert (found.code, found.out, found.err) == (130, "", "onnxq: error: interrupted\n")
    assert list(tmp_path.iterdir()) == [out]
    assert out.read_text() == "an older one"
