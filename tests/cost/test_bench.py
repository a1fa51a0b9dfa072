"""Timing and profiling whole models, each only once on a machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxq.cost import Bench, Measurements
from onnxq.cost.measure import _Alone, by_node
from onnxq.ir import DataType, Graph, ModelInfo, TensorType, infer_types
from onnxq.runtime import NodeTime
from tests.networks import chain, inputs

GRAPHS = {"long": chain(6), "short": chain(2)}
FEEDS = inputs(chain(2), 1)


def test_models_are_timed_in_turn_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Bench(known=Measurements(tmp_path)).times(GRAPHS, FEEDS, seconds=0.02)
    assert list(found) == ["long", "short"] and min(found.values()) > 0
    again = Bench(known=Measurements(tmp_path))
    assert again.here["threads"] == "1"
    monkeypatch.setattr("onnxq.cost.bench.load_backend", None)
    assert again.times(GRAPHS, FEEDS, seconds=0.02) == found
    with pytest.raises(TypeError):
        again.times({"short": GRAPHS["short"]}, FEEDS, seconds=0.02)
    with pytest.raises(TypeError):
        again.times(GRAPHS, FEEDS, seconds=0.04)


def test_models_are_profiled_in_turn_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Bench(known=Measurements(tmp_path)).profiles(GRAPHS, FEEDS)
    assert [len(by_node(graph, found[name])) > 1 for name, graph in GRAPHS.items()] == [True, True]
    again = Bench(known=Measurements(tmp_path))
    monkeypatch.setattr("onnxq.cost.bench.load_backend", None)
    with pytest.raises(TypeError):
        again.profiles({"short": GRAPHS["short"]}, FEEDS)
    assert again.profiles(GRAPHS, FEEDS) == found


@pytest.mark.parametrize("shape", [(), (1, 2, 1, 1)])
def test_operators_alone_differ_by_the_constants_they_read(
    shape: tuple[int, ...],
) -> None:
    """What was measured of a product with one number is not that of one with a number a channel."""
    signatures = []
    for constant in ((), shape):
        graph = Graph("g", model=ModelInfo(8, {"": 17}))
        x = graph.add_input("x", TensorType(DataType.FLOAT, (1, 2, 4, 4)))
        factor = graph.constant(np.full(constant, 2, np.float32), "factor")
        graph.set_outputs([graph.add("Mul", [x, factor], name="m").output])
        infer_types(graph)
        (node,) = graph.nodes()
        signatures.append(_Alone(node, {"x": (1, 2, 4, 4)}).signature)
    assert (signatures[0] == signatures[1]) == (shape == ())


def test_what_is_due_to_no_node_is_kept_apart() -> None:
    graph = Graph.from_text(
        """<ir_version: 8, opset_import: ["": 17]> g (float[2] x) => (float[2] y)
        { [one] a = Relu(x) [two] y = Neg(a) }"""
    )
    times = [
        NodeTime("one", "Relu", 1.0),
        NodeTime("BiasGelu", "BiasGelu", 2.0),
        NodeTime("two", "QuantizeLinear", 4.0),
    ]
    assert by_node(graph, times) == {"one": 1.0, "": 6.0}
    assert by_node(graph, times[1:]) == {}, "the provider compiled the model"
