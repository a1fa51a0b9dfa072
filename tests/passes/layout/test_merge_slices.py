from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.ir import Context, DataType, Graph, ModelInfo, Pipeline, TensorType, Value, infer_types
from onnxq.passes.cleanup.eliminate_identity import EliminateIdentity
from onnxq.passes.layout.merge_slices import MergeSlices
from tests.helpers import assert_equivalent, assert_same_graph

HEAD = '<ir_version: 10, opset_import: ["": 21]>'
FAR = 2**31 - 1


def merge(before: Graph) -> tuple[Graph, int]:
    """The rewritten graph and the rewrites made; a second run must find nothing."""
    infer_types(before)
    after = before.copy()
    made = MergeSlices().run(after, Context())
    after.check()
    assert MergeSlices().run(after, Context()) == 0
    return after, made


def sliced(shape: str, *cuts: tuple[int, int, int, int]) -> Graph:
    """Slices in a row, each (start, end, axis, step)."""
    names = ["x", *(f"v{at}" for at in range(1, len(cuts))), "y"]
    constants, nodes = [], []
    for at, cut in enumerate(cuts):
        constants += [f"int64[1] {n}{at} = {{{v}}}" for n, v in zip("seak", cut, strict=True)]
        step = f", k{at}" if cut[3] != 1 else ""
        nodes.append(f"{names[at + 1]} = Slice({names[at]}, s{at}, e{at}, a{at}{step})")
    dims = ", ".join("ABCD"[: shape.count(",") + 1])
    return Graph.from_text(
        f"{HEAD} g (float[{shape}] x) => (float[{dims}] y) <{', '.join(constants)}> "
        f"{{ {'  '.join(nodes)} }}"
    )


SLICES = {
    "known size": (
        sliced("9, 4", (1, 8, 0, 1), (-4, -1, 0, 1)),
        sliced("9, 4", (4, 7, 0, 1)),
    ),
    "known size, both ways": (
        sliced("9, 4", (-1, -100, 0, -2), (1, FAR, 0, 1)),
        sliced("9, 4", (6, -(2**31), 0, -2)),
    ),
    "unknown size": (
        sliced("N, 4", (1, FAR, 0, 1), (2, 5, -2, 1)),
        sliced("N, 4", (3, 6, 0, 1)),
    ),
    "unknown size, counted from the end": (
        sliced("N, 4", (1, FAR, 0, 1), (1, -1, 0, 1)),
        sliced("N, 4", (2, -1, 0, 1)),
    ),
    "unknown size, in steps": (
        sliced("N, 4", (1, 8, 0, 2), (1, FAR, 0, 2)),
        sliced("N, 4", (3, 8, 0, 4)),
    ),
}


@pytest.mark.parametrize("case", SLICES)
def test_along_one_axis(case: str) -> None:
    before, wanted = SLICES[case]
    after, made = merge(before)
    assert made == 1
    assert_same_graph(after, wanted)
    for size in (1, 2, 3, 4, 9):
        assert_equivalent(before, after, dims={"N": size})


def test_along_different_axes() -> None:
    before = sliced("N, 4", (1, FAR, 0, 1), (0, 2, -1, 1))
    after, made = merge(before)
    assert made == 1
    assert_same_graph(
        after,
        Graph.from_text(
            f"""{HEAD} g (float[N, 4] x) => (float[A, B] y)
            <int64[2] s = {{1, 0}}, int64[2] e = {{{FAR}, 2}}, int64[2] a = {{0, 1}}>
            {{ y = Slice(x, s, e, a) }}"""
        ),
    )
    assert_equivalent(before, after, dims={"N": 3})


@pytest.mark.parametrize(
    "cuts",
    [
        # The last two of all, which may be those before the first cut.
        ("N, 4", (1, FAR, 0, 1), (-2, FAR, 0, 1)),
        ("N, 4", (1, -1, 0, 1), (0, 2, 0, 1)),
        ("N, 4", (3, 1, 0, -1), (0, 1, 0, 1)),
        ("9, 4", (3, 3, 0, 1), (0, 1, 0, 1)),
    ],
)
def test_size_that_matters(cuts: tuple[str, ...]) -> None:
    assert merge(sliced(*cuts))[1] == 0  # type: ignore[arg-type]


def test_every_reader_has_to_be_a_slice() -> None:
    text = f"""{HEAD} g (float[9] x) => (float[A] y, float[B] z) <int64[1] s = {{1}},
    int64[1] e = {{8}}, int64[1] t = {{3}}> {{ a = Slice(x, s, e)  y = Slice(a, s, t)  %s }}"""
    both = Graph.from_text(text % "z = Slice(a, t, e)")
    after, made = merge(both)
    assert made == 1
    assert [n.op_type for n in after.nodes()] == ["Slice", "Slice"]
    assert_equivalent(both, after)
    assert merge(Graph.from_text(text % "z = Neg(a)"))[1] == 0
    given = Graph.from_text(text.replace("float[B] z", "float[B] a") % "")
    assert merge(given)[1] == 0


@pytest.mark.parametrize("opset", [1, 9, 10])
def test_limits_in_attributes(opset: int) -> None:
    before = Graph.from_text(
        f"""<ir_version: 3, opset_import: ["": {opset}]> g (float[9] x) => (float[B] y)
        {{ a = Slice<starts = [1], ends = [8]>(x)  y = Slice<starts = [2], ends = [5]>(a) }}"""
        if opset < 10
        else f"""<ir_version: 3, opset_import: ["": {opset}]> g (float[9] x) => (float[B] y)
        <int64[1] s = {{1}}, int64[1] e = {{8}}, int64[1] t = {{2}}, int64[1] f = {{5}}>
        {{ a = Slice(x, s, e)  y = Slice(a, t, f) }}"""
    )
    after, made = merge(before)
    assert made == 1
    assert len(after) == 1
    if opset > 7:
        assert_equivalent(before, after)


CONCATS = {
    "a chain": (
        """g (float[2] x, float[2] z) => (float[A] y) { a = Concat<axis = 0>(x, z)
        b = Concat<axis = -1>(a, z)  y = Concat<axis = 0>(x, b) }""",
        "g (float[2] x, float[2] z) => (float[A] y) { y = Concat<axis = 0>(x, x, z, z) }",
        2,
    ),
    "cut and joined": (
        """g (float[2, N] x) => (float[A, B] y)
        <int64[1] o = {0}, int64[1] m = {3}, int64[1] e = {2147483647}, int64[1] a = {1}>
        { p = Slice(x, o, m, a)  q = Slice(x, m, e, a)  y = Concat<axis = -1>(x, p, q) }""",
        "g (float[2, N] x) => (float[A, B] y) { y = Concat<axis = -1>(x, x) }",
        1,
    ),
    "cut from the end and joined": (
        """g (float[2, N] x) => (float[A, B] y)
        <int64[1] o = {0}, int64[1] m = {-3}, int64[1] e = {9223372036854775807}, int64[1] a = {1}>
        { p = Slice(x, o, m, a)  q = Slice(x, m, e, a)  y = Concat<axis = 1>(p, q, x) }""",
        "g (float[2, N] x) => (float[A, B] y) { y = Concat<axis = 1>(x, x) }",
        1,
    ),
    "cut in three of known size": (
        """g (float[6] x) => (float[A] y)
        <int64[1] o = {0}, int64[1] m = {-4}, int64[1] n = {4}, int64[1] e = {7}, int64[1] c = {2}>
        { p = Slice(x, o, m)  q = Slice(x, c, n)  r = Slice(x, n, e)
          y = Concat<axis = 0>(p, q, r, x) }""",
        "g (float[6] x) => (float[A] y) { y = Concat<axis = 0>(x, x) }",
        1,
    ),
    "a part of it": (
        """g (float[N] x) => (float[A] y)
        <int64[1] o = {1}, int64[1] m = {3}, int64[1] n = {4}>
        { p = Slice(x, o, m)  q = Slice(x, m, n)  y = Concat<axis = 0>(p, q, x) }""",
        """g (float[N] x) => (float[A] y) <int64[1] o = {1}, int64[1] n = {4}, int64[1] a = {0}>
        { p = Slice(x, o, n, a)  y = Concat<axis = 0>(p, x) }""",
        1,
    ),
    "all of a Split": (
        """g (float[2, 6] x) => (float[A, B] y) { p, q, r = Split<axis = -1, num_outputs = 3>(x)
        y = Concat<axis = 1>(p, q, r, x) }""",
        "g (float[2, 6] x) => (float[A, B] y) { y = Concat<axis = 1>(x, x) }",
        1,
    ),
}


@pytest.mark.parametrize("case", CONCATS)
def test_concat(case: str) -> None:
    text, wanted, rewrites = CONCATS[case]
    before = Graph.from_text(HEAD + text)
    after, made = merge(before)
    assert made == rewrites
    assert_same_graph(after, Graph.from_text(HEAD + wanted))
    for size in (1, 2, 3, 5):
        assert_equivalent(before, after, dims={"N": size})


LEFT = {
    "parts in another order": """g (float[6] x) => (float[A] y)
        { p, q = Split<num_outputs = 2>(x)  y = Concat<axis = 0>(q, p) }""",
    "one part is missing": """g (float[6] x) => (float[A] y)
        { p, q, r = Split<num_outputs = 3>(x)  y = Concat<axis = 0>(p, q, x) }""",
    "another axis": """g (float[2, 6] x) => (float[A, B] y)
        { p, q = Split<num_outputs = 2, axis = 1>(x)  y = Concat<axis = 0>(p, q) }""",
    "a gap": """g (float[6] x) => (float[A] y)
        <int64[1] o = {0}, int64[1] m = {3}, int64[1] n = {4}, int64[1] e = {6}>
        { p = Slice(x, o, m)  q = Slice(x, n, e)  y = Concat<axis = 0>(p, q) }""",
    "borders counted from both ends": """g (float[N] x) => (float[A] y)
        <int64[1] o = {0}, int64[1] m = {2}, int64[1] n = {-2}, int64[1] e = {2147483647}>
        { p = Slice(x, o, m)  q = Slice(x, m, n)  r = Slice(x, n, e)
          y = Concat<axis = 0>(p, q, r) }""",
    "a part that is read elsewhere": """g (float[N] x) => (float[A] y, float[B] z)
        <int64[1] o = {1}, int64[1] m = {3}, int64[1] n = {4}>
        { p = Slice(x, o, m)  q = Slice(x, m, n)  y = Concat<axis = 0>(p, q)  z = Neg(p) }""",
    "parts of different values": """g (float[4] x, float[4] z) => (float[A] y)
        <int64[1] o = {0}, int64[1] m = {2}, int64[1] e = {4}>
        { p = Slice(x, o, m)  q = Slice(z, m, e)  y = Concat<axis = 0>(p, q) }""",
    "Concat along another axis": """g (float[2, 2] x) => (float[A, B] y)
        { a = Concat<axis = 0>(x, x)  y = Concat<axis = 1>(a, a) }""",
    "Concat that is read twice": """g (float[2] x) => (float[A] y)
        { a = Concat<axis = 0>(x, x)  y = Concat<axis = 0>(a, a) }""",
    "Concat that is given out": """g (float[2] x) => (float[A] y, float[B] a)
        { a = Concat<axis = 0>(x, x)  y = Concat<axis = 0>(a, x) }""",
    "limits made at run time": """g (float[9] x, int64[1] s) => (float[A] y)
        <int64[1] e = {7}> { a = Slice(x, s, e)  y = Slice(a, e, s) }""",
}


@pytest.mark.parametrize("case", LEFT)
def test_left(case: str) -> None:
    before = Graph.from_text(HEAD + LEFT[case])
    after, made = merge(before)
    assert made == 0
    assert_same_graph(after, before)


def test_outer_values_cut_and_joined_in_a_subgraph() -> None:
    before = Graph.from_text(
        HEAD
        + """g (bool c, float[5] x) => (float[A] y)
        <int64[1] o = {0}, int64[1] m = {2}, int64[1] e = {5}>
        { p = Slice(x, o, m)  y = If(c) <
            then_branch = t () => (float[T] a) { q = Slice(x, m, e)  a = Concat<axis = 0>(p, q) },
            else_branch = f () => (float[F] b) { b = Slice(p, o, m) }> }"""
    )
    after, made = merge(before)
    assert made == 2
    for flag in (True, False):
        feeds = {"c": np.array(flag), "x": np.arange(5, dtype=np.float32)}
        assert_equivalent(before, after, feeds=feeds)


def concat_chain(count: int) -> Graph:
    graph = Graph("g", model=ModelInfo(10, {"": 21}))
    vector = TensorType(DataType.FLOAT, (1,))
    x = graph.add_input("x", vector)
    value: Value = x
    for at in range(count):
        kind = TensorType(DataType.FLOAT, (at + 2,))
        value = graph.add("Concat", [value, x], {"axis": 0}, types=[kind]).output
    graph.add_output(value)
    return graph


def test_long_chain_is_one_concat() -> None:
    graph = concat_chain(2000)
    assert MergeSlices().run(graph, Context()) == 1999
    (joined,) = graph.nodes()
    assert joined.inputs == (graph.values["x"],) * 2001


@settings(max_examples=100)
@given(
    size=st.integers(0, 6),
    known=st.booleans(),
    cuts=st.lists(
        st.tuples(st.integers(-4, 5), st.integers(-4, 5), st.integers(0, 1), st.integers(-2, 2)),
        min_size=2,
        max_size=4,
    ),
)
def test_any_cuts(size: int, known: bool, cuts: list[tuple[int, int, int, int]]) -> None:
    cuts = [(s, FAR if e == 5 else e, a, k or 1) for s, e, a, k in cuts]
    graph = sliced(f"{size}, 3" if known else "N, 3", *cuts)
    after, _ = merge(graph)
    assert_equivalent(graph, after, dims={"N": size})


@settings(max_examples=100)
@given(
    size=st.integers(0, 6),
    known=st.booleans(),
    borders=st.lists(st.integers(-3, 5), min_size=1, max_size=3),
    ends=st.tuples(st.sampled_from([0, 1]), st.sampled_from([FAR, 4])),
)
def test_any_parts(size: int, known: bool, borders: list[int], ends: tuple[int, int]) -> None:
    graph = Graph("g", model=ModelInfo(10, {"": 21}))
    x = graph.add_input("x", TensorType(DataType.FLOAT, (size if known else "N",)))
    marks = [graph.constant(np.array([at])) for at in (ends[0], *borders, ends[1])]
    parts = [graph.add("Slice", [x, start, end]).output for start, end in itertools.pairwise(marks)]
    joined = graph.add("Concat", parts, {"axis": 0}).output
    graph.add_output(graph.add("Neg", [joined], types=[TensorType(DataType.FLOAT)]).output)
    after, _ = merge(graph)
    assert_equivalent(graph, after, dims={"N": size})
    Pipeline((MergeSlices(), EliminateIdentity())).run(after)
    assert_equivalent(graph, after, dims={"N": size})
