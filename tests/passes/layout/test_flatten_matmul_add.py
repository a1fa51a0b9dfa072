from __future__ import annotations

import pytest

from onnxq.ir import Context, Graph
from onnxq.passes.layout.flatten_matmul_add import FlattenMatMulAdd
from tests.helpers import assert_equivalent, assert_same_graph

HEAD = '<ir_version: 10, opset_import: ["": 21]>'
WEIGHT = "float[3, 2] w = {1, 2, 3, 4, 5, 6}"


def flatten(before: Graph) -> tuple[Graph, int]:
    """The rewritten graph and the rewrites made; a second run must find nothing."""
    after = before.copy()
    made = FlattenMatMulAdd().run(after, Context())
    after.check()
    assert FlattenMatMulAdd().run(after, Context()) == 0
    return after, made


def biased(shape: str, bias: str, body: str = "p = MatMul(x, w) y = Add(p, b)") -> Graph:
    return Graph.from_text(
        f"{HEAD} g (float[{shape}] x) => (float[D0, D1, 2] y) <{WEIGHT}, {bias}> {{ {body} }}"
    )


@pytest.mark.parametrize(
    "body", ["p = MatMul(x, w) y = Add(p, b)", "p = MatMul(x, w) y = Add(b, p)"]
)
@pytest.mark.parametrize("bias", ["float[2] b = {7, 8}", "float[1, 1, 2] b = {7, 8}"])
@pytest.mark.parametrize(("shape", "target"), [("4, 5, 3", "4, 5, 2"), ("N, 5, 3", "-1, 5, 2")])
def test_becomes_a_gemm_of_matrices(shape: str, target: str, bias: str, body: str) -> None:
    before = biased(shape, bias, body)
    after, made = flatten(before)
    assert made == 1
    wanted = Graph.from_text(
        f"""{HEAD} g (float[{shape}] x) => (float[D0, D1, 2] y)
        <{WEIGHT}, float[2] b = {{7, 8}}, int64[2] rows = {{-1, 3}}, int64[3] s = {{{target}}}> {{
            m = Reshape(x, rows)
            p = Gemm(m, w, b)
            y = Reshape(p, s)
        }}"""
    )
    assert_same_graph(after, wanted)
    assert_equivalent(before, after, exact=False, dims={"N": 3})


def test_an_empty_batch_stays_empty() -> None:
    before = biased("N, 5, 3", "float[2] b = {7, 8}")
    after, _ = flatten(before)
    assert_equivalent(before, after, dims={"N": 0})


@pytest.mark.parametrize(
    "before",
    [
        pytest.param(biased("M, N, 3", "float[2] b = {7, 8}"), id="two unknown dimensions"),
        pytest.param(biased("0, 5, 3", "float[2] b = {7, 8}"), id="dimension of size 0"),
        pytest.param(biased("4, 5, 3", "float[1] b = {7}"), id="one number for all columns"),
        pytest.param(biased("4, 5, 3", "float[5, 2] b = {1,2,3,4,5,6,7,8,9,0}"), id="many rows"),
        pytest.param(
            biased("4, 5, 3", "float[2] b = {7, 8}", "p = MatMul(x, w) q = Relu(p) y = Add(q, b)"),
            id="not next to each other",
        ),
        pytest.param(
            biased(
                "4, 5, 3", "float[2] b = {7, 8}", "p = MatMul(x, w) q = Add(p, b) y = Add(q, p)"
            ),
            id="product read elsewhere",
        ),
        pytest.param(
            Graph.from_text(
                f"""{HEAD} g (float[5, 3] x) => (float[5, 2] y)
                <{WEIGHT}, float[2] b = {{7, 8}}> {{ p = MatMul(x, w) y = Add(p, b) }}"""
            ),
            id="matrix",
        ),
        pytest.param(
            Graph.from_text(
                f"""{HEAD} g (float[4, 5, 3] x, float[2] b) => (float[4, 5, 2] y)
                <{WEIGHT}> {{ p = MatMul(x, w) y = Add(p, b) }}"""
            ),
            id="bias made at run time",
        ),
    ],
)
def test_is_left_alone(before: Graph) -> None:
    after, made = flatten(before)
    assert made == 0
    assert_same_graph(after, before)
