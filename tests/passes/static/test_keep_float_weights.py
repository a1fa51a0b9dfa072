"""Operators that are to stay in float do, between integers too."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.ir import Context, DataType, Graph, ModelInfo, TensorType, infer_types, to_proto
from onnxq.passes.static.insert_qdq import InsertQdq
from onnxq.passes.static.keep_float_weights import KeepFloatWeights
from onnxq.runtime import integer_operators
from tests.helpers import assert_equivalent
from tests.quantization import observed_bounds, run_optimized, run_reference

SIZE = 8


def row(*, clipped: bool) -> tuple[Graph, dict[str, np.ndarray]]:
    """Three convolutions in a row; the weight of the second has one channel that is far larger."""
    rng = np.random.default_rng(0)
    graph = Graph("row", model=ModelInfo(8, {"": 17}))
    value = graph.add_input("x", TensorType(DataType.FLOAT, ("N", SIZE, 5, 5)))
    for number in range(3):
        weight = rng.standard_normal((SIZE, SIZE, 3, 3)) * 0.1
        if number == 1:
            weight[0] *= 30
        read = graph.constant(weight.astype(np.float32), f"w{number}")
        value = graph.add("Conv", [value, read], {"pads": [1, 1, 1, 1]}, name=f"n{number}").output
        if clipped:
            value = graph.add("Relu", [value], name=f"r{number}").output
    value.type = TensorType(DataType.FLOAT, ("N", SIZE, 5, 5))
    graph.add_output(value)
    graph.rename(value, "y")
    infer_types(graph)
    return graph, {"x": rng.standard_normal((4, SIZE, 5, 5)).astype(np.float32)}


def quantized(graph: Graph, feeds: dict[str, np.ndarray]) -> Graph:
    """The outer two in integers."""
    after = graph.copy()
    bounds = observed_bounds(graph.copy(), feeds)
    assert InsertQdq(bounds, "cpu-x64", only=("n0", "n2")).run(after, Context())
    return after


@pytest.mark.parametrize("clipped", [False, True])
def test_onnxruntime_leaves_the_weight_alone(clipped: bool) -> None:
    graph, feeds = row(clipped=clipped)
    before = quantized(graph, feeds)
    after = before.copy()
    assert KeepFloatWeights().run(after, Context()) == 1
    assert KeepFloatWeights().run(after, Context()) == 0
    assert all(v.is_used for node in after.nodes() for v in node.outputs)
    assert_equivalent(before, after, feeds=feeds)
    wanted = run_reference(before, feeds)["y"]
    noise = {}
    for name, made in (("before", before), ("after", after)):
        found = run_optimized(made, feeds)["y"]
        noise[name] = np.square(found - wanted).sum() / np.square(wanted).sum()
    assert noise["after"] < 1e-4
    assert sum(integer_operators(to_proto(after)).values()) == 2
    # If onnxruntime no longer did this, the pass would have no reason to be.
    assert sum(integer_operators(to_proto(before)).values()) == 3
    assert noise["before"] > 10 * noise["after"]


@pytest.mark.parametrize(
    "body",
    [
        # Something reads the float result.
        "d = DequantizeLinear(q, s, z) h = Gemm(d, w) e = QuantizeLinear(h, s, z) y = Exp(h)",
        # The input is a float, the weight is stored as integers, is no constant.
        "h = Gemm(x, w) e = QuantizeLinear(h, s, z) y = DequantizeLinear(e, s, z)",
        "d = DequantizeLinear(q, s, z) u = DequantizeLinear(v, s) h = Gemm(d, u) "
        "e = QuantizeLinear(h, s, z) y = DequantizeLinear(e, s, z)",
        "d = DequantizeLinear(q, s, z) h = Gemm(d, d) "
        "e = QuantizeLinear(h, s, z) y = DequantizeLinear(e, s, z)",
        # Another operator.
        "d = DequantizeLinear(q, s, z) h = MatMul(d, w) "
        "e = QuantizeLinear(h, s, z) y = DequantizeLinear(e, s, z)",
    ],
)
def test_what_is_left_alone(body: str) -> None:
    graph = Graph.from_text(f"""<ir_version: 8, opset_import: ["": 17]>
        g (float[2, 2] x) => (float[2, 2] y)
        <float s = {{0.5}}, uint8 z = {{3}}, float[2, 2] w = {{1, 2, 3, 4}},
         int8[2, 2] v = {{1, 2, 3, 4}}> {{ q = QuantizeLinear(x, s, z) {body} }}""")
    infer_types(graph)
    assert KeepFloatWeights().run(graph, Context()) == 0


def test_old_opsets_are_left_alone() -> None:
    graph = Graph.from_text("""<ir_version: 6, opset_import: ["": 12]>
        g (float[2, 2] x) => (float[2, 2] y)
        <float s = {0.5}, uint8 z = {3}, float[2, 2] w = {1, 2, 3, 4}> {
            q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) h = Gemm(d, w)
            e = QuantizeLinear(h, s, z) y = DequantizeLinear(e, s, z) }""")
    infer_types(graph)
    assert KeepFloatWeights().run(graph, Context()) == 0
