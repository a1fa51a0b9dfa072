"""Dynamic quantization: what becomes integers, how well, and what stays in float and why."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from onnxq.errors import InputError
from onnxq.ir import Context, DataType, Graph, infer_types, parse_passes, to_proto
from onnxq.passes.notes import left_in_float
from onnxq.passes.weights.quantize_dynamic import QuantizeDynamic
from onnxq.runtime.operators import integer_operators, optimized_operators
from tests.helpers import assert_same_graph, random_feeds, run
from tests.passes.weights.stored import (
    assert_runtimes_agree,
    normal,
    quantized,
    sqnr,
    stored_bytes,
    text,
    with_constants,
)
from tests.quantization import run_integers, run_optimized

STEP = 1 / 255


def product(nodes: str, interface: str = "(float[M, 32] x) => (float[M, 24] y)", **more) -> Graph:
    """A graph with constants w [32, 24], v [24, 32], b [24]."""
    constants = {
        "w": normal(32, 24),
        "v": normal(24, 32, seed=1),
        "b": normal(24, seed=2),
        **more,
    }
    read = {name: a for name, a in constants.items() if re.search(rf"\b{name}\b", nodes)}
    return with_constants(interface, read, nodes)


def check(before: Graph, after: Graph, least: float = 38, dims: dict[str, int] | None = None):
    """The quantized graph gives nearly the float one's outputs, in every runtime."""
    feeds = random_feeds(before, dims=dims, other_dims=5)
    found = assert_runtimes_agree(after, feeds, STEP)
    optimized = run_optimized(after, feeds)
    for name, wanted in run(before, feeds).items():
        assert sqnr(wanted, found[name]) > least, name
        assert np.abs(found[name] - optimized[name]).max() <= STEP * np.abs(wanted).max()


def test_a_product_becomes_integers_and_keeps_its_names() -> None:
    before = text(
        "(float[M, 2] x) => (float[M, 2] z)",
        "float[2, 2] w = {63.5, 1, 0, 127}",
        "y = MatMul(x, w) z = Relu(y)",
    )
    before.rename_node(before.nodes()[0], "first")
    after = quantized(QuantizeDynamic(), before, 1)
    wanted = Graph.from_text("""<ir_version: 10, opset_import: ["": 21]>
        g (float[M, 2] x) => (float[M, 2] z)
        <int8[2, 2] w = {127, 1, 0, 127}, float[2] s = {0.5, 1}> {
        q, xs, xz = DynamicQuantizeLinear(x) i = MatMulInteger(q, w, xz)
        f = Cast<to = 1>(i) k = Mul(xs, s) y = Mul(f, k) z = Relu(y) }""")
    assert_same_graph(after, wanted)
    assert "w" not in after.values and after.values["y"].producer.op_type == "Mul"
    assert [n.op_type for n in after.nodes() if n.name == "first"] == ["MatMulInteger"]
    assert after.values["y"].type == before.values["y"].type or before.values["y"].type is None


@pytest.mark.parametrize(
    ("nodes", "interface"),
    [
        ("y = MatMul(x, w)", "(float[M, 32] x) => (float[M, 24] y)"),
        ("y = MatMul(x, w)", "(float[B, M, 32] x) => (float[B, M, 24] y)"),
        ("y = MatMul(x, w)", "(float[2, B, M, 32] x) => (float[2, B, M, 24] y)"),
        ("m = MatMul(x, w) y = Add(m, b)", "(float[B, M, 32] x) => (float[B, M, 24] y)"),
        ("y = Gemm(x, w)", "(float[M, 32] x) => (float[M, 24] y)"),
        ("y = Gemm(x, w, b)", "(float[M, 32] x) => (float[M, 24] y)"),
        ("y = Gemm<transB = 1>(x, v, b)", "(float[M, 32] x) => (float[M, 24] y)"),
        ("y = Gemm<transA = 1>(x, w, b)", "(float[32, M] x) => (float[M, 24] y)"),
        ("y = Gemm<alpha = -0.5, beta = 2.0>(x, w, b)", "(float[M, 32] x) => (float[M, 24] y)"),
        ("y = Gemm<transB = 1, alpha = 3.0>(x, v)", "(float[M, 32] x) => (float[M, 24] y)"),
        ("t = Transpose<perm = [1, 0]>(v) y = MatMul(x, t)",
         "(float[M, 32] x) => (float[M, 24] y)"),
        ("t = Transpose(v) y = Gemm(x, t, b)", "(float[M, 32] x) => (float[M, 24] y)"),
    ],
)  # fmt: skip
def test_products_of_every_form_are_one_integer_operator(nodes: str, interface: str) -> None:
    before = product(nodes, interface)
    after = quantized(QuantizeDynamic(), before, 1)
    counted = optimized_operators(to_proto(after))
    others = {"Transpose": 1} if "transA" in nodes else {}
    assert dict(counted) == {"com.microsoft:DynamicQuantizeMatMul": 1, **others}
    check(before, after)
    assert stored_bytes(after) < 0.4 * stored_bytes(before)


@pytest.mark.parametrize("shape", [(), (1,), (1, 24), (5, 1), (5, 24)])
def test_biases_of_every_shape(shape: tuple[int, ...]) -> None:
    interface = "(float[5, 32] x) => (float[5, 24] y)"
    bias = np.asarray(normal(*shape, seed=4))
    before = with_constants(
        interface, {"w": normal(32, 24), "c": bias}, "y = Gemm<beta = 0.5>(x, w, c)"
    )
    check(before, quantized(QuantizeDynamic(), before, 1))


def test_a_bias_made_at_run_time_is_added() -> None:
    interface = "(float[M, 32] x, float[24] c) => (float[M, 24] y)"
    for beta in (1.0, 0.25):
        before = product(f"y = Gemm<beta = {beta}>(x, w, c)", interface)
        after = quantized(QuantizeDynamic(), before, 1)
        check(before, after)
        assert len([n for n in after.nodes() if n.is_op("Mul")]) == (2 if beta == 1.0 else 3)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 20),
    st.integers(1, 20),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1e-30, 1e-3, 1.0, 1e10]),
    st.integers(0, 1 << 16),
)
def test_stored_integers_are_those_of_quantize_linear(
    rows: int, columns: int, turned: bool, by_channel: bool, scale: float, seed: int
) -> None:
    weight = normal(columns, rows, seed=seed, scale=scale).T
    stored = np.ascontiguousarray(weight.T if turned else weight)
    before = with_constants(
        f"(float[M, {rows}] x) => (float[M, {columns}] y)",
        {"w": stored},
        f"y = Gemm<transB = {int(turned)}>(x, w)",
    )
    after = quantized(QuantizeDynamic(per_channel=by_channel), before, 1)
    found = next(v for v in after.initializers() if v.dtype is DataType.INT8)
    scales = next(v for v in after.initializers() if v.dtype is DataType.FLOAT).numpy()
    assert scales.shape == ((columns,) if by_channel else ())
    model = onnx.parser.parse_model(f"""<ir_version: 10, opset_import: ["": 21]>
        g (float[N, M] x, float{"[M]" if by_channel else ""} s) => (int8[N, M] y)
        {{ y = QuantizeLinear<axis = 1, output_dtype = 3>(x, s) }}""")
    wanted = ReferenceEvaluator(model).run(None, {"x": weight, "s": scales})[0]
    assert np.array_equal(found.numpy(), wanted)


def test_products_of_one_activation_share_its_integers() -> None:
    before = with_constants(
        "(float[M, 32] x) => (float[M, 24] q, float[M, 24] k, float[M, 24] v)",
        {name: normal(32, 24, seed=i) for i, name in enumerate("abc")},
        "q = MatMul(x, a) k = MatMul(x, b) v = MatMul(x, c)",
    )
    after = quantized(QuantizeDynamic(), before, 3)
    assert dict(optimized_operators(to_proto(after))) == {
        "DynamicQuantizeLinear": 1,
        "com.microsoft:MatMulIntegerToFloat": 3,
    }
    check(before, after)


def test_a_shared_weight_is_stored_once() -> None:
    before = product("h = MatMul(x, w) g = MatMul(x, w) y = Add(h, g)")
    after = quantized(QuantizeDynamic(), before, 2)
    assert [v.dtype for v in after.initializers() if v.rank == 2] == [DataType.INT8]
    check(before, after)


def test_a_weight_that_a_float_node_reads_too_stays_for_it() -> None:
    before = product(
        "y = MatMul(x, w) e = Exp(w)", "(float[M, 32] x) => (float[M, 24] y, float[32, 24] e)"
    )
    after = quantized(QuantizeDynamic(), before, 1)
    assert [use.node.op_type for use in after.values["w"].uses] == ["Exp"]
    check(before, after)


def test_a_transpose_that_others_read_stays_for_them() -> None:
    before = product(
        "t = Transpose(v) y = MatMul(x, t) e = Exp(t)",
        "(float[M, 32] x) => (float[M, 24] y, float[32, 24] e)",
    )
    after = quantized(QuantizeDynamic(), before, 1)
    assert "Transpose" in [n.op_type for n in after.nodes()]
    check(before, after)


@pytest.mark.parametrize("where", ["inside", "outside"])
def test_nodes_in_subgraphs_are_quantized(where: str) -> None:
    before = with_constants(
        "(float[M, 32] x, bool c) => (float[M, 24] y)",
        {"w": normal(32, 24)},
        """y = If(c) <then_branch = t () => (float[M, 24] a) { a = MatMul(x, w) },
           else_branch = e () => (float[M, 24] b) { n = Neg(x) b = MatMul(n, w) }>""",
    )
    if where == "inside":
        for branch in (g for g in before.all_graphs() if g.outer is not None):
            own = branch.constant(normal(32, 24, seed=5), "own")
            branch.nodes()[-1].set_input(1, own)
    if where == "inside":
        before.discard(before.values["w"])
    after = quantized(QuantizeDynamic(), before, 2)
    stored = [v for g in after.all_graphs() for v in g.initializers() if v.dtype is DataType.INT8]
    assert len(stored) == (2 if where == "inside" else 1)
    assert integer_operators(to_proto(after)) == {"com.microsoft:DynamicQuantizeMatMul": 2}
    for flag in (True, False):
        feeds = {"x": normal(3, 32, seed=9), "c": np.array(flag)}
        found = assert_runtimes_agree(after, feeds, STEP)["y"]
        assert sqnr(run(before, feeds)["y"], found) > 38


@pytest.mark.parametrize("rank", [1, 2])
def test_embeddings_are_gathered_as_integers(rank: int) -> None:
    dims = ["B", "S"][:rank]
    table = normal(50, 16) * np.geomspace(0.01, 10, 50, dtype=np.float32)[:, None]
    before = with_constants(
        f"(int64[{', '.join(dims)}] i) => (float[{', '.join([*dims, '16'])}] y)",
        {"t": table},
        "y = Gather(t, i)",
    )
    after = quantized(QuantizeDynamic(), before, 1)
    assert stored_bytes(after) == 50 * 16 + 50 * 4
    assert "DequantizeLinear" not in optimized_operators(to_proto(after))
    feeds = {"i": np.arange(48).reshape((48, 6, 8)[:rank] if rank == 1 else (6, 8))}
    found = assert_runtimes_agree(after, feeds, 1e-6)["y"]
    wanted = run(before, feeds)["y"]
    # Every row by itself is as precise as its largest number allows.
    steps = np.abs(wanted).max(axis=-1, keepdims=True) / 127
    assert (np.abs(found - wanted) <= 0.501 * steps).all()


def recurrent(operator: str, gates: int, directions: int = 1, attributes: str = "") -> Graph:
    width, inputs, way = 6, 5, "bidirectional" if directions == 2 else "forward"
    return with_constants(
        f"(float[7, 3, {inputs}] x) => (float[S, D, B, H] y)",
        {
            "w": normal(directions, gates * width, inputs, scale=0.5),
            "r": normal(directions, gates * width, width, seed=1, scale=0.5),
            "b": normal(directions, 2 * gates * width, seed=2, scale=0.3),
        },
        f'y = {operator}<hidden_size = {width}, direction = "{way}"{attributes}>(x, w, r, b)',
    )


@pytest.mark.parametrize(("operator", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
@pytest.mark.parametrize("directions", [1, 2])
def test_weights_of_recurrent_operators_are_stored(
    operator: str, gates: int, directions: int
) -> None:
    before = recurrent(operator, gates, directions)
    after = quantized(QuantizeDynamic(), before, 1)
    assert [n.op_type for n in after.nodes()] == ["DequantizeLinear", "DequantizeLinear", operator]
    feeds = random_feeds(before)
    wanted, found = run(before, feeds)["y"], run(after, feeds)["y"]
    assert sqnr(wanted, found) > 35
    if directions == 1:
        # onnx.reference knows one direction only.
        assert_runtimes_agree(after, feeds, 1e-5)


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("more", ["", ", clip = 1.5", ", input_forget = 1"])
def test_an_lstm_on_request_computes_on_integers(directions: int, more: str) -> None:
    before = recurrent("LSTM", 4, directions, more)
    assert dict(optimized_operators(to_proto(quantized(QuantizeDynamic(), before, 1))))["LSTM"] == 1
    after = quantized(QuantizeDynamic(contrib=True), before, 1)
    assert dict(optimized_operators(to_proto(after))) == {"com.microsoft:DynamicQuantizeLSTM": 1}
    feeds = random_feeds(before)
    assert sqnr(run(before, feeds)["y"], run_integers(after, feeds)["y"]) > 30


def test_an_lstm_with_everything_it_can_have() -> None:
    shapes = {"w": (1, 24, 5), "r": (1, 24, 6), "b": (1, 48), "p": (1, 18)}
    before = with_constants(
        "(float[7, 3, 5] x, int32[3] n, float[1, 3, 6] h, float[1, 3, 6] c) => "
        "(float[S, D, B, H] y, float[D, B, H] last, float[D, B, H] cell)",
        {name: normal(*shape, seed=i, scale=0.5) for i, (name, shape) in enumerate(shapes.items())},
        "y, last, cell = LSTM<hidden_size = 6>(x, w, r, b, n, h, c, p)",
    )
    feeds = {**random_feeds(before), "n": np.array([7, 3, 5], np.int32)}
    wanted = run(before, feeds)
    for contrib in (False, True):
        after = quantized(QuantizeDynamic(contrib=contrib), before, 1)
        assert [v.name for v in after.outputs] == ["y", "last", "cell"]
        for name, found in run_integers(after, feeds).items():
            assert sqnr(wanted[name], found) > 30, (contrib, name)


@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("bias", ["", ", b", ", d"])
def test_convolutions_on_request(group: int, bias: str) -> None:
    constants = {"w": normal(8, 4 // group, 3, 3), "b": normal(8, seed=1)}
    before = with_constants(
        "(float[N, 4, 6, 7] x, float[8] d) => (float[N, 8, 6, 4] y)",
        {name: a for name, a in constants.items() if name == "w" or name in bias},
        f"y = Conv<group = {group}, pads = [1, 1, 1, 1], strides = [1, 2]>(x, w{bias})",
    )
    for by_channel in (True, False):
        step = QuantizeDynamic(convolutions=True, per_channel=by_channel)
        after = quantized(step, before, 1)
        check(before, after, 35)
        assert integer_operators(to_proto(after)) == {"ConvInteger": 1}
    kept = quantized(QuantizeDynamic(), before, 0)
    assert_same_graph(kept, before)
    reason = "convolutions on dynamic integers are far slower than float ones"
    assert left_in_float(kept) == {"y": reason}


def test_a_convolution_of_one_dimension_pads_with_zero() -> None:
    before = with_constants(
        "(float[1, 2, 5] x) => (float[1, 3, 5] y)",
        {"w": normal(3, 2, 3)},
        "y = Conv<pads = [1, 1]>(x, w)",
    )
    after = quantized(QuantizeDynamic(convolutions=True), before, 1)
    feeds = {"x": np.abs(normal(1, 2, 5)) + 10}
    found = assert_runtimes_agree(after, feeds, STEP)["y"]
    assert sqnr(run(before, feeds)["y"], found) > 35


def test_reduced_range_uses_seven_bits() -> None:
    before = product("y = MatMul(x, w)")
    after = quantized(QuantizeDynamic(reduced_range=True), before, 1)
    stored = next(v.numpy() for v in after.initializers() if v.dtype is DataType.INT8)
    assert stored.min() >= -64 and stored.max() <= 63 and np.abs(stored).max() > 60
    check(before, after, 33)


@pytest.mark.parametrize(
    ("interface", "constants", "nodes", "reason"),
    [
        ("(float[2, 2] x, float[2, 2] w) => (float[2, 2] y)", "", "y = MatMul(x, w)",
         "both of its inputs are activations, for which dynamic integers hardly pay"),
        ("(float[2, 2] x) => (float[2, 2] y)", "float[2, 2] w = {1, 2, 3, 4}",
         "y = MatMul(w, x)",
         "its input 0 is constant"),
        ("(double[2, 2] x) => (double[2, 2] y)", "double[2, 2] w = {1, 2, 3, 4}",
         "y = MatMul(x, w)", "its input 0 is not float32"),
        ("(float[2, 2] x) => (float[2] y)", "float[2] w = {1, 2}", "y = MatMul(x, w)",
         "its weight has 1 dimensions, not 2"),
        ("(float[1, 2, 2] x) => (float[1, 2, 1] y)", "float[1, 2, 1] w = {1, 2}",
         "y = MatMul(x, w)", "its weight has 3 dimensions, not 2"),
        ("(float[2, 2] x) => (float[2, 2] y)",
         "float[4] w = {1, 2, 3, 4}, int64[2] s = {2, 2}", "r = Reshape(w, s) y = MatMul(x, r)",
         "its weight is the constant 'w' behind Reshape; fold-constants with a larger limit would "
         "fold it"),
        ("(int64[2] i) => (float[3, 2] y)", "float[3, 2] w = {1, 2, 3, 4, 5, 6}",
         "y = Gather<axis = 1>(w, i)", "it does not gather rows"),
        ("(int64[2] i) => (float[2] y)", "float[3] w = {1, 2, 3}", "y = Gather(w, i)",
         "it does not gather from a constant matrix"),
        ("(float[1, 1, 1] x, float[1, 1, 1] r) => (float[S, D, B, H] y)",
         "float[1, 1, 1] w = {1}",
         "y = RNN<hidden_size = 1>(x, w, r)", "its weight is not constant"),
    ],
)  # fmt: skip
def test_what_stays_in_float_says_why(
    interface: str, constants: str, nodes: str, reason: str
) -> None:
    before = text(interface, constants, nodes)
    after = quantized(QuantizeDynamic(), before, 0)
    assert_same_graph(after, before)
    assert left_in_float(after) == {"y": reason}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_stay(value: float) -> None:
    weights = {"w": normal(1, 4, 3), "r": normal(1, 4, 4)}
    weights["r"][0, 1, 2] = value
    interface = "(float[2, 1, 3] x) => (float[S, D, B, H] y)"
    before = with_constants(interface, weights, "y = RNN<hidden_size = 4>(x, w, r)")
    after = quantized(QuantizeDynamic(), before, 0)
    assert_same_graph(after, before)
    assert left_in_float(after) == {"y": "its weight has infinite or NaN values"}


@pytest.mark.parametrize(
    ("table", "constant"),
    [
        ("int64[3]", "{1, 2, 3}"),
        ("float[3, 1]", "{1, 2, 3}"),
        ("float[3, 2]", ""),
        ("float[2, 2]", "{1, 2, 3, 4}"),
    ],
)
def test_some_gathers_have_no_weight_at_all(table: str, constant: str) -> None:
    shapes = table.replace("3", "2")
    given, held = ("", f"{table} w = {constant}") if constant else (f", {table} w", "")
    before = text(f"(int64[2] i{given}) => ({shapes} y)", held, "y = Gather(w, i)")
    after = quantized(QuantizeDynamic(), before, 0)
    assert_same_graph(after, before)
    assert left_in_float(after) == {}


def test_overridable_weights_stay() -> None:
    before = Graph.from_text("""<ir_version: 10, opset_import: ["": 21]>
        g (float[2, 2] x, float[2, 2] w = {1, 2, 3, 4}) => (float[2, 2] y)
        { y = MatMul(x, w) }""")
    after = quantized(QuantizeDynamic(), before, 0)
    assert "also an input" in left_in_float(after)["y"]


def test_only_and_keep_float_name_nodes() -> None:
    def graph() -> Graph:
        made = product("h = MatMul(x, w) k = MatMul(h, v) y = MatMul(k, w)")
        for node, name in zip(made.nodes(), ("one", "two", ""), strict=True):
            made.rename_node(node, name)
        return made

    after = quantized(QuantizeDynamic(only=("two", "y")), graph(), 2)
    assert [n.op_type for n in after.nodes()].count("MatMulInteger") == 2
    assert [n.name for n in after.nodes() if n.is_op("MatMul")] == ["one"]
    assert left_in_float(after) == {}
    after = quantized(QuantizeDynamic(keep_float=("two",)), graph(), 2)
    assert left_in_float(after) == {"two": "kept in float by request"}
    # Quantized after all, it is no longer among those left in float.
    infer_types(after)
    assert QuantizeDynamic().run(after, Context()) == 1
    assert left_in_float(after) == {}


def test_an_opset_too_low_is_refused() -> None:
    before = Graph.from_text("""<ir_version: 7, opset_import: ["": 12]>
        g (float[1, 2] x) => (float[1, 2] y) <float[2, 2] w = {1, 2, 3, 4}> { y = MatMul(x, w) }
    """)
    with pytest.raises(InputError, match="needs opset 13 and the model has 12"):
        QuantizeDynamic().run(before, Context())


def test_the_pass_has_a_text_form() -> None:
    (found,) = parse_passes("quantize-dynamic{per_channel=False, only=('a',)}")
    assert found == QuantizeDynamic(per_channel=False, only=("a",))
