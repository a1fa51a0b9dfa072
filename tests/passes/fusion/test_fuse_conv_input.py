from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.ir import DataType, Graph, ModelInfo, TensorType
from onnxq.passes.fusion.fuse_conv_input import FuseConvInput
from tests.helpers import assert_equivalent
from tests.passes.rewriting import check_kept, check_pair, operators, rewritten

STEP = FuseConvInput()
HEAD = '<ir_version: 10, opset_import: ["": 21]>'
CONV = "g (float[N, 1, 2, 2] x) => (float[N, 2, 2, 2] y) <float[2, 1, 1, 1] w = "
PAIR = "g (float[N, 2, 2, 2] x) => (float[N, 2, 2, 2] y) <float[2, 2, 1, 1] w = "
CUBE = "g (float[N, 3, 2] x) => (float[N, 3, 2] y) <float[2, 2] w = "
PAIRS = {
    "Mul before Conv": (
        CONV
        + """{1, 2}, float[2] b = {3, 4}, float[1] k = {10}>
        { c = Mul(x, k)  y = Conv<pads = [0, 0, 0, 0]>(c, w, b) }""",
        CONV + "{10, 20}, float[2] b = {3, 4}> { y = Conv<pads = [0, 0, 0, 0]>(x, w, b) }",
        1,
    ),
    "Div before MatMul": (
        CUBE + "{1, 2, 3, 4}, float k = {4}> { c = Div(x, k)  y = MatMul(c, w) }",
        CUBE + "{0.25, 0.5, 0.75, 1}> { y = MatMul(x, w) }",
        1,
    ),
    "Mul before Gemm with a bias made at run time": (
        """g (float[N, 2] x, float[2] b) => (float[N, 2] y) <float[2, 2] w = {1, 2, 3, 4},
        float k = {2}> { c = Mul(x, k)  y = Gemm<transB = 1>(c, w, b) }""",
        """g (float[N, 2] x, float[2] b) => (float[N, 2] y) <float[2, 2] w = {2, 4, 6, 8}>
        { y = Gemm<transB = 1>(x, w, b) }""",
        1,
    ),
    "Mul before MatMul, weight on the left": (
        """g (float[2, 3] x) => (float[1, 3] y) <float[1, 2] w = {1, 2}, float k = {2}>
        { c = Mul(k, x)  y = MatMul(w, c) }""",
        "g (float[2, 3] x) => (float[1, 3] y) <float[1, 2] w = {2, 4}> { y = MatMul(w, x) }",
        1,
    ),
    "Mul by channel before Conv": (
        PAIR + "{1, 2, 3, 4}, float[2, 1, 1] k = {10, 100}> { c = Mul(k, x)  y = Conv(c, w) }",
        PAIR + "{10, 200, 30, 400}> { y = Conv(x, w) }",
        1,
    ),
    "Mul by channel before a Conv in groups": (
        PAIR.replace("[2, 2, 1, 1]", "[2, 1, 1, 1]")
        + "{1, 2}, float[2, 1, 1] k = {10, 100}> { c = Mul(k, x)  y = Conv<group = 2>(c, w) }",
        PAIR.replace("[2, 2, 1, 1]", "[2, 1, 1, 1]") + "{10, 200}> { y = Conv<group = 2>(x, w) }",
        1,
    ),
    "Mul and Add before Conv": (
        PAIR
        + """{1, 2, 3, 4}, float k = {10}, float[2, 1, 1] s = {1, 2}>
        { c = Mul(x, k)  d = Add(c, s)  y = Conv(d, w) }""",
        PAIR + "{10, 20, 30, 40}, float[2] b = {5, 11}> { y = Conv(x, w, b) }",
        2,
    ),
    "Sub before Conv with a bias": (
        CONV + "{1, 2}, float[2] b = {3, 4}, float s = {0.5}> { c = Sub(x, s)  y = Conv(c, w, b) }",
        CONV + "{1, 2}, float[2] b = {2.5, 3}> { y = Conv(x, w, b) }",
        1,
    ),
    "Add before Gemm with factors": (
        """g (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {1, 2, 3, 4}, float[2] b = {1, 2},
        float s = {0.5}> { c = Add(x, s)  y = Gemm<alpha = 2.0, beta = 3.0>(c, w, b) }""",
        """g (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {1, 2, 3, 4}, float[2] b = {7, 12}>
        { y = Gemm<alpha = 2.0>(x, w, b) }""",
        1,
    ),
    "Mul before an addend that padding keeps": (
        CONV
        + """{1, 2}, float k = {4}, float s = {2}>
        { c = Mul(x, k)  d = Add(c, s)  y = Conv<pads = [0, 0, 1, 1], strides = [1, 1],
          dilations = [1, 1], kernel_shape = [1, 1]>(d, w) }""",
        CONV
        + """{4, 8}, float s = {0.5}>
        { d = Add(x, s)  y = Conv<pads = [0, 0, 1, 1], strides = [1, 1],
          dilations = [1, 1], kernel_shape = [1, 1]>(d, w) }""",
        1,
    ),
    "two readers": (
        CONV
        + """{1, 2}, float[2, 1, 1, 1] v = {3, 4}, float k = {4}>
        { c = Mul(x, k)  d = Conv(c, w) e = Conv(c, v) y = Add(d, e) }""",
        CONV
        + """{4, 8}, float[2, 1, 1, 1] v = {12, 16}>
        { d = Conv(x, w) e = Conv(x, v) y = Add(d, e) }""",
        1,
    ),
    "the product of a tensor and its HardSigmoid": (
        CONV
        + """{1, 2}, float k = {4}>
        { h = HardSigmoid(x)  m = Mul(x, h)  c = Mul(m, k)  y = Conv(c, w) }""",
        CONV + "{4, 8}> { h = HardSigmoid(x)  m = Mul(x, h)  y = Conv(m, w) }",
        1,
    ),
}


@pytest.mark.parametrize("case", PAIRS)
def test_pair(case: str) -> None:
    before, after, made = PAIRS[case]
    check_pair(STEP, HEAD + before, HEAD + after, made=made)


KEPT = {
    "one number that widens before": """g (float[2] x) => (float[1, 2] y)
        <float[2, 2] w = {1, 2, 3, 4}, float[1, 1] k = {2}> { c = Mul(x, k)  y = MatMul(c, w) }""",
    "the half of a Gelu": """g (float[2, 2] x) => (float[2, 2] y)
        <float[2, 2] w = {1, 2, 3, 4}, float r = {1.4142135}, float one = {1}, float k = {0.5}>
        { d = Div(x, r)  e = Erf(d)  a = Add(e, one)  m = Mul(x, a)  h = Mul(m, k)
          y = MatMul(h, w) }""",
    "Add before padding": CONV
    + """{1, 2}, float s = {2}> { c = Add(x, s)
        y = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(c, w) }""",
    "Mul by channel before MatMul": CUBE
    + "{1, 2, 3, 4}, float[2] k = {4, 5}> { c = Mul(x, k)  y = MatMul(c, w) }",
    "another reader": CONV
    + """{1, 2}, float k = {4}> { c = Mul(x, k)  d = Conv(c, w)  e = Neg(c)
        y = Add(d, e) }""",
    "given out": """g (float[N, 1, 2, 2] x) => (float[N, 1, 2, 2] y, float[N, 1, 2, 2] c)
        <float[1, 1, 1, 1] w = {2}, float k = {2}> { c = Mul(x, k)  y = Conv(c, w) }""",
    "by one of one channel": """g (float[N, 1, 2, 2] x) => (float[N, 2, 2, 2] y)
        <float[2, 2, 1, 1] w = {1, 2, 3, 4}, float[2, 1, 1] k = {10, 100}>
        { c = Mul(k, x)  y = Conv(c, w) }""",
    "by pixel": """g (float[N, 2, 2, 2] x) => (float[N, 2, 2, 2] y)
        <float[2, 2, 1, 1] w = {1, 2, 3, 4}, float[1, 1, 2] k = {10, 100}>
        { c = Mul(k, x)  y = Conv(c, w) }""",
    "a factor before the body that adds": """g (float[2, 2] x, bool q) => (float[2, 2] y)
        <float[2, 2] w = {1, 2, 3, 4}, float k = {3}, float o = {2}> { c = Mul(x, k)  y = If(q)<
          then_branch = t () => (float[2, 2] r) { a = Add(c, o)  r = MatMul(a, w) },
          else_branch = e () => (float[2, 2] s) { s = MatMul(x, w) }> }""",
}


@pytest.mark.parametrize("case", KEPT)
def test_kept(case: str) -> None:
    check_kept(STEP, HEAD + KEPT[case])


@settings(max_examples=60, deadline=None)
@given(
    operator=st.sampled_from(["Conv", "ConvTranspose", "Gemm", "MatMul"]),
    group=st.integers(1, 2),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.integers(0, 1),
    steps=st.lists(
        st.tuples(st.sampled_from(["Mul", "Div", "Add", "Sub"]), st.booleans()),
        min_size=1,
        max_size=3,
    ),
    seed=st.integers(0, 99),
)
def test_any_steps(
    operator: str,
    group: int,
    channels: tuple[int, int],
    padding: int,
    steps: list[tuple[str, bool]],
    seed: int,
) -> None:
    generator = np.random.default_rng(seed)
    graph = Graph("g", model=ModelInfo(10, {"": 21}))
    image = operator.startswith("Conv")
    group = group if image else 1
    ins, outs = group * channels[0], group * channels[1]

    def constant(*shape: int) -> np.ndarray:
        return np.asarray(generator.uniform(0.5, 2, shape).astype(np.float32))

    x = graph.add_input("x", TensorType(DataType.FLOAT, (2, ins, 5) if image else (2, ins)))
    value = x
    for kind, whole in steps:
        size = () if whole else (ins, 1) if image else (ins,)
        value = graph.add(kind, [value, graph.constant(constant(*size))]).output
    shape = (outs, channels[0], 3) if operator == "Conv" else (ins, channels[1], 3)
    weight = graph.constant(constant(*(shape if image else (ins, outs))))
    attributes = {"group": group, "pads": [padding, padding]} if image else {}
    value = graph.add(operator, [value, weight], attributes).output
    value.type = TensorType(DataType.FLOAT)
    graph.add_output(value)
    after, made = rewritten(STEP, graph)
    if all(whole for _, whole in steps) or operator == "Conv":
        if all(kind in ("Mul", "Div") for kind, _ in steps):
            assert operators(after) == [operator] and made == len(steps)
        elif operator == "Conv" and not padding:
            assert operators(after) == [operator]
    assert_equivalent(graph, after, exact=False, rtol=1e-4)


@pytest.mark.parametrize("operator", ["Conv", "Gemm"])
def test_no_wide_copy_is_made_of_a_weight(operator: str) -> None:
    graph = Graph("g", model=ModelInfo(10, {"": 21}))
    kernel = (1, 1) if operator == "Conv" else ()
    x = graph.add_input("x", TensorType(DataType.FLOAT, (1, 1000, *kernel)))
    weight = np.ones((1000, 1000, *kernel), np.float32)
    added = graph.add("Add", [x, graph.constant(np.float32(2))]).output
    value = graph.add(operator, [added, graph.constant(weight)]).output
    value.type = TensorType(DataType.FLOAT, (1, 1000, *kernel))
    graph.add_output(value)
    tracemalloc.start()
    try:
        after, made = rewritten(STEP, graph)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert operators(after) == [operator] and made == 1
    assert peak < 1.5 * weight.nbytes


def test_a_sum_that_lost_its_factor_has_another_name() -> None:
    before = Graph.from_text(f"""{HEAD} {PAIR}{{1, 2, 3, 4}}, float k = {{4}}, float s = {{8}}> {{
        c = Mul(x, k)  d = Add(c, s)  y = Conv<pads = [1, 1, 0, 0]>(d, w) }}""")
    after, _ = rewritten(STEP, before)
    (total,) = (node for node in after.nodes() if node.op_type == "Add")
    assert total.output.name != "d" and "d" not in after.values
