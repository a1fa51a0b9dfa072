"""What both branches of an If state of the rank of what they read."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.ir import Graph, infer_types
from onnxq.rewriting import rewrite
from tests.helpers import assert_equivalent


def model(then: str, other: str, opset: int = 17) -> Graph:
    """A value ``v`` of rank 1 or 2, as far as ONNX can tell, and an If that asks for its rank."""
    return Graph.from_text(f"""<ir_version: 8, opset_import: ["": {opset}]>
        g (float[N, 3] x, bool flat) => (float y)
        <int64[1] zero = {{0}}, int64 two = {{2}}, int64[1] all = {{-1}}> {{
          v = If(flat) <then_branch = f () => (float[K] a) {{ a = Reshape(x, all) }},
                        else_branch = k () => (float[N, 3] b) {{ b = Abs(x) }}>
          s = Shape(v) r = Size(s) is_matrix = Equal(r, two)
          w = If(is_matrix) <then_branch = t () => {then}, else_branch = e () => {other}>
          y = ReduceSum<keepdims = 0>(w) }}""")


AGREEING = {
    "handed on, or with an axis more": (
        "(float[N, 3] c) { c = Identity(v) }",
        "(float[1, N, 3] d) { d = Unsqueeze(v, zero) }",
    ),
    "with an axis less, or handed on": (
        "(float[3] c) { c = Squeeze(v, zero) }",
        "(float[N, 3] d) { d = Identity(v) }",
    ),
}


@pytest.mark.parametrize("case", AGREEING)
def test_a_rank_on_which_the_branches_agree_is_known(case: str) -> None:
    graph = model(*AGREEING[case])
    infer_types(graph)
    assert graph.values["v"].shape == (None, None)
    after = rewrite(graph).graph
    assert [n.op_type for n in after.nodes()].count("If") == 1
    feeds = {"x": np.full((1, 3), 2.0, np.float32), "flat": np.array(False)}
    assert_equivalent(graph, after, feeds=feeds)


@pytest.mark.parametrize(
    "branches",
    [
        ("(float[N, 3] c) { c = Identity(v) }", "(float[N, 3] d) { d = Unsqueeze(v, zero) }"),
        ("(float[N, 3] c) { c = Identity(v) }", "(float[N, 3] d) { d = Abs(v) }"),
        ("(float[N, 3] c) { c = Identity(v) }", "(float[] d) { d = Squeeze(v) }"),
    ],
)
def test_a_rank_without_agreement_stays_open(branches: tuple[str, str]) -> None:
    graph = model(*branches)
    infer_types(graph)
    assert graph.values["v"].shape is None


def test_axes_that_are_attributes_count_as_well() -> None:
    graph = Graph.from_text("""<ir_version: 8, opset_import: ["": 11]>
        g (float[N, 3] x, bool flat, bool more) => (float[A, B, C] y) <int64[1] all = {-1}> {
          v = If(flat) <then_branch = f () => (float[K] a) { a = Reshape(x, all) },
                        else_branch = k () => (float[N, 3] b) { b = Abs(x) }>
          y = If(more) <then_branch = t () => (float[1, N, 3] c) { c = Unsqueeze<axes = [0]>(v) },
                        else_branch = e () => (float[N, 3] d) { d = Identity(v) }> }""")
    infer_types(graph)
    assert graph.values["v"].shape == (None, None)
