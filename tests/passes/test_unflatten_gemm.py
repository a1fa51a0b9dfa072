from __future__ import annotations

import pytest

from onnxq.ir import Context, Graph, infer_types
from onnxq.passes.flatten_matmul_add import FlattenMatMulAdd
from onnxq.passes.unflatten_gemm import UnflattenGemm
from tests.helpers import assert_equivalent
from tests.passes.rewriting import check_kept, check_pair, operators, rewritten

HEAD = '<ir_version: 10, opset_import: ["": 21]>'
DATA = "float[3, 2] w = {1, 2, 3, 4, 5, 6}, int64[2] rows = {-1, 3}, int64[3] s = {4, 5, 2}"
BIAS = "float[2] b = {7, 8}"
WANTED = "p = MatMul(x, w) y = Add(p, b)"


def model(body: str, data: str = f"{DATA}, {BIAS}", result: str = "float[4, 5, 2] y") -> str:
    return f"{HEAD} g (float[4, 5, 3] x) => ({result}) <{data}> {{ {body} }}"


def gemm(arguments: str = "m, w, b", attributes: str = "") -> str:
    return f"m = Reshape(x, rows) p = Gemm{attributes}({arguments}) y = Reshape(p, s)"


def test_becomes_a_product_over_all_dimensions() -> None:
    check_pair(UnflattenGemm(), model(gemm()), model(WANTED, f"{DATA}, {BIAS}"))


def test_without_a_bias_there_is_no_add() -> None:
    check_pair(UnflattenGemm(), model(gemm("m, w"), DATA), model("y = MatMul(x, w)", DATA))


def test_a_transposed_weight_is_turned() -> None:
    turned = "float[2, 3] w = {1, 3, 5, 2, 4, 6}, int64[2] rows = {-1, 3}, int64[3] s = {4, 5, 2}"
    before = model(gemm(attributes="<transB = 1>"), f"{turned}, {BIAS}")
    check_pair(UnflattenGemm(), before, model(WANTED))


def test_undoes_flatten_matmul_add() -> None:
    flat = Graph.from_text(model(WANTED))
    assert FlattenMatMulAdd().run(flat, Context()) == 1
    infer_types(flat)
    after = flat.copy()
    assert UnflattenGemm().run(after, Context()) == 1
    assert operators(after) == ["MatMul", "Add"]
    assert_equivalent(Graph.from_text(model(WANTED)), after)


def test_only_the_named_ones_and_the_product_keeps_the_name() -> None:
    body = (
        "m = Reshape(x, rows) [first] p = Gemm(m, w, b) q = Reshape(p, s)"
        " n = Reshape(x, rows) [second] r = Gemm(n, w, b) t = Reshape(r, s) y = Add(q, t)"
    )
    before = Graph.from_text(model(body))
    after, made = rewritten(UnflattenGemm(only=("second",)), before)
    assert made == 1
    assert {node.name: node.op_type for node in after.nodes() if node.name} == {
        "first": "Gemm",
        "second": "MatMul",
    }
    assert_equivalent(before, after, exact=False)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(model(gemm(attributes="<alpha = 0.5>")), id="scaled product"),
        pytest.param(model(gemm(attributes="<beta = 0.5>")), id="scaled bias"),
        pytest.param(
            model(
                "m = Reshape(x, rows) p = Gemm<transA = 1>(m, w, b) y = Reshape(p, s)",
                "float[20, 2] w, int64[2] rows = {20, 3}, int64[3] s = {1, 3, 2}, " + BIAS,
                "float[1, 3, 2] y",
            ).replace("float[20, 2] w", f"float[20, 2] w = {{{', '.join('1' * 40)}}}"),
            id="transposed activation",
        ),
        pytest.param(
            model(gemm(), f"{DATA}, {BIAS}", "float[4, 5, 2] y, float[20, 2] p"),
            id="product is an output",
        ),
        pytest.param(
            model(f"{gemm()} z = Relu(p)", f"{DATA}, {BIAS}", "float[4, 5, 2] y, float[20, 2] z"),
            id="product read elsewhere",
        ),
        pytest.param(
            model(gemm(), f"{DATA.replace('{4, 5, 2}', '{5, 4, 2}')}, {BIAS}", "float[5, 4, 2] y"),
            id="other dimensions behind",
        ),
        pytest.param(
            model(gemm(), f"{DATA}, float[4, 5, 3] x2, float[20, 2] b").replace(
                ", float[4, 5, 3] x2, float[20, 2] b",
                f", float[20, 2] b = {{{', '.join('1' * 40)}}}",
            ),
            id="bias of many rows",
        ),
        pytest.param(
            model(gemm(), f"{DATA}, {BIAS}").replace("float[4, 5, 3] x", "float[N, M, 3] x"),
            id="unknown dimensions",
        ),
        pytest.param(
            f"{HEAD} g (float[4, 5, 3] x, float[3, 2] w) => (float[4, 5, 2] y)"
            f" <int64[2] rows = {{-1, 3}}, int64[3] s = {{4, 5, 2}}, {BIAS}> {{ {gemm()} }}",
            id="weight of two activations",
        ),
    ],
)
def test_is_left_alone(text: str) -> None:
    check_kept(UnflattenGemm(), text)
