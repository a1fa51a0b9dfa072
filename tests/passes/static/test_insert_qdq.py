"""insert-qdq: before/after pairs in ONNX text syntax, and quantized graphs against oracles."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from onnxq.errors import InputError
from onnxq.ir import Context, DataType, Graph, infer_types, parse_passes, to_proto
from onnxq.needs import RangeOf
from onnxq.passes.notes import LEFT_IN_FLOAT_KEY
from onnxq.passes.static.insert_qdq import InsertQdq
from onnxq.runtime import integer_operators, optimized_operators
from tests.helpers import assert_same_graph, random_feeds, run
from tests.passes.static.pairs import (
    AROUND,
    HEAD,
    IMAGE,
    SCALES,
    between,
    newest,
    numbers,
    pair,
    scales,
    text,
)
from tests.quantization import observed_bounds, quantized, run_optimized, run_reference

CONV_1X1 = "float[2, 1, 1, 1] w = {63.5, -20}, float[2] b = {1.5, -30}"
WEIGHT = f"int8[2, 1, 1, 1] wq = {{127, -128}}, {scales('w', 'int8', 2, 0.5)}"


@pytest.mark.parametrize("clip", ["Relu(c)", "Clip(c, low, high)", "Clip(c, low)", "Clip(c)"])
def test_conv_with_bias_absorbs_a_clipping_operator(clip: str) -> None:
    bounds = "float low = {0}, float high = {6}"
    before = text(
        "(float[1, 1, 2, 2] x) => (float[1, 2, 2, 2] y)",
        "float[2, 1, 1, 1] w = {63.5, -64}, float[2] b = {1.5, -30.0625}, " + bounds,
        f"c = Conv(x, w, b) y = {clip}",
    )
    after = text(
        "(float[1, 1, 2, 2] x) => (float[1, 2, 2, 2] y)",
        f"{SCALES}, {WEIGHT}, int32[2] bq = {{12, -240}}, {scales('b', 'int32', 2, 0.125)}, "
        + bounds,
        pair("x", "x_d"),
        "w_d = DequantizeLinear<axis = 0>(wq, ws, wz)",
        "b_d = DequantizeLinear<axis = 0>(bq, bs, bz)",
        "c = Conv(x_d, w_d, b_d)",
        f"r = {clip}",
        pair("r", "y"),
    )
    # 30.0625 / 0.125 = 240.5 is rounded to the even 240.
    assert_same_graph(quantized(before), after)


def test_depthwise_conv_has_a_scale_for_every_channel() -> None:
    interface = "(float[1, 2, 2, 2] x) => (float[1, 2, 2, 2] y)"
    before = text(
        interface,
        "float[2, 1, 1, 1] w = {63.5, 31.75}",
        "y = Conv<group = 2>(x, w)",
    )
    after = text(
        interface,
        f"{SCALES}, int8[2, 1, 1, 1] wq = {{127, 127}}, float[2] ws = {{0.5, 0.25}}, "
        "int8[2] wz = {0, 0}",
        pair("x", "x_d"),
        "w_d = DequantizeLinear<axis = 0>(wq, ws, wz)",
        "c = Conv<group = 2>(x_d, w_d)",
        pair("c", "y"),
    )
    assert_same_graph(quantized(before), after)


@pytest.mark.parametrize(
    ("transposed", "weight", "shape", "axis"),
    [(0, "63.5, 2, -1, 63.5, 0, 63.5", "2, 3", 1), (1, "63.5, 63.5, 2, 0, -1, 63.5", "3, 2", 0)],
)
def test_gemm_has_its_channels_on_the_axis_that_its_transposition_says(
    transposed: int, weight: str, shape: str, axis: int
) -> None:
    interface = "(float[1, 2] x) => (float[1, 3] y)"
    gemm = f"Gemm<transB = {transposed}>"
    before = text(
        interface,
        f"float[{shape}] w = {{{weight}}}, float[1, 3] b = {{1, 2, 3}}",
        f"y = {gemm}(x, w, b)",
    )
    doubled = ", ".join(str(int(float(n) * 2)) for n in weight.split(","))
    if not transposed:
        # Columns (63.5, 63.5), (2, 0), (-1, 63.5): the second has a scale of its own.
        wanted = np.array([[127, 127, -2], [127, 0, 127]], np.int8)
        weights = "float[3] ws = {0.5, 0.015748031437397003, 0.5}, float[3] bs = {0.125, "
        weights += "0.003937007859349251, 0.125}"
        doubled, biases = ", ".join(map(str, wanted.reshape(-1))), "8, 508, 24"
    else:
        weights = "float[3] ws = {0.5, 0.015748031437397003, 0.5}, float[3] bs = {0.125, "
        weights += "0.003937007859349251, 0.125}"
        doubled, biases = "127, 127, 127, 0, -2, 127", "8, 508, 24"
    after = text(
        interface,
        f"{SCALES}, int8[{shape}] wq = {{{doubled}}}, int8[3] wz = {{0, 0, 0}}, {weights}, "
        f"int32[3] bq = {{{biases}}}, int32[3] bz = {{0, 0, 0}}",
        pair("x", "x_d"),
        f"w_d = DequantizeLinear<axis = {axis}>(wq, ws, wz)",
        "b_d = DequantizeLinear<axis = 0>(bq, bs, bz)",
        f"y = {gemm}(x_d, w_d, b_d)",
    )
    assert_same_graph(quantized(before), after)


def test_matmul_by_a_matrix_has_a_scale_per_column() -> None:
    interface = "(float[5, 4, 2] x) => (float[5, 4, 2] y)"
    before = text(interface, "float[2, 2] w = {63.5, -16, 0, 15.875}", "y = MatMul(x, w)")
    after = text(
        interface,
        f"{SCALES}, int8[2, 2] wq = {{127, -128, 0, 127}}, float[2] ws = {{0.5, 0.125}}, "
        "int8[2] wz = {0, 0}",
        pair("x", "x_d"),
        "w_d = DequantizeLinear<axis = 1>(wq, ws, wz)",
        "y = MatMul(x_d, w_d)",
    )
    assert_same_graph(quantized(before), after)


def test_matmul_by_several_matrices_has_one_scale() -> None:
    interface = "(float[2, 4, 2] x) => (float[2, 4, 1] y)"
    before = text(interface, "float[2, 2, 1] w = {63.5, 1, -2, 0}", "y = MatMul(x, w)")
    after = text(
        interface,
        f"{SCALES}, int8[2, 2, 1] wq = {{127, 2, -4, 0}}, float ws = {{0.5}}, int8 wz = {{0}}",
        pair("x", "x_d"),
        "w_d = DequantizeLinear(wq, ws, wz)",
        "y = MatMul(x_d, w_d)",
    )
    assert_same_graph(quantized(before), after)


def between_integers(*operators: str, constants: str = "") -> Graph:
    return text(
        "(float[1, 1, 4, 4] x) => (float[N, C, H, W] y)",
        f"{AROUND[1]}, {constants}".rstrip(", "),
        pair("x", "x_d"),
        "w_d = DequantizeLinear<axis = 0>(wq, ws, wz)",
        "c = Conv(x_d, w_d)",
        pair("c", "c_d"),
        *operators,
        pair("p", "p_d"),
        "out = Conv(p_d, w_d)",
        pair("out", "y"),
    )


@pytest.mark.parametrize(
    "operator",
    [
        "Add(c, c)",
        "Mul(c, c)",
        "Concat<axis = 2>(c, c)",
        "AveragePool<kernel_shape = [2, 2], strides = [2, 2]>(c)",
        "GlobalAveragePool(c)",
        "LeakyRelu<alpha = 0.5>(c)",
        "Sigmoid(c)",
        "MaxPool<kernel_shape = [2, 2]>(c)",
        "Transpose<perm = [0, 1, 3, 2]>(c)",
        "DepthToSpace<blocksize = 1>(c)",
    ],
)
def test_an_operator_between_integers_has_pairs_on_both_sides(operator: str) -> None:
    after = between_integers(f"p = {operator.replace('(c', '(c_d').replace(' c)', ' c_d)')}")
    assert_same_graph(quantized(between(f"p = {operator}")), after)


@pytest.mark.parametrize(
    ("operator", "constants"),
    [
        ("Reshape(c, shape)", "int64[4] shape = {1, 1, 2, 8}"),
        ("Slice(c, starts, ends)", "int64[1] starts = {0}, int64[1] ends = {1}"),
        ("Gather<axis = 2>(c, at)", "int64[2] at = {1, 0}"),
        ('Resize<mode = "nearest">(c, , sizes)', "float[4] sizes = {1, 1, 2.5, 2}"),
    ],
)
def test_an_operator_with_parameters_keeps_them(operator: str, constants: str) -> None:
    after = between_integers(f"p = {operator.replace('(c', '(c_d')}", constants=constants)
    assert_same_graph(quantized(between(f"p = {operator}", constants)), after)


@pytest.mark.parametrize("operator", ["Add", "Mul"])
def test_a_constant_operand_is_stored_in_the_format_of_activations(operator: str) -> None:
    before = between(f"p = {operator}(k, c)", "float[2, 1, 1, 1] k = {-2, 61.75}")
    after = between_integers(
        "k_d = DequantizeLinear(kq, s, z)",
        f"p = {operator}(k_d, c_d)",
        constants="uint8[2, 1, 1, 1] kq = {0, 255}",
    )
    assert_same_graph(quantized(before), after)


def test_an_add_absorbs_the_relu_behind_it() -> None:
    before = between("a = Add(c, c) p = Relu(a)")
    assert_same_graph(quantized(before), between_integers("a = Add(c_d, c_d)", "p = Relu(a)"))


def test_a_relu_and_a_clip_in_a_row_are_absorbed_both() -> None:
    before = text(
        "(float[1, 1, 4, 4] x) => (float[N, C, H, W] y)",
        f"{AROUND[0]}, float low = {{0}}, float high = {{6}}",
        "c = Conv(x, w) r = Relu(c) p = Clip(r, low, high) y = Conv(p, w)",
    )
    after = quantized(before)
    assert [n.op_type for n in after.nodes() if n.op_type == "QuantizeLinear"] == [
        "QuantizeLinear"
    ] * 3
    assert "Clip" not in optimized_operators(to_proto(after))


def test_operators_that_move_values_share_the_qparams_of_their_input() -> None:
    before = text(
        "(float[1, 1, 4, 4] x) => (float[N, C, H, W] y)",
        f"{AROUND[0]}, int64[4] shape = {{1, 1, 2, 8}}",
        "c = Conv(x, w) t = Transpose<perm = [0, 1, 3, 2]>(c) p = Reshape(t, shape) y = Conv(p, w)",
    )
    after = quantized(before, {"x": (0, 255.0), "c": (0, 127.5), "y": (0, 63.75)})
    scales_of = {
        n.input(0).name: float(n.input(1).numpy())
        for n in after.nodes()
        if n.op_type == "QuantizeLinear"
    }
    inner = {scales_of[name] for name in ("c", "t", "p")}
    assert inner == {0.5} and scales_of["x"] == 1.0


def test_conv_transpose_on_a_target_that_has_it() -> None:
    interface = "(float[1, 1, 2, 2] x) => (float[1, 2, 2, 2] y)"
    constants = "float[1, 2, 1, 1] w = {63.5, -31.75}, float[2] b = {2, 3}"
    before = text(interface, constants, "y = ConvTranspose(x, w, b)")
    after = text(
        interface,
        "float s = {0.5}, int8 z = {0}, int8[1, 2, 1, 1] wq = {127, -127}, "
        "float[2] ws = {0.5, 0.25}, int8[2] wz = {0, 0}, int32[2] bq = {8, 24}, "
        "float[2] bs = {0.25, 0.125}, int32[2] bz = {0, 0}",
        pair("x", "x_d"),
        "w_d = DequantizeLinear<axis = 1>(wq, ws, wz)",
        "b_d = DequantizeLinear<axis = 0>(bq, bs, bz)",
        "c = ConvTranspose(x_d, w_d, b_d)",
        pair("c", "y"),
    )
    bounds = {"x": (-1.0, 63.5), "y": (-64.0, 0.0)}
    assert_same_graph(quantized(before, bounds, target="generic"), after)


def test_conv_transpose_with_groups_has_one_scale() -> None:
    before = text(
        "(float[1, 2, 2, 2] x) => (float[1, 4, 2, 2] y)",
        "float[2, 2, 1, 1] w = {63.5, 1, 2, 3}, float[4] b = {1, 2, 3, 4}",
        "y = ConvTranspose<group = 2>(x, w, b)",
    )
    after = quantized(before, {"x": (0, 63.5), "y": (0, 63.5)}, target="generic")
    stored = {v.dtype: v for v in after.initializers() if v.shape not in ((), None)}
    assert stored[DataType.INT8].numpy().reshape(-1).tolist() == [127, 2, 4, 6]
    assert stored[DataType.INT32].numpy().tolist() == [4, 8, 12, 16]


def test_a_product_of_two_activations_on_a_target_that_has_it() -> None:
    interface = "(float[2, 2] a, float[2, 2] b) => (float[2, 2] y)"
    before = text(interface, "float unused = {0}", "y = MatMul(a, b)")
    after = text(
        interface,
        "float s = {0.5}, int8 z = {0}, float unused = {0}",
        pair("a", "a_d"),
        pair("b", "b_d"),
        "c = MatMul(a_d, b_d)",
        pair("c", "y"),
    )
    bounds = dict.fromkeys("aby", (-63.5, 63.5))
    assert_same_graph(quantized(before, bounds, target="generic"), after)
    assert_same_graph(quantized(before), before)


def test_values_given_to_the_caller_keep_their_names_and_are_read_by_others() -> None:
    before = text(
        "(float[1, 1, 4, 4] x) => (float[1, 1, 4, 4] c, float[1, 1, 4, 4] y, float[1, 1, 4, 4] e)",
        AROUND[0],
        "c = Conv(x, w) y = Conv(c, w) e = Exp(c)",
    )
    after = quantized(before)
    assert [v.name for v in after.outputs] == ["c", "y", "e"]
    assert all(v.producer.op_type == "DequantizeLinear" for v in after.outputs[:2])
    # What the caller gets, what the float operator reads, and what the Conv reads is one value.
    made = after.values["c"]
    assert {use.node.op_type for use in made.uses} == {"Conv", "Exp"}


def test_float_readers_of_a_graph_input_read_it_as_it_is() -> None:
    before = text(
        "(float[1, 1, 4, 4] x) => (float[1, 1, 4, 4] y, float[1, 1, 4, 4] e)",
        AROUND[0],
        "y = Conv(x, w) e = Exp(x)",
    )
    after = quantized(before)
    assert {use.node.op_type for use in after.values["x"].uses} == {"QuantizeLinear", "Exp"}


def test_a_weight_shared_by_two_nodes_is_stored_once() -> None:
    before = text(
        "(float[1, 2] x, float[1, 2] x2) => (float[1, 2] y, float[1, 2] y2)",
        "float[2, 2] w = {63.5, 1, 0, 63.5}",
        "y = MatMul(x, w) y2 = MatMul(x2, w)",
    )
    after = quantized(before)
    stored = [v for v in after.initializers() if v.dtype is DataType.INT8 and v.rank == 2]
    assert len(stored) == 1 and "w" not in after.values
    assert sum(n.op_type == "DequantizeLinear" for n in after.nodes()) == 3


def test_a_weight_that_a_float_node_reads_too_stays_for_it() -> None:
    before = text(
        "(float[1, 2] x) => (float[1, 2] y, float[2, 2] e)",
        "float[2, 2] w = {63.5, 1, 0, 63.5}",
        "y = MatMul(x, w) e = Exp(w)",
    )
    after = quantized(before)
    assert [use.node.op_type for use in after.values["w"].uses] == ["Exp"]
    assert any(v.dtype is DataType.INT8 and v.rank == 2 for v in after.initializers())


def test_a_bias_shared_by_two_nodes_is_stored_for_each_of_their_scales() -> None:
    before = text(
        "(float[1, 2] x, float[1, 2] x2) => (float[1, 2] y, float[1, 2] y2)",
        "float[2, 2] w = {63.5, 0, 0, 63.5}, float[2] b = {1, 2}",
        "y = Gemm(x, w, b) y2 = Gemm(x2, w, b)",
    )
    after = quantized(before, {"x": (0, 255.0), "x2": (0, 127.5)})
    biases = sorted(
        v.numpy().tolist()
        for v in after.initializers()
        if v.dtype is DataType.INT32 and v.numpy().any()
    )
    assert biases == [[2, 4], [4, 8]]


def test_a_scalar_bias_becomes_one_number_per_channel() -> None:
    before = text(
        "(float[1, 2] x) => (float[1, 2] y)",
        "float[2, 2] w = {63.5, 0, 0, 63.5}, float b = {1.5}",
        "y = Gemm(x, w, b)",
    )
    after = quantized(before)
    assert after.nodes()[-1].input(2).producer.input(0).numpy().tolist() == [12, 12]


def test_stored_integers_are_those_of_quantize_linear() -> None:
    """With the stored scale, bit for bit, and the scale of a bias is that of the products."""
    rng = np.random.default_rng(1)
    shapes = {"w": (8, 3, 3, 3), "b": (8,), "k": (1, 8, 1, 1), "w2": (5, 8, 1, 1)}
    constants = {n: rng.standard_normal(s).astype(np.float32) * 3 for n, s in shapes.items()}
    before = _model("c = Conv(x, w, b); r = Relu(c); p = Add(r, k); y = Conv(p, w2)", constants)
    bounds = observed_bounds(before.copy(), {"x": rng.standard_normal((1, 3, 6, 6), np.float32)})
    after = quantized(before, bounds)
    restored = {n.input(0).name: n for n in after.nodes() if n.op_type == "DequantizeLinear"}
    for name in ("w", "k", "w2"):
        node = restored[f"{name}_q"]
        integers, scale, zero = (v.numpy() for v in node.inputs)
        wanted = _quantize_linear(constants[name], scale, zero, node.get("axis", 1))
        assert integers.dtype == zero.dtype and np.array_equal(integers, wanted)
    bias = restored["b_q"]
    conv = next(n for n in after.nodes() if n.op_type == "Conv")
    input_scale = conv.input(0).producer.input(1).numpy()
    weight_scale = conv.input(1).producer.input(1).numpy()
    assert bias.input(1).numpy().tobytes() == (input_scale * weight_scale).tobytes()
    assert bias.input(0).dtype is bias.input(2).dtype is DataType.INT32
    wanted = np.rint(constants["b"].astype(np.float64) / bias.input(1).numpy().astype(np.float64))
    assert np.array_equal(bias.input(0).numpy(), wanted)


def _quantize_linear(
    numbers: np.ndarray, scale: np.ndarray, zero: np.ndarray, axis: int
) -> np.ndarray:
    text_form = f"""<ir_version: 10, opset_import: ["": 21]>
        g (float[N] x, float[M] s, uint8[M] z) => (uint8[N] y)
        {{ y = QuantizeLinear<axis = {axis}>(x, s, z) }}"""
    proto = onnx.parser.parse_model(text_form)
    return ReferenceEvaluator(proto).run(None, {"x": numbers, "s": scale, "z": zero})[0]


def _model(
    chain: str, constants: dict[str, np.ndarray], result: str = "float[N, C, H, W]"
) -> Graph:
    """A graph with input x [1, 3, 6, 6] and output y of nodes in text form."""
    graph = text(
        f"(float[1, 3, 6, 6] x) => ({result} y)",
        ", ".join(
            f"float[{','.join(map(str, a.shape))}] {n} = {{{numbers(a)}}}"
            for n, a in constants.items()
        ),
        *chain.split(";"),
    )
    return graph


def test_the_float_weights_are_gone_from_the_file() -> None:
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    before = text(
        "(float[1, 64] x) => (float[1, 64] y)",
        f"float[64, 64] w = {{{numbers(weight)}}}",
        "y = MatMul(x, w)",
    )
    after = quantized(before)
    sizes = [len(to_proto(g).SerializeToString()) for g in (before, after)]
    assert sizes[0] > 64 * 64 * 4 and sizes[1] < 64 * 64 + 1500
    assert not [v for v in after.initializers() if v.dtype is DataType.FLOAT and v.rank == 2]


def test_a_chain_runs_on_integers_from_its_input_to_its_last_product() -> None:
    rng = np.random.default_rng(2)
    constants = {
        "w": rng.standard_normal((4, 3, 3, 3)).astype(np.float32),
        "b": rng.standard_normal(4).astype(np.float32),
        "v": rng.standard_normal((4, 4, 1, 1)).astype(np.float32),
        "m": rng.standard_normal((4, 5)).astype(np.float32),
        "n": rng.standard_normal(5).astype(np.float32),
    }
    chain = (
        "c = Conv<pads = [1, 1, 1, 1]>(x, w, b); r = Relu(c); d = Conv(r, v); a = Add(r, d);"
        "f = Relu(a); p = GlobalAveragePool(f); q = Flatten(p); y = Gemm(q, m, n)"
    )
    before = _model(chain, constants, "float[N, M]")
    feeds = {"x": rng.standard_normal((1, 3, 6, 6)).astype(np.float32)}
    after = quantized(before, observed_bounds(before.copy(), feeds))
    counts = optimized_operators(to_proto(after))
    floats = {"Conv", "FusedConv", "Add", "Gemm", "FusedGemm", "MatMul", "GlobalAveragePool"}
    assert not [name for name in counts if name.rpartition(":")[2] in floats]
    assert counts["QuantizeLinear"] == 1 and counts["DequantizeLinear"] == 0
    assert integer_operators(to_proto(after)) == {
        "com.microsoft:QLinearConv": 2,
        "com.microsoft:QLinearAdd": 1,
        "com.microsoft:QLinearGlobalAveragePool": 1,
        "com.microsoft:QGemm": 1,
    }
    wanted = run(before, feeds)["y"]
    for found in (run_optimized(after, feeds), run_reference(after, feeds)):
        assert np.abs(found["y"] - wanted).max() < 0.05 * np.abs(wanted).max()


def test_bodies_are_quantized_and_read_through_pairs_of_their_own() -> None:
    before = Graph.from_text(f"""{HEAD}
        g (float[1, 1, 4, 4] x, bool flag) => (float[1, 1, 4, 4] y)
        <{AROUND[0]}>
        {{ c = Conv(x, w)
           y = If(flag) <
             then_branch = t () => (float[1, 1, 4, 4] a) {{ a = Conv(c, w) }},
             else_branch = e () => (float[1, 1, 4, 4] b) {{ b = Relu(c) }}> }}""")
    after = quantized(before)
    (then, other) = list(after.all_graphs())[1:]
    assert [n.op_type for n in then.nodes()] == [
        *("QuantizeLinear", "DequantizeLinear", "DequantizeLinear"),
        *("Conv", "QuantizeLinear", "DequantizeLinear"),
    ]
    assert then.nodes()[0].input(0).graph is after, "the body reads what is restored"
    assert [v.name for v in after.initializers() if v.name == "w_q"], "stored once"
    (relu,) = other.nodes()
    assert relu.input(0).producer.op_type == "DequantizeLinear"
    kernels = integer_operators(to_proto(after))
    assert sum(count for name, count in kernels.items() if "QLinearConv" in name) == 2
    feeds = random_feeds(before)
    for flag in (True, False):
        fed = {**feeds, "flag": np.array(flag)}
        wanted, found = run(after, fed)["y"], run_optimized(after, fed)["y"]
        np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize("shape", ["N, 2", "1, 2"])
def test_a_loop_is_quantized_where_shapes_stay(shape: str) -> None:
    """In the second one each iteration adds a row, so that ranges cannot be observed."""
    grows = shape != "N, 2"
    step = "s = Concat<axis = 0>(t, v) r = MatMul(s, w)" if grows else "r = MatMul(v, w)"
    before = Graph.from_text(f"""{HEAD}
        g (float[{shape}] x, float[1, 2] t) => (float[M, 2] y)
        <float[2, 2] w = {{63.5, -20, 1, 2}}, int64 n = {{3}}, bool go = {{1}}>
        {{ y = Loop(n, go, x) <
             body = b (int64 i, bool c, float[{"R" if grows else "N"}, 2] v)
               => (bool d, float[{"R" if grows else "N"}, 2] r)
               {{ d = Identity(c) {step} }}> }}""")
    after = quantized(before)
    body = list(after.all_graphs())[1]
    assert ("QuantizeLinear" in {n.op_type for n in body.nodes()}) != grows
    if grows:
        reasons = json.loads(after.model.metadata[LEFT_IN_FLOAT_KEY])
        assert any("another shape in each iteration" in reason for reason in reasons)


def test_an_opset_too_low_is_refused() -> None:
    before = Graph.from_text("""<ir_version: 7, opset_import: ["": 12]>
        g (float[1, 2] x) => (float[1, 2] y) <float[2, 2] w = {1, 2, 3, 4}> { y = MatMul(x, w) }
    """)
    with pytest.raises(InputError, match="target cpu-x64 needs opset 13 and the model has 12"):
        InsertQdq({}, "cpu-x64").run(before, Context())


def test_the_pass_has_a_text_form() -> None:
    (found,) = parse_passes("insert-qdq{target=generic}")
    assert found == InsertQdq(target="generic")
    assert str(found) == "insert-qdq{target='generic'}"


def test_the_log_tells_of_every_pair() -> None:
    lines: list[str] = []
    graph = between("p = Relu(c)")
    infer_types(graph)
    bounds = dict.fromkeys("xpy", (0.0, 63.75))
    InsertQdq(bounds, "cpu-x64").run(graph, Context(2, lines.append))
    assert [line.strip() for line in lines] == [
        f"pair on '{name}', scale 0.25" for name in ("x", "p", "y")
    ]


@pytest.mark.parametrize("operator", ["HardSigmoid<alpha = 0.25>", "HardSwish"])
def test_every_pair_around_a_gate_that_saturates_is_read(operator: str) -> None:
    nodes = f"c = Conv(x, w) p = {operator}(c) y = Conv(p, w)"
    after = quantized(newest(IMAGE, "float[1, 1, 1, 1] w = {1}", nodes))
    assert all(v.is_used for node in after.nodes() for v in node.outputs)
    # Where something else reads the pair it stays.
    more = newest(f"{IMAGE[:-1]}, float[N, C, H, W] e)", "float[1, 1, 1, 1] w = {1}",
                  f"{nodes} e = Exp(c)")  # fmt: skip
    assert any(n.is_op("Exp") and n.inputs[0].producer.is_op("DequantizeLinear")
               for n in quantized(more).nodes())  # fmt: skip


def tuned_product(bias: float, **tensors: np.ndarray) -> Graph:
    """A quantized product of two columns, whose weight has tuned tensors."""
    before = text(
        "(float[2, 2] x) => (float[2, 2] y)",
        f"float[2, 2] w = {{1, 2, 3, 4}}, float[2] b = {{{bias}, 0}}",
        "[fc] y = Gemm(x, w, b)",
    )
    infer_types(before)
    bounds = dict.fromkeys("xy", (-1.0, 1.0))
    step = InsertQdq(bounds, "cpu-x64", tuned={"fc": tensors})
    assert str(step) == str(InsertQdq(bounds, "cpu-x64")), "data is no option"
    step.run(before, Context())
    before.check()
    return before


def test_a_tuned_weight_is_stored_as_it_is() -> None:
    scale, zero = np.array([0.5, 0.25], np.float32), np.zeros(2, np.int8)
    after = tuned_product(0.5, scale=scale, zero_point=zero)
    assert after.values["w_q"].numpy().tolist() == [[2, 8], [6, 16]]
    assert after.values["w_scale"].numpy().tolist() == scale.tolist()
    values = np.array([[1, 7], [7, 15]])
    after = tuned_product(0.5, scale=scale, zero_point=zero, values=values)
    assert after.values["w_q"].numpy().tolist() == values.tolist()
    assert after.values["w_scale"].numpy().tolist() == scale.tolist()
    # A bias that does not fit int32 raises the scale; what the values mean is kept.
    values = np.array([[16, 56], [112, 120]])
    after = tuned_product(4.0, scale=scale * 2.0**-24, zero_point=zero, values=values)
    assert after.values["w_scale"].numpy().tolist() == [2.0**-21, 2.0**-26]
    assert after.values["w_q"].numpy().tolist() == [[1, 56], [7, 120]]


def test_a_tuned_weight_that_does_not_fit_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"scale of node 'fc' has shape \(3,\); .* \(2,\)"):
        tuned_product(0.5, scale=np.ones(3, np.float32), zero_point=np.zeros(3))


def test_what_it_needs_is_what_it_quantizes() -> None:
    graph = Graph.from_text("""<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {1, -2, 0.5, 0.75}>
        { h = MatMul(x, w) e = Exp(h) y = MatMul(e, w) }""")
    infer_types(graph)
    assert InsertQdq(target="cpu-x64").needs(graph) == [RangeOf("x"), RangeOf("e")]
    assert not InsertQdq(target="cpu-x64", keep_float=("h", "y")).needs(graph)
