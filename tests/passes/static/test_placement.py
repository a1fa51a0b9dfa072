"""Which nodes are quantized, which values carry pairs, and why the others stay in float."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.ir import DataType, Graph, ModelInfo, TensorType, infer_types
from onnxq.passes.notes import BY_REQUEST, Reason
from onnxq.passes.static.operands import reads_weight
from onnxq.passes.static.placement import Placement, place, place_within
from onnxq.targets import load_target

HEAD = '<ir_version: 8, opset_import: ["": 17, "custom": 1]>'
W = "float[1, 1, 1, 1] w = {1}"


IMAGE = "(float[1, 1, 4, 4] x) => (float[N, C, H, W] y)"


def typed(nodes: str, constants: str = W, interface: str = IMAGE, head: str = HEAD) -> Graph:
    graph = Graph.from_text(f"{head} g {interface} <{constants}> {{ {nodes} }}")
    infer_types(graph)
    return graph


def placed(
    nodes: str,
    constants: str = W,
    interface: str = IMAGE,
    *,
    target: str = "cpu-x64",
    keep: frozenset[str] = frozenset(),
    head: str = HEAD,
) -> Placement:
    found = place(typed(nodes, constants, interface, head), load_target(target), keep)
    assert not set(found.nodes) & set(found.left_in_float)
    return found


def quantized(found: Placement) -> list[str]:
    return [f"{n.op_type} {n.output.name}" for n in found.nodes]


def roots(found: Placement) -> dict[str, str]:
    return {v.name: root.name for v, root in found.roots.items()}


def reasons(found: Placement) -> dict[str, str]:
    return {n.output.name: reason.text for n, reason in found.left_in_float.items()}


@pytest.mark.parametrize(
    ("operator", "constants", "reason"),
    [
        ("Conv(x, v)", W, "its weight is not constant"),
        ("Conv(x, o)", W, "its weight is also an input, which callers may override"),
        ("Conv(w, w)", W, "its input 0 is constant"),
        ("Conv(x, n)", f"{W}, float[1, 1, 1, 1] n = {{inf}}", "its weight has infinite or NaN val"),
        ("Conv(x, w, b)", f"{W}, float[1] b = {{nan}}", "its bias has infinite or NaN values"),
        ("Conv(x, w, bv)", W, "its bias is not a float32 constant with one number per output"),
        ("MatMul(x, m)", "float[4] m = {1, 2, 3, 4}", "its weight is no float32 matrix"),
        ("MatMul(x, v)", W, "its weight is not constant"),
        ("Exp(x)", W, "target cpu-x64 does not quantize Exp"),
        ("custom.Conv(x, w)", W, "target cpu-x64 does not quantize Conv"),
        ("ConvTranspose(x, w)", W, "not quantize ConvTranspose: onnxruntime's CPU provider has no"),
        ("Relu(x)", W, "not between integer operators"),
        ("Add(x, x)", W, "not between integer operators"),
        ("Transpose(x)", W, "not between integer operators"),
    ],
)
def test_why_an_operator_stays_in_float(operator: str, constants: str, reason: str) -> None:
    interface = """(float[1, 1, 4, 4] x, float[1, 1, 1, 1] v, float[1] bv,
        float[1, 1, 1, 1] o = {1}) => (float[N, C, H, W] y)"""
    found = placed(f"y = {operator}", constants, interface)
    assert reason in reasons(found)["y"]
    assert not found.nodes and not found.roots


@pytest.mark.parametrize(
    ("operator", "reason"),
    [
        ("Gemm<alpha = 2.0>(x, m, b)", "it scales its product or its bias"),
        ("Gemm<beta = 2.0>(x, m, b)", "it scales its product or its bias"),
        ("Gemm(x, m, full)", "its bias is not a float32 constant with one number per output"),
    ],
)
def test_why_a_gemm_stays_in_float(operator: str, reason: str) -> None:
    constants = "float[2, 2] m = {1, 2, 3, 4}, float[2] b = {1, 2}, float[2, 2] full = {1, 2, 3, 4}"
    found = placed(f"y = {operator}", constants, "(float[2, 2] x) => (float[2, 2] y)")
    assert reason in reasons(found)["y"]


def test_float16_stays_as_it_is() -> None:
    constants = "float16[1, 1, 1, 1] w = {1}"
    interface = "(float16[1, 1, 4, 4] x) => (float16[1, 1, 4, 4] y)"
    found = placed("y = Conv(x, w)", constants, interface)
    assert reasons(found) == {"y": "its input 0 is not float32"}


def test_what_has_no_known_type_stays_as_it_is() -> None:
    found = placed("h = custom.Strange(x) y = Conv(h, w)")
    assert reasons(found)["y"] == "its input 0 is not float32"


def test_arithmetic_on_shapes_is_not_spoken_of() -> None:
    found = placed("s = Shape(x) c = Conv(x, w) y = Reshape(c, s)")
    assert set(reasons(found)) == {"y"}


def test_a_conv_gives_integers_and_a_gemm_may_give_floats() -> None:
    found = placed("y = Conv(x, w)")
    assert roots(found) == {"x": "x", "y": "y"}
    found = placed(
        "y = Gemm(x, m)", "float[2, 2] m = {1, 2, 3, 4}", "(float[2, 2] x) => (float[2, 2] y)"
    )
    assert roots(found) == {"x": "x"}
    found = placed(
        "y = Gemm(x, m)",
        "float[2, 2] m = {1, 2, 3, 4}",
        "(float[2, 2] x) => (float[2, 2] y)",
        target="generic",
    )
    assert roots(found) == {"x": "x", "y": "y"}


def test_two_activations_of_a_product() -> None:
    interface = "(float[2, 2] a, float[2, 2] b) => (float[2, 2] y)"
    found = placed("y = MatMul(a, b)", W, interface, target="generic")
    assert roots(found) == {"a": "a", "b": "b", "y": "y"}
    ((node, rule),) = found.nodes.items()
    assert not reads_weight(node, rule)
    assert reasons(placed("y = MatMul(a, b)", W, interface)) == {"y": "its weight is not constant"}


def test_what_follows_needs_integers_on_both_sides() -> None:
    found = placed("c = Conv(x, w) a = Add(c, c) y = Exp(a)")
    assert quantized(found) == ["Conv c"]
    assert roots(found) == {"x": "x", "c": "c"}
    assert reasons(found)["a"] == "not between integer operators"
    found = placed("c = Conv(x, w) a = Add(c, c) y = Conv(a, w)")
    assert sorted(quantized(found)) == ["Add a", "Conv c", "Conv y"]


def test_all_inputs_have_to_be_integers() -> None:
    found = placed("c = Conv(x, w) a = Add(c, x) y = Conv(a, w)")
    assert sorted(quantized(found)) == ["Conv c", "Conv y"]
    row = f"{W}, float[1, 1, 1, 4] v = {{1, 2, 3, 4}}"
    found = placed("c = Conv(x, w) a = Concat<axis = 2>(c, v) y = Conv(a, w)", row)
    assert sorted(quantized(found)) == ["Conv c", "Conv y"]
    found = placed(
        "c = Conv(x, w) a = Add(c, k) y = Conv(a, w)", f"{W}, float k = {{inf}}"
    )  # fmt: skip
    assert sorted(quantized(found)) == ["Conv c", "Conv y"]


def test_a_whole_path_that_leads_to_no_integers_stays_in_float() -> None:
    found = placed(
        "c = Conv(x, w) a = Add(c, c) r = Relu(a) t = Transpose(r) p = Mul(t, t) y = Exp(p)"
    )
    assert quantized(found) == ["Conv c"]
    assert set(reasons(found)) == {"a", "r", "t", "p", "y"}
    assert roots(found) == {"x": "x", "c": "c"}


def test_one_integer_reader_is_enough() -> None:
    found = placed(
        "c = Conv(x, w) a = Add(c, c) r = Relu(a) y = Conv(r, w) e = Exp(r)",
        interface="(float[1, 1, 4, 4] x) => (float[1, 1, 4, 4] y, float[1, 1, 4, 4] e)",
    )
    assert sorted(quantized(found)) == ["Add a", "Conv c", "Conv y", "Relu r"]
    (exp,) = found.left_in_float
    read = exp.input(0)
    assert not any(found.reads_pair(use) for use in read.uses if use.node is exp)
    assert sum(found.reads_pair(use) for use in read.uses) == 1


def test_a_clipping_operator_carries_the_pair_if_it_is_the_only_reader() -> None:
    found = placed("c = Conv(x, w) y = Relu(c)")
    assert roots(found) == {"x": "x", "y": "y"} and "Relu y" in quantized(found)
    both = "(float[1, 1, 4, 4] x) => (float[1, 1, 4, 4] y, float[1, 1, 4, 4] c)"
    found = placed("c = Conv(x, w) y = Relu(c)", interface=both)
    assert roots(found) == {"x": "x", "c": "c"}
    assert reasons(found) == {"y": "not between integer operators"}


@pytest.mark.parametrize(
    ("bounds", "absorbed"),
    [
        ("low, high", True),
        (", high", True),
        ("low", True),
        ("above, high", False),
        ("low, below", False),
        ("low, dynamic", False),
        ("not_a_number", False),
    ],
)
def test_a_clip_is_absorbed_if_saturation_can_do_it(bounds: str, absorbed: bool) -> None:
    constants = f"""{W}, float low = {{0}}, float high = {{6}}, float above = {{1}},
        float below = {{-1}}, float not_a_number = {{nan}}"""
    interface = "(float[1, 1, 4, 4] x, float dynamic) => (float[1, 1, 4, 4] y)"
    found = placed(f"c = Conv(x, w) y = Clip(c, {bounds})", constants, interface)
    if absorbed:
        assert roots(found) == {"x": "x", "y": "y"} and not found.left_in_float
    else:
        assert roots(found) == {"x": "x", "c": "c"}
        assert reasons(found) == {"y": "its bounds are computed or leave zero out"}


def test_clipping_operators_in_a_row_are_absorbed_together() -> None:
    found = placed(
        "c = Conv(x, w) r = Relu(c) y = Clip(r, , high)", f"{W}, float high = {{6}}"
    )  # fmt: skip
    assert roots(found) == {"x": "x", "y": "y"}
    assert sorted(quantized(found)) == ["Clip y", "Conv c", "Relu r"]


def test_operators_that_move_values_use_the_range_of_their_input() -> None:
    found = placed(
        "c = Conv(x, w) r = Relu(c) p = MaxPool<kernel_shape = [2, 2]>(r) t = Transpose(p)"
        " y = Conv(t, w)"
    )
    assert roots(found) == {"x": "x", "r": "r", "p": "r", "t": "r", "y": "y"}
    assert found.observed() == ["x", "r", "y"]


def test_every_part_of_a_split_shares_its_qparams() -> None:
    found = placed(
        "c = Conv(x, w) a, b = Split<axis = 2>(c) y = Conv(a, w) z = Conv(b, w)",
        interface="(float[1, 1, 4, 4] x) => (float[1, 1, 2, 4] y, float[1, 1, 2, 4] z)",
    )
    assert {"a": "c", "b": "c"}.items() <= roots(found).items()


@pytest.mark.parametrize(
    ("operator", "reason"),
    [
        ("p, i = MaxPool<kernel_shape = [1, 1]>(c)", "not all of its outputs are float32"),
        ("p = AveragePool<kernel_shape = [2, 2], ceil_mode = 1>(c)", "ceil_mode breaks the integ"),
        ('p = Resize<mode = "cubic">(c, , k)', "its attribute mode is not 'nearest'"),
    ],
)
def test_why_an_operator_between_integers_stays_in_float(operator: str, reason: str) -> None:
    found = placed(
        f"c = Conv(x, w) {operator} y = Conv(p, w)", f"{W}, float[4] k = {{1, 1, 2, 2}}"
    )  # fmt: skip
    assert reason in reasons(found)["p"]


def test_no_pair_stands_behind_an_operator_whose_integer_kernel_is_broken() -> None:
    pool = "p = AveragePool<kernel_shape = [2, 2], ceil_mode = 1>(c)"
    found = placed(f"c = Conv(x, w) {pool} y = Conv(p, w)")
    assert "would fuse AveragePool, which ceil_mode breaks" in reasons(found)["y"]
    assert roots(found) == {"x": "x", "c": "c"}


def test_an_opset_in_which_an_operator_takes_no_integers() -> None:
    head = '<ir_version: 8, opset_import: ["": 11]>'
    nodes = "c = Conv(x, w) p = MaxPool<kernel_shape = [2, 2]>(c) y = Conv(p, w)"
    found = placed(nodes, head=head)
    assert reasons(found) == {"p": "MaxPool takes integers only from opset 12 on"}


def test_nodes_kept_in_float_absorb_nothing_and_are_not_absorbed() -> None:
    graph = Graph("g", model=ModelInfo(8, {"": 17}))
    x = graph.add_input("x", TensorType(DataType.FLOAT, (1, 1, 4, 4)))
    w = graph.constant(np.ones((1, 1, 1, 1), np.float32), "w")
    conv = graph.add("Conv", [x, w], name="conv")
    relu = graph.add("Relu", [conv.output], name="relu")
    graph.add_output(relu.output)
    infer_types(graph)
    target = load_target("cpu-x64")
    kept = place(graph, target, frozenset({"relu"}))
    assert kept.left_in_float == {relu: BY_REQUEST}
    assert [v.name for v in kept.roots] == ["x", conv.output.name]
    kept = place(graph, target, frozenset({"conv"}))
    apart = Reason("neighbours", "not between integer operators")
    assert kept.left_in_float == {conv: BY_REQUEST, relu: apart}
    why = Reason("chosen", "why")
    assert place(graph, target, left_in_float={conv: why}).left_in_float[conv] == why


def test_a_node_without_a_name_is_not_meant_by_an_empty_one() -> None:
    assert not placed("y = Conv(x, w)", keep=frozenset({""})).left_in_float
    assert reasons(placed("y = Conv(x, w)", keep=frozenset({"y"}))) == {"y": BY_REQUEST.text}


def test_what_is_quantized_already_is_left_alone() -> None:
    found = placed(
        "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = Conv(d, w)",
        f"{W}, float s = {{1}}, uint8 z = {{0}}",
    )
    assert reasons(found) == {"y": "it is quantized already"}
    assert not found.nodes and not found.roots


@pytest.mark.parametrize(
    ("bounds", "reason"),
    [
        (None, "calibration gave no range for 'b'"),
        ((-np.inf, 1.0), "'b' has infinite or NaN values"),
        ((0.0, np.nan), "'b' has infinite or NaN values"),
        ((-1e9, 1.0), "'b' holds -1e+09, which masks everything else"),
        ((-1e8, 1.0), ""),
    ],
)
def test_nodes_without_a_usable_range_fall_out_and_others_with_them(
    bounds: tuple[float, float] | None, reason: str
) -> None:
    """The Relu is between integers no more once the second Conv is none."""
    nodes = "a = Conv(x, w) r = Relu(a) p = Neg(r) b = Neg(p) y = Conv(b, w)"
    graph = typed(nodes)
    ranges = {name: (-1.0, 1.0) for name in "xary"} | ({"b": bounds} if bounds else {})
    found = place_within(graph, load_target("cpu-x64"), ranges)
    full = place(graph, load_target("cpu-x64"))
    assert quantized(full) == ["Conv a", "Relu r", "Conv y"]
    if not reason:
        assert found == full
        return
    assert quantized(found) == ["Conv a", "Relu r"]
    assert {n.output.name: r for n, r in found.left_in_float.items() if r.kind == "range"} == {
        "y": Reason("range", reason)
    }
    conv = next(n for n in graph.nodes() if n.output.name == "a")
    why = Reason("chosen", "why")
    none = place_within(graph, load_target("cpu-x64"), ranges, left_in_float={conv: why})
    assert not none.nodes and reasons(none)["a"] == "why" and reasons(none)["y"] == reason
    kept = place_within(graph, load_target("cpu-x64"), {}, frozenset({"y"}))
    assert not kept.nodes and not kept.observed()
