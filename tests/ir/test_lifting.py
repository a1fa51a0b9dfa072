"""What bodies compute, given out by the main graph, against the same computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.ir import Graph, infer_types
from onnxq.ir.lifting import can_lift, lift, liftable, nested_values
from tests.helpers import run

HEAD = '<ir_version: 8, opset_import: ["": 17]>'
X = np.array([[1.0, -2.0], [3.0, 4.0]], np.float32)


def given_out(text: str, *names: str) -> Graph:
    graph = Graph.from_text(f"{HEAD} {text}")
    infer_types(graph)
    lift(graph, names)
    for name in names:
        graph.add_output(graph.values[name])
    graph.check()
    return graph


def test_a_branch_gives_its_values_when_it_is_taken() -> None:
    graph = given_out(
        """g (float[2, 2] x, bool flag) => (float[2, 2] y) {
           y = If(flag) <then_branch = t () => (float[2, 2] a) { p = Abs(x) a = Neg(p) },
                         else_branch = e () => (float[2, 2] b) { b = Exp(x) }> }""",
        *("p", "b"),
    )
    taken = run(graph, {"x": X, "flag": np.array(True)})
    assert taken["b"].shape == (0,)
    np.testing.assert_array_equal(taken["p"], abs(X))
    np.testing.assert_array_equal(taken["y"], -abs(X))
    other = run(graph, {"x": X, "flag": np.array(False)})
    assert other["p"].shape == (0,)
    np.testing.assert_array_equal(other["b"], other["y"])


def test_a_loop_gives_what_each_iteration_reads_and_makes() -> None:
    graph = given_out(
        """g (float[2, 2] x) => (float[2, 2] y) <int64 n = {3}, bool go = {1}, float two = {2}> {
           y = Loop(n, go, x) <body = b (int64 i, bool c, float[2, 2] v) => (bool d, float[2, 2] w)
                               { d = Identity(c) w = Mul(v, two) }> }""",
        *("v", "w"),
    )
    found = run(graph, {"x": X})
    np.testing.assert_array_equal(found["v"], np.stack([X, 2 * X, 4 * X]))
    np.testing.assert_array_equal(found["w"], 2 * found["v"])
    np.testing.assert_array_equal(found["y"], 8 * X)


@pytest.mark.parametrize("axes", ["", ", scan_output_axes = [1]"])
def test_a_scan_gives_what_each_step_computes(axes: str) -> None:
    graph = given_out(
        f"""g (float[2, 2] x, float[2] s) => (float[2] t, float[2, 2] y) {{
            t, y = Scan(s, x) <num_scan_inputs = 1 {axes}, body = b (float[2] p, float[2] q)
                               => (float[2] r, float[2] z)
                               {{ r = Add(p, q) z = Neg(r) }}> }}""",
        *("r", "q"),
    )
    found = run(graph, {"x": X, "s": np.zeros(2, np.float32)})
    np.testing.assert_array_equal(found["r"], np.cumsum(X, axis=0))
    np.testing.assert_array_equal(found["q"], X)
    np.testing.assert_array_equal(found["y"], -found["r"].T if axes else -found["r"])


def test_bodies_in_bodies_are_lifted_all_the_way() -> None:
    graph = given_out(
        """g (float[2, 2] x, bool flag) => (float[2, 2] y) <int64 n = {2}, bool go = {1}> {
           y = If(flag) <
             then_branch = t () => (float[2, 2] a) {
               a = Loop(n, go, x) <body = b (int64 i, bool c, float[2, 2] v)
                 => (bool d, float[2, 2] w) { d = Identity(c) w = Add(v, x) }> },
             else_branch = e () => (float[2, 2] o) { o = Identity(x) }> }""",
        "w",
    )
    found = run(graph, {"x": X, "flag": np.array(True)})
    np.testing.assert_array_equal(found["w"], np.stack([2 * X, 3 * X]))
    assert run(graph, {"x": X, "flag": np.array(False)})["w"].size == 0


def test_what_may_change_its_shape_is_not_for_lifting() -> None:
    graph = Graph.from_text(f"""{HEAD}
        g (float[N, 2] x, bool flag) => (float[M, 2] y) <int64 n = {{2}}, bool go = {{1}}> {{
          y = Loop(n, go, x) <body = b (int64 i, bool c, float[K, 2] v)
                               => (bool d, float[L, 2] w) {{
            d = Identity(c)
            u = Neg(x)
            w = If(flag) <then_branch = t () => (float[L, 2] a) {{ a = Concat<axis = 0>(v, u) }},
                          else_branch = e () => (float[L, 2] b) {{ b = Neg(v) }}> }}> }}""")
    infer_types(graph)
    values = nested_values(graph)
    assert {n for n in "xuvwab" if can_lift(values[n])} == {"x", "u"}
    assert {"x", "u"} <= set(liftable(graph)) and "a" not in liftable(graph)
