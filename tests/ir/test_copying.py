from __future__ import annotations

import numpy as np
import pytest

from onnxq.ir import DataType, Graph, Tensor, TensorType
from onnxq.ir.copying import extract_nodes
from tests.helpers import run

HEAD = '<ir_version: 10, opset_import: ["": 21]>'


@pytest.fixture
def graph() -> Graph:
    return Graph.from_text(
        HEAD
        + """g (float[2] x) => (z) <float[2] a = {1, 2}, float[2] b = {3, 4}>
        { s = Add(a, b)  t = Mul(s, a)  z = Add(t, x) }"""
    )


def test_constants_that_are_fed(graph: Graph) -> None:
    values = graph.values
    nodes = [n for n in graph.nodes() if n.op_type != "Add" or n.output.name == "s"]
    alone = extract_nodes(nodes, [values["t"]], [values["a"]])
    alone.check()
    assert [(v.name, v.type) for v in alone.inputs] == [("a", TensorType(DataType.FLOAT, (2,)))]
    assert alone.values["a"].data is None and not alone.values["a"].is_constant
    assert alone.values["b"].is_constant
    for a in ([1.0, 2.0], [-5.0, 0.5]):
        fed = np.array(a, np.float32)
        found = run(alone, {"a": fed})["t"]
        assert np.array_equal(found, (fed + np.array([3, 4], np.float32)) * fed)


def test_without_inputs_nothing_is_fed(graph: Graph) -> None:
    nodes = [values.producer for values in (graph.values["s"], graph.values["t"])]
    alone = extract_nodes([n for n in nodes if n is not None], [graph.values["t"]])
    assert not alone.inputs
    assert np.array_equal(run(alone, {})["t"], np.array([4, 12], np.float32))


def test_inputs_that_no_node_reads_are_left_out(graph: Graph) -> None:
    made = graph.values["s"].producer
    assert made is not None
    other = graph.constant(Tensor(np.ones(3, np.float32)), "other")
    alone = extract_nodes([made], [graph.values["s"]], [other, graph.values["b"]])
    assert [v.name for v in alone.inputs] == ["b"]
    # The graph itself stays as it was.
    graph.check()
    assert graph.values["b"].is_constant
