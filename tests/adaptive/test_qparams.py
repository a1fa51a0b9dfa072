"""Qparams of quantized models: those of the same float model quantized with the new ranges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from onnxq.adaptive.deployment import TensorQParams
from onnxq.adaptive.qparams import fresh, requantized
from onnxq.adaptive.quantized import quantizers
from onnxq.errors import InputError
from onnxq.ir import Graph, infer_types, load, raise_opset, to_proto
from onnxq.observe import Statistics
from onnxq.observe.calibrators import MinMax
from onnxq.plan import Plan
from onnxq.plan.apply import apply, float_graph
from onnxq.planning import make_plan
from onnxq.quant import ABSMAX, ZERO_POINT
from onnxq.runtime import integer_operators
from onnxq.targets import load_target
from tests.helpers import assert_same_graph
from tests.networks import chain, computed
from tests.quantization import Bounds, quantized, run_optimized, same_bounds

__all__ = ["computed"]

pytestmark = pytest.mark.usefixtures("computed")

HEAD = '<ir_version: 8, opset_import: ["": 17]>'


def text(constants: str, nodes: str, interface: str = "") -> Graph:
    interface = interface or "(float[1, 1, 4, 4] x) => (float[1, 1, 4, 4] y)"
    return Graph.from_text(f"{HEAD} g {interface} <{constants}> {{ {nodes} }}")


def seen(bounds: Bounds) -> dict[str, Statistics]:
    return {name: Statistics(1, *ends) for name, ends in bounds.items()}


def adapted(graph: Graph, bounds: Bounds) -> Graph:
    """The model with the qparams of other ranges."""
    made = requantized(graph, fresh(seen(bounds), quantizers(graph), MinMax()))
    made.check()
    return made


def scaled(bounds: Bounds, low: float = 0.6, high: float = 2.0) -> dict[str, tuple[float, float]]:
    """Every range by a factor of its own."""
    factors = np.random.default_rng(0).uniform(low, high, len(bounds))
    return {
        name: (a * f, b * f)
        for (name, (a, b)), f in zip(bounds.items(), factors.tolist(), strict=True)
    }


def dequantized(graph: Graph) -> dict[tuple[str, int], list[np.ndarray | None]]:
    """Integers, if they are stored, scale and zero-point that each slot of a node reads."""
    return {
        (use.node.output.name, use.slot): [
            v.numpy() if v and v.is_constant else None for v in node.inputs
        ]
        for node in graph.all_nodes()
        if node.is_op("DequantizeLinear")
        for use in node.output.uses
    }


def assert_quantized_alike(found: Graph, wanted: Graph) -> None:
    """Same qparams and weights, and the same biases to one unit of theirs."""
    ours, theirs = dequantized(found), dequantized(wanted)
    assert set(ours) == set(theirs)
    for name, (stored, scale, zero) in theirs.items():
        own, own_scale, own_zero = ours[name]
        np.testing.assert_allclose(own_scale, scale, rtol=1e-6)
        np.testing.assert_array_equal(own_zero, zero)
        if stored is not None and stored.dtype == np.int32:
            assert own is not None and np.abs(own.astype(np.int64) - stored).max() <= 1, name
        elif stored is not None:
            np.testing.assert_array_equal(own, stored)


def test_scale_zero_point_and_bias_change_together() -> None:
    interface = "(float[1, 1, 2, 2] x) => (float[1, 2, 2, 2] y)"

    def model(x: float, zero: int, bias: str, scale: float) -> Graph:
        return text(
            f"float s = {{{x}}}, uint8 z = {{{zero}}}, int8[2, 1, 1, 1] wq = {{127, -128}}, "
            f"float[2] ws = {{0.5, 0.25}}, int8[2] wz = {{0, 0}}, int32[2] bq = {{{bias}}}, "
            f"float[2] bs = {{{scale}, {scale / 2}}}, int32[2] bz = {{0, 0}}",
            "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) "
            "w = DequantizeLinear<axis = 0>(wq, ws, wz) b = DequantizeLinear<axis = 0>(bq, bs, bz) "
            "y = Conv(d, w, b)",
            interface,
        )

    before = model(0.25, 8, "13, -240", 0.125)
    # 13 halves to 6.5, which is rounded to the even 6.
    after = model(0.5, 10, "6, -120", 0.25)
    assert_same_graph(requantized(before, {"x": TensorQParams(0.5, 10)}), after)
    assert quantizers(before)["x"].qparams == TensorQParams(0.25, 8)


def test_it_is_what_quantizing_with_the_new_ranges_makes() -> None:
    before = chain(4)
    infer_types(before)
    bounds = same_bounds(before.copy())
    assert_quantized_alike(
        adapted(quantized(before, bounds), scaled(bounds)), quantized(before, scaled(bounds))
    )


def test_the_model_is_left_as_it_is_and_no_changes_are_none() -> None:
    graph = quantized(chain(2))
    again = graph.copy()
    requantized(graph, {"x": TensorQParams(3.0, 1)})
    assert_same_graph(graph, again)
    assert_same_graph(requantized(graph, {}), again)


def plan_of(model: str, data: str, activations: str) -> tuple[Graph, Plan]:
    """The float graph that a plan is for, at an opset for 16 bits, and the plan."""
    plan = make_plan(model, data, recipe="int8")
    nodes = [replace(n, precision=n.precision.replace("int8", activations)) for n in plan.nodes]
    plan = replace(plan, nodes=tuple(replace(n, planned="") for n in nodes))
    graph, _ = float_graph(load(model), plan.passes, load_target(plan.target), plan.opset)
    graph = raise_opset(graph, max(21, graph.opset))
    infer_types(graph)
    return graph, plan


def applied(graph: Graph, plan: Plan) -> Graph:
    graph = graph.copy()
    apply(graph, plan, load_target(plan.target))
    return graph


@pytest.mark.parametrize(
    ("model", "data", "activations"),
    [
        ("digits_vit", "digits", "int8"),
        ("text_lm", "text", "int16-act"),
        pytest.param("digits_vit", "digits", "int16-act", marks=pytest.mark.slow),
        pytest.param("text_lm", "text", "int8", marks=pytest.mark.slow),
    ],
)
def test_real_models(model: str, data: str, activations: str) -> None:
    graph, plan = plan_of(f"models/{model}.onnx", f"models/{data}.npz", activations)
    ranges = scaled(plan.ranges)
    found = adapted(applied(graph, plan), ranges)
    assert_quantized_alike(found, applied(graph, replace(plan, ranges=ranges)))


W = "float[1, 1, 1, 1] w = {1}, float[1] b = {0.5}"
GATES = {
    "HardSwish": "h = HardSwish(c)",
    "HardSigmoid with a product": "g = HardSigmoid<alpha = 0.16666667>(c) h = Mul(g, c)",
    "HardSigmoid": "g = HardSigmoid<alpha = 0.2>(c) d = Conv(x, w, b) h = Mul(g, d)",
    "another reader": "s = HardSwish(c) d = Conv(c, w, b) h = Add(s, d)",
    "product": "h = Mul(c, k)",
    "pooling": "h = MaxPool<kernel_shape = [1, 1]>(c)",
}


@pytest.mark.parametrize("nodes", GATES.values(), ids=GATES)
def test_what_reads_the_very_integers_goes_along(nodes: str) -> None:
    before = text(f"{W}, float k = {{2}}", f"c = Conv(x, w, b) {nodes} y = Conv(h, w, b)")
    infer_types(before)
    bounds = dict.fromkeys("xcdghsy", (-6.0, 6.0))
    ranges: dict[str, tuple[float, float]] = dict.fromkeys("xcdghsy", (-4.0, 7.0))
    found, wanted = adapted(quantized(before, bounds), ranges), quantized(before, ranges)
    assert_quantized_alike(found, wanted)
    x = np.linspace(-6, 6, 16, dtype=np.float32).reshape(1, 1, 4, 4)
    np.testing.assert_allclose(
        run_optimized(found, {"x": x})["y"], run_optimized(wanted, {"x": x})["y"], atol=0.05
    )


def test_a_gate_that_needed_no_clipping_gets_it() -> None:
    """Its range ended where the gate closes and opens, so that saturation clipped."""
    before = text(W, "c = Conv(x, w, b) h = HardSwish(c) d = Conv(c, w, b) y = Add(h, d)")
    infer_types(before)
    narrow, wide = dict.fromkeys("xchdy", (-3.0, 3.0)), dict.fromkeys("xchdy", (-8.0, 8.0))
    graph = quantized(before, narrow)
    assert not any(n.is_op("Clip") for n in graph.nodes())
    found = adapted(graph, wide)
    assert_quantized_alike(found, quantized(before, wide))
    x = np.linspace(-8, 8, 16, dtype=np.float32).reshape(1, 1, 4, 4)
    wanted = run_optimized(quantized(before, wide), {"x": x})["y"]
    np.testing.assert_allclose(run_optimized(found, {"x": x})["y"], wanted, atol=0.1)


def test_an_offset_stays_a_whole_number_of_steps() -> None:
    """From the ranges it would be 12.75 steps, and the rest in the bias: here the scale gives."""
    before = text(f"{W}, float k = {{1}}", "c = Conv(x, w, b) h = Add(c, k) y = Conv(h, w, b)")
    infer_types(before)
    graph = quantized(before, dict.fromkeys("xchy", (-5.0, 7.75)))
    found = adapted(graph, dict.fromkeys("xchy", (-8.0, 12.0)))
    own = quantizers(found)["c"]
    assert own.whole == pytest.approx(1.0)
    assert 20 / 255 <= own.qparams.scale < 20 / 255 * 13 / 12
    assert own.whole / own.qparams.scale == pytest.approx(12, rel=1e-5)
    x = np.linspace(-8, 10, 16, dtype=np.float32).reshape(1, 1, 4, 4)
    np.testing.assert_allclose(run_optimized(found, {"x": x})["y"], x + 2, atol=0.2)


def test_tensors_that_share_their_qparams_change_together() -> None:
    before = text(W, "c = Conv(x, w, b) h = MaxPool<kernel_shape = [1, 1]>(c) y = Conv(h, w, b)")
    graph = quantized(before)
    known = quantizers(graph)
    assert {name: own.root for name, own in known.items()} == {
        **{name: name for name in known}, "h": "c",
    }  # fmt: skip
    wanted = TensorQParams(0.5, 3)
    for tensor in ("c", "h"):
        changed = quantizers(requantized(graph, {tensor: wanted}))
        assert changed["c"].qparams == changed["h"].qparams == wanted
        assert changed["x"] == known["x"]
    with pytest.raises(InputError, match="'c' and 'h' share their qparams"):
        requantized(graph, {"c": wanted, "h": TensorQParams(0.5, 4)})


def test_a_bias_that_two_products_of_different_tensors_read_is_no_longer_shared() -> None:
    before = text(W, "c = Conv(x, w, b) r = Relu(c) y = Conv(r, w, b)")
    bounds = dict.fromkeys("xry", (-2.0, 61.75))
    graph = quantized(before, bounds)
    ranges: dict[str, tuple[float, float]] = {"x": (-1.0, 2.0), "r": (-2.0, 61.75), "y": (0, 1.0)}
    x = np.linspace(-1, 2, 16, dtype=np.float32).reshape(1, 1, 4, 4)
    found = run_optimized(adapted(graph, ranges), {"x": x})["y"]
    wanted = run_optimized(quantized(before, ranges), {"x": x})["y"]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_a_gate_written_as_a_sum_keeps_its_ends() -> None:
    before = text(W, "c = Conv(x, w, b) h = HardSigmoid(c) y = Conv(h, w, b)")
    graph = quantized(before, dict.fromkeys("xchy", (-0.5, 0.5)))
    assert quantizers(graph)["h"].fixed
    changes = fresh(seen(dict.fromkeys("xchy", (-0.4, 0.8))), quantizers(graph), MinMax())
    assert set(changes) == {"x", "c", "y"}
    with pytest.raises(InputError, match=r"the qparams of 'h' are fixed: .* ends of a gate"):
        requantized(graph, {"h": TensorQParams(0.5, 0)})


def test_fixed_ranges_of_a_target_stay() -> None:
    before = text(W, "c = Conv(x, w, b) h = Sigmoid(c) y = Conv(h, w, b)")
    before = raise_opset(before, 21)
    infer_types(before)
    graph = quantized(before, dict.fromkeys("xchy", (-2.0, 2.0)), target="qnn-a16")
    assert "Sigmoid" in quantizers(graph)["h"].fixed


def test_schemes_are_those_of_the_target() -> None:
    assert {q.scheme for q in quantizers(quantized(chain(2))).values()} == {ZERO_POINT}
    symmetric = quantized(chain(2), target="tensorrt")
    assert {q.scheme for q in quantizers(symmetric).values()} == {ABSMAX}
    symmetric.model.metadata.clear()
    assert {q.scheme for q in quantizers(symmetric).values()} == {ABSMAX}


def test_biases_do_not_leave_int32() -> None:
    before = text("float[1, 1, 1, 1] w = {0.01}, float[1] b = {30000}", "y = Conv(x, w, b)")
    graph = quantized(before, {"x": (-60.0, 60.0), "y": (0.0, 30000.0)})
    least = quantizers(graph)["x"].least_scale
    assert 0 < least < quantizers(graph)["x"].qparams.scale
    with pytest.raises(InputError, match="biases behind it would leave int32"):
        requantized(graph, {"x": TensorQParams(least / 2, 0)})
    bounds: Mapping[str, tuple[float, float]] = {"x": (-1e-3, 1e-3), "y": (0.0, 30000.0)}
    found = adapted(graph, bounds)
    assert quantizers(found)["x"].qparams.scale == pytest.approx(least, rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"no": TensorQParams(1.0, 0)}, "the model quantizes no tensor 'no'"),
        ({"x": TensorQParams(0.0, 0)}, "'x' cannot have scale 0"),
        ({"x": TensorQParams(1.0, 256)}, "zero-point 256"),
        ({"x": TensorQParams(float("nan"), 1)}, "scale nan"),
    ],
)
def test_impossible_changes(changes: Mapping[str, TensorQParams], said: str) -> None:
    with pytest.raises(InputError, match=said):
        requantized(quantized(chain(2)), changes)


def test_what_was_not_seen_or_is_not_finite_stays() -> None:
    known = quantizers(quantized(chain(2)))
    statistics = {"x": Statistics(1, float("nan"), float("nan"))}
    assert fresh(statistics, known, MinMax()) == {}
    assert set(fresh({"x": Statistics(1, -1.0, 1.0)}, known, MinMax())) == {"x"}


def test_the_same_kernels_compute() -> None:
    graph = quantized(chain(4))
    other = adapted(graph, scaled(same_bounds(chain(4))))
    assert integer_operators(to_proto(other)) == integer_operators(to_proto(graph))
