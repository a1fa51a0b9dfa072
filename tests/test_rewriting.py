"""Rewriting from Python, and finding the pass that changes a model's outputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from onnxq.errors import InputError
from onnxq.ir import Context, Graph, Pass, Tensor, default_passes, save, to_proto
from onnxq.rewriting import TOLERANCE, bisect_passes, rewrite
from tests.test_forms import Priced, of_operators, swishes

TEXT = """<ir_version: 8, opset_import: ["": 17]>
g (float[N, 3] x) => (float[N, 3] y)
<float[3] w = {1.0, 2.0, 3.0}>
{
  a = Identity(x)
  b = Mul(a, w)
  y = Relu(b)
}"""


@pytest.fixture
def graph() -> Graph:
    return Graph.from_text(TEXT)


@dataclass(frozen=True)
class Scale(Pass):
    """Multiply the weights by a factor."""

    name: ClassVar[str] = "scale"
    factor: float = 1.0

    def run(self, graph: Graph, ctx: Context) -> int:
        weights = graph.values["w"]
        weights.data = Tensor((weights.numpy() * np.float32(self.factor)).astype(np.float32))
        return 1


@dataclass(frozen=True)
class Forget(Pass):
    """Lose the weights' data, which leaves an invalid graph."""

    name: ClassVar[str] = "forget"

    def run(self, graph: Graph, ctx: Context) -> int:
        graph.values["w"].data = None
        return 1


@dataclass(frozen=True)
class Refuse(Pass):
    """Cannot be used."""

    name: ClassVar[str] = "refuse"

    def run(self, graph: Graph, ctx: Context) -> int:
        raise InputError("the option is wrong")


def test_every_form_of_a_model(graph: Graph, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    save(graph, path)
    proto = to_proto(graph)
    forms = (graph, proto, proto.SerializeToString(), path, str(path))
    texts = {rewrite(form, "eliminate-identity").graph.to_text() for form in forms}
    assert len(texts) == 1
    assert "Identity" not in texts.pop()
    assert "Identity" in graph.to_text(), "the graph given is left as it is"


def test_default_passes_and_records(graph: Graph) -> None:
    result = rewrite(graph)
    assert [r.name for r in result.records] == [p.name for p in default_passes()]
    (identity,) = (r for r in result.records if r.name == "eliminate-identity")
    assert (identity.rewrites, identity.nodes_before, identity.nodes_after) == (1, 3, 2)
    assert len(result.graph) == 2


def test_passes_as_objects(graph: Graph) -> None:
    result = rewrite(graph, (*default_passes()[:0],))
    assert result.records == () and len(result.graph) == 3
    assert bisect_passes(graph, [Scale(2.0)]).first_bad == "scale"


def test_the_opset_is_what_is_asked_for_or_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = swishes(13)
    assert rewrite(graph).graph.opset == 13, "without being asked for nothing is raised"
    raised = rewrite(graph, opset=15).graph
    assert raised.opset == 15 and {"HardSwish"} <= {n.op_type for n in raised.nodes()}
    assert rewrite(graph, opset=7).graph.opset == 13

    monkeypatch.setattr("onnxq.rewriting.Bench", Priced)
    result = rewrite(graph, opset="fastest")
    assert result.graph.opset == 14 and "opset 14 makes the model 1.67 times" in result.notes[0]
    monkeypatch.setattr(
        "onnxq.rewriting.Bench", lambda: Priced(price=of_operators({"HardSwish": 5}))
    )
    assert rewrite(graph, opset="fastest").graph.opset == 13
    result = rewrite(graph, "eliminate-identity", opset="fastest")
    assert (result.graph.opset, result.notes) == (13, ()), "no pass gains by a higher one"


def test_the_opset_stays_where_nothing_can_be_timed() -> None:
    text = swishes(13).to_text().replace("float[N,4] x)", "float[N,4] x, string[N] more)")
    graph = Graph.from_text(text)
    assert len(graph.inputs) == 2
    result = rewrite(graph, opset="fastest")
    assert result.graph.opset == 13
    why = "on random inputs: there are no random values for the input more string [N]."
    assert why in result.notes[0]


def test_debug_prints_to_standard_error(graph: Graph, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite(graph, "eliminate-identity", debug=1)
    assert capsys.readouterr().err.count("eliminate-identity: ") == 2


@pytest.mark.parametrize("function", [rewrite, bisect_passes])
def test_refusals(graph: Graph, function) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match="nowhere"):
        function("nowhere.onnx")
    with pytest.raises(InputError, match="fold-everything"):
        function(graph, "fold-everything")
    with pytest.raises(InputError, match="the option is wrong"):
        function(graph, [Refuse()])


def test_correct_passes_are_innocent(graph: Graph) -> None:
    result = bisect_passes(graph)
    assert result.first_bad is None
    assert [c.name for c in result.checked] == [p.name for p in default_passes()]
    assert {c.difference for c in result.checked} == {0.0}
    assert {c.error for c in result.checked} == {""}


def test_the_culprit_is_found_and_its_difference_measured(graph: Graph) -> None:
    result = bisect_passes(graph, [Scale(1.0), Scale(1.5), Forget()])
    assert result.first_bad == "scale"
    assert [c.difference for c in result.checked] == pytest.approx([0.0, 0.5])


@pytest.mark.parametrize(("factor", "guilty"), [(1 + 0.5e-5, False), (1 + 2e-5, True)])
def test_the_tolerance(graph: Graph, factor: float, guilty: bool) -> None:
    assert TOLERANCE == 1e-5
    assert (bisect_passes(graph, [Scale(factor)]).first_bad == "scale") == guilty
    assert bisect_passes(graph, [Scale(factor)], tolerance=1e-3).first_bad is None


def test_not_a_number_is_a_difference(graph: Graph) -> None:
    (checked,) = bisect_passes(graph, [Scale(math.nan)]).checked
    assert checked.difference == math.inf


def test_numbers_that_never_were_finite_are_none(graph: Graph) -> None:
    weights = graph.values["w"]
    weights.data = Tensor(np.array([np.nan, np.inf, 1.0], np.float32))
    feeds = {"x": np.array([[1.0, 1.0, 1.0]], np.float32)}
    assert bisect_passes(graph, "eliminate-identity", feeds=feeds).first_bad is None
    assert bisect_passes(graph, [Scale(2.0)], feeds=feeds).checked[0].difference == 1.0
    assert bisect_passes(graph, [Scale(-1.0)], feeds=feeds).checked[0].difference == math.inf


def test_an_invalid_graph_is_the_pass_that_left_it(graph: Graph) -> None:
    result = bisect_passes(graph, [Scale(1.0), Forget()])
    assert result.first_bad == "forget"
    assert result.checked[1].difference == math.inf
    assert "invalid graph" in result.checked[1].error and "'w'" in result.checked[1].error


def test_feeds_decide_what_is_seen(graph: Graph) -> None:
    unseen = {"x": -np.ones((2, 3), np.float32)}
    assert bisect_passes(graph, [Scale(2.0)], feeds=unseen).first_bad is None
    seen = {"x": np.ones((2, 3), np.float32)}
    assert bisect_passes(graph, [Scale(2.0)], feeds=seen).first_bad == "scale"
    with pytest.raises(InputError, match="onnxruntime cannot run"):
        bisect_passes(graph, [], feeds={"z": np.ones((2, 3), np.float32)})


def test_the_graph_is_left_as_it_is(graph: Graph) -> None:
    before = graph.to_text()
    bisect_passes(graph, "eliminate-identity")
    assert graph.to_text() == before


@dataclass(frozen=True)
class Retype(Pass):
    """Change what the output is."""

    name: ClassVar[str] = "retype"
    op_type: str = "Shape"

    def run(self, graph: Graph, ctx: Context) -> int:
        (node,) = (n for n in graph.nodes() if n.output.is_output)
        value = node.output
        made = graph.add(self.op_type, [value]).output
        made.type = None
        graph.set_outputs([made])
        graph.rename(value, "before")
        graph.rename(made, "y")
        return 1


@pytest.mark.parametrize("op_type", ["Shape", "Flatten"])
def test_another_shape_or_type_is_infinitely_different(op_type: str) -> None:
    graph = Graph.from_text(
        '<ir_version: 8, opset_import: ["": 17]> g (float[N, 2, 2] x) => (float[N, 2, 2] y) '
        "{ y = Relu(x) }"
    )
    (checked,) = bisect_passes(graph, [Retype(op_type)]).checked
    assert (checked.difference, checked.error) == (math.inf, "")


@dataclass(frozen=True)
class Swap(Pass):
    """Give a two-input operator its inputs the other way round."""

    name: ClassVar[str] = "swap"

    def run(self, graph: Graph, ctx: Context) -> int:
        (node,) = graph.nodes()
        first, second, *_ = node.inputs
        node.set_input(0, second)
        node.set_input(1, first)
        return 1


def test_sequences_are_compared_element_by_element() -> None:
    graph = Graph.from_text(
        '<ir_version: 8, opset_import: ["": 17]> g (float[2] a, float[2] b) => '
        "(seq(float[2]) y) { y = SequenceConstruct(a, b) }"
    )
    assert bisect_passes(graph, "eliminate-identity").first_bad is None
    assert bisect_passes(graph, [Swap()]).first_bad == "swap"


def test_integers_are_compared_exactly() -> None:
    graph = Graph.from_text(
        '<ir_version: 8, opset_import: ["": 17]> g (int64[N] a, int64[N] b) => '
        "(int64[N] y) { y = Sub(a, b) }"
    )
    assert bisect_passes(graph, "eliminate-identity").first_bad is None
    (checked,) = bisect_passes(
        graph, [Swap()], feeds={"a": np.array([5, 6]), "b": np.array([1, 2])}
    ).checked
    assert checked.difference == pytest.approx(2.0)


def test_strings_are_equal_or_not() -> None:
    graph = Graph.from_text(
        '<ir_version: 10, opset_import: ["": 20]> g (string[N] a, string[N] b) => '
        "(string[N] y) { y = StringConcat(a, b) }"
    )
    feeds = {"a": np.array(["p", "q"], object), "b": np.array(["r", "s"], object)}
    assert bisect_passes(graph, "eliminate-identity", feeds=feeds).checked[0].difference == 0.0
    assert bisect_passes(graph, [Swap()], feeds=feeds).checked[0].difference == math.inf
    with pytest.raises(InputError, match="no random values"):
        bisect_passes(graph, "eliminate-identity")


def test_an_output_that_is_gone() -> None:
    graph = Graph.from_text(
        '<ir_version: 8, opset_import: ["": 17]> g (float[N] x, float[N] idle) => '
        "(float[N] y, float[N] z) { y = Relu(x) z = Neg(x) }"
    )
    assert bisect_passes(graph, "remove-unused-interface").first_bad is None
    result = bisect_passes(graph, "remove-unused-interface{outputs=z}")
    assert result.checked[0].error == "the output 'z' is gone"


def test_large_weights_are_never_in_a_message(
    graph: Graph, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(model: object) -> bytes:
        raise InputError("over protobuf's limit")

    monkeypatch.setattr("onnxq.runtime.session.serialized", refuse)
    monkeypatch.setattr("onnxq.runtime.files.LARGE", 1)
    assert bisect_passes(graph, "eliminate-identity").first_bad is None
    save(swishes(), tmp_path / "m.onnx")
    assert not any("limit" in note for note in rewrite(tmp_path / "m.onnx", opset="fastest").notes)
