from __future__ import annotations

import pytest

from onnxq.ir import Context, Graph, Pipeline
from onnxq.passes.cleanup.eliminate_dead import EliminateDead
from tests.helpers import assert_equivalent, assert_same_graph

HEAD = '<ir_version: 10, opset_import: ["": 21, "other": 1]>'

PAIRS = {
    "a chain that leads nowhere": (
        """g (float[2] x) => (float[2] y) <float[2] c = {1, 2}>
        { a = Add(x, c)  b = Neg(a)  d = Exp(b)  y = Neg(x) }""",
        "g (float[2] x) => (float[2] y) { y = Neg(x) }",
        4,
    ),
    "random operators too": (
        """g (float[2] x) => (float[2] y) { r = RandomNormal<shape = [2]>()  y = Neg(x) }""",
        "g (float[2] x) => (float[2] y) { y = Neg(x) }",
        1,
    ),
    "operators with one used output stay whole": (
        """g (float[2] x) => (float[1] y)
        { a, b = Split<axis = 0, num_outputs = 2>(x)  c = Neg(a)  y = Neg(b) }""",
        """g (float[2] x) => (float[1] y)
        { a, b = Split<axis = 0, num_outputs = 2>(x)  y = Neg(b) }""",
        1,
    ),
    "in subgraphs, and then what only they captured": (
        """g (bool c, float[2] x) => (float[2] y) <float[2] w = {1, 2}> { v = Add(x, w)
        y = If(c) <then_branch = t () => (float[2] p) <float[2] k = {1, 2}>
                     { d = Add(v, k)  p = Neg(x) },
                   else_branch = e () => (float[2] q) { q = Exp(x) }> }""",
        """g (bool c, float[2] x) => (float[2] y) {
        y = If(c) <then_branch = t () => (float[2] p) { p = Neg(x) },
                   else_branch = e () => (float[2] q) { q = Exp(x) }> }""",
        4,
    ),
    "a whole If with what it captured": (
        """g (bool c, float[2] x) => (float[2] y) { v = Neg(x)
        d = If(c) <then_branch = t () => (float[2] p) { p = Neg(v) },
                   else_branch = e () => (float[2] q) { q = Exp(v) }>
        y = Neg(x) }""",
        "g (bool c, float[2] x) => (float[2] y) { y = Neg(x) }",
        2,
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_removes(name: str) -> None:
    before, wanted, rewrites = PAIRS[name]
    graph = Graph.from_text(HEAD + before)
    after = graph.copy()
    pipeline = Pipeline((EliminateDead(),))
    assert pipeline.run(after)[0].rewrites == rewrites
    assert pipeline.run(after)[0].rewrites == 0
    assert_same_graph(after, Graph.from_text(HEAD + wanted))
    assert len(list(after.initializers())) == len(
        list(Graph.from_text(HEAD + wanted).initializers())
    )
    assert_equivalent(graph, after)


def test_inputs_and_overridable_initializers_stay() -> None:
    graph = Graph.from_text(
        f"{HEAD} g (float[2] x, float[2] unused, float[1] w = {{1}}) => (float[2] y)"
        "{ y = Neg(x) }"
    )
    assert EliminateDead().run(graph, Context()) == 0
    assert [v.name for v in graph.inputs] == ["x", "unused", "w"]
    assert graph.values["w"].data is not None


def test_a_constant_that_is_an_output_stays() -> None:
    graph = Graph.from_text(
        f"{HEAD} g (float[2] x) => (float[2] y, float[2] w) <float[2] w = {{1, 2}}>{{ y = Neg(x) }}"
    )
    assert EliminateDead().run(graph, Context()) == 0


def test_operators_without_outputs_stay() -> None:
    graph = Graph.from_text(f"{HEAD} g (float[2] x) => (float[2] y) {{ y = Neg(x) }}")
    graph.add("Print", [graph.values["x"]], domain="other", outputs=0)
    assert EliminateDead().run(graph, Context()) == 0
    assert len(graph) == 2


def test_what_a_quantization_annotation_names_stays() -> None:
    graph = Graph.from_text(
        f"""{HEAD} g (float[2] x) => (float[2] y)
        <float scale = {{0.5}}, float other = {{0.5}}> {{ y = Neg(x) }}"""
    )
    graph.values["y"].annotation = {"SCALE_TENSOR": "scale"}
    assert EliminateDead().run(graph, Context()) == 1
    assert [v.name for v in graph.initializers()] == ["scale"]
