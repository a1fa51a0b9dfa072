from __future__ import annotations

import numpy as np

from onnxq.ir import Context, Graph, Pipeline, infer_types
from onnxq.passes.cleanup.fold_constants import FoldConstants
from onnxq.passes.cleanup.fold_if import FoldIf
from tests.helpers import assert_equivalent, assert_same_graph, run

HEAD = '<ir_version: 10, opset_import: ["": 21]>'


def fold(before: Graph) -> tuple[Graph, int]:
    """The rewritten graph and the rewrites made; a second run must find nothing."""
    infer_types(before)
    after = before.copy()
    made = FoldIf().run(after, Context())
    after.check()
    assert FoldIf().run(after, Context()) == 0
    return after, made


def chosen(flag: int, result: str = "y") -> Graph:
    return Graph.from_text(
        f"""{HEAD} g (float[2] x) => (float[2] {result}) <bool c = {{{flag}}}, float[1] k = {{3}}>
        {{ v = Neg(x)  r = If(c) <
            then_branch = t () => (float[2] p) <float[1] h = {{2}}> {{ a = Add(v, h)
              p = Mul(a, k) }},
            else_branch = e () => (float[2] q) <float[1] h = {{5}}> {{ a = Sub(x, h)
              q = Div(a, k) }}>
           y = Abs(r) }}"""
    )


def test_then() -> None:
    before = chosen(1)
    after, made = fold(before)
    assert made == 1
    wanted = """g (float[2] x) => (float[2] y) <float[1] k = {3}, float[1] h = {2}>
    { v = Neg(x)  a = Add(v, h)  p = Mul(a, k)  y = Abs(p) }"""
    assert_same_graph(after, Graph.from_text(HEAD + wanted))
    assert set(after.values) == {"x", "y", "v", "a", "p", "h", "k"}
    assert_equivalent(before, after)


def test_else() -> None:
    before = chosen(0)
    after, made = fold(before)
    assert made == 1
    wanted = """g (float[2] x) => (float[2] y) <float[1] k = {3}, float[1] h = {5}>
    { v = Neg(x)  a = Sub(x, h)  q = Div(a, k)  y = Abs(q) }"""
    # The value that only the other branch read is for eliminate-dead.
    assert [n.op_type for n in after.nodes()] == ["Neg", "Sub", "Div", "Abs"]
    dead = after.values["v"].producer
    assert dead is not None
    after.remove(dead)
    assert_same_graph(after, Graph.from_text(HEAD + wanted.replace("v = Neg(x)", "")))
    assert_equivalent(before, after)


def test_outputs_keep_their_names() -> None:
    before = Graph.from_text(
        HEAD
        + """g (float[2] x) => (float[2] y, float[2] z, float[1] w) <bool c = {1}>
        { y, z, w = If(c) <
            then_branch = t () => (float[2] p, float[2] p, float[1] h) <float[1] h = {2}>
              { p = Mul(x, h) },
            else_branch = e () => (float[2] q, float[2] r, float[1] s)
              { q = Abs(x)  r = Neg(x)  s = Constant<value = float[1] {1}>() }> }"""
    )
    after, made = fold(before)
    assert made == 1
    # Not compared with the model before: onnxruntime gives back one value twice wrongly.
    found = run(after, {"x": np.array([3, -4], np.float32)})
    assert {name: array.tolist() for name, array in found.items()} == {
        "y": [6, -8],
        "z": [6, -8],
        "w": [2],
    }


def test_nested_ifs_and_names_that_are_taken() -> None:
    before = Graph.from_text(
        HEAD
        + """g (bool d, float[2] x) => (float[2] y, float[2] z) <bool c = {1}>
        { y = If(c) <
            then_branch = t () => (float[2] p) { a = Neg(x)  p = If(c) <
              then_branch = tt () => (float[2] u) { b = Exp(a)  u = If(d) <
                then_branch = ttt () => (float[2] v) { n = Neg(b)  v = Add(n, a) },
                else_branch = tte () => (float[2] w) { w = Abs(a) }> },
              else_branch = te () => (float[2] s) { s = Abs(x) }> },
            else_branch = e () => (float[2] q) { q = Neg(x) }>
          z = If(d) <
            then_branch = f () => (float[2] i) { a = Exp(x)  i = Add(a, x) },
            else_branch = h () => (float[2] j) { a = Cos(x)  j = Sub(a, x) }> }"""
    )
    after, made = fold(before)
    assert made == 2
    # A branch that stays has an `a` of its own, which may not be hidden.
    assert "a" not in after.values
    assert sorted(n.op_type for n in after.nodes()) == ["Exp", "If", "If", "Neg"]
    for flag in (True, False):
        feeds = {"d": np.array(flag), "x": np.array([1, -2], np.float32)}
        assert_equivalent(before, after, feeds=feeds)


def test_inside_a_branch_that_stays() -> None:
    before = Graph.from_text(
        HEAD
        + """g (bool d, float[2] x) => (float[2] y) <bool c = {0}>
        { y = If(d) <
            then_branch = t () => (float[2] p) { a = Neg(x)  p = If(c) <
              then_branch = tt () => (float[2] u) { u = Exp(a) },
              else_branch = te () => (float[2] s) { s = Abs(a) }> },
            else_branch = e () => (float[2] q) { q = Neg(x) }> }"""
    )
    after, made = fold(before)
    assert made == 1
    assert [n.op_type for n in after.all_nodes()] == ["If", "Neg", "Abs", "Neg"]
    for flag in (True, False):
        feeds = {"d": np.array(flag), "x": np.array([1, -2], np.float32)}
        assert_equivalent(before, after, feeds=feeds)


def test_condition_that_is_fed_stays() -> None:
    before = Graph.from_text(
        HEAD
        + """g (bool d, float[2] x) => (float[2] y)
        { y = If(d) <then_branch = t () => (float[2] p) { p = Neg(x) },
                     else_branch = e () => (float[2] q) { q = Abs(x) }> }"""
    )
    after, made = fold(before)
    assert made == 0
    assert_same_graph(after, before)


def test_condition_computed_from_shapes() -> None:
    before = Graph.from_text(
        HEAD
        + """g (float[2, 3] x) => (float[A, B] y) <int64 two = {2}>
        { s = Shape(x)  n = Size(s)  c = Equal(n, two)
          y = If(c) <then_branch = t () => (float[P, Q] p) { p = Neg(x) },
                     else_branch = e () => (float[R, S] q) { q = Abs(x) }> }"""
    )
    infer_types(before)
    after = before.copy()
    Pipeline((FoldConstants(), FoldIf())).run(after)
    assert [n.op_type for n in after.nodes()] == ["Neg"]
    assert_equivalent(before, after)
