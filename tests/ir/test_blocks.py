"""Cuts, the blocks between them, and those that are repeated."""

from __future__ import annotations

from collections.abc import Collection

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.ir import DataType, Graph, Tensor, TensorType, Value, infer_types
from onnxq.ir.blocks import blocks, cuts, excerpt, repeated_blocks, representatives, without_weights
from onnxq.ir.copying import reads
from tests.helpers import run
from tests.networks import residual_products


def graph_of(text: str) -> Graph:
    graph = Graph.from_text(f'<ir_version: 10, opset_import: ["": 21]> {text}')
    for value in graph.inputs:
        if value.name in ("table", "u", "v", "w"):
            value.data = Tensor(np.ones(value.shape, np.float32))
            graph.make_constant(value)
    infer_types(graph)
    return graph


RESIDUAL = graph_of(
    """g (float[2, 3] x) => (float[2, 3] y)
    <float[3, 3] v = {1, 0, 2, 0, 1, 0, 3, 0, 1}, float[3, 3] w = {1, 2, 0, 0, 1, 0, 0, 5, 1},
     float[3] b = {1, 2, 3}, int64[2] shape = {2, 3}>
    { m1 = MatMul(x, v)  r1 = Relu(m1)  a1 = Add(r1, x)
      doubled = Add(b, b)
      m2 = MatMul(a1, w)  r2 = Relu(m2)  a2 = Add(r2, a1)
      t = Reshape(a2, shape)
      m3 = MatMul(t, w)  s3 = Sigmoid(m3)  a3 = Add(s3, t)
      l, r = Split<axis = 1, num_outputs = 2>(a3)  j = Concat<axis = 1>(l, r)
      unused = Neg(a1)  y = Mul(j, doubled) }"""
)


def names(values: Collection[Value | None]) -> list[str | None]:
    return [None if v is None else v.name for v in values]


def test_cuts_of_residual_blocks() -> None:
    assert names(cuts(RESIDUAL)) == ["x", "a1", "a2", "t", "a3", "j", "y"]


def test_what_follows_a_cut_needs_nothing_else() -> None:
    feeds = {"x": np.arange(6, dtype=np.float32).reshape(2, 3) - 3}
    wanted = run(RESIDUAL, feeds)["y"]
    for cut in cuts(RESIDUAL)[1:-1]:
        before = RESIDUAL.extract(RESIDUAL.inputs, [cut])
        after = RESIDUAL.extract([cut], RESIDUAL.outputs)
        assert names(after.inputs) == [cut.name]
        assert np.array_equal(run(after, run(before, feeds))["y"], wanted)


def test_blocks_lie_between_cuts() -> None:
    found = blocks(RESIDUAL)
    assert [(*names([b.start, b.end]), [n.op_type for n in b.nodes]) for b in found] == [
        ("x", "a1", ["MatMul", "Relu", "Add"]),
        ("a1", "a2", ["MatMul", "Relu", "Add"]),
        ("a2", "t", ["Reshape"]),
        ("t", "a3", ["MatMul", "Sigmoid", "Add"]),
        ("a3", "j", ["Split", "Concat"]),
        ("j", "y", ["Mul"]),
    ]


def test_several_inputs_and_outputs_have_blocks_without_a_cut() -> None:
    graph = graph_of(
        """g (float[2] p, float[2] q) => (float[2] y, float[2] z)
        { s = Add(p, q)  t = Relu(s)  y = Neg(t)  z = Abs(t) }"""
    )
    assert names(cuts(graph)) == ["s", "t"]
    assert [names([b.start, b.end]) for b in blocks(graph)] == [
        [None, "s"],
        ["s", "t"],
        ["t", None],
    ]
    apart = graph_of("g (float[2] p, float[2] q) => (y, z) { y = Neg(p)  z = Neg(q) }")
    assert cuts(apart) == [] and len(blocks(apart)) == 1
    nothing = graph_of("g (float[2] x) => (float[2] y) <float[2] c = {1, 2}> { y = Neg(c) }")
    assert cuts(nothing) == [] and blocks(nothing) == []


def test_chance_and_defaults() -> None:
    graph = graph_of(
        """g (float[2] x, float[2] o) => (float[2] y)
        { a = Add(x, o)  r = RandomNormal<shape = [2]>()  b = Relu(a)  y = Mul(b, r) }"""
    )
    assert names(cuts(graph)) == ["y"], "what chance makes is another beginning"
    assert names(cuts(graph, [graph.values["r"], graph.values["o"]])) == ["x", "a", "b", "y"]
    graph.values["o"].data = Tensor(np.ones(2, np.float32))
    assert names(cuts(graph, [graph.values["r"]])) == ["x", "a", "b", "y"]


MASKED = """g (int64[1, 4] ids, float[1, 4] mask, float[9, 2] table, float[2, 2] u, float[2, 2] v)
    => (float[1, 4, 2] y) <float one = {1}, int64[1] last = {2}>
    { gone = Sub(one, mask)  m = Unsqueeze(gone, last)
      e = Gather(table, ids)
      p = MatMul(e, u)  pm = Mul(p, m)  a = Add(pm, e)
      q = MatMul(a, v)  qm = Mul(q, m)  y = Add(qm, a) }"""


def test_values_without_weights_hide_no_cut() -> None:
    graph = graph_of(MASKED)
    side = without_weights(graph)
    assert {v.name for v in side} == {"ids", "mask", "gone", "m"}
    assert names(cuts(graph)) == ["y"]
    assert names(cuts(graph, side)) == ["e", "a", "y"]
    (group,) = repeated_blocks(graph, side)
    assert [[n.output.name for n in b.nodes] for b in group] == [["p", "pm", "a"], ["q", "qm", "y"]]


def test_an_if_reads_what_its_branches_read() -> None:
    graph = graph_of(
        """g (float[2] x) => (float[2] y) <bool on = {1}>
        { a = Relu(x)  b = Neg(a)  c = If(on) <
            then_branch = t () => (float[2] d) { d = Mul(a, b) },
            else_branch = e () => (float[2] f) { f = Neg(b) }>  y = Abs(c) }"""
    )
    assert names(cuts(graph)) == ["x", "a", "c", "y"]


def test_equal_blocks_are_found_with_their_nodes_in_place() -> None:
    (group,) = repeated_blocks(RESIDUAL)
    assert [[n.output.name for n in b.nodes] for b in group] == [
        ["m1", "r1", "a1"],
        ["m2", "r2", "a2"],
    ]
    assert [names([b.start, b.end]) for b in group] == [["x", "a1"], ["a1", "a2"]]


PAIR = """g (float[N, 4] x, float[4, 4] v, float[4, 4] w) => (y)
    <int64[2] same = {0, 4}, int64[2] other = {-1, 4}>
    { a = MatMul(x, v)  b = Softmax<axis = 1>(a)  c = Sub(b, a)  r = Reshape(c, same)  d = Add(r, x)
      e = MatMul(d, w)  f = Softmax<axis = 1>(e)  g = Sub(f, e)  s = Reshape(g, same)  y = Add(s, d)
    }"""


def test_the_block_in_the_middle_stands_for_all() -> None:
    found = {node.name: other.name for node, other in representatives(residual_products(5)).items()}
    # The first block begins with what is given.
    assert {name: found[name] for name in sorted(found) if "product" in name} == {
        f"product{number}": "product3" for number in range(1, 5)
    }
    assert found["sum1"] == "sum3" and "head" not in found


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("f = Softmax<axis = 1>", "f = Softmax<axis = 0>"),
        ("f = Softmax<axis = 1>(e)", "f = Relu(e)"),
        ("g = Sub(f, e)", "g = Sub(e, f)"),
        ("y = Add(s, d)", "y = Add(d, s)"),
        ("Reshape(g, same)", "Reshape(g, other)"),
        ("float[4, 4] w", "float[4, 1] w"),
    ],
)
def test_blocks_that_differ(old: str, new: str) -> None:
    assert [len(group) for group in repeated_blocks(graph_of(PAIR))] == [2]
    changed = graph_of(PAIR.replace(old, new))
    assert len(blocks(changed)) == 2 and repeated_blocks(changed) == []


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), min_size=1, max_size=14))
def test_cuts_against_removing_each_value(reads_of: list[tuple[int, int]]) -> None:
    graph = Graph("drawn")
    made = [graph.add_input("x", TensorType(DataType.FLOAT, (2,)))]
    for one, other in reads_of:
        inputs = [made[-1 - one % min(3, len(made))], made[-1 - other % min(3, len(made))]]
        made.append(graph.add("Add", inputs).output)
    graph.add_output(made[-1])
    links: nx.DiGraph[Value] = nx.DiGraph([(v, n.output) for n in graph.nodes() for v in reads(n)])
    wanted = [
        value
        for value in made
        if value in (made[0], made[-1])
        or not nx.has_path(nx.restricted_view(links, [value], []), made[0], made[-1])
    ]
    assert cuts(graph) == wanted
    inside = [node for block in blocks(graph) for node in block.nodes]
    needed = nx.ancestors(links, made[-1]) | {made[-1]}
    assert sorted(inside, key=id) == sorted((v.producer for v in needed if v.producer), key=id)


def layers(count: int) -> Graph:
    """Equal layers in a row that all read a mask, which has an input of its own."""
    text = " ".join(
        f"m{n} = MatMul(x{n}, w) a{n} = Add(m{n}, mask) x{n + 1} = Relu(a{n})" for n in range(count)
    )
    return graph_of(
        f"""g (float[2, 2] x, float[2] given, float[2] late) => (float[2, 2] y)
        <float[2, 2] w = {{1, 2, 3, 4}}>
        {{ x0 = Mul(x, w) mask = Neg(given) {text} y = Mul(x{count}, late) }}"""
    )


def test_an_excerpt_has_two_of_the_repeated_blocks() -> None:
    graph = layers(5)
    part = excerpt(graph)
    part.check()
    assert [n.op_type for n in part.nodes()].count("MatMul") == 2
    assert {v.name for v in part.inputs} == {"x", "given"}, "what comes later is not needed"
    (end,) = part.outputs
    feeds = {"x": np.eye(2, dtype=np.float32), "given": np.array([1, 2], np.float32)}
    whole = graph.extract(graph.inputs, [graph.values[end.name]])
    late = {"late": np.zeros(2, np.float32)}
    assert np.array_equal(run(part, feeds)[end.name], run(whole, {**feeds, **late})[end.name])


def test_the_whole_stands_for_itself_where_little_is_repeated() -> None:
    for graph in (layers(3), RESIDUAL):
        assert excerpt(graph) is graph
