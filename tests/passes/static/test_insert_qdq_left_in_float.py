"""insert-qdq: what it leaves in float, and why."""

from __future__ import annotations

import json

import numpy as np
import pytest

from onnxq.ir import Context, Graph, to_proto
from onnxq.passes.notes import LEFT_IN_FLOAT_KEY
from onnxq.passes.static.insert_qdq import InsertQdq
from onnxq.runtime import integer_operators, optimized_operators
from tests.helpers import assert_same_graph, random_feeds, run
from tests.passes.static.pairs import (
    AROUND,
    between,
    text,
)
from tests.quantization import observed_bounds, quantized, run_optimized


@pytest.mark.parametrize(
    ("operator", "constants"),
    [
        ("p = AveragePool<kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1],"
         " ceil_mode = 1, count_include_pad = 1>(c)", ""),
        ("p, at = MaxPool<kernel_shape = [2, 2]>(c)", ""),
        ("p = Clip(c, low)", "float low = {1}"),
        ("p = Clip(c, low, high)", "float low = {-3}, float high = {-2}"),
        ("k = ReduceMax<keepdims = 0>(x) h = Abs(k) p = Clip(c, , h)", ""),
        ('p = Resize<mode = "linear">(c, , sizes)', "float[4] sizes = {1, 1, 2.5, 2}"),
    ],
)  # fmt: skip
def test_what_integer_kernels_do_not_do_is_left_to_float_ones(
    operator: str, constants: str
) -> None:
    before = between(operator, constants)
    feeds = random_feeds(before)
    after = quantized(before, observed_bounds(before.copy(), feeds))
    assert LEFT_IN_FLOAT_KEY in after.model.metadata
    wanted, found = run(after, feeds)["y"], run_optimized(after, feeds)["y"]
    step = np.ptp(wanted) / 255
    assert np.abs(found - wanted).max() <= 1.01 * step
    # The Conv before it still computes on integers.
    assert integer_operators(to_proto(after))["com.microsoft:QLinearConv"] >= 1


def test_dilations_of_an_average_pool_do_not_reach_the_kernel_that_refuses_them() -> None:
    before = Graph.from_text(
        f"""<ir_version: 10, opset_import: ["": 21]>
        g (float[1, 1, 5, 5] x) => (float[N, C, H, W] y) <{AROUND[0]}>
        {{ c = Conv(x, w) p = AveragePool<kernel_shape = [2, 2], dilations = [2, 2]>(c)
           y = Conv(p, w) }}"""
    )
    feeds = random_feeds(before)
    after = quantized(before, observed_bounds(before.copy(), feeds))
    wanted, found = run(before, feeds)["y"], run_optimized(after, feeds)["y"]
    assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()


def test_a_gemm_that_scales_stays_in_float_when_it_has_a_bias() -> None:
    constants = "float[2, 2] w = {63.5, 0, 0, 63.5}, float[2] b = {1, 2}"
    interface = "(float[1, 2] x) => (float[1, 2] y)"
    for attribute in ("alpha", "beta"):
        before = text(interface, constants, f"y = Gemm<{attribute} = 0.5>(x, w, b)")
        assert_same_graph(quantized(before), before)
    plain = text(interface, constants, "y = Gemm<alpha = 0.5>(x, w)")
    after = quantized(plain)
    feeds = {"x": np.array([[1, 2]], np.float32)}
    assert optimized_operators(to_proto(after))["com.microsoft:QGemm"] == 1
    np.testing.assert_allclose(run_optimized(after, feeds)["y"], run(plain, feeds)["y"])


def _reasons(graph: Graph) -> dict[str, list[str]]:
    return json.loads(graph.model.metadata.get(LEFT_IN_FLOAT_KEY, "{}"))


@pytest.mark.parametrize(
    ("bounds", "reason"),
    [
        ({"x": (0.0, 1.0)}, "calibration gave no range for 'c'"),
        ({"x": (0.0, 1.0), "c": (0.0, np.inf)}, "'c' has infinite or NaN values"),
        ({"x": (0.0, 1.0), "c": (np.nan, np.nan)}, "'c' has infinite or NaN values"),
    ],
)
def test_tensors_without_a_finite_range_stay_in_float(
    bounds: dict[str, tuple[float, float]], reason: str
) -> None:
    before = text(
        "(float[1, 1, 4, 4] x) => (float[1, 1, 4, 4] y, float[1, 1, 4, 4] z)",
        AROUND[0],
        "c = Conv(x, w) y = Conv(c, w) z = Conv(x, w)",
    )
    after = quantized(before, {**bounds, "y": (0, 1), "z": (0, 1)})
    assert _reasons(after) == {reason: ["c", "y"]}
    assert [n.op_type for n in after.nodes()].count("QuantizeLinear") == 2


def test_a_missing_range_takes_what_follows_with_it() -> None:
    before = between("p = Add(c, c)")
    after = quantized(before, {"x": (0, 1), "c": (0, 1), "p": (0, np.inf), "y": (0, 1)})
    assert _reasons(after) == {"'p' has infinite or NaN values": ["p", "y"]}
    after = quantized(before, {"x": (0, 1), "p": (0, 1), "y": (0, 1)})
    assert _reasons(after) == {"calibration gave no range for 'c'": ["c", "p"]}


def test_nothing_changes_where_no_range_is_known() -> None:
    before = between("p = Relu(c)")
    after = quantized(before, {})
    assert_same_graph(after, before)
    assert set(_reasons(after)) == {f"calibration gave no range for '{n}'" for n in "py"}


def test_nodes_are_kept_in_float_by_request() -> None:
    before = text(
        "(float[1, 1, 4, 4] x) => (float[1, 1, 4, 4] y)",
        AROUND[0],
        "c = Conv(x, w) r = Relu(c) y = Conv(r, w)",
    )
    for node, name in zip(before.nodes(), ("first", "clip", "last"), strict=True):
        before.rename_node(node, name)
    by_request = "kept in float by request"
    for kept, quantizers in (("first", 2), ("clip", 4), ("last", 2)):
        after = quantized(before, dict.fromkeys("xcry", (0, 1)), keep_float=(kept,))
        assert _reasons(after)[by_request] == [kept]
        assert [n.op_type for n in after.nodes()].count("QuantizeLinear") == quantizers, kept
        node = next(n for n in after.nodes() if n.name == kept)
        made = {use.node.op_type for use in node.output.uses}
        assert made == ({"QuantizeLinear"} if kept == "clip" else made - {"DequantizeLinear"})


def test_a_second_run_keeps_the_reasons_of_the_first() -> None:
    before = between("p = Exp(c)")
    after = quantized(before)
    wanted = after.model.metadata[LEFT_IN_FLOAT_KEY]
    assert json.loads(wanted) == {"target cpu-x64 does not quantize Exp": ["p"]}
    InsertQdq(dict.fromkeys("xcpy", (0, 1)), "cpu-x64").run(after, Context())
    assert after.model.metadata[LEFT_IN_FLOAT_KEY] == wanted
