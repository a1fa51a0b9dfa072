from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.ir import Context, DataType, Graph, ModelInfo, TensorType, infer_types
from onnxq.passes.fusion.fuse_matmul_add import FuseMatMulAdd
from tests.helpers import assert_equivalent, assert_same_graph

HEAD = '<ir_version: 10, opset_import: ["": 21]>'


def fuse(before: Graph) -> tuple[Graph, int]:
    """The rewritten graph and the rewrites made; a second run must find nothing."""
    infer_types(before)
    after = before.copy()
    made = FuseMatMulAdd().run(after, Context())
    after.check()
    assert FuseMatMulAdd().run(after, Context()) == 0
    return after, made


def operators(graph: Graph) -> list[str]:
    return [node.op_type for node in graph.all_nodes()]


PAIRS = {
    "constant bias": (
        """g (float[N, 3] x) => (float[N, 2] y)
        <float[3, 2] w = {1, 2, 3, 4, 5, 6}, float[2] b = {7, 8}>
        { m = MatMul(x, w)  y = Add(m, b) }""",
        """g (float[N, 3] x) => (float[N, 2] y)
        <float[3, 2] w = {1, 2, 3, 4, 5, 6}, float[2] b = {7, 8}> { y = Gemm(x, w, b) }""",
        1,
    ),
    "bias before the product, scalar bias": (
        """g (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {1, 2, 3, 4}, float b = {7}>
        { m = MatMul(x, w)  y = Add(b, m) }""",
        """g (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {1, 2, 3, 4}, float b = {7}>
        { y = Gemm(x, w, b) }""",
        1,
    ),
    "a column and a whole constant matrix": (
        """g (float[2, 2] x) => (float[2, 2] y)
        <float[2, 2] w = {1, 2, 3, 4}, float[2, 1] b = {7, 8}>
        { m = MatMul(x, w)  n = Add(m, b)  o = MatMul(n, w)  y = Add(o, w) }""",
        """g (float[2, 2] x) => (float[2, 2] y)
        <float[2, 2] w = {1, 2, 3, 4}, float[2, 1] b = {7, 8}>
        { n = Gemm(x, w, b)  y = Gemm(n, w, w) }""",
        2,
    ),
    "one row made at run time": (
        """g (float[M, 2] x, float[2, K] w, float[1, K] b) => (float[M, K] y)
        { m = MatMul(x, w)  y = Add(m, b) }""",
        """g (float[M, 2] x, float[2, K] w, float[1, K] b) => (float[M, K] y)
        { y = Gemm(x, w, b) }""",
        1,
    ),
    "transposes on both sides": (
        """g (float[2, M] x, float[3, 2] w) => (float[M, 3] y) <float[3] b = {1, 2, 3}>
        { u = Transpose<perm = [1, 0]>(x)  v = Transpose(w)  m = MatMul(u, v)  y = Add(m, b) }""",
        """g (float[2, M] x, float[3, 2] w) => (float[M, 3] y) <float[3] b = {1, 2, 3}>
        { y = Gemm<transA = 1, transB = 1>(x, w, b) }""",
        3,
    ),
    "transposes that cancel": (
        """g (float[2, M] x, float[2, 3] w) => (float[M, 3] y)
        { u = Transpose(x)  v = Transpose(u)  y = Gemm<transA = 1>(v, w) }""",
        """g (float[2, M] x, float[2, 3] w) => (float[M, 3] y) { y = Gemm<transA = 1>(x, w) }""",
        2,
    ),
    "a transpose that two Gemms read": (
        """g (float[2, 2] x, float[2, 2] w) => (float[2, 2] y, float[2, 2] z)
        { t = Transpose(x)  y = Gemm<transB = 1>(w, t)  z = Gemm(t, t) }""",
        """g (float[2, 2] x, float[2, 2] w) => (float[2, 2] y, float[2, 2] z)
        { y = Gemm(w, x)  z = Gemm<transA = 1, transB = 1>(x, x) }""",
        1,
    ),
}


@pytest.mark.parametrize("case", PAIRS)
def test_pair(case: str) -> None:
    text, wanted, rewrites = PAIRS[case]
    before = Graph.from_text(HEAD + text)
    after, made = fuse(before)
    assert made == rewrites
    assert_same_graph(after, Graph.from_text(HEAD + wanted))
    assert_equivalent(before, after, exact=False)


KEPT = {
    "a product of more dimensions": """g (float[B, M, 2] x) => (float[B, M, 2] y)
        <float[2, 2] w = {1, 2, 3, 4}, float[2] b = {1, 2}> { m = MatMul(x, w)  y = Add(m, b) }""",
    "a vector": """g (float[2] x) => (float[2] y)
        <float[2, 2] w = {1, 2, 3, 4}, float[2] b = {1, 2}> { m = MatMul(x, w)  y = Add(m, b) }""",
    "a product that is read elsewhere": """g (float[N, 2] x) => (float[N, 2] y, float[N, 2] z)
        <float[2, 2] w = {1, 2, 3, 4}, float[2] b = {1, 2}>
        { m = MatMul(x, w)  y = Add(m, b)  z = Neg(m) }""",
    "a product that is an output": """g (float[N, 2] x) => (float[N, 2] y, float[N, 2] m)
        <float[2, 2] w = {1, 2, 3, 4}, float[2] b = {1, 2}> { m = MatMul(x, w)  y = Add(m, b) }""",
    "a residual sum": """g (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {1, 2, 3, 4}>
        { m = MatMul(x, w)  y = Add(m, x) }""",
    "a sum larger than the product": """g (float[1, 2] x) => (float[2, 2] y)
        <float[2, 2] w = {1, 2, 3, 4}> { m = MatMul(x, w)  y = Add(m, w) }""",
    "a sum of higher rank": """g (float[2, 2] x) => (float[1, 2, 2] y)
        <float[2, 2] w = {1, 2, 3, 4}, float[1, 1, 2] b = {1, 2}>
        { m = MatMul(x, w)  y = Add(m, b) }""",
    "a constant that may enlarge": """g (float[N, 2] x) => (float[M, 2] y)
        <float[2, 2] w = {1, 2, 3, 4}> { m = MatMul(x, w)  y = Add(m, w) }""",
    "integers": """g (int32[N, 2] x) => (int32[N, 2] y)
        <int32[2, 2] w = {1, 2, 3, 4}, int32[2] b = {1, 2}> { m = MatMul(x, w)  y = Add(m, b) }""",
    "a transpose that is an output": """g (float[2, 2] x) => (float[2, 2] y, float[2, 2] t)
        { t = Transpose(x)  y = Gemm(t, x) }""",
    "a transpose that is also a bias": """g (float[2, 2] x) => (float[2, 2] y)
        { t = Transpose(x)  y = Gemm(t, x, t) }""",
    "a transpose that something else reads": """g (float[2, 2] x) => (float[2, 2] y, float[2, 2] z)
        { t = Transpose(x)  y = Gemm(t, x)  z = Neg(t) }""",
    "a transpose of nothing": """g (float[2, 2] x) => (float[2, 2] y)
        { t = Transpose<perm = [0, 1]>(x)  y = Gemm(t, x) }""",
}


@pytest.mark.parametrize("case", KEPT)
def test_kept(case: str) -> None:
    before = Graph.from_text(HEAD + KEPT[case])
    after, made = fuse(before)
    assert made == 0
    assert_same_graph(after, before)


def test_bias_of_unknown_shape_stays() -> None:
    graph = Graph.from_text(
        HEAD
        + """g (float[2, 2] x, float[N] b) => (float[2, 2] y)
        { m = MatMul(x, x)  y = Add(m, b) }"""
    )
    graph.values["b"].type = TensorType(DataType.FLOAT)
    assert fuse(graph)[1] == 0


@pytest.mark.parametrize("dtype, opset, fused", [("bfloat16", 11, 0), ("bfloat16", 13, 1)])
def test_bfloat16_needs_the_opset_that_has_it(dtype: str, opset: int, fused: int) -> None:
    before = Graph.from_text(
        f"""<ir_version: 7, opset_import: ["": {opset}]>
        g ({dtype}[2, 2] x, {dtype}[2] b) => ({dtype}[2, 2] y) {{ m = MatMul(x, x)  y = Add(m, b) }}
        """
    )
    assert fuse(before)[1] == fused


def test_old_opset_stays() -> None:
    before = Graph.from_text(
        """<ir_version: 3, opset_import: ["": 6]>
        g (float[2, 2] x, float[2, 2] b) => (float[2, 2] y) { m = MatMul(x, x)  y = Add(m, b) }"""
    )
    assert fuse(before)[1] == 0


def test_in_a_subgraph_that_reads_outer_values() -> None:
    before = Graph.from_text(
        HEAD
        + """g (bool c, float[2, 2] x) => (float[2, 2] y) <float[2] b = {1, 2}>
        { t = Transpose(x)
          y = If(c) <
            then_branch = then () => (float[2, 2] p) { m = MatMul(t, x)  p = Add(m, b) },
            else_branch = other () => (float[2, 2] q) { q = Gemm(x, t) }> }"""
    )
    after, made = fuse(before)
    assert made == 2
    assert operators(after) == ["If", "Gemm", "Gemm"]
    for c in (True, False):
        feeds = {"c": np.array(c), "x": np.array([[1, 2], [3, 5]], dtype=np.float32)}
        assert_equivalent(before, after, exact=False, feeds=feeds)


@settings(max_examples=25)
@given(
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)),
    bias=st.sampled_from(["", "{n}", "1", "1, {n}", "1, 1", "{m}, 1", "{m}, {n}", "1, {m}, {n}"]),
    flip=st.tuples(st.booleans(), st.booleans()),
    seed=st.integers(0, 99),
)
def test_any_shape(
    sizes: tuple[int, int, int], bias: str, flip: tuple[bool, bool], seed: int
) -> None:
    m, k, n = sizes
    generator = np.random.default_rng(seed)
    shape = [int(d) for d in bias.format(m=m, n=n).split(",") if d.strip()]
    graph = Graph("g", model=ModelInfo(10, {"": 21}))
    x = graph.add_input("x", TensorType(DataType.FLOAT, (k, m) if flip[0] else (m, k)))
    w = graph.constant(
        generator.standard_normal((n, k) if flip[1] else (k, n)).astype(np.float32), "w"
    )
    b = graph.constant(generator.standard_normal(shape).astype(np.float32), "b")
    left = graph.add("Transpose", [x]).output if flip[0] else x
    right = graph.add("Transpose", [w]).output if flip[1] else w
    product = graph.add("MatMul", [left, right]).output
    out = graph.add("Add", [product, b], outputs=["y"]).output
    out.type = TensorType(DataType.FLOAT)
    graph.add_output(out)
    after, made = fuse(graph)
    assert made == (0 if len(shape) == 3 else 1 + sum(flip))
    assert operators(after).count("Gemm") == (0 if len(shape) == 3 else 1)
    assert_equivalent(graph, after, exact=False)
