from __future__ import annotations

import numpy as np
import pytest

from onnxq.ir import Context, Graph, infer_types
from onnxq.passes.cleanup.hoist_constants import HoistConstants
from tests.helpers import assert_equivalent, assert_same_graph

HEAD = '<ir_version: 10, opset_import: ["": 21]>'


def hoist(before: Graph) -> tuple[Graph, int]:
    """The rewritten graph and the rewrites made; a second run must find nothing."""
    infer_types(before)
    after = before.copy()
    made = HoistConstants().run(after, Context())
    after.check()
    assert HoistConstants().run(after, Context()) == 0
    return after, made


def loop(trips: str, condition: str, body: str, inputs: str = "") -> Graph:
    """A Loop that adds something to v, which begins as x."""
    return Graph.from_text(
        f"""{HEAD} g (float[2] x, float[2] z{inputs}) => (float[2] y)
        <int64 trips = {{3}}, int64 none = {{0}}, bool yes = {{1}}>
        {{ y = Loop({trips}, {condition}, x) <
            body = b (int64 i, bool c, float[2] v) => (bool d, float[2] w)
              <float[1] h = {{2}}> {{ d = Identity(c)  {body} }}> }}"""
    )


def test_loop_without_a_body_is_left_to_fail_when_it_runs() -> None:
    graph = loop("trips", "yes", "w = Add(v, z)")
    graph.set_attribute(graph.nodes()[0], "body", None)
    assert HoistConstants().run(graph, Context()) == 0


FREE = "a = Mul(z, h)  e = Exp(a)  f = Add(e, h)  w = Add(v, f)"


@pytest.mark.parametrize("condition", ["yes", ""])
def test_out_of_a_loop_that_certainly_runs(condition: str) -> None:
    before = loop("trips", condition, FREE)
    after, made = hoist(before)
    assert made == 3
    wanted = Graph.from_text(
        f"""{HEAD} g (float[2] x, float[2] z) => (float[2] y)
        <int64 trips = {{3}}, int64 none = {{0}}, bool yes = {{1}}, float[1] h = {{2}}>
        {{ a = Mul(z, h)  e = Exp(a)  f = Add(e, h)  y = Loop(trips, {condition}, x) <
            body = b (int64 i, bool c, float[2] v) => (bool d, float[2] w)
              {{ d = Identity(c)  w = Add(v, f) }}> }}"""
    )
    assert_same_graph(after, wanted)
    assert {"a", "e", "f", "h"} <= set(after.values)
    assert_equivalent(before, after)


@pytest.mark.parametrize(
    "trips, condition, inputs",
    [("n", "yes", ", int64 n"), ("trips", "go", ", bool go"), ("none", "yes", "")],
)
def test_out_of_a_loop_that_may_not_run(trips: str, condition: str, inputs: str) -> None:
    body = (
        "a = Mul(z, h)  s = Shape(z)  m = Mul(s, s)  k = Cast<to = 1>(m)  f = Add(a, k)"
        "  w = Add(v, f)"
    )
    before = loop(trips, condition, body, inputs)
    after, made = hoist(before)
    # Only what is computed from the shape.
    assert made == 2
    assert [n.op_type for n in after.nodes()] == ["Shape", "Mul", "Loop"]
    for number, flag in ((0, False), (2, True)):
        feeds = {
            "x": np.ones(2, np.float32),
            "z": np.array([1, 2], np.float32),
            "n": np.array(number),
            "go": np.array(flag),
        }
        used = {v.name for v in before.inputs}
        fed = {name: array for name, array in feeds.items() if name in used}
        assert_equivalent(before, after, feeds=fed)


@pytest.mark.parametrize("index, moves", [(0, 2), (-1, 2), (1, 1), (7, 1)])
def test_gather_that_might_fail_stays(index: int, moves: int) -> None:
    body = f"""s = Shape(z)  at = Constant<value_int = {index}>()  n = Gather(s, at)
    k = Cast<to = 1>(n)  w = Add(v, k)"""
    before = loop("n", "yes", body, ", int64 n")
    inner = next(before.nodes()[0].subgraphs())
    constant = next(n for n in inner.nodes() if n.op_type == "Constant")
    value = inner.constant(np.array(index))
    inner.replace_uses(constant.output, value)
    inner.remove(constant)
    after, made = hoist(before)
    assert made == moves
    assert [n.op_type for n in after.nodes()][:-1] == ["Shape", "Gather"][:moves]


@pytest.mark.parametrize(
    "body",
    [
        # Depends on the turn, on what is carried, is random, or is given back.
        "a = Cast<to = 1>(i)  w = Add(v, a)",
        "a = Exp(v)  w = Add(v, a)",
        "a = RandomNormalLike(z)  e = Mul(a, h)  r = Sub(e, e)  w = Add(v, r)",
        "w = Neg(z)",
    ],
)
def test_what_depends_on_the_body_stays(body: str) -> None:
    before = loop("trips", "yes", body)
    after, made = hoist(before)
    assert made == 0
    assert_same_graph(after, before)


def test_constant_that_stays_in_use_is_shared() -> None:
    before = loop("trips", "yes", "a = Mul(z, h)  e = Mul(v, h)  w = Add(e, a)")
    after, made = hoist(before)
    assert made == 1
    assert "h" in after.values
    (body,) = after.nodes()[-1].subgraphs()
    assert not list(body.initializers())
    assert_equivalent(before, after)


def test_out_of_nested_loops() -> None:
    before = Graph.from_text(
        HEAD
        + """g (float[2] x, float[2] z) => (float[2] y) <int64 n = {2}>
        { y = Loop(n, , x) < body = b (int64 i, bool c, float[2] v) => (bool d, float[2] w)
            { d = Identity(c)  w = Loop(n, , v) <
              body = bb (int64 j, bool e, float[2] p) => (bool f, float[2] q)
                { f = Identity(e)  far = Exp(z)  near = Neg(v)  k = Add(far, near)
                  q = Add(p, k) }> }> }"""
    )
    after, made = hoist(before)
    # `far` moves twice.
    assert made == 4
    assert [n.op_type for n in after.nodes()] == ["Exp", "Loop"]
    (body,) = after.nodes()[-1].subgraphs()
    assert sorted(n.op_type for n in body.nodes()) == ["Add", "Identity", "Loop", "Neg"]
    assert_equivalent(before, after)


def test_node_with_a_body_of_its_own() -> None:
    body = """a = If(q) <then_branch = t () => (float[2] m) { m = Mul(z, h) },
        else_branch = o () => (float[2] n) { r = Exp(z)  n = Sub(r, h) }>  w = Add(v, a)"""
    before = loop("trips", "yes", body, ", bool q")
    after, made = hoist(before)
    assert made == 1
    assert [n.op_type for n in after.nodes()] == ["If", "Loop"]
    for flag in (True, False):
        arrays = [np.array([1, 2], np.float32), np.array([3, -4], np.float32), np.array(flag)]
        assert_equivalent(before, after, feeds=dict(zip("xzq", arrays, strict=True)))


@pytest.mark.parametrize("length, moves", [("3", 1), ("N", 0)])
def test_out_of_a_scan(length: str, moves: int) -> None:
    before = Graph.from_text(
        f"""{HEAD} g (float[2] x, float[{length}, 2] s, float[2] z) => (float[2] y, float[M, 2] r)
        {{ y, r = Scan(x, s) <num_scan_inputs = 1,
            body = b (float[2] v, float[2] e) => (float[2] w, float[2] o)
              {{ k = Exp(z)  w = Add(v, e)  o = Mul(w, k) }}> }}"""
    )
    infer_types(before)
    after, made = hoist(before)
    assert made == moves
    assert_equivalent(before, after, dims={"N": 2})


IF = """g (bool c, float[2] x) => (float[2] y)
    { y = If(c) <then_branch = t () => (float[2] p) <float[1] h = {2}, float[1] l = {3}>
        { a = Mul(x, h)  b = Exp(a)  m = Neg(x)  p = Add(b, l) },
      else_branch = e () => (float[2] q) <float[1] k = {2}>
        { d = Mul(x, k)  f = Exp(d)  s = Abs(x)  u = Exp(d)  i = Add(f, u)  q = Sub(i, s) }> }"""


def test_what_both_branches_compute() -> None:
    before = Graph.from_text(HEAD + IF)
    after, made = hoist(before)
    assert made == 2
    wanted = """g (bool c, float[2] x) => (float[2] y) <float[1] h = {2}>
    { a = Mul(x, h)  b = Exp(a)
      y = If(c) <then_branch = t () => (float[2] p) <float[1] l = {3}>
        { m = Neg(x)  p = Add(b, l) },
      else_branch = e () => (float[2] q) { s = Abs(x)  i = Add(b, b)  q = Sub(i, s) }> }"""
    # m, which nobody reads, is for eliminate-dead.
    assert [n.op_type for n in after.nodes()] == ["Mul", "Exp", "If"]
    assert_same_graph(after, Graph.from_text(HEAD + wanted))
    for flag in (True, False):
        feeds = {"c": np.array(flag), "x": np.array([1, -2], np.float32)}
        assert_equivalent(before, after, feeds=feeds)


def test_names_that_another_body_uses() -> None:
    before = Graph.from_text(
        HEAD
        + """g (bool c, float[2] x) => (float[2] y, float[2] z)
        { y = If(c) <then_branch = t () => (float[2] p) { a = Exp(x)  b = Neg(a)  p = Abs(b) },
                     else_branch = e () => (float[2] q) { d = Exp(x)  f = Neg(d)  q = Cos(f) }>
          z = If(c) <then_branch = u () => (float[2] r) { a = Cos(x)  r = Sin(a) },
                     else_branch = v () => (float[2] s) { b = Sin(x)  s = Cos(b) }> }"""
    )
    after, made = hoist(before)
    assert made == 2
    assert not {"a", "b"} & set(after.values)
    for flag in (True, False):
        feeds = {"c": np.array(flag), "x": np.array([1, -2], np.float32)}
        assert_equivalent(before, after, feeds=feeds)


@pytest.mark.parametrize("other", ["d = Mul(k, x)", "d = Div(x, k)", "d = Mul(x, l)"])
def test_what_only_one_branch_computes_stays(other: str) -> None:
    before = Graph.from_text(
        HEAD
        + f"""g (bool c, float[2] x) => (float[2] y)
        {{ y = If(c) <then_branch = t () => (float[2] p) <float[1] h = {{2}}>
            {{ a = Mul(x, h)  p = Neg(a) }},
          else_branch = e () => (float[2] q) <float[1] k = {{2}}, float[1] l = {{-2}}>
            {{ {other}  q = Abs(d) }}> }}"""
    )
    after, made = hoist(before)
    assert made == 0
    assert_same_graph(after, before)
