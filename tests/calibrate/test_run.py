"""Calibration against numpy over the values of all batches kept."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.calibrate import Range, Ranges, calibrate
from onnxq.data import Dataset, read
from onnxq.errors import InputError
from onnxq.ir import Graph, to_proto
from onnxq.runtime import Session

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
g (float[{batch}, 4] x) => (float[{batch}, 3] y)
<float[4, 3] w = {{1, -2, 3, 4, 5, -6, 7, 8, 9, -10, 11, 12}}>
{{
    h = MatMul(x, w)
    r = Relu(h)
    y = Exp(r)
}}"""


def _graph(batch: str = "N") -> Graph:
    return Graph.from_text(TEXT.format(batch=batch))


def _data(graph: Graph, samples: np.ndarray, batch_size: int | None = None) -> Dataset:
    return read({"x": samples}, Session(to_proto(graph)).inputs, batch_size=batch_size)


def _samples(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 4)).astype(np.float32) * 0.1


def test_ranges_are_those_of_all_values_kept() -> None:
    graph, samples = _graph(), _samples(10)
    found = calibrate(graph, _data(graph, samples, 3), ["x", "h", "r", "y"], model_sha256="ab")
    weight = graph.values["w"].numpy()
    h = samples.astype(np.float64) @ weight
    kept = {"x": samples, "h": h, "r": np.maximum(h, 0), "y": np.exp(np.maximum(h, 0))}
    assert set(found.ranges) == set(kept)
    for name, values in kept.items():
        wanted = [values.min(), values.max()]
        np.testing.assert_allclose(
            [found.ranges[name].min, found.ranges[name].max], wanted, rtol=1e-5, atol=1e-6
        )
    assert (found.model_sha256, found.calibrator, found.samples) == ("ab", "minmax", 10)


def test_the_graph_stays_as_it_was() -> None:
    graph = _graph()
    before = to_proto(graph).SerializeToString(deterministic=True)
    calibrate(graph, _data(graph, _samples(2)), ["h", "x"])
    assert to_proto(graph).SerializeToString(deterministic=True) == before


def test_graph_inputs_alone_need_no_run() -> None:
    graph, samples = _graph(), _samples(3)
    found = calibrate(graph, _data(graph, samples), ["x"])
    assert found.ranges == {"x": Range(float(samples.min()), float(samples.max()))}


@settings(max_examples=15)
@given(st.permutations(range(12)), st.integers(1, 12))
def test_order_and_batches_change_no_bit(order: list[int], size: int) -> None:
    # Numbers whose products and sums float32 holds exactly, in whatever order they are summed.
    samples = np.round(_samples(12) * 64).astype(np.float32)
    graph = _graph()
    wanted = calibrate(graph, _data(graph, samples), ["x", "h", "r"])
    found = calibrate(graph, _data(graph, samples[order], size), ["x", "h", "r"])
    assert found.to_json() == wanted.to_json()


def test_padding_of_the_last_batch_widens_no_range_and_counts_no_sample() -> None:
    fixed, free = _graph("4"), _graph()
    samples = _samples(6)
    found = calibrate(fixed, _data(fixed, samples), ["x", "h"])
    wanted = calibrate(free, _data(free, samples, 1), ["x", "h"])
    assert found.samples == 6
    for name in ("x", "h"):
        np.testing.assert_allclose(
            [found.ranges[name].min, found.ranges[name].max],
            [wanted.ranges[name].min, wanted.ranges[name].max],
            rtol=1e-6,
        )


def test_a_tensor_that_is_always_empty_has_no_range() -> None:
    graph = Graph.from_text("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N] x) => (float[M] y, float[N] z)
        <int64[1] a = {0}, int64[1] b = {0}>
        { y = Slice(x, a, b) z = Relu(x) }""")
    found = calibrate(graph, read([{"x": np.ones(3, np.float32)}], _specs(graph)), ["y", "z"])
    assert found.ranges == {"z": Range(1.0, 1.0)}


def _specs(graph: Graph) -> tuple[object, ...]:
    return Session(to_proto(graph)).inputs


def test_what_the_model_makes_infinite_or_nan_is_said_so() -> None:
    graph = Graph.from_text("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N] x) => (float[N] y, float[N] z)
        { y = Log(x) z = Sqrt(x) }""")
    feed = {"x": np.array([0.0, -1.0, 1.0], np.float32)}
    found = calibrate(graph, read([feed], _specs(graph)), ["y", "z"])
    assert not found.ranges["y"].is_finite and not found.ranges["z"].is_finite
    assert repr(Ranges.from_json(found.to_json()).ranges["z"]) == repr(found.ranges["z"])


def test_an_input_with_a_default_value_is_calibrated_by_it() -> None:
    graph = Graph.from_text("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[2] x, float[2] d = {3, -4}) => (float[2] y) { y = Add(x, d) }""")
    assert graph.values["d"].is_input and graph.values["d"].data is not None
    found = calibrate(graph, read([{"x": np.ones(2, np.float32)}], _specs(graph)), ["d", "y"])
    assert found.ranges == {"d": Range(-4.0, 3.0), "y": Range(-3.0, 4.0)}


def test_constants_and_outputs_can_be_observed() -> None:
    graph = _graph()
    found = calibrate(graph, _data(graph, _samples(2)), ["w", "y", "w"])
    assert found.ranges["w"] == Range(-10.0, 12.0)
    assert list(found.ranges) == ["w", "y"]


def test_progress_counts_samples() -> None:
    graph, calls = _graph(), []
    calibrate(
        graph,
        _data(graph, _samples(5), 2),
        ["h"],
        progress=lambda done, total: calls.append((done, total)),
        threads=1,
    )
    assert calls == [(2, 5), (4, 5), (5, 5)]


def test_an_unknown_calibrator() -> None:
    graph = _graph()
    with pytest.raises(InputError, match="no calibrator 'median'; available: minmax"):
        calibrate(graph, _data(graph, _samples(2)), ["h"], calibrator="median")


def test_an_unknown_tensor() -> None:
    graph = _graph()
    with pytest.raises(InputError, match="no tensor 'hidden'"):
        calibrate(graph, _data(graph, _samples(2)), ["hidden"])
