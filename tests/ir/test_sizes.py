"""Bytes of values against what numpy says of the arrays that a run gives."""

from __future__ import annotations

import numpy as np

from onnxq.ir import Graph
from onnxq.ir.sizes import live_bytes, value_bytes
from tests.helpers import run

TEXT = """<ir_version: 8, opset_import: ["": 17]>
g (float[N, 4] x) => (float[N, 1] y)
<float[4, 2] w = {1, 2, 3, 4, 5, 6, 7, 8}, float[2, 1] v = {1, 2}>
{ h = MatMul(x, w) r = Relu(h) i = Cast<to = 7>(r) f = Cast<to = 1>(i) y = MatMul(f, v) }
"""
NAMES = ["h", "r", "i", "f", "y"]


def test_sizes_are_those_of_the_arrays() -> None:
    graph = Graph.from_text(TEXT)
    exposed = graph.copy()
    exposed.set_outputs([exposed.values[name] for name in NAMES])
    arrays = run(exposed, {"x": np.ones((3, 4), np.float32)})
    assert value_bytes(graph, {"x": (3, 4)}) == {name: arrays[name].nbytes for name in NAMES}
    assert [v.shape for v in graph.inputs] == [("N", 4)]


def test_values_go_with_their_last_reader() -> None:
    graph = Graph.from_text(TEXT)
    # An integer of 8 bytes beside a float of 4, for 3 times 2 numbers.
    assert live_bytes(graph, value_bytes(graph, {"x": (3, 4)})) == 3 * 2 * (8 + 4)


def test_what_is_not_known_counts_as_the_largest() -> None:
    graph = Graph.from_text("""<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 4] x) => (float[M, 4] z)
        { y = Relu(x) m = ReduceMax<axes = [1], keepdims = 0>(y) k = Cast<to = 9>(m)
        z = Compress<axis = 0>(y, k) }""")
    assert value_bytes(graph, {"x": (5, 4)}) == {"y": 80, "m": 20, "k": 5, "z": 80}
