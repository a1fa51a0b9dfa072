"""Regions that can be written in several forms."""

from __future__ import annotations

from onnxq.ir import Graph, infer_types
from onnxq.ir.regions import around, kind_of

PARTS = "s = Sigmoid(m) y1 = Mul(m, s)"
FUSED = "y1 = HardSwish(m)"


def graph_of(form: str, rows: int = 2) -> Graph:
    graph = Graph.from_text(
        f"""<ir_version: 8, opset_import: ["": 17]> g (float[{rows}, 2] x) => (float[{rows}, 2] y)
        <float[2, 2] w = {{1, 2, 3, 4}}>
        {{ r = Relu(x) m = MatMul(r, w) {form} z = MatMul(y1, w) y = HardSwish(z) }}"""
    )
    infer_types(graph)
    return graph


def test_a_region_reaches_to_what_both_forms_have_and_its_neighbours() -> None:
    parts, fused = graph_of(PARTS), graph_of(FUSED)
    found = around(parts.values["y1"], fused.values)
    assert sorted(n.op_type for n in found) == ["MatMul", "MatMul", "Mul", "Sigmoid"]
    found = around(fused.values["y1"], parts.values)
    assert sorted(n.op_type for n in found) == ["HardSwish", "MatMul", "MatMul"]


def test_regions_of_one_kind_have_equal_operators_shapes_and_neighbours() -> None:
    graph = graph_of(FUSED)
    assert kind_of(graph.values["y1"]) == kind_of(graph_of(FUSED).values["y1"])
    assert kind_of(graph.values["y1"]) != kind_of(graph.values["y"]), "nothing reads the other"
    wider = graph_of(FUSED, rows=3)
    assert kind_of(wider.values["y1"]) != kind_of(graph.values["y1"])
