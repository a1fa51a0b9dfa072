"""Arithmetic with one number, and gates, as other qparams of the same integers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.ir import Context, Graph, infer_types, to_proto
from onnxq.passes.static.insert_qdq import InsertQdq
from onnxq.passes.static.placement import place
from onnxq.runtime import optimized_operators
from onnxq.targets import load_target
from tests.helpers import assert_same_graph, run
from tests.quantization import quantized, run_optimized, run_reference

IMAGE = "(float[1, 1, 4, 4] x) => (float[1, 1, 4, 4] y)"
W = "float[1, 1, 1, 1] w = {63.5}"
STORED = (
    "float s = {0.25}, uint8 z = {8}, int8[1, 1, 1, 1] wq = {127}, float[1] ws = {0.5}, "
    "int8[1] wz = {0}"
)


def text(constants: str, *nodes: str, opset: int = 17, interface: str = IMAGE) -> Graph:
    head = f'<ir_version: 8, opset_import: ["": {opset}]>'
    return Graph.from_text(f"{head} g {interface} <{constants}> {{ {' '.join(nodes)} }}")


def pair(source: str, result: str) -> str:
    return (
        f"{source}_i = QuantizeLinear({source}, s, z) {result} = DequantizeLinear({source}_i, s, z)"
    )


@pytest.mark.parametrize(
    ("line", "qparams"),
    [
        ("Mul(c, k)", "float t = {0.5}, uint8 u = {8}"),
        ("Mul(k, c)", "float t = {0.5}, uint8 u = {8}"),
        ("Div(c, k)", "float t = {0.125}, uint8 u = {8}"),
        ("Add(c, k)", "float t = {0.25}, uint8 u = {0}"),
        ("Sub(c, k)", "float t = {0.25}, uint8 u = {16}"),
    ],
)
def test_a_line_is_other_qparams(line: str, qparams: str) -> None:
    before = text(f"{W}, float k = {{2}}", f"c = Conv(x, w) m = {line} y = Conv(m, w)")
    after = text(
        f"{STORED}, {qparams}",
        pair("x", "x_d"),
        "w_d = DequantizeLinear<axis = 0>(wq, ws, wz)",
        "c = Conv(x_d, w_d) c_i = QuantizeLinear(c, s, z)",
        "m = DequantizeLinear(c_i, t, u)",
        "d = Conv(m, w_d)",
        pair("d", "y"),
    )
    # Scales of 0.25, and the zero of each line within -2 to 61.75.
    assert_same_graph(quantized(before), after)


@pytest.mark.parametrize(
    "nodes",
    [
        "c = Conv(x, w) m = Mul(c, minus) y = Conv(m, w)",
        "c = Conv(x, w) m = Mul(c, two) r = Relu(m) y = Conv(r, w)",
        "c = Conv(x, w) m = Mul(c, row) y = Conv(m, w)",
        "c = Conv(x, w) a = Add(c, two) m = MaxPool<kernel_shape = [1, 1]>(a) y = Conv(m, w)",
        "c = Conv(x, w) a = Add(c, two) e = Conv(c, w) d = Conv(a, w) y = Add(e, d)",
        "c = Conv(x, w) t = Transpose(c) m = Mul(t, two) y = Conv(m, w)",
        "c = Conv(x, w) r = Relu(c) a = Add(r, two) y = Conv(a, w)",
        "c = Conv(x, w) r = Clip(c, minus, two) a = Sub(r, six) y = Conv(a, w)",
        "c = Conv(x, w) g = HardSigmoid(c) a = Add(g, two) y = Conv(a, w)",
        "c = Conv(x, w) g = HardSigmoid(c) m = Mul(g, two) a = Sub(m, six) y = Conv(a, w)",
    ],
    ids=[
        "slope below 0",
        "a Relu",
        "a row",
        "a reader without bias",
        "another reader",
        "moved",
        "zero below a Relu",
        "zero above a Clip",
        "zero below a gate",
        "zero above a gate",
    ],
)
def test_what_is_no_line(nodes: str) -> None:
    graph = text(
        f"{W}, float minus = {{-1}}, float two = {{2}}, float six = {{6}}, "
        f"float[4] row = {{1, 2, 3, 4}}",
        nodes,
    )
    infer_types(graph)
    assert not place(graph, load_target("cpu-x64")).lines


@pytest.mark.parametrize("nodes", ["e = Conv(c, w) m = Sub(c, e)", "m = Div(six, c)"])
def test_arithmetic_without_a_kernel_says_so(nodes: str) -> None:
    graph = text(f"{W}, float six = {{6}}", f"c = Conv(x, w) {nodes} y = Conv(m, w)")
    infer_types(graph)
    (node,) = (n for n in graph.nodes() if n.is_op("Sub", "Div"))
    reason = place(graph, load_target("cpu-x64")).left_in_float[node]
    assert reason.text.endswith(f"quantizes {node.op_type} of a tensor and one number only")


def test_a_line_behind_a_relu_leaves_the_relu_to_the_runtime() -> None:
    before = text(
        "float[1, 1, 1, 1] w = {1}, float half = {0.5}, float two = {2}",
        "c = Conv(x, w) r = Relu(c) m = Mul(r, half) a = Sub(m, two) y = Conv(a, w)",
    )
    after = quantized(before, dict.fromkeys("xcry", (-6.0, 6.0)) | {"r": (0.0, 6.0)})
    assert "Sub" not in {n.op_type for n in after.nodes()}
    assert optimized_operators(to_proto(after))["com.microsoft:QLinearConv"] == 2


@settings(max_examples=40, deadline=None)
@given(
    slope=st.floats(0.05, 20),
    offset=st.floats(-8, 8),
    padding=st.integers(0, 1),
    low=st.floats(-6, -0.1),
    high=st.floats(0.1, 6),
)
def test_lines_are_near_what_floats_give(
    slope: float, offset: float, padding: int, low: float, high: float
) -> None:
    """With padding, too, whose zero is the line's; half a step is wrong at most where it is."""
    around = f"<pads = [{', '.join([str(padding)] * 4)}]>"
    side = 2 + 2 * padding
    before = text(
        f"float[1, 1, 1, 1] one = {{1}}, float[1, 1, 3, 3] v = {{{', '.join(['0.125'] * 9)}}}, "
        f"float k = {{{slope!r}}}, float o = {{{offset!r}}}",
        f"c = Conv(x, one) m = Mul(c, k) a = Add(m, o) y = Conv{around}(a, v)",
        interface=f"(float[1, 1, 4, 4] x) => (float[1, 1, {side}, {side}] y)",
    )
    x = np.random.default_rng(0).uniform(low, high, (1, 1, 4, 4)).astype(np.float32)
    wanted = run(before, {"x": x})["y"]
    bounds = {n: (low, high) for n in "xc"} | {"y": (float(wanted.min()), float(wanted.max()))}
    after = quantized(before, bounds)
    assert [n.op_type for n in after.nodes() if n.is_op("Mul", "Add")] == []
    held = max(high, -offset / slope) - min(low, -offset / slope)
    steps = 1.5 * slope * (held + high - low) / 255 * 9 * 0.125 + float(np.ptp(wanted)) / 255
    steps += float(np.abs(wanted).max()) / 100
    for found in (run_optimized(after, {"x": x}), run_reference(after, {"x": x})):
        assert np.abs(found["y"] - wanted).max() < steps


def test_what_integers_lack_of_an_offset_is_in_the_bias() -> None:
    constants = "float[1, 1, 1, 1] one = {1}, float[2, 1, 1, 1] w = {1, -2}, float o = {0.1}"
    before = text(
        constants, "c = Conv(x, one) a = Add(c, o) y = Conv(a, w)",
        interface="(float[1, 1, 4, 4] x) => (float[1, 2, 4, 4] y)",
    )  # fmt: skip
    after = quantized(before, {"x": (0, 255), "c": (0, 255), "y": (-510, 255)})
    # Steps of 1: the offset is a tenth of one.
    (bias,) = (v for v in after.initializers() if v.name.endswith("bias_q"))
    scales = np.array([1, 2]) / 127
    np.testing.assert_allclose(bias.numpy() * scales, [0.1, -0.2], atol=0.01)


HARD_SWISH = {
    "HardSwish": "h = HardSwish(c)",
    "HardSigmoid": "g = HardSigmoid<alpha = 0.16666667>(c) h = Mul(g, c)",
}


@pytest.mark.parametrize("nodes", HARD_SWISH.values(), ids=HARD_SWISH)
def test_a_gate_is_the_clipped_integers_of_what_it_reads(nodes: str) -> None:
    before = text("float[1, 1, 1, 1] w = {1}", f"c = Conv(x, w) {nodes} y = Conv(h, w)")
    x = np.linspace(-6, 6, 16, dtype=np.float32).reshape(1, 1, 4, 4)
    bounds = {"x": (-6.0, 6.0), "c": (-6.0, 6.0), "h": (-0.375, 6.0), "y": (-0.375, 6.0)}
    after = quantized(before, bounds)
    # From -3 on, in 85 steps to 0: the rest of the range gives 0 as -3 does.
    (clip,) = (n for n in after.nodes() if n.is_op("Clip"))
    assert [v.numpy().tolist() for v in clip.inputs[1:]] == [0, 170]
    (gate,) = (use.node for use in clip.output.uses)
    assert float(gate.inputs[1].numpy()) == pytest.approx(3 / 85 / 6)
    assert int(gate.inputs[2].numpy()) == 0
    found = run_optimized(after, {"x": x})["y"]
    assert np.abs(found - run(before, {"x": x})["y"]).max() < 3 * 6.4 / 255
    operators = optimized_operators(to_proto(after))
    assert operators["com.microsoft:QLinearMul"] == 1 and "Mul" not in operators


def test_a_gate_that_alone_reads_a_value_is_no_operator() -> None:
    before = text(
        "float[1, 1, 1, 1] w = {1}",
        "c = Conv(x, w) g = HardSigmoid<alpha = 0.2>(c) d = Conv(x, w) m = Mul(d, g)",
        "y = Conv(m, w)",
    )
    x = np.linspace(-6, 6, 16, dtype=np.float32).reshape(1, 1, 4, 4)
    after = quantized(before, {n: (-6.0, 6.0) for n in "xcdmy"})
    assert {n.op_type for n in after.nodes()} == {
        "Conv", "Mul", "QuantizeLinear", "DequantizeLinear", "Clip",
    }  # fmt: skip
    (scale,) = (
        n.inputs[1].numpy() for n in after.nodes()
        if n.is_op("QuantizeLinear") and n.inputs[0] is not None and n.inputs[0].name == "c"
    )  # fmt: skip
    assert float(scale) == pytest.approx(2.5 / 127)
    found = run_optimized(after, {"x": x})["y"]
    assert np.abs(found - run(before, {"x": x})["y"]).max() < 0.1


@pytest.mark.parametrize(
    ("low", "high"), [(-0.5, 0.5), (-1, 300)], ids=["never closed", "too few steps"]
)
def test_a_gate_is_an_addition_where_the_range_has_no_room_for_it(low: float, high: float) -> None:
    before = text("float[1, 1, 1, 1] w = {1}", "c = Conv(x, w) h = HardSwish(c) y = Conv(h, w)")
    bounds = dict.fromkeys("xchy", (low, high))
    after = quantized(before, bounds)
    assert [n.op_type for n in after.nodes() if n.is_op("Clip", "Add")] == ["Add"]
    x = np.linspace(low, high, 16, dtype=np.float32).reshape(1, 1, 4, 4)
    found = run_optimized(after, {"x": x})["y"]
    assert np.abs(found - run(before, {"x": x})["y"]).max() < 3 * (high - low) / 255


def test_a_gate_keeps_the_range_of_what_something_else_reads() -> None:
    before = text(
        "float[1, 1, 1, 1] w = {1}",
        "c = Conv(x, w) h = HardSwish(c) d = Conv(c, w) y = Add(h, d)",
    )
    x = np.linspace(-6, 6, 16, dtype=np.float32).reshape(1, 1, 4, 4)
    after = quantized(before, {n: (-6.0, 6.0) for n in "xchdy"})
    found = run_optimized(after, {"x": x})["y"]
    assert np.abs(found - run(before, {"x": x})["y"]).max() < 0.2


def test_a_gate_keeps_its_ends_where_another_gate_reads_it() -> None:
    before = text(
        "float[1, 1, 1, 1] w = {1}",
        "c = Conv(x, w) g = HardSigmoid(c) h = HardSigmoid<alpha = 1.0, beta = 0.2>(g)",
        "d = Conv(h, w) y = Mul(d, g)",
    )
    x = np.linspace(-6, 6, 16, dtype=np.float32).reshape(1, 1, 4, 4)
    after = quantized(before, {"x": (-6.0, 6.0), "c": (-6.0, 6.0), "d": (0.2, 1.0), "y": (0, 1)})
    found = run_optimized(after, {"x": x})["y"]
    assert np.abs(found - run(before, {"x": x})["y"]).max() < 4 / 255


def test_numbers_of_a_line_that_went_away_are_written_anew() -> None:
    """The first of two lines in a row leaves nothing behind that a line elsewhere could share."""
    graph = text(
        f"{W}, float k = {{2}}, float l = {{4}}",
        "c = Conv(x, w) m = Mul(c, k) n = Mul(m, l) d = Conv(n, w) e = Mul(d, k) y = Conv(e, w)",
    )
    infer_types(graph)
    bounds = dict.fromkeys(("x", "c", "d", "y"), (-1.0, 1.0))
    InsertQdq(bounds, "cpu-x64").run(graph, Context())
    graph.check()


def test_gates_where_everything_is_quantized(tmp_path: Path) -> None:
    (tmp_path / "all.toml").write_text('extends = "cpu-x64"\neverything = true\n')
    before = text(
        "float[1, 1, 1, 1] w = {1}, float two = {2}",
        "t = Tanh(x) h = HardSwish(t) m = Mul(h, two) c = Conv(m, w) y = HardSigmoid(c)",
    )
    x = np.linspace(-6, 6, 16, dtype=np.float32).reshape(1, 1, 4, 4)
    bounds = {"x": (-6.0, 6.0), "t": (-1.0, 1.0), "h": (-0.4, 0.7), "m": (-0.8, 1.4)}
    after = quantized(before, bounds | {"c": (-0.8, 1.4)}, target=str(tmp_path / "all.toml"))
    found = run_optimized(after, {"x": x})["y"]
    assert np.abs(found - run(before, {"x": x})["y"]).max() < 0.02
