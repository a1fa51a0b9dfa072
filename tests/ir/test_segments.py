"""Segments in a row compute what the whole graph computes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from onnxq.ir import Context, Graph, infer_types
from onnxq.ir.segments import Segment, cut, cut_by_depth
from onnxq.passes.cleanup.eliminate_dead import EliminateDead
from tests.helpers import assert_same_outputs, run
from tests.networks import chain, inputs
from tests.passes.test_random_graphs import graphs, square_graphs

COUNT = 16
"""Segments that are asked for."""


def in_a_row(
    segments: list[Segment], graph: Graph, feeds: dict[str, np.ndarray]
) -> dict[str, object]:
    held = dict(feeds)
    for segment in segments:
        segment.graph.check()
        assert [v.name for v in segment.graph.inputs] == list(segment.inputs)
        held |= run(segment.graph, {name: held[name] for name in segment.inputs})
    return {v.name: held[v.name] for v in graph.outputs}


def check(graph: Graph, feeds: dict[str, np.ndarray]) -> int:
    # As after the float passes: nothing is computed that nobody reads.
    EliminateDead().run(graph, Context())
    infer_types(graph)
    nodes = set(graph.all_nodes())
    by_depth = cut_by_depth(graph, list(graph.nodes())[::3])
    for segments in (by_depth, cut(graph, list(graph.nodes()), COUNT)):
        found = [{n for n in s.nodes if n in nodes} for s in segments]
        assert set().union(*found) == nodes and sum(map(len, found)) == len(nodes), "each node once"
        assert_same_outputs(run(graph, feeds), in_a_row(segments, graph, feeds))
    return len(segments)


@settings(max_examples=40)
@given(graphs())
def test_random_graphs(graph: Graph) -> None:
    rng = np.random.default_rng(0)
    vectors = {name: rng.standard_normal(3).astype(np.float32) for name in "xz"}
    check(graph, {**vectors, "c": np.array(True)})


@settings(max_examples=40)
@given(square_graphs())
def test_random_graphs_of_matrices(graph: Graph) -> None:
    rng = np.random.default_rng(0)
    matrices = {name: rng.uniform(-1, 1, (3, 3)).astype(np.float32) for name in "xz"}
    check(graph, {**matrices, "c": np.array(False)})


@pytest.mark.parametrize("depth", [1, 3, 12])
def test_a_network_is_cut_into_many(depth: int) -> None:
    graph = chain(max(depth, 2))
    count = check(graph, inputs(graph, 2))
    assert 2 <= count <= COUNT


def test_groups_stay_whole() -> None:
    graph = chain(12)
    nodes = list(graph.nodes())
    pairs = [(nodes[at], nodes[at + 1]) for at in range(0, 24, 2)]
    assert [(a.op_type, b.op_type) for a, b in pairs] == [("Conv", "Relu")] * 12
    segments = cut(graph, nodes, COUNT, pairs)
    assert len(segments) > 4
    for conv, relu in pairs:
        (at,) = (s for s in segments if conv in s.nodes)
        assert relu in at.nodes


def test_cuts_are_where_little_crosses() -> None:
    """Between two wide parts lies one narrow value: it is where they are cut apart."""
    graph = Graph.from_text(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[1, 64] x) => (float[1, 64] y)
        <int64[1] one = {1}, float[64, 64] w, float[64, 1] narrow, float[1, 64] wide> {
            a = Exp(x) b = Sin(a) c = Add(a, b) d = ReduceMean <axes = [1]> (c)
            e = Expand(d, s) f = Cos(e) g = Add(e, f) y = Abs(g)
        }""".replace(
            "float[64, 64] w, float[64, 1] narrow, float[1, 64] wide", "int64[2] s = {1, 64}"
        )
    )
    infer_types(graph)
    nodes = list(graph.nodes())
    (first, second) = cut(graph, [nodes[1], nodes[5]], COUNT)
    assert first.outputs == ("d",) == second.inputs


def test_what_is_wanted_of_one_depth_is_in_one_segment() -> None:
    graph = Graph.from_text(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[1, 1] x) => (float[1, 1] y)
        <float[1, 1] w = {2}> {
            n = Tanh(x) q = MatMul(n, w) r = Relu(q) k = MatMul(n, w)
            s = Add(r, k) o = MatMul(s, w) z = Add(o, x) y = MatMul(z, w)
        }"""
    )
    infer_types(graph)
    products = [node for node in graph.nodes() if node.is_op("MatMul")]
    found = cut_by_depth(graph, products)
    made = [{v.name for node in s.nodes for v in node.outputs if v is not None} for s in found]
    assert made == [{"n", "q", "r", "k", "s"}, {"o", "z"}, {"y"}]
    assert [set(s.inputs) for s in found] == [{"x"}, {"s", "x"}, {"z"}]
    assert [s.outputs for s in found] == [("s",), ("z",), ("y",)]
    (whole,) = cut_by_depth(graph, [])
    assert set(whole.nodes) == set(graph.nodes())


def test_an_empty_graph_has_no_segments() -> None:
    graph = Graph.from_text("""<ir_version: 8, opset_import: ["": 17]>
        g (float[2] x) => (float[2] y) { y = Identity(x) }""")
    assert len(cut(graph, [], COUNT)) == 1
