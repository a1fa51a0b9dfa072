from __future__ import annotations

import numpy as np
import pytest

from onnxq.errors import InputError
from onnxq.ir import Context, Graph, infer_types
from onnxq.passes.channels.lift_clips import LiftClips, liftable
from tests.helpers import assert_same_graph, run

HEAD = '<ir_version: 8, opset_import: ["": {opset}]>'
PAIRS = {
    "bounds as inputs": (
        17,
        """g (float[N, 4] x) => (float[N, 4] y) <float zero = {0}, float six = {6}>
        { a = Clip(x, zero, six)  y = Neg(a) }""",
        "g (float[N, 4] x) => (float[N, 4] y) { a = Relu(x)  y = Neg(a) }",
    ),
    "bounds as attributes, and an output": (
        10,
        "g (float[N, 4] x) => (float[N, 4] a) { a = Clip<min = 0.0, max = 6.0>(x) }",
        "g (float[N, 4] x) => (float[N, 4] a) { a = Relu(x) }",
    ),
}


def graph_of(text: str, opset: int = 17) -> Graph:
    graph = Graph.from_text(HEAD.format(opset=opset) + text)
    infer_types(graph)
    return graph


@pytest.mark.parametrize("name", PAIRS)
def test_a_clip_loses_its_upper_bound(name: str) -> None:
    opset, text, wanted = PAIRS[name]
    before = graph_of(text, opset)
    after = before.copy()
    assert LiftClips({"a": np.float32([6])}).run(after, Context()) == 1
    after.check()
    assert_same_graph(after, graph_of(wanted, opset), rtol=0)
    assert "a" in after.values, "what is equal keeps its name"
    for values, is_equal in (([-1, 0, 5, 6], True), ([-1, 0, 5, 7], False)):
        fed = {"x": np.array([values], np.float32)}
        made = [next(iter(run(graph, fed).values())) for graph in (before, after)]
        assert np.array_equal(*made) is is_equal


@pytest.mark.parametrize(
    "text",
    [
        "{ a = Clip(x, one, six)  y = Neg(a) }",
        "{ a = Clip(x, zero)  y = Neg(a) }",
        "{ a = Clip(x, zero, one)  y = Neg(a) }",
        "{ a = Relu(x)  y = Neg(a) }",
    ],
)
def test_other_tensors_are_refused(text: str) -> None:
    graph = graph_of(
        "g (float[N, 4] x) => (float[N, 4] y)"
        f"<float zero = {{0}}, float one = {{1}}, float six = {{6}}> {text}"
    )
    with pytest.raises(InputError, match="no Clip from 0 to 6 gives 'a'"):
        LiftClips({"a": np.float32([6])}).run(graph, Context())


def test_clips_that_may_be_lifted_are_found() -> None:
    graph = graph_of(
        """g (float[N, 4] x) => (float[N, 4] y)
        <float zero = {0}, float low = {-1}, float six = {6}>
        { a = Clip(x, zero, six)  b = Clip(a, low, six)  c = Clip(b, zero)
          y = Max(c, zero) }"""
    )
    assert [(node.output.name, bound) for node, bound in liftable(graph)] == [
        ("a", 6.0),
        ("c", float(np.finfo(np.float32).max)),
    ]
