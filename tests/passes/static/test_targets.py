"""What the tables of targets change: where pairs stand, biases, ranges, scales of weights."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.ir import Context, Graph, infer_types, to_proto
from onnxq.passes.notes import left_in_float
from onnxq.passes.static.insert_qdq import InsertQdq
from onnxq.passes.static.operands import channel_axis
from onnxq.passes.static.placement import Placement, place
from onnxq.runtime import integer_operators
from onnxq.targets import available_targets, load_target
from tests.helpers import random_feeds, run
from tests.quantization import observed_bounds, quantized, run_optimized, run_reference

HEAD = '<ir_version: 10, opset_import: ["": 21]>'
INTERFACE = "(float[2, 2, 4, 4] x) => (float[2, 2, 4, 4] y)"
W = "float[2, 2, 1, 1] w = {1, -0.5, 0.25, 2}, float[2] b = {0.5, -1}"


def graph(nodes: str, constants: str = W, interface: str = INTERFACE) -> Graph:
    made = Graph.from_text(f"{HEAD} g {interface} <{constants}> {{ {nodes} }}")
    infer_types(made)
    return made


def placed(target: str, nodes: str, constants: str = W, interface: str = INTERFACE) -> Placement:
    return place(graph(nodes, constants, interface), load_target(target))


def quantized_nodes(found: Placement) -> set[str]:
    return {node.output.name for node in found.nodes}


def roots(found: Placement) -> dict[str, str]:
    return {value.name: root.name for value, root in found.roots.items()}


def reasons(found: Placement) -> dict[str, str]:
    return {node.output.name: reason.text for node, reason in found.left_in_float.items()}


def test_where_everything_is_quantized_operators_need_no_integers_beside_them() -> None:
    nodes = "e = Exp(x) t = Transpose<perm = [0, 1, 3, 2]>(e) y = Add(t, x)"
    assert not placed("generic", nodes).nodes
    found = placed("qnn", nodes)
    assert quantized_nodes(found) == {"e", "t", "y"}
    assert roots(found) == {"x": "x", "e": "e", "t": "e", "y": "y"}


def test_where_everything_is_quantized_clipping_is_absorbed_or_an_operator_of_its_own() -> None:
    found = placed("qnn", "c = Conv(x, w, b) y = Relu(c)")
    assert roots(found) == {"x": "x", "y": "y"}
    found = placed("qnn", "r = Relu(x) y = Neg(r)")
    assert quantized_nodes(found) == {"r", "y"}
    assert roots(found) == {"x": "x", "r": "r", "y": "y"}
    found = placed("qnn", "c = Conv(x, w, b) r = Relu(c) y = Add(r, c)")
    assert roots(found) == {"x": "x", "c": "c", "r": "r", "y": "y"}


def test_where_everything_is_quantized_constants_still_need_a_rule() -> None:
    table = "float[2, 2, 4, 4] k = {" + ", ".join(["1"] * 64) + "}, int64[1] i = {0}"
    interface = "(float[2, 2, 4, 4] x) => (float[N, C, H, W] y)"
    found = placed("qnn", "g = Gather(k, i) y = Add(g, x)", table, interface)
    assert quantized_nodes(found) == {"y"}
    assert reasons(found) == {"g": "its input is constant"}
    found = placed("qnn", "p = Pow(x, k) y = Neg(p)", table)
    assert reasons(found)["p"].endswith("its exponent would not be exact in integers")


def test_a_product_takes_one_scale_where_the_rule_says_so() -> None:
    found = placed("qnn", "c = Conv(x, w, b) y = MatMul(c, m)", f"{W}, {square(4)}")
    axes = {node.op_type: channel_axis(node, rule) for node, rule in found.nodes.items()}
    assert axes == {"Conv": 0, "MatMul": None}


def square(size: int) -> str:
    numbers = ", ".join(str(n % 5 - 2 + 0.25) for n in range(size * size))
    return f"float[{size}, {size}] m = {{{numbers}}}"


RESIDUAL = "c = Conv(x, w, b) r = Relu(c) d = Conv(r, w) a = Add({}) y = Relu(a)"


@pytest.mark.parametrize("order", ["d, r", "r, d"])
def test_the_other_input_of_a_residual_addition_carries_a_pair(order: str) -> None:
    found = placed("tensorrt", RESIDUAL.format(order))
    assert quantized_nodes(found) == {"c", "d", "a"}
    assert roots(found) == {"x": "x", "r": "r"}
    (add,) = [node for node in found.nodes if node.op_type == "Add"]
    reading = {
        value.name
        for value in add.inputs
        for use in value.uses
        if use.node is add and found.reads_pair(use)
    }
    assert reading == {"r"}


def test_additions_without_a_product_before_them_stay_in_float() -> None:
    for nodes in (
        "e = Exp(x) y = Add(e, x)",
        "c = Conv(x, w) e = Exp(c) y = Add(c, e)",
        "c = Conv(x, w) y = Add(c, b)",
    ):
        constants = W.replace("float[2] b = {0.5, -1}", "float[1] b = {1}")
        found = placed("tensorrt", nodes, constants)
        assert reasons(found)["y"] == "it does not follow a product in integers"


def test_of_two_products_that_are_added_one_is_fused() -> None:
    found = placed("tensorrt", "c = Conv(x, w) d = Conv(x, w) y = Add(c, d)")
    assert roots(found) == {"x": "x", "d": "d"}


def test_outputs_of_products_carry_no_pair_unless_an_integer_reads_them() -> None:
    found = placed("tensorrt", "c = Conv(x, w) d = Exp(c) y = Conv(d, w)")
    assert roots(found) == {"x": "x", "d": "d"}


def test_biases_stay_float_where_the_target_wants_that() -> None:
    before = graph("y = Conv(x, w, b)")
    feeds = random_feeds(before)
    for target, dtype in (("tensorrt", "float32"), ("openvino", "float32"), ("qnn", "int32")):
        after = quantized(before, observed_bounds(before, feeds, target), target=target)
        (conv,) = [node for node in after.nodes() if node.op_type == "Conv"]
        bias = conv.inputs[2]
        assert bias is not None
        stored = bias if bias.is_constant else bias.producer.inputs[0]
        assert stored.numpy().dtype == dtype


def test_a_float_bias_may_be_computed_and_a_gemm_scaled() -> None:
    interface = "(float[2, 4] x, float[4] v) => (float[2, 4] y)"
    nodes = "y = Gemm<alpha = 2.0>(x, m, v)"
    assert placed("tensorrt", nodes, square(4), interface).nodes
    assert not placed("generic", nodes, square(4), interface).nodes


@pytest.mark.parametrize(("op_type", "scale"), [("Sigmoid", 1 / 65536), ("Tanh", 1 / 32768)])
def test_ranges_that_a_table_fixes_are_not_calibrated(op_type: str, scale: float) -> None:
    before = graph(f"y = {op_type}(x)")
    assert place(before, load_target("qnn-a16")).observed() == ["x"]
    after = quantized(before, {"x": (-3.0, 3.0)}, target="qnn-a16")
    (pair,) = [n for n in after.nodes() if n.is_op("DequantizeLinear") and n.output.is_output]
    assert pair.inputs[1] is not None
    assert float(pair.inputs[1].numpy()) == scale


NETWORK = """c = Conv(x, w, b) r = Relu(c) d = Conv(r, w) a = Add(d, r) s = Sigmoid(a)
    p = Mul(a, s) g = GlobalAveragePool(p) f = Flatten(g) y = Gemm(f, k, b)"""


@pytest.mark.parametrize("target", available_targets())
def test_quantized_models_are_valid_and_equal_in_both_runtimes(target: str) -> None:
    constants = f"{W}, float[2, 2] k = {{1, -2, 0.5, 0.75}}"
    before = graph(NETWORK, constants, "(float[2, 2, 4, 4] x) => (float[2, 2] y)")
    feeds = random_feeds(before)
    after = quantized(before, observed_bounds(before, feeds, target), target=target)
    wanted = run(before, feeds)["y"]
    step = np.abs(wanted).max() / 127
    fast, slow = run_optimized(after, feeds)["y"], run_reference(after, feeds)["y"]
    np.testing.assert_allclose(fast, slow, atol=1.01 * step, rtol=0)
    np.testing.assert_allclose(fast, wanted, atol=6 * step, rtol=0)
    assert not np.array_equal(fast, wanted)


@pytest.mark.parametrize(
    ("mover", "shape"),
    [
        ("Transpose(c)", "4, 4, 2, 2"),
        ("Unsqueeze(c, i)", "1, 2, 2, 4, 4"),
        ("Reshape(c, s)", "2, 32"),
    ],
)
@pytest.mark.parametrize("only", [(), ("conv",)])
def test_what_moves_int8_about_gives_int8_so_that_onnxruntime_loads_it(
    mover: str, shape: str, only: tuple[str, ...]
) -> None:
    constants = f"{W}, int64[1] i = {{0}}, int64[2] s = {{2, 32}}"
    before = graph(
        f"[conv] c = Conv(x, w, b) m = {mover} y = Exp(m)",
        constants,
        f"(float[2, 2, 4, 4] x) => (float[{shape}] y)",
    )
    feeds = random_feeds(before)
    bounds = observed_bounds(before, feeds, "generic")
    assert set(bounds) == {"x", "c"}
    after = before.copy()
    infer_types(after)
    assert InsertQdq(bounds, "generic", only=only).run(after, Context())
    (last,) = [node for node in after.nodes() if node.is_op("Exp")]
    assert last.inputs[0] is not None and last.inputs[0].producer is not None
    assert last.inputs[0].producer.is_op("DequantizeLinear")
    fast, slow = run_optimized(after, feeds)["y"], run_reference(after, feeds)["y"]
    np.testing.assert_allclose(fast, slow, rtol=0.05)


def test_masks_stay_in_float() -> None:
    """A range that a mask is part of would leave one integer for all that it does not hide."""
    before = graph(
        "c = Conv(x, w) k = Where(o, c, f) m = Add(c, k) s = Softmax(m) n = Neg(c) y = Add(s, n)",
        f"{W}, float f = {{-3.4e38}}, bool[4] o = {{1, 0, 1, 1}}",
    )
    feeds = random_feeds(before)
    after = quantized(before, observed_bounds(before, feeds, "qnn"), target="qnn")
    wanted, found = run(before, feeds)["y"], run_optimized(after, feeds)["y"]
    np.testing.assert_allclose(found, wanted, atol=0.05 * np.abs(wanted).max(), rtol=0)
    noted = left_in_float(after)
    assert set(noted) == {"k", "m", "s"}
    assert noted["s"] == "'m' holds -3.4e+38, which masks everything else"


def test_weights_of_seven_bits_are_stored_so_and_still_fuse() -> None:
    before = graph("y = Conv(x, w, b)")
    feeds = random_feeds(before)
    after = quantized(before, observed_bounds(before, feeds), target="cpu-x64-avx2")
    (stored,) = [v.numpy() for v in after.initializers() if "w_q" in v.name]
    assert stored.min() >= -64 and stored.max() == 63
    assert sum(integer_operators(to_proto(after)).values()) == 1
