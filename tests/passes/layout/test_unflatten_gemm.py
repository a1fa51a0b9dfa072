from __future__ import annotations

import pytest

from onnxq.ir import Context, Graph, Pipeline, infer_types, to_proto
from onnxq.passes.layout.flatten_matmul_add import FlattenMatMulAdd
from onnxq.passes.layout.unflatten_gemm import UnflattenGemm
from onnxq.passes.weights.quantize_dynamic import QuantizeDynamic
from onnxq.runtime import optimized_operators
from tests.passes.rewriting import check_kept, check_pair, rewritten

HEAD = '<ir_version: 10, opset_import: ["": 21]>'
WEIGHT = "float[3, 2] w = {1, 2, 3, 4, 5, 6}"
BIAS = "float[2] b = {7, 8}"


def flat(
    product: str = "p = Gemm(m, w, b)",
    *,
    x: str = "4, 5, 3",
    restored: str = "4, 5, 2",
    more: str = "",
    outputs: str = "",
) -> str:
    rank = restored.count(",") + 1
    return (
        f"{HEAD} g (float[{x}] x) => (float[{restored}] y{outputs}) <{WEIGHT}, {BIAS}, "
        f"int64[2] rows = {{-1, 3}}, int64[{rank}] s = {{{restored.replace('N', '-1')}}}> "
        f"{{ m = Reshape(x, rows) [lin] {product} [back] y = Reshape(p, s) {more} }}"
    )


def restored(body: str, x: str = "4, 5, 3", y: str = "4, 5, 2", bias: str = BIAS) -> str:
    held = f"<{WEIGHT}, {bias}>" if bias else f"<{WEIGHT}>"
    return f"{HEAD} g (float[{x}] x) => (float[{y}] y) {held} {{ {body} }}"


@pytest.mark.parametrize(("x", "y"), [("4, 5, 3", "4, 5, 2"), ("N, 5, 3", "N, 5, 2")])
def test_becomes_a_product_over_all_dimensions(x: str, y: str) -> None:
    wanted = restored("[lin] p = MatMul(x, w) [back] y = Add(p, b)", x, y)
    check_pair(UnflattenGemm(), flat(x=x, restored=y), wanted)


def test_without_bias_only_the_product_is_left() -> None:
    check_pair(UnflattenGemm(), flat("p = Gemm(m, w)"), restored("[lin] y = MatMul(x, w)", bias=""))


def test_a_transposed_weight_is_read_through_a_transpose() -> None:
    turned = "float[2, 3] w = {1, 3, 5, 2, 4, 6}"
    text = flat("p = Gemm<transB=1>(m, w, b)").replace(WEIGHT, turned)
    wanted = restored("t = Transpose<perm=[1, 0]>(w) [lin] p = MatMul(x, t) [back] y = Add(p, b)")
    check_pair(UnflattenGemm(), text, wanted.replace(WEIGHT, turned))


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(flat("p = Gemm<alpha=2.0>(m, w, b)"), id="scaled"),
        pytest.param(flat(more="z = Neg(p)", outputs=", float[20, 2] z"), id="read elsewhere"),
        pytest.param(flat(restored="5, 4, 2"), id="other dimensions"),
        pytest.param(flat(restored="2, 2, 5, 2"), id="more dimensions"),
        pytest.param(flat(x="20, 3", restored="20, 2"), id="a matrix already"),
    ],
)
def test_is_left_alone(text: str) -> None:
    check_kept(UnflattenGemm(), text)


def test_only_the_named_nodes() -> None:
    check_kept(UnflattenGemm(only=("other",)), flat())
    _, made = rewritten(UnflattenGemm(only=("lin",)), Graph.from_text(flat()))
    assert made == 1
    check_kept(UnflattenGemm(keep_float=("lin",)), flat())


@pytest.mark.parametrize("bias", [", b", ""])
def test_a_product_without_a_name_is_called_after_its_output(bias: str) -> None:
    graph = Graph.from_text(flat(f"p = Gemm(m, w{bias})").replace("[lin] ", ""))
    steps = (UnflattenGemm(only=("p",)), QuantizeDynamic(only=("p",)))
    records = Pipeline(steps, fixed_point=False).run(graph, Context())
    assert [r.rewrites for r in records] == [1, 1]


def test_undoes_flatten_matmul_add() -> None:
    before = Graph.from_text(restored("[lin] p = MatMul(x, w) y = Add(p, b)"))
    flattened = before.copy()
    assert Pipeline((FlattenMatMulAdd(),)).run(flattened, Context())[0].rewrites == 1
    infer_types(flattened)
    _, made = rewritten(UnflattenGemm(), flattened)
    assert made == 1


def test_dynamic_integers_are_one_kernel_without_reshapes() -> None:
    graph = Graph.from_text(flat())
    steps = (UnflattenGemm(only=("lin",)), QuantizeDynamic(only=("lin",)))
    Pipeline(steps, fixed_point=False).run(graph, Context())
    assert optimized_operators(to_proto(graph)) == {"com.microsoft:DynamicQuantizeMatMul": 1}
