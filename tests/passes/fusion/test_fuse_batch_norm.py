from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.ir import Context, DataType, Graph, ModelInfo, Tensor, TensorType, Value, infer_types
from onnxq.passes.fusion.fuse_batch_norm import FuseBatchNorm
from tests.helpers import assert_equivalent, assert_same_graph

HEAD = '<ir_version: 10, opset_import: ["": 21]>'

# scale / sqrt(var + epsilon) is {2, 4}, and bias - mean * factor is {-1, 1}.
NORM = """float[2] s = {4, 2}, float[2] o = {3, 5}, float[2] m = {2, 1},
    float[2] v = {3, -0.75}"""
NORM_OF = "BatchNormalization<epsilon = 1.0>"


def fuse(before: Graph) -> tuple[Graph, int]:
    """The rewritten graph and the rewrites made; a second run must find nothing."""
    infer_types(before)
    after, step = before.copy(), FuseBatchNorm(alone=True)
    made = step.run(after, Context())
    after.check()
    assert step.run(after, Context()) == 0
    return after, made


def operators(graph: Graph) -> list[str]:
    return [node.op_type for node in graph.all_nodes()]


PAIRS = {
    "Conv without bias": (
        f"""g (float[N, 1, 2, 2] x) => (float[N, 2, 2, 2] y)
        <float[2, 1, 1, 1] w = {{1, 2}}, {NORM}>
        {{ c = Conv(x, w)  y = {NORM_OF}(c, s, o, m, v) }}""",
        """g (float[N, 1, 2, 2] x) => (float[N, 2, 2, 2] y)
        <float[2, 1, 1, 1] w = {2, 8}, float[2] b = {-1, 1}> { y = Conv(x, w, b) }""",
    ),
    "Conv with bias and attributes": (
        f"""g (float[1, 2, 4] x) => (float[1, 2, 2] y)
        <float[2, 1, 2] w = {{1, 2, 3, 4}}, float[2] b = {{10, 20}}, {NORM}>
        {{ c = Conv<group = 2, strides = [2]>(x, w, b)  y = {NORM_OF}(c, s, o, m, v) }}""",
        """g (float[1, 2, 4] x) => (float[1, 2, 2] y)
        <float[2, 1, 2] w = {2, 4, 12, 16}, float[2] b = {19, 81}>
        { y = Conv<group = 2, strides = [2]>(x, w, b) }""",
    ),
    "ConvTranspose": (
        f"""g (float[1, 2, 3] x) => (float[1, 2, 3] y) <float[2, 2, 1] w = {{1, 2, 3, 4}}, {NORM}>
        {{ c = ConvTranspose(x, w)  y = {NORM_OF}(c, s, o, m, v) }}""",
        """g (float[1, 2, 3] x) => (float[1, 2, 3] y)
        <float[2, 2, 1] w = {2, 8, 6, 16}, float[2] b = {-1, 1}> { y = ConvTranspose(x, w, b) }""",
    ),
    "ConvTranspose in groups": (
        f"""g (float[1, 4, 3] x) => (float[1, 2, 3] y) <float[4, 1, 1] w = {{1, 2, 3, 4}}, {NORM}>
        {{ c = ConvTranspose<group = 2>(x, w)  y = {NORM_OF}(c, s, o, m, v) }}""",
        """g (float[1, 4, 3] x) => (float[1, 2, 3] y)
        <float[4, 1, 1] w = {2, 4, 12, 16}, float[2] b = {-1, 1}>
        { y = ConvTranspose<group = 2>(x, w, b) }""",
    ),
    "Gemm with alpha and beta": (
        f"""g (float[N, 2] x) => (float[N, 2] y)
        <float[2, 2] w = {{1, 2, 3, 4}}, float[1, 2] b = {{10, 20}}, {NORM}>
        {{ c = Gemm<alpha = 0.5, beta = 3.0>(x, w, b)  y = {NORM_OF}(c, s, o, m, v) }}""",
        """g (float[N, 2] x) => (float[N, 2] y)
        <float[2, 2] w = {2, 8, 6, 16}, float[1, 2] b = {59, 241}>
        { y = Gemm<alpha = 0.5>(x, w, b) }""",
    ),
    "Gemm with transposes and a scalar bias": (
        f"""g (float[3, N] x) => (float[N, 2] y)
        <float[2, 3] w = {{1, 2, 3, 4, 5, 6}}, float b = {{10}}, {NORM}>
        {{ c = Gemm<transA = 1, transB = 1>(x, w, b)  y = {NORM_OF}(c, s, o, m, v) }}""",
        """g (float[3, N] x) => (float[N, 2] y)
        <float[2, 3] w = {2, 4, 6, 16, 20, 24}, float[2] b = {19, 41}>
        { y = Gemm<transA = 1, transB = 1>(x, w, b) }""",
    ),
    "Gemm without bias": (
        f"""g (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {{1, 2, 3, 4}}, {NORM}>
        {{ c = Gemm(x, w)  y = {NORM_OF}(c, s, o, m, v) }}""",
        """g (float[N, 2] x) => (float[N, 2] y)
        <float[2, 2] w = {2, 8, 6, 16}, float[2] b = {-1, 1}> { y = Gemm(x, w, b) }""",
    ),
    "alone": (
        f"""g (float[N, 2, 3, 3] x) => (float[N, 2, 3, 3] y) <{NORM}>
        {{ r = Relu(x)  y = {NORM_OF}(r, s, o, m, v) }}""",
        """g (float[N, 2, 3, 3] x) => (float[N, 2, 3, 3] y)
        <float[2, 1, 1] f = {2, 4}, float[2, 1, 1] h = {-1, 1}>
        { r = Relu(x)  p = Mul(r, f)  y = Add(p, h) }""",
    ),
    "alone on a matrix": (
        f"""g (float[N, 2] x) => (float[N, 2] y) <{NORM}> {{ y = {NORM_OF}(x, s, o, m, v) }}""",
        """g (float[N, 2] x) => (float[N, 2] y) <float[2] f = {2, 4}, float[2] h = {-1, 1}>
        { p = Mul(x, f)  y = Add(p, h) }""",
    ),
    "behind a product that is read elsewhere": (
        f"""g (float[N, 1, 2] x) => (float[N, 2, 2] y, float[N, 2, 2] z)
        <float[2, 1, 1] w = {{1, 2}}, {NORM}>
        {{ c = Conv(x, w)  y = {NORM_OF}(c, s, o, m, v)  z = Neg(c) }}""",
        """g (float[N, 1, 2] x) => (float[N, 2, 2] y, float[N, 2, 2] z)
        <float[2, 1, 1] w = {1, 2}, float[2, 1] f = {2, 4}, float[2, 1] h = {-1, 1}>
        { c = Conv(x, w)  p = Mul(c, f)  y = Add(p, h)  z = Neg(c) }""",
    ),
    "behind a weight made at run time": (
        f"""g (float[N, 1, 2] x, float[2, 1, 1] w) => (float[N, 2, 2] y) <{NORM}>
        {{ c = Conv(x, w)  y = {NORM_OF}(c, s, o, m, v) }}""",
        """g (float[N, 1, 2] x, float[2, 1, 1] w) => (float[N, 2, 2] y)
        <float[2, 1] f = {2, 4}, float[2, 1] h = {-1, 1}>
        { c = Conv(x, w)  p = Mul(c, f)  y = Add(p, h) }""",
    ),
}


@pytest.mark.parametrize("case", PAIRS)
def test_pair(case: str) -> None:
    text, wanted = PAIRS[case]
    before = Graph.from_text(HEAD + text)
    after, made = fuse(before)
    assert made == 1
    assert_same_graph(after, Graph.from_text(HEAD + wanted), rtol=1e-7)
    assert_equivalent(before, after, exact=False)


ALONE = [case for case in PAIRS if case.startswith(("alone", "behind"))]


@pytest.mark.parametrize("case", PAIRS)
def test_without_the_option_only_those_that_go_into_a_weight(case: str) -> None:
    before = Graph.from_text(HEAD + PAIRS[case][0])
    infer_types(before)
    assert FuseBatchNorm().run(before.copy(), Context()) == (case not in ALONE)


def test_names_and_shared_weights() -> None:
    before = Graph.from_text(
        HEAD
        + f"""g (float[1, 1, 2] x) => (float[1, 2, 2] y, float[1, 2, 2] z)
        <float[2, 1, 1] w = {{1, 2}}, float[2] b = {{0, 1}}, {NORM}>
        {{ [first] c = Conv(x, w, b)  [norm] y = {NORM_OF}(c, s, o, m, v)
           [second] z = Conv(x, w) }}"""
    )
    after, made = fuse(before)
    assert made == 1
    assert [n.name for n in after.nodes()] == ["first", "second"]
    weights = {n.name: n.inputs[1] for n in after.nodes()}
    assert weights["second"] is after.values["w"]
    assert np.array_equal(after.values["w"].numpy().reshape(-1), [1, 2])
    assert weights["first"] is not None and weights["first"].name == "w_1"
    assert np.array_equal(weights["first"].numpy().reshape(-1), [2, 8])
    # The bias was the first Conv's own, so that the new one takes its name.
    assert np.array_equal(after.values["b"].numpy(), [-1, 5])
    assert set(after.values) == {"x", "y", "z", "w", "w_1", "b"}
    assert_equivalent(before, after, exact=False)


def test_two_in_a_row_and_in_a_subgraph() -> None:
    before = Graph.from_text(
        HEAD
        + f"""g (bool q, float[1, 1, 2] x) => (float[1, 2, 2] y)
        <float[2, 1, 1] w = {{1, 2}}, {NORM}>
        {{ y = If(q) <
            then_branch = then () => (float[1, 2, 2] t) {{ c = Conv(x, w)
              d = {NORM_OF}(c, s, o, m, v)  t = BatchNormalization(d, s, o, m, p) }},
            else_branch = other () => (float[1, 2, 2] e) {{ e = Conv(x, w) }}> }}""".replace(
            NORM, NORM + ", float[2] p = {1, 2}"
        )
    )
    after, made = fuse(before)
    assert made == 2
    assert operators(after) == ["If", "Conv", "Conv"]
    x = np.array([[[3, -2]]], dtype=np.float32)
    for q in (True, False):
        assert_equivalent(before, after, exact=False, feeds={"q": np.array(q), "x": x})


def norm_graph(node: str, more: str = "", opset: int = 21, inputs: str = "") -> Graph:
    return Graph.from_text(
        f"""<ir_version: 3, opset_import: ["": {opset}]>
        g (float[1, 2, 2] x{inputs}) => (float[1, 2, 2] y) <{NORM}{more}> {{ {node} }}"""
    )


WEIGHT = ", float[2, 2, 1] w = {1, 2, 3, 4}"


@pytest.mark.parametrize(
    "graph",
    [
        norm_graph(f"y = {NORM_OF}(x, s, o, m, u)", inputs=", float[2] u"),
        norm_graph("y = BatchNormalization<training_mode = 1>(x, s, o, m, v)"),
        norm_graph("y, a, b = BatchNormalization(x, s, o, m, v)", opset=9),
        norm_graph("y = BatchNormalization<spatial = 0>(x, s, o, m, v)", opset=7),
        norm_graph("y = BatchNormalization<is_test = 0>(x, s, o, m, v)", opset=6),
        # Alone below opset 7.
        norm_graph(f"y = {NORM_OF[:-1]}, is_test = 1>(x, s, o, m, v)", opset=6),
        # The square root of a negative number, and what no float32 holds.
        norm_graph("c = Conv(x, w)  y = BatchNormalization(c, s, o, m, v)", WEIGHT),
        norm_graph(
            "c = Conv(x, w)  y = BatchNormalization<epsilon = 0.0>(c, s, o, m, t)",
            WEIGHT + ", float[2] t = {1e-40, 0}",
        ),
    ],
    ids=["variance fed", "training", "outputs", "spatial", "old training", "old", "nan", "inf"],
)
def test_kept(graph: Graph) -> None:
    after, made = fuse(graph)
    assert made == 0
    assert_same_graph(after, graph)


@pytest.mark.parametrize(
    "weight, node",
    [
        ("float[2] w = {1, 2}", "Conv(x, w)"),
        ("float[3, 2, 1] w = {1, 2, 3, 4, 5, 6}", "Conv(x, w)"),
        ("float[3, 1, 1] w = {1, 2, 3}", "ConvTranspose<group = 2>(x, w)"),
    ],
)
def test_weight_that_does_not_fit_is_left_to_fail_when_it_runs(weight: str, node: str) -> None:
    graph = Graph.from_text(
        f"""{HEAD} g (float[1, 2, 2] x) => (float[1, 2, 2] y) <{weight}, {NORM}>
        {{ c = {node}  y = {NORM_OF}(c, s, o, m, v) }}"""
    )
    assert FuseBatchNorm(alone=True).run(graph, Context()) == 0
    assert operators(graph) == [node.split("(")[0].split("<")[0], "BatchNormalization"]


def test_unused_outputs_of_an_old_inference_norm() -> None:
    graph = norm_graph(
        f"c = Conv(x, w)  y, a, b = {NORM_OF[:-1]}, is_test = 1>(c, s, o, m, v)", WEIGHT, opset=6
    )
    after, made = fuse(graph)
    assert made == 1
    assert_same_graph(
        after,
        Graph.from_text(
            """<ir_version: 3, opset_import: ["": 6]> g (float[1, 2, 2] x) => (float[1, 2, 2] y)
            <float[2, 2, 1] w = {2, 4, 12, 16}, float[2] b = {-1, 1}> { y = Conv(x, w, b) }"""
        ),
        rtol=1e-7,
    )


def test_input_of_unknown_rank_stays() -> None:
    graph = norm_graph(f"y = {NORM_OF}(x, s, o, m, v)")
    graph.values["x"].type = TensorType(DataType.FLOAT)
    assert FuseBatchNorm(alone=True).run(graph, Context()) == 0


def test_overridable_initializer_stays() -> None:
    graph = norm_graph(f"y = {NORM_OF}(x, s, o, m, u)", inputs=", float[2] u")
    graph.values["u"].data = Tensor(np.ones(2, np.float32))
    assert fuse(graph)[1] == 0


def norm_on(graph: Graph, value: Value, channels: int, generator: np.random.Generator) -> Value:
    assert value.dtype is not None
    parameters = [
        graph.constant(generator.uniform(low, 2.0, channels).astype(value.dtype.numpy))
        for low in (-2.0, -2.0, -2.0, 0.01)
    ]
    out = graph.add(
        "BatchNormalization", [value, *parameters], {"epsilon": 1e-3}, outputs=["y"]
    ).output
    out.type = TensorType(value.dtype)
    return out


@settings(max_examples=40)
@given(
    operator=st.sampled_from(["Conv", "ConvTranspose"]),
    rank=st.integers(1, 2),
    group=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_convolution(
    operator: str,
    rank: int,
    group: int,
    channels: tuple[int, int],
    kernel: int,
    stride: int,
    bias: bool,
    seed: int,
) -> None:
    generator = np.random.default_rng(seed)
    ins, outs = group * channels[0], group * channels[1]
    shape = (outs, channels[0]) if operator == "Conv" else (ins, channels[1])
    graph = Graph("g", model=ModelInfo(8, {"": 17}))
    x = graph.add_input("x", TensorType(DataType.FLOAT, (2, ins, *[5] * rank)))
    inputs = [
        x,
        graph.constant(generator.standard_normal((*shape, *[kernel] * rank)).astype(np.float32)),
        *([graph.constant(generator.standard_normal(outs).astype(np.float32))] if bias else []),
    ]
    conv = graph.add(operator, inputs, {"group": group, "strides": [stride] * rank}, types=[x.type])
    graph.add_output(norm_on(graph, conv.output, outs, generator))
    after, made = fuse(graph)
    assert made == 1
    assert operators(after) == [operator]
    assert_equivalent(graph, after, exact=False)


@settings(max_examples=30)
@given(
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)),
    flip=st.tuples(st.booleans(), st.booleans()),
    bias=st.sampled_from(["none", "scalar", "one", "row", "wide", "column", "whole"]),
    scales=st.sampled_from([(1.0, 1.0), (0.5, 2.0), (-1.0, 0.0)]),
    seed=st.integers(0, 99),
)
def test_any_gemm(
    sizes: tuple[int, int, int],
    flip: tuple[bool, bool],
    bias: str,
    scales: tuple[float, float],
    seed: int,
) -> None:
    m, k, n = sizes
    generator = np.random.default_rng(seed)
    graph = Graph("g", model=ModelInfo(8, {"": 17}))
    x = graph.add_input("x", TensorType(DataType.FLOAT, (k, m) if flip[0] else (m, k)))
    shape = (n, k) if flip[1] else (k, n)
    inputs = [x, graph.constant(generator.standard_normal(shape).astype(np.float32))]
    shapes = {"scalar": (), "one": (1,), "row": (n,), "wide": (1, n), "column": (m, 1)}
    if bias != "none":
        numbers = generator.standard_normal(shapes.get(bias, (m, n))).astype(np.float32)
        inputs.append(graph.constant(np.asarray(numbers)))
    attributes: dict[str, Any] = dict(zip(("alpha", "beta"), scales, strict=True))
    attributes |= dict(zip(("transA", "transB"), map(int, flip), strict=True))
    gemm = graph.add("Gemm", inputs, attributes, types=[TensorType(DataType.FLOAT)])
    graph.add_output(norm_on(graph, gemm.output, n, generator))
    after, made = fuse(graph)
    assert made == 1
    assert operators(after) == ["Gemm"]
    assert_equivalent(graph, after, exact=False, rtol=2e-5)


@pytest.mark.parametrize("dtype", [DataType.FLOAT16, DataType.BFLOAT16, DataType.DOUBLE])
def test_dtype_of_the_weight_stays(dtype: DataType) -> None:
    graph = Graph("g", model=ModelInfo(10, {"": 21}))
    x = graph.add_input("x", TensorType(dtype, (1, 2)))
    weight = graph.constant(np.array([[1, 2], [3, 4]], dtype=dtype.numpy))
    gemm = graph.add("Gemm", [x, weight], types=[TensorType(dtype)])
    parameters = [
        graph.constant(np.array(p, dtype=dtype.numpy)) for p in ([4, 2], [3, 5], [2, 1], [3, -0.75])
    ]
    norm = graph.add("BatchNormalization", [gemm.output, *parameters], {"epsilon": 1.0})
    graph.add_output(norm.output)
    after, made = fuse(graph)
    assert made == 1
    (folded,) = after.nodes()
    assert [v.dtype for v in folded.inputs if v is not None] == [dtype] * 3
    numbers = [v.numpy().astype(np.float64).tolist() for v in folded.inputs[1:] if v is not None]
    assert numbers == [[[2, 8], [6, 16]], [-1, 1]]


def test_factor_beyond_half_precision_stays() -> None:
    graph = Graph("g", model=ModelInfo(10, {"": 21}))
    x = graph.add_input("x", TensorType(DataType.FLOAT16, (1, 2)))
    parameters = [graph.constant(np.array(p, np.float16)) for p in ([4e4] * 2, [0, 0], [0, 0])]
    tiny = graph.constant(np.array([1e-4] * 2, np.float16))
    norm = graph.add("BatchNormalization", [x, *parameters, tiny], {"epsilon": 0.0})
    graph.add_output(norm.output)
    assert fuse(graph)[1] == 0
