from __future__ import annotations

import numpy as np
import pytest

from onnxq.ir import Context, Graph, infer_types
from onnxq.passes.weights.shift_biases import ShiftBiases
from tests.helpers import assert_same_graph, random_feeds, run

SHIFT = np.array([1, -2], np.float32)
CONV = "<float[2, 2, 1, 1] w = {1, 2, 3, 4}"
ROWS = "<float[3, 2] w = {1, 2, 3, 4, 5, 6}"


def model(interface: str, constants: str, nodes: str) -> Graph:
    graph = Graph.from_text(
        f'<ir_version: 8, opset_import: ["": 17]> g {interface} {constants}> {{ {nodes} }}'
    )
    infer_types(graph)
    return graph


IMAGES = "(float[N, 2, 3, 3] x) => (float[N, 2, 3, 3] y)"
TABLES = "(float[N, 3] x) => (float[N, 2] y)"
PAIRS = {
    "Conv without": (IMAGES, CONV, "[n] y = Conv(x, w)", ", float[2] c = {1, -2}", "Conv(x, w, c)"),
    "Conv with": (
        *(IMAGES, f"{CONV}, float[2] b = {{5, 6}}", "[n] y = Conv(x, w, b)"),
        *(", float[2] c = {6, 4}", "Conv(x, w, c)"),
    ),
    "ConvTranspose": (
        *(IMAGES, CONV, "[n] y = ConvTranspose(x, w)"),
        *(", float[2] c = {1, -2}", "ConvTranspose(x, w, c)"),
    ),
    "Gemm without": (TABLES, ROWS, "[n] y = Gemm(x, w)", ", float[2] c = {1, -2}", "Gemm(x, w, c)"),
    "Gemm with a factor": (
        *(TABLES, f"{ROWS}, float[1, 2] b = {{5, 6}}", "[n] y = Gemm<beta = 0.5>(x, w, b)"),
        *(", float[1, 2] c = {7, 2}", "Gemm<beta = 0.5>(x, w, c)"),
    ),
    "Gemm with one number": (
        *(TABLES, f"{ROWS}, float[1] b = {{5}}", "[n] y = Gemm(x, w, b)"),
        *(", float[2] c = {6, 3}", "Gemm(x, w, c)"),
    ),
    "MatMul": (
        *(TABLES, f"{ROWS}, float[2] b = {{5, 6}}", "[n] z = MatMul(x, w) y = Add(b, z)"),
        *(", float[2] c = {6, 4}", "MatMul(x, w) y = Add(c, z)"),
    ),
}


@pytest.mark.parametrize("case", PAIRS)
def test_pair(case: str) -> None:
    interface, constants, nodes, more, after = PAIRS[case]
    before = model(interface, constants, nodes)
    shifted = before.copy()
    assert ShiftBiases({"n": SHIFT}).run(shifted, Context()) == 1
    shifted.check()
    start = nodes[: nodes.index("=") + 1]
    kept = constants.split(", float[1] b")[0].split(", float[2] b")[0].split(", float[1, 2] b")[0]
    assert_same_graph(shifted, model(interface, kept + more, f"{start} {after}"))
    feeds = random_feeds(before)
    shape = (2, 1, 1) if interface is IMAGES else (2,)
    wanted = run(before, feeds)["y"] + SHIFT.reshape(shape)
    np.testing.assert_allclose(run(shifted, feeds)["y"], wanted, rtol=1e-5, atol=1e-5)


KEPT = {
    "what it is multiplied with": (
        "(float[N, 3] x, float[2] b) => (float[N, 2] y)",
        *(ROWS, "[n] y = Gemm(x, w, b)"),
    ),
    "a factor of 0": (
        TABLES,
        f"{ROWS}, float[2] b = {{1, 2}}",
        "[n] y = Gemm<beta = 0.0>(x, w, b)",
    ),
    "rows of their own": (
        "(float[2, 3] x) => (float[2, 2] y)",
        *(f"{ROWS}, float[2, 2] b = {{1, 2, 3, 4}}", "[n] y = Gemm(x, w, b)"),
    ),
    "nothing is added": (TABLES, ROWS, "[n] y = MatMul(x, w)"),
    "two read it": (
        "(float[N, 3] x) => (float[N, 2] y, float[N, 2] u)",
        *(f"{ROWS}, float[2] b = {{1, 2}}", "[n] z = MatMul(x, w) y = Add(z, b) u = Relu(z)"),
    ),
    "one number is added": (
        *(TABLES, f"{ROWS}, float[1] b = {{1}}", "[n] z = MatMul(x, w) y = Add(z, b)"),
    ),
    "rows are added": (
        "(float[2, 3] x) => (float[2, 2] y)",
        *(f"{ROWS}, float[2, 1] b = {{1, 2}}", "[n] z = MatMul(x, w) y = Add(z, b)"),
    ),
    "no layer": ("(float[N, 2] x) => (float[N, 2] y)", ROWS, "[n] y = Relu(x)"),
}


@pytest.mark.parametrize("case", KEPT)
def test_kept(case: str) -> None:
    graph = model(*KEPT[case])
    before = graph.copy()
    assert ShiftBiases({"n": SHIFT}).run(graph, Context()) == 0
    assert_same_graph(graph, before)


def test_a_bias_that_another_layer_reads_stays_for_that() -> None:
    graph = model(
        "(float[N, 3] x) => (float[N, 2] y, float[N, 2] u)",
        f"{ROWS}, float[2] b = {{5, 6}}",
        "[n] y = Gemm(x, w, b) [o] u = Gemm(x, w, b)",
    )
    feeds = random_feeds(graph)
    before = run(graph, feeds)
    assert ShiftBiases({"n": SHIFT}).run(graph, Context()) == 1
    after = run(graph, feeds)
    np.testing.assert_allclose(after["y"], before["y"] + SHIFT, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(after["u"], before["u"])
