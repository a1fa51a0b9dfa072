"""What nodes cost where a provider tells the time of a whole model alone."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.cost import flops_costs
from onnxq.cost.computed import shared_out
from onnxq.ir import DataType, Graph, ModelInfo, TensorType, infer_types
from onnxq.passes.static.placement import place
from onnxq.targets import load_target


def _network() -> Graph:
    """A pointwise and a depthwise convolution, and a Gemm of one row for each sample."""
    graph = Graph("g", model=ModelInfo(8, {"": 17}))
    x = graph.add_input("x", TensorType(DataType.FLOAT, ("N", 8, 32, 32)))
    shapes = {"point": (64, 8, 1, 1), "deep": (64, 1, 3, 3), "wide": (64, 500)}
    weights = {n: graph.constant(np.ones(s, np.float32), n) for n, s in shapes.items()}
    a = graph.add("Conv", [x, weights["point"]], name="pointwise").output
    grouped = {"group": 64, "pads": [1, 1, 1, 1]}
    b = graph.add("Conv", [a, weights["deep"]], grouped, name="depthwise").output
    c = graph.add("GlobalAveragePool", [b], name="pool").output
    d = graph.add("Flatten", [c], name="flat").output
    y = graph.add("Gemm", [d, weights["wide"]], name="head").output
    graph.set_outputs([y])
    graph.rename(y, "y")
    infer_types(graph)
    return graph


GRAPH = _network()
NODES = [*GRAPH.nodes()]
PLACED = place(GRAPH, load_target("openvino"))
PRODUCTS = ("pointwise", "depthwise", "head")


def test_a_whole_model_is_shared_out_by_the_roofline() -> None:
    totals = {"float32": 4.0, "int8": 2.5}
    found = shared_out(NODES, PLACED, totals, {"y": (1, 500)})
    assert {p: pytest.approx(sum(own.values())) for p, own in found.items()} == totals
    floats, int8 = ({n: found[p][n] for n in PRODUCTS} for p in totals)
    # 8 and 9 products for each of as many outputs; a Gemm of one row waits for its weights.
    assert floats["pointwise"] / floats["depthwise"] == pytest.approx(8 / 9)
    assert floats["head"] / floats["pointwise"] == pytest.approx(4 * 4 * 64 * 500 / (65536 * 8))
    gained = {n: floats[n] - int8[n] for n in PRODUCTS}
    assert gained["depthwise"] == pytest.approx(0), "integers save nothing there"
    assert gained["head"] / gained["pointwise"] == pytest.approx(
        floats["head"] / floats["pointwise"]
    )
    many = shared_out(NODES, PLACED, totals, {"y": (4096, 500)})["float32"]
    assert many["head"] > floats["head"], "rows that share weights have to be multiplied"


def test_what_a_precision_saves_nowhere_is_shared_out_all_the_same() -> None:
    totals = {"float32": 4.0, "int8-weight": 3.0}
    found = shared_out(NODES[:2], PLACED, totals, {})["int8-weight"]
    assert found == {"pointwise": pytest.approx(3 * 8 / 17), "depthwise": pytest.approx(3 * 9 / 17)}


def test_products_of_two_activations_are_counted() -> None:
    graph = Graph.from_text(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[2, 3, 8, 16] q, float[2, 3, 16, 4] k) => (float[2, 3, 8, 4] y)
        { [product] y = MatMul(q, k) }"""
    )
    infer_types(graph)
    found = flops_costs([*graph.nodes()], place(graph, load_target("tensorrt")), ["int8"])
    assert found.nodes["product"]["float32"] == 2 * 3 * 8 * 4 * 16
