from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxq.errors import InputError
from onnxq.ir import Context, Graph, Pipeline, Tensor, default_passes, parse_passes
from onnxq.passes.cleanup.remove_unused_interface import RemoveUnusedInterface
from tests.helpers import assert_same_graph, random_feeds, run

HEAD = '<ir_version: 10, opset_import: ["": 21]>'
TEXT = (
    HEAD
    + """g (float[2] x, float[2] unread, float[2] z, float[2] w)
    => (float[2] y, float[2] aux, float[2] w, float[2] other) <float[1] k = {2}>
    { a = Neg(x)  y = Exp(a)  b = Mul(z, k)  aux = Add(a, b)  other = Abs(b) }"""
)


def test_inputs_that_nothing_reads() -> None:
    graph = Graph.from_text(TEXT)
    assert RemoveUnusedInterface().run(graph, Context()) == 1
    graph.check()
    assert [v.name for v in graph.inputs] == ["x", "z", "w"]
    assert [v.name for v in graph.outputs] == ["y", "aux", "w", "other"]
    assert RemoveUnusedInterface().run(graph, Context()) == 0


def test_outputs_by_name_and_what_only_they_needed() -> None:
    before = Graph.from_text(TEXT)
    after = before.copy()
    step = RemoveUnusedInterface(outputs="aux, other")
    # Two outputs, and inputs `unread` and `z`.
    records = Pipeline((step,)).run(after)
    assert records[0].rewrites == 4
    wanted = """g (float[2] x, float[2] w) => (float[2] y, float[2] w)
    { a = Neg(x)  y = Exp(a) }"""
    assert_same_graph(after, Graph.from_text(HEAD + wanted))
    assert set(after.values) == {"x", "w", "a", "y"}
    feeds = random_feeds(before)
    kept = {name: feeds[name] for name in ("x", "w")}
    assert np.array_equal(run(before, feeds)["y"], run(after, kept)["y"])


def test_what_was_dropped_from_one_model_is_dropped_from_the_next_too() -> None:
    ctx, step = Context(), RemoveUnusedInterface("aux")
    for _ in range(2):
        graph = Graph.from_text(TEXT)
        assert step.run(graph, ctx) == 2 and step.run(graph, ctx) == 0
        assert [v.name for v in graph.outputs] == ["y", "w", "other"]


def test_overridable_initializer_that_nothing_reads() -> None:
    graph = Graph.from_text(HEAD + "g (float[2] x, float[2] w) => (float[2] y) { y = Neg(x) }")
    graph.values["w"].data = Tensor(np.ones(2, np.float32))
    assert RemoveUnusedInterface().run(graph, Context()) == 1
    assert set(graph.values) == {"x", "y"}


@pytest.mark.parametrize(
    "outputs, message", [("aux,missing", "no output 'missing'"), ("y,aux,w,other", "no model")]
)
def test_refused(outputs: str, message: str) -> None:
    graph = Graph.from_text(TEXT)
    with pytest.raises(InputError, match=message):
        RemoveUnusedInterface(outputs).run(graph, Context())
    assert_same_graph(graph, Graph.from_text(TEXT))


def test_inputs_that_training_information_may_name_stay() -> None:
    graph = Graph.from_text(TEXT)
    graph.model.training_info = [onnx.TrainingInfoProto()]
    assert RemoveUnusedInterface().run(graph, Context()) == 0


def test_read_in_a_subgraph_only() -> None:
    graph = Graph.from_text(
        HEAD
        + """g (bool c, float[2] x, float[2] z) => (float[2] y)
        { y = If(c) <then_branch = t () => (float[2] p) { p = Neg(x) },
                     else_branch = e () => (float[2] q) { q = Abs(x) }> }"""
    )
    assert RemoveUnusedInterface().run(graph, Context()) == 1
    assert [v.name for v in graph.inputs] == ["c", "x"]


def test_only_by_request() -> None:
    assert not any(isinstance(p, RemoveUnusedInterface) for p in default_passes())
    (step,) = parse_passes('remove-unused-interface{outputs="aux, other"}')
    assert step == RemoveUnusedInterface("aux, other")
    assert parse_passes(str(step)) == (step,)
