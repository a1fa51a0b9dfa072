from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.ir import (
    Context,
    DataType,
    Graph,
    ModelInfo,
    Tensor,
    TensorType,
    infer_types,
    load,
    save,
)
from onnxq.passes.fusion.fuse_conv_scale import FuseConvScale
from tests.helpers import assert_equivalent, assert_same_graph

HEAD = '<ir_version: 10, opset_import: ["": 21]>'


def fuse(before: Graph) -> tuple[Graph, int]:
    """The rewritten graph and the rewrites made; a second run must find nothing."""
    infer_types(before)
    after = before.copy()
    made = FuseConvScale().run(after, Context())
    after.check()
    assert FuseConvScale().run(after, Context()) == 0
    return after, made


def operators(graph: Graph) -> list[str]:
    return [node.op_type for node in graph.all_nodes()]


CONV = "g (float[N, 1, 2, 2] x) => (float[N, 2, 2, 2] y) <float[2, 1, 1, 1] w = "
PLANE = "g (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = "
CUBE = "g (float[N, 3, 2] x) => (float[N, 3, 2] y) <float[2, 2] w = "
PAIRS = {
    "Conv and Mul by channel": (
        CONV
        + """{1, 2}, float[2] b = {3, 4}, float[2, 1, 1] k = {10, 100}>
        { c = Conv(x, w, b)  y = Mul(k, c) }""",
        CONV + "{10, 200}, float[2] b = {30, 400}> { y = Conv(x, w, b) }",
        1,
    ),
    "Conv and Div by one number": (
        CONV + "{1, 2}, float k = {4}> { c = Conv(x, w)  y = Div(c, k) }",
        CONV + "{0.25, 0.5}> { y = Conv(x, w) }",
        1,
    ),
    "Conv, Mul and Add": (
        CONV
        + """{1, 2}, float[1, 2, 1, 1] k = {10, 100}, float[1] s = {7}>
        { c = Conv(x, w)  d = Mul(c, k)  y = Add(d, s) }""",
        CONV + "{10, 200}, float[2] b = {7, 7}> { y = Conv(x, w, b) }",
        2,
    ),
    "Conv and Sub either way": (
        CONV
        + """{1, 2}, float[2] b = {3, 4}, float[2, 1, 1] k = {10, 100}>
        { c = Conv(x, w, b)  d = Sub(c, k)  y = Sub(k, d) }""",
        CONV + "{-1, -2}, float[2] b = {17, 196}> { y = Conv(x, w, b) }",
        2,
    ),
    "Conv whose weight is made at run time, and Add": (
        """g (float[1, 1, 2] x, float[2, 1, 1] w) => (float[1, 2, 2] y) <float[2, 1] k = {1, 2}>
        { c = Conv(x, w)  y = Add(c, k) }""",
        """g (float[1, 1, 2] x, float[2, 1, 1] w) => (float[1, 2, 2] y) <float[2] k = {1, 2}>
        { y = Conv(x, w, k) }""",
        1,
    ),
    "ConvTranspose in groups": (
        """g (float[1, 4, 3] x) => (float[1, 2, 3] y)
        <float[4, 1, 1] w = {1, 2, 3, 4}, float[2, 1] k = {10, 100}>
        { c = ConvTranspose<group = 2>(x, w)  y = Mul(c, k) }""",
        """g (float[1, 4, 3] x) => (float[1, 2, 3] y) <float[4, 1, 1] w = {10, 20, 300, 400}>
        { y = ConvTranspose<group = 2>(x, w) }""",
        1,
    ),
    "Gemm with alpha, beta and transB": (
        PLANE
        + """{1, 2, 3, 4}, float[2] b = {3, 4}, float[1, 2] k = {10, 100}, float s = {1}>
        { c = Gemm<alpha = 0.5, beta = 2.0, transB = 1>(x, w, b)  d = Mul(c, k)  y = Add(d, s) }""",
        PLANE
        + "{10, 20, 300, 400}, float[2] b = {61, 801}> "
        + "{ y = Gemm<alpha = 0.5, transB = 1>(x, w, b) }",
        2,
    ),
    "MatMul and Mul by column": (
        CUBE + "{1, 2, 3, 4}, float[2] k = {10, 100}> { c = MatMul(x, w)  y = Mul(c, k) }",
        CUBE + "{10, 200, 30, 400}> { y = MatMul(x, w) }",
        1,
    ),
    "MatMul and Div, weight on the left": (
        """g (float[N, 3, 2] x) => (float[N, 2, 2] y)
        <float[2, 3] w = {1, 2, 3, 4, 5, 6}, float k = {2}> { c = MatMul(w, x)  y = Div(c, k) }""",
        """g (float[N, 3, 2] x) => (float[N, 2, 2] y)
        <float[2, 3] w = {0.5, 1, 1.5, 2, 2.5, 3}> { y = MatMul(w, x) }""",
        1,
    ),
    "MatMul with a bias": (
        CUBE
        + """{1, 2, 3, 4}, float[2] b = {5, 6}, float k = {10}>
        { c = MatMul(x, w)  d = Add(b, c)  y = Mul(d, k) }""",
        CUBE + "{10, 20, 30, 40}, float[2] b = {50, 60}> { c = MatMul(x, w)  y = Add(b, c) }",
        1,
    ),
    "MatMul with a bias, weight on the left": (
        """g (float[2, 2] x) => (float[1, 2] y) <float[1, 2] w = {1, 2}, float[2] b = {5, 6},
        float k = {10}> { c = MatMul(w, x)  d = Add(c, b)  y = Mul(d, k) }""",
        """g (float[2, 2] x) => (float[1, 2] y) <float[1, 2] w = {10, 20}, float[2] b = {50, 60}>
        { c = MatMul(w, x)  y = Add(c, b) }""",
        1,
    ),
}


@pytest.mark.parametrize("case", PAIRS)
def test_pair(case: str) -> None:
    text, wanted, rewrites = PAIRS[case]
    before = Graph.from_text(HEAD + text)
    after, made = fuse(before)
    assert made == rewrites
    assert_same_graph(after, Graph.from_text(HEAD + wanted), rtol=1e-7)
    assert_equivalent(before, after, exact=False, rtol=1e-6)


LEFT = {
    "read elsewhere": """g (float[1, 1, 2] x) => (float[1, 2, 2] y, float[1, 2, 2] z)
        <float[2, 1, 1] w = {1, 2}, float k = {2}>
        { c = Conv(x, w)  y = Mul(c, k)  z = Neg(c) }""",
    "given out": """g (float[1, 1, 2] x) => (float[1, 2, 2] y, float[1, 2, 2] c)
        <float[2, 1, 1] w = {1, 2}, float k = {2}> { c = Conv(x, w)  y = Mul(c, k) }""",
    "along another axis": """g (float[1, 1, 2] x) => (float[1, 2, 2] y)
        <float[2, 1, 1] w = {1, 2}, float[2] k = {2, 3}> { c = Conv(x, w)  y = Mul(c, k) }""",
    "of more axes": """g (float[1, 1, 2] x) => (float[1, 1, 2, 2] y)
        <float[2, 1, 1] w = {1, 2}, float[1, 1, 1, 1] k = {2}> { c = Conv(x, w)  y = Mul(c, k) }""",
    "one number that widens": """g (float[2] x) => (float[1, 2] y)
        <float[2, 2] w = {1, 2, 3, 4}, float[1, 1] k = {2}> { c = MatMul(x, w)  y = Mul(c, k) }""",
    "by row": """g (float[2, 2] x) => (float[2, 2] y)
        <float[2, 2] w = {1, 2, 3, 4}, float[2, 1] k = {2, 3}>
        { c = MatMul(x, w)  y = Mul(c, k) }""",
    "by column of a weight on the left": """g (float[2, 2] x) => (float[2, 2] y)
        <float[2, 2] w = {1, 2, 3, 4}, float[2] k = {2, 3}> { c = MatMul(w, x)  y = Mul(c, k) }""",
    "made at run time": """g (float[2, 2] x, float k) => (float[2, 2] y)
        <float[2, 2] w = {1, 2, 3, 4}> { c = MatMul(x, w)  y = Mul(c, k) }""",
    "weight made at run time": """g (float[2, 2] x, float[2, 2] w) => (float[2, 2] y)
        <float k = {2}> { c = MatMul(x, w)  y = Mul(c, k) }""",
    "divided by it": """g (float[1, 1, 2] x) => (float[1, 2, 2] y)
        <float[2, 1, 1] w = {1, 2}, float k = {2}> { c = Conv(x, w)  y = Div(k, c) }""",
    "too large": """g (float[2, 2] x) => (float[2, 2] y)
        <float[2, 2] w = {1e30, 2, 3, 4}, float k = {1e20}> { c = MatMul(x, w)  y = Mul(c, k) }""",
    "too small": """g (float[2, 2] x) => (float[2, 2] y)
        <float[2, 2] w = {1e-30, 2, 3, 4}, float k = {1e-10}>
        { c = MatMul(x, w)  y = Mul(c, k) }""",
    "by zero": """g (float[2, 2] x) => (float[2, 2] y)
        <float[2, 2] w = {1, 2, 3, 4}, float k = {0}> { c = MatMul(x, w)  y = Div(c, k) }""",
    "integers": """g (int32[2, 2] x) => (int32[2, 2] y)
        <int32[2, 2] w = {1, 2, 3, 4}, int32 k = {2}> { c = MatMul(x, w)  y = Mul(c, k) }""",
    "a constant times itself": """g () => (float[2, 2] y)
        <float[2, 2] w = {1, 2, 3, 4}, float[2] k = {2, 3}> { c = MatMul(w, w)  y = Mul(c, k) }""",
    "quantized weight": """g (float[2, 2] x) => (float[2, 2] y)
        <int8[2, 2] q = {1, 2, 3, 4}, float s = {0.5}, float k = {2}>
        { w = DequantizeLinear(q, s)  c = MatMul(x, w)  y = Mul(c, k) }""",
    "bias that is a whole matrix": """g (float[2, 2] x) => (float[2, 2] y)
        <float[2, 2] w = {1, 2, 3, 4}, float[2, 2] b = {1, 2, 3, 4}, float k = {2}>
        { c = Gemm(x, w, b)  y = Mul(c, k) }""",
    "bias made at run time": """g (float[1, 1, 2] x, float[2] b) => (float[1, 2, 2] y)
        <float[2, 1, 1] w = {1, 2}, float k = {2}> { c = Conv(x, w, b)  y = Add(c, k) }""",
}


@pytest.mark.parametrize("case", LEFT)
def test_left(case: str) -> None:
    before = Graph.from_text(HEAD + LEFT[case])
    after, made = fuse(before)
    assert made == 0
    assert_same_graph(after, before)


def test_opset_that_broadcasts_by_attributes_stays() -> None:
    text = """<ir_version: 3, opset_import: ["": %d]> g (float[2, 2] x) => (float[2, 2] y)
    <float[2, 2] w = {1, 2, 3, 4}, float k = {2}> { c = MatMul(x, w)  y = Mul(c, k) }"""
    assert fuse(Graph.from_text(text % 6))[1] == 0
    assert fuse(Graph.from_text(text % 7))[1] == 1


def scaled_product(size: int, twice: bool = False) -> Graph:
    graph = Graph("g", model=ModelInfo(10, {"": 21}))
    x = graph.add_input("x", TensorType(DataType.FLOAT, (1, size)))
    generator = np.random.default_rng(0)
    w = graph.constant(generator.standard_normal((size, size)).astype(np.float32), "w")
    two = graph.constant(np.float32(2) * np.ones((), np.float32))
    product = graph.add("MatMul", [x, w]).output
    graph.add_output(graph.add("Mul", [product, two], types=[x.type], outputs=["y"]).output)
    if twice:
        graph.add_output(graph.add("MatMul", [x, w], types=[x.type], outputs=["z"]).output)
    return graph


def test_large_weight_is_not_stored_twice() -> None:
    assert fuse(scaled_product(64, twice=True))[1] == 1
    assert fuse(scaled_product(200, twice=True))[1] == 0
    before = scaled_product(200)
    after, made = fuse(before)
    assert made == 1
    assert_equivalent(before, after, exact=False)


def test_large_external_weight_is_not_read_in(tmp_path: Path) -> None:
    save(scaled_product(2100), tmp_path / "large.onnx", external_data=True)
    save(scaled_product(200), tmp_path / "small.onnx", external_data=True)
    assert fuse(load(tmp_path / "large.onnx"))[1] == 0
    assert fuse(load(tmp_path / "small.onnx"))[1] == 1


def test_overridable_weight_stays() -> None:
    graph = scaled_product(2)
    graph.add_input("v", TensorType(DataType.FLOAT, (2, 2))).data = Tensor(
        np.ones((2, 2), np.float32)
    )
    graph.nodes()[0].set_input(1, graph.values["v"])
    assert fuse(graph)[1] == 0


def test_names() -> None:
    before = Graph.from_text(
        HEAD + CONV + "{1, 2}, float k = {4}> { [conv] c = Conv(x, w)  [scale] y = Div(c, k) }"
    )
    after, _ = fuse(before)
    assert [n.name for n in after.nodes()] == ["conv"]
    assert set(after.values) == {"x", "w", "y"}


@pytest.mark.parametrize("dtype", [DataType.FLOAT16, DataType.BFLOAT16, DataType.DOUBLE])
def test_dtype_of_the_weight_stays(dtype: DataType) -> None:
    graph = Graph("g", model=ModelInfo(10, {"": 21}))
    x = graph.add_input("x", TensorType(dtype, (1, 2)))
    w = graph.constant(np.array([[1, 2], [3, 4]], dtype=dtype.numpy))
    k = graph.constant(np.array([2, 4], dtype=dtype.numpy))
    product = graph.add("MatMul", [x, w], types=[x.type]).output
    graph.add_output(graph.add("Mul", [product, k], types=[x.type]).output)
    after, made = fuse(graph)
    assert made == 1
    (node,) = after.nodes()
    weight = node.inputs[1]
    assert weight is not None and weight.dtype is dtype
    assert weight.numpy().astype(np.float64).tolist() == [[2, 8], [6, 16]]


@settings(max_examples=60)
@given(
    operator=st.sampled_from(["Conv", "ConvTranspose", "Gemm", "MatMul"]),
    group=st.integers(1, 2),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    bias=st.booleans(),
    steps=st.lists(
        st.tuples(st.sampled_from(["Mul", "Div", "Add", "Sub"]), st.booleans(), st.booleans()),
        min_size=1,
        max_size=3,
    ),
    seed=st.integers(0, 99),
)
def test_any_steps(
    operator: str,
    group: int,
    channels: tuple[int, int],
    bias: bool,
    steps: list[tuple[str, bool, bool]],
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
    shape = (outs, channels[0], 3) if operator == "Conv" else (ins, channels[1], 3)
    weight = graph.constant(constant(*(shape if image else (ins, outs))))
    extra = [graph.constant(constant(outs))] if bias and operator != "MatMul" else []
    attributes = {"group": group} if image else {}
    value = graph.add(operator, [value, weight, *extra], attributes).output
    for kind, whole, flipped in steps:
        size = () if whole else (outs, 1) if image else (outs,)
        pair = [value, graph.constant(constant(*size))]
        value = graph.add(kind, pair[::-1] if flipped else pair).output
    value.type = TensorType(DataType.FLOAT)
    graph.add_output(value)
    after, made = fuse(graph)
    foldable = all(not (kind == "Div" and flipped) for kind, _, flipped in steps)
    if foldable and operator != "MatMul":
        assert operators(after) == [operator]
        assert made == len(steps)
    # What is divided by may come close to zero.
    assert_equivalent(graph, after, exact=False, rtol=1e-5 if foldable else 1e-3)
