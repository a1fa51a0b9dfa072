"""Resize that repeats pixels, as concatenations of integers."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.ir import Graph, infer_types, to_proto
from onnxq.passes.static.repeats import repeated, repeats
from onnxq.runtime import Session
from tests.helpers import run
from tests.quantization import quantized, run_optimized, run_reference

FLOOR = 'mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"'
CENTRED = 'mode = "nearest", coordinate_transformation_mode = "half_pixel"'
SCALES = "float[4] n = {1, 1, 3, 2}"


def resized(attributes: str, constants: str = SCALES, slots: str = ", n", opset: int = 17) -> Graph:
    graph = Graph.from_text(
        f"""<ir_version: 8, opset_import: ["": {opset}]>
        g (float[N, 1, H, W] x) => (float[N, 2, A, B] y)
        <float[2, 1, 1, 1] u = {{1, -2}}, float[2, 2, 1, 1] v = {{1, 2, 0.5, -1}},
        float[0] e = {{}}, {constants}>
        {{ c = Conv(x, u) r = Resize<{attributes}>(c, e{slots}) y = Conv(r, v) }}"""
    )
    infer_types(graph)
    return graph


REPEATS = {
    "asymmetric": (resized(FLOOR), (3, 2)),
    "half_pixel": (resized(CENTRED), (3, 2)),
    "columns alone": (resized(FLOOR, "float[4] n = {1, 1, 1, 4}"), (1, 4)),
    "rows alone": (resized(FLOOR, "float[4] n = {1, 1, 2, 1}"), (2, 1)),
    "axes": (resized(f"{FLOOR}, axes = [3, 2]", "float[2] n = {2, 3}", opset=18), (3, 2)),
}


@pytest.mark.parametrize("case", REPEATS)
def test_repeated_pixels_are_concatenated(case: str) -> None:
    before, times = REPEATS[case]
    (resize,) = (n for n in before.nodes() if n.is_op("Resize"))
    assert repeats(resize) == times
    x = np.random.default_rng(0).uniform(-1, 1, (2, 1, 3, 5)).astype(np.float32)
    after = quantized(before, {"x": (-1, 1), "c": (-2, 2), "y": (-5, 5)})
    assert not any(n.is_op("Resize") for n in after.nodes())
    wanted = run(before, {"x": x})["y"]
    for found in (run_optimized(after, {"x": x}), run_reference(after, {"x": x})):
        assert np.abs(found["y"] - wanted).max() < 0.1


@pytest.mark.parametrize("target", ["generic", "openvino"])
def test_runtimes_that_look_for_a_resize_get_one(target: str) -> None:
    after = quantized(REPEATS["asymmetric"][0], target=target)
    assert [n.op_type for n in after.nodes()].count("Resize") == 1


@pytest.mark.parametrize("times", [(1, 4), (2, 1), (3, 2)])
def test_against_numpy(times: tuple[int, int]) -> None:
    graph = Graph.from_text(
        """<ir_version: 8, opset_import: ["": 13]>
        g (uint8[N, 2, H, W] x) => (uint8[N, 2, A, B] y) { y = Identity(x) }"""
    )
    infer_types(graph)
    made = repeated(graph, graph.inputs[0], *times, "r")
    graph.set_outputs([made])
    x = np.arange(60, dtype=np.uint8).reshape(1, 2, 5, 6)
    (found,) = Session(to_proto(graph)).run({"x": x}).values()
    np.testing.assert_array_equal(found, x.repeat(times[0], axis=2).repeat(times[1], axis=3))


def test_sizes_count_where_they_are_known() -> None:
    graph = Graph.from_text(
        f"""<ir_version: 8, opset_import: ["": 17]>
        g (float[1, 2, 3, 5] x) => (float[1, 2, 6, 5] y)
        <float[0] e = {{}}, int64[4] n = {{1, 2, 6, 5}}> {{ y = Resize<{FLOOR}>(x, e, e, n) }}"""
    )
    infer_types(graph)
    assert repeats(graph.nodes()[0]) == (2, 1)


@pytest.mark.parametrize(
    "graph",
    [
        resized(FLOOR, "float[4] n = {1, 1, 1.5, 2}"),
        resized(FLOOR, "float[4] n = {1, 1, 0.5, 1}"),
        resized(FLOOR, "float[4] n = {1, 1, 1, 1}"),
        resized(FLOOR.replace("floor", "ceil")),
        resized(CENTRED.replace("half_pixel", "align_corners")),
        resized(f'{CENTRED}, nearest_mode = "floor"'),
    ],
    ids=[
        "no whole number",
        "smaller",
        "as it was",
        "ceil",
        "align_corners",
        "half a pixel, rounded down",
    ],
)
def test_what_is_no_repetition(graph: Graph) -> None:
    (resize,) = (n for n in graph.nodes() if n.is_op("Resize"))
    assert repeats(resize) is None
