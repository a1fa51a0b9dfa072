from __future__ import annotations

import numpy as np
import pytest

from onnxq.ir import Context, Graph, Pipeline
from onnxq.passes.cleanup.eliminate_common_subexpressions import EliminateCommonSubexpressions
from tests.helpers import assert_equivalent, assert_same_graph

HEAD = '<ir_version: 10, opset_import: ["": 21, "local": 1]>'

PAIRS = {
    "equal operators, and then their equal readers": (
        """g (float[2] x) => (float[2] y)
        { a = Neg(x)  b = Neg(x)  c = Exp(a)  d = Exp(b)  y = Add(c, d) }""",
        "g (float[2] x) => (float[2] y) { a = Neg(x)  c = Exp(a)  y = Add(c, c) }",
        2,
    ),
    "equal constants, then the operators that read them": (
        """g (float[2] x) => (float[2] y) <float[2] p = {1, 2}, float[2] q = {1, 2}>
        { a = Add(x, p)  b = Add(x, q)  y = Mul(a, b) }""",
        """g (float[2] x) => (float[2] y) <float[2] p = {1, 2}>
        { a = Add(x, p)  y = Mul(a, a) }""",
        2,
    ),
    "equal attributes, tensors among them": (
        """g (int64[1] x) => (float[N] y)
        { a = ConstantOfShape<value = float[1] {2}>(x)
          b = ConstantOfShape<value = float[1] {2}>(x)
          c = ConstantOfShape<value = float[1] {3}>(x)  d = Add(a, b)  y = Add(c, d) }""",
        """g (int64[1] x) => (float[N] y)
        { a = ConstantOfShape<value = float[1] {2}>(x)
          c = ConstantOfShape<value = float[1] {3}>(x)  d = Add(a, a)  y = Add(c, d) }""",
        1,
    ),
    "several outputs": (
        """g (float[2] x) => (float[1] y)
        { a, b = Split<axis = 0, num_outputs = 2>(x)  c, d = Split<num_outputs = 2, axis = 0>(x)
          y = Sub(a, d) }""",
        """g (float[2] x) => (float[1] y)
        { a, b = Split<axis = 0, num_outputs = 2>(x)  y = Sub(a, b) }""",
        1,
    ),
    "one of them makes an output": (
        "g (float[2] x) => (float[2] y, float[2] z) { a = Neg(x)  y = Exp(a)  z = Neg(x) }",
        "g (float[2] x) => (float[2] y, float[2] z) { y = Exp(z)  z = Neg(x) }",
        1,
    ),
    "all of them make outputs": (
        "g (float[2] x) => (float[2] y, float[2] z, float[2] w) "
        "{ y = Neg(x)  z = Neg(x)  w = Neg(x) }",
        "g (float[2] x) => (float[2] y, float[2] z, float[2] w) "
        "{ y = Neg(x)  z = Identity(y)  w = Identity(y) }",
        2,
    ),
    "a subgraph repeats the outer graph": (
        """g (bool c, float[2] x) => (float[2] y, float[2] z) <float[1] k = {1}> { z = Add(x, k)
        y = If(c) <then_branch = t () => (float[2] p) <float[1] l = {1}>
                     { a = Add(x, l)  p = Neg(a) },
                   else_branch = e () => (float[2] q) { q = Add(x, k) }> }""",
        """g (bool c, float[2] x) => (float[2] y, float[2] z) <float[1] k = {1}> { z = Add(x, k)
        y = If(c) <then_branch = t () => (float[2] p) { p = Neg(z) },
                   else_branch = e () => (float[2] q) { q = Identity(z) }> }""",
        3,
    ),
}

LEFT = {
    "other attributes": """g (float[2, 2] x) => (float[2, 2] y)
        { a = Softmax<axis = 0>(x)  b = Softmax<axis = 1>(x)  y = Add(a, b) }""",
    "attributes that differ in the sign of zero": """g (float[2] x) => (float[2] y)
        { a = LeakyRelu<alpha = 0.0>(x)  b = LeakyRelu<alpha = -0.0>(x)  y = Add(a, b) }""",
    "inputs in another order": """g (float[2] x, float[2] v) => (float[2] y)
        { a = Sub(x, v)  b = Sub(v, x)  y = Add(a, b) }""",
    "random operators": """g (float[2] x) => (float[2] y)
        { a = RandomNormalLike(x)  b = RandomNormalLike(x)  y = Sub(a, b) }""",
    "seeded random operators": """g (float[2] x) => (float[2] y)
        { a = Bernoulli<seed = 1.0>(x)  b = Bernoulli<seed = 1.0>(x)  y = Sub(a, b) }""",
    "operators of the model itself": """g (float[2] x) => (float[2] y)
        { a = local.F(x)  b = local.F(x)  y = Sub(a, b) }
        <domain: "local", opset_import: ["": 21]> F (v) => (w) { w = RandomNormalLike(v) }""",
    "the branches of an If": """g (bool c, float[2] x) => (float[2] y)
        { y = If(c) <then_branch = t () => (float[2] p) { p = Neg(x) },
                     else_branch = e () => (float[2] q) { q = Neg(x) }> }""",
    "two equal If": """g (bool c, float[2] x) => (float[2] y)
        { a = If(c) <then_branch = t () => (float[2] p) { p = Neg(x) },
                     else_branch = e () => (float[2] q) { q = Exp(x) }>
          b = If(c) <then_branch = t2 () => (float[2] p2) { p2 = Neg(x) },
                     else_branch = e2 () => (float[2] q2) { q2 = Exp(x) }>
          y = Add(a, b) }""",
    "more outputs": """g (float[2, 2] x) => (float[2, 2] y)
        { a, m = Dropout(x)  b = Dropout(x)  n = Cast<to = 1>(m)  c = Add(a, b)  y = Add(c, n) }""",
    "packed integers that make outputs": """g (float[1] x) => (int4[1] y, int4[1] z)
        <float s = {0.5}, int4 o = {0}>
        { y = QuantizeLinear(x, s, o)  z = QuantizeLinear(x, s, o) }""",
    "constants of another type or shape": """g (float[2] x) => (float[2] y)
        <float[1] a = {0}, int32[1] b = {0}, float c = {0}, float d = {-0.0}>
        { e = Cast<to = 1>(b)  f = Add(a, c)  h = Add(e, d)  i = Add(f, h)  y = Add(x, i) }""",
    "overridable initializers": """g (float[2] x, float[2] p = {1, 2}) => (float[2] y)
        <float[2] q = {1, 2}> { a = Add(x, p)  y = Add(a, q) }""",
}


@pytest.mark.parametrize("name", PAIRS)
def test_merges(name: str) -> None:
    before, wanted, rewrites = PAIRS[name]
    graph = Graph.from_text(HEAD + before)
    after = graph.copy()
    pipeline = Pipeline((EliminateCommonSubexpressions(),))
    assert pipeline.run(after)[0].rewrites == rewrites
    assert pipeline.run(after)[0].rewrites == 0
    assert_same_graph(after, Graph.from_text(HEAD + wanted))
    assert_equivalent(graph, after)


@pytest.mark.parametrize("name", LEFT)
def test_leaves(name: str) -> None:
    graph = Graph.from_text(HEAD + LEFT[name])
    after = graph.copy()
    assert EliminateCommonSubexpressions().run(after, Context()) == 0
    assert_same_graph(after, graph)


def test_large_constants_that_begin_alike_are_told_apart() -> None:
    graph = Graph("g")
    x = graph.add_input("x", None)
    arrays = [np.zeros(1000, np.float32) for _ in range(4)]
    arrays[1][-1] = 1
    for array in arrays:
        x = graph.add("Add", [x, graph.constant(array)]).output
    graph.add_output(x)
    assert EliminateCommonSubexpressions().run(graph, Context()) == 2
    assert sorted(float(v.numpy().sum()) for v in graph.initializers()) == [0, 1]
    graph.check()


def test_what_a_quantization_annotation_names_stays() -> None:
    graph = Graph.from_text(
        f"""{HEAD} g (float[2] x) => (float[2] y) <float s = {{0.5}}, float t = {{0.5}}>
        {{ a = Mul(x, s)  y = Mul(a, t) }}"""
    )
    graph.values["y"].annotation = {"SCALE_TENSOR": "t"}
    assert EliminateCommonSubexpressions().run(graph, Context()) == 0
