"""Calibration against numpy over the values of all batches kept."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.data import Dataset, read
from onnxq.errors import InputError
from onnxq.ir import Graph, infer_types, to_proto
from onnxq.needs import ChannelsOf, RangeOf
from onnxq.observe import CALIBRATORS, Range, Ranges, calibrate, merge, observe
from onnxq.observe.histogram import TABLE_BYTES
from onnxq.passes.static.placement import place
from onnxq.quant import ABSMAX, INT4
from onnxq.rewriting import rewrite
from onnxq.runtime import Session
from onnxq.runtime.files import ModelFiles
from onnxq.targets import load_target

feeding = sys.modules["onnxq.observe.feeding"]

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


class Noted:
    """Notes what is done, and of how much."""

    def __init__(self, calls: list[tuple[int, int]]) -> None:
        self._calls = calls
        self._total = 0

    def stage(self, name: str, total: int | None = None) -> None:
        assert name == "calibrating" and total is not None
        self._total = total

    def advance(self, done: int) -> None:
        self._calls.append((done, self._total))

    def finish(self) -> None:
        raise AssertionError("further stages may follow")


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
    calibrate(graph, _data(graph, _samples(5), 2), ["h"], progress=Noted(calls), threads=1)
    assert calls == [(2, 5), (4, 5), (5, 5)]


def test_an_unknown_calibrator() -> None:
    graph = _graph()
    with pytest.raises(InputError, match="no calibrator 'median'; available: minmax"):
        calibrate(graph, _data(graph, _samples(2)), ["h"], calibrator="median")


def test_an_unknown_tensor() -> None:
    graph = _graph()
    with pytest.raises(InputError, match="no tensor 'hidden'"):
        calibrate(graph, _data(graph, _samples(2)), ["hidden"])


# Calibrators, memory, channels


def _whole_numbers(count: int = 24) -> np.ndarray:
    """Samples whose products and sums float32 holds exactly, in whatever order they are summed."""
    return np.round(_samples(count) * 64).astype(np.float32)


NAMES = ["x", "h", "r"]
BY_ORDER = ("moving-average",)


@pytest.mark.parametrize("name", [n for n in CALIBRATORS if n not in BY_ORDER])
def test_batches_order_and_shards_change_no_bit(name: str) -> None:
    graph, samples = _graph(), _whole_numbers()
    wanted = calibrate(graph, _data(graph, samples), NAMES, calibrator=name).to_json()
    shuffled = np.random.default_rng(0).permutation(samples)
    for size in (1, 5, 24):
        found = calibrate(graph, _data(graph, shuffled, size), NAMES, calibrator=name)
        assert found.to_json() == wanted
    shards = [
        calibrate(graph, _data(graph, part), NAMES, calibrator=name)
        for part in np.split(shuffled, 8)
    ]
    assert merge(shards).to_json() == wanted


def test_the_moving_average_is_that_of_the_batches() -> None:
    graph, samples = _graph(), _whole_numbers(6)
    text = "moving-average{momentum=0.5}"
    found = calibrate(graph, _data(graph, samples, 2), ["x"], calibrator=text).ranges["x"]
    low = high = None
    for batch in np.split(samples.astype(np.float64), 3):
        low = batch.min() if low is None else (low + batch.min()) / 2
        high = batch.max() if high is None else (high + batch.max()) / 2
    assert (found.min, found.max) == (low, high)


def test_histograms_are_kept_on_request_and_for_those_who_need_them() -> None:
    graph = _graph()
    data = _data(graph, _whole_numbers())
    plain = calibrate(graph, data, NAMES)
    assert all(s.histogram is None for s in plain.statistics.values())
    kept = calibrate(graph, data, NAMES, histograms=True)
    assert kept.ranges == plain.ranges
    for name in ("percentile", "entropy", "mse", "auto"):
        chosen = calibrate(graph, data, NAMES, calibrator=name)
        assert kept.with_calibrator(name).to_json() == chosen.to_json()


def test_ranges_are_chosen_for_the_format_and_scheme() -> None:
    graph = _graph()
    data = _data(graph, _samples(200))
    found = calibrate(graph, data, ["r"], calibrator="mse", format=INT4, scheme=ABSMAX)
    assert (found.format, found.scheme) == (INT4, ABSMAX)
    assert found.ranges["r"].max < calibrate(graph, data, ["r"]).ranges["r"].max


def test_padding_is_not_counted() -> None:
    fixed, free = _graph("4"), _graph()
    samples = _whole_numbers(6)
    found = calibrate(fixed, _data(fixed, samples), NAMES, calibrator="percentile")
    wanted = calibrate(free, _data(free, samples), NAMES, calibrator="percentile")
    assert found.to_json() == wanted.to_json()
    assert found.statistics["h"].count == 18


@pytest.mark.parametrize("batch", ["N", "4"])
def test_a_memory_limit_makes_groups_and_changes_no_bit(batch: str) -> None:
    graph, samples, calls = _graph(batch), _samples(16), []
    data = _data(graph, samples, 8)
    names = ["x", "h", "r", "y", "w"]
    wanted = calibrate(graph, data, names, calibrator="mse")
    # Room for the tables of two tensors at a time.
    found = calibrate(
        graph,
        data,
        names,
        calibrator="mse",
        memory_limit=2 * TABLE_BYTES + 2000,
        progress=Noted(calls),
    )
    assert found.to_json() == wanted.to_json()
    assert calls[-1] == (48, 48) and len(calls) == (6 if batch == "N" else 12)
    roomy = calibrate(graph, data, names, calibrator="mse", memory_limit=1 << 30)
    assert roomy.to_json() == wanted.to_json()


def test_groups_run_only_what_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = _graph()
    plain = ModelFiles.session

    def noting(files: ModelFiles, part: Graph, **options: object) -> Session:
        operators.append([node.op_type for node in part.nodes()])
        return plain(files, part, **options)

    operators: list[list[str]] = []
    monkeypatch.setattr(ModelFiles, "session", noting)
    calibrate(graph, _data(graph, _samples(4), 2), ["h", "y"], memory_limit=80)
    # The shapes, h alone, and y with what it comes from.
    assert operators[1] == ["MatMul"] and operators[2][-1] == "Exp"
    assert len(operators) == 3


def test_a_memory_limit_that_is_too_small_names_the_tensor() -> None:
    graph = _graph()
    with pytest.raises(InputError, match=r"observing 'h' takes .* bytes .* limit is 50; raise"):
        calibrate(graph, _data(graph, _samples(4)), ["h"], memory_limit=50)


def test_large_batches_are_fed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, samples, fed = _graph(), _whole_numbers(16), []
    wanted = calibrate(graph, _data(graph, samples, 8), NAMES, calibrator="mse")
    run = Session.run

    def noting(self: Session, feeds: dict[str, np.ndarray], outputs: list[str]) -> object:
        fed.append(len(feeds["x"]))
        return run(self, feeds, outputs)

    monkeypatch.setattr(Session, "run", noting)
    monkeypatch.setattr(feeding, "RUN_BYTES", 80)
    found = calibrate(graph, _data(graph, samples, 8), NAMES, calibrator="mse")
    # One row to see how much it makes, and then never a single one.
    assert fed[0] == 1 and set(fed[1:]) <= {2, 3} and sum(fed[1:]) == 16
    assert found.to_json() == wanted.to_json()


def test_channels_on_request() -> None:
    graph, samples = _graph(), _samples(12)
    needs = [RangeOf("r"), ChannelsOf("h", 1), ChannelsOf("x", -1)]
    found = observe(graph, _data(graph, samples, 5), needs)
    h = samples.astype(np.float64) @ graph.values["w"].numpy()
    for need, kept in ((needs[1], h), (needs[2], samples)):
        seen = found.get(need)
        np.testing.assert_allclose(seen.absmax, np.abs(kept).max(axis=0), rtol=1e-5)
        np.testing.assert_allclose(seen.mean, kept.mean(axis=0), atol=1e-6)
    assert found.get(ChannelsOf("r", 1)) is None


def test_channels_on_an_axis_that_is_not_there() -> None:
    graph = _graph()
    with pytest.raises(InputError, match="'h' cannot be observed by channel: it has 2 axes"):
        observe(graph, _data(graph, _samples(2)), [ChannelsOf("h", 2)])


def test_half_precision_is_observed() -> None:
    graph = Graph.from_text("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 2] x) => (float16[N, 2] y) { y = Cast<to = 10>(x) }""")
    samples = np.array([[0.1, -2.0], [1.0, 3.0]], np.float32)
    for limit in (None, 1 << 22):
        found = calibrate(
            graph, read({"x": samples}, _specs(graph)), ["y"], histograms=True, memory_limit=limit
        )
        assert found.ranges["y"] == Range(-2.0, 3.0)
        assert found.statistics["y"].histogram is not None


def test_what_onnxruntime_says_while_running_reaches_the_user() -> None:
    graph = Graph.from_text("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 2] x, float[M, 2] z) => (float[K, 2] y) { y = Add(x, z) }""")
    feeds = [{"x": np.ones((2, 2), np.float32), "z": np.ones((3, 2), np.float32)}]
    with pytest.raises(InputError, match="onnxruntime cannot run"):
        calibrate(graph, read(feeds, _specs(graph)), ["y"])


def test_a_real_model_has_the_same_ranges_however_it_is_fed() -> None:
    folder = Path(__file__).resolve().parents[2] / "models"
    graph = rewrite(folder / "digits_resnet.onnx").graph
    infer_types(graph)
    names = place(graph, load_target("generic")).observed()
    with np.load(folder / "digits.npz") as file:
        images = file["image"][:24]

    def found(samples: np.ndarray, size: int = 16, **options: object) -> Ranges:
        data = read({"image": samples}, _specs(graph), batch_size=size)  # type: ignore[arg-type]
        return calibrate(graph, data, names, histograms=True, **options)  # type: ignore[arg-type]

    wanted = found(images).to_json()
    shuffled = np.random.default_rng(0).permutation(images)
    assert found(shuffled, 5).to_json() == wanted
    assert merge([found(part) for part in np.split(shuffled, 8)]).to_json() == wanted
    calls: list[tuple[int, int]] = []
    limited = found(images, memory_limit=8 << 20, progress=Noted(calls))
    assert limited.to_json() == wanted
    assert calls[-1][1] > len(images), "one group is no test of several"
