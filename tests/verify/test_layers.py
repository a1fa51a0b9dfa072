"""The error of every layer against numpy."""

from __future__ import annotations

import math
import multiprocessing
import re
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from onnxq.data import Dataset, read
from onnxq.ir import Graph, infer_types, to_proto
from onnxq.runtime import Session
from onnxq.verify import layers
from onnxq.verify.result import LayerFacts
from tests.helpers import run
from tests.quantization import observed_bounds, quantized

TEXT = """<ir_version: 8, opset_import: ["": 17]>
g (float[{batch}, 1, 4, 4] x) => (float[{batch}, 1, 4, 4] y)
<float[1, 1, 1, 1] w = {{{weight}}}>
{{ c = Conv(x, w) r = Relu(c) e = Exp(r) y = Conv(e, w) }}"""


def _graph(weight: float = 0.7, batch: str = "N") -> Graph:
    graph = Graph.from_text(TEXT.format(weight=weight, batch=batch))
    infer_types(graph)
    return graph


def _samples(count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 1, 4, 4)).astype(np.float32)


def _data(graph: Graph, samples: np.ndarray) -> object:
    return read({"x": samples}, Session(to_proto(graph)).inputs, batch_size=4)


def compare_layers(before: Graph, after: Graph, data: Dataset) -> tuple[LayerFacts, ...]:
    return layers.compare_layers(before, after, data, 1 << 30)


def _sqnr(reference: np.ndarray, candidate: np.ndarray) -> float:
    reference = reference.astype(np.float64)
    noise = np.square(reference - candidate).sum()
    return float(10 * np.log10(np.square(reference).sum() / noise))


def _inner(graph: Graph, names: list[str], samples: np.ndarray) -> dict[str, np.ndarray]:
    exposed = graph.copy()
    exposed.set_outputs([exposed.values[n] for n in names])
    return run(exposed, {"x": samples})


def test_every_layer_is_compared_with_the_float_value_of_its_name() -> None:
    before, samples = _graph(), _samples(10)
    after = quantized(before, observed_bounds(before.copy(), {"x": samples}))
    found = {layer.node: layer for layer in compare_layers(before, after, _data(before, samples))}
    assert list(found) == ["c", "r", "e", "y_replaced"]
    wanted = _inner(before, ["c", "r", "e", "y"], samples)
    theirs = _inner(after, ["c", "r", "e", "y"], samples)
    for name in ("c", "r", "e"):
        assert found[name].sqnr_db == pytest.approx(_sqnr(wanted[name], theirs[name]), abs=0.1)
    # The last one's name is that of the value behind the pair, which the caller gets.
    assert found["y_replaced"].sqnr_db == pytest.approx(_sqnr(wanted["y"], theirs["y"]), abs=0.1)
    assert [layer.precision for layer in found.values()] == ["int8", "int8", "float32", "int8"]


def test_equal_models_have_no_error() -> None:
    graph = _graph()
    found = compare_layers(graph, graph.copy(), _data(graph, _samples(3)))
    assert {layer.sqnr_db for layer in found} == {math.inf}


def test_what_the_float_model_does_not_have_is_not_compared() -> None:
    before = _graph()
    after = before.copy()
    after.rename(after.values["r"], "other")
    found = {layer.node: layer.sqnr_db for layer in compare_layers(
        before, after, _data(before, _samples(3)))}  # fmt: skip
    assert found == {"c": math.inf, "other": None, "e": math.inf, "y": math.inf}


def test_nothing_in_common_needs_no_run() -> None:
    before, after = _graph(), _graph()
    for at, name in enumerate(("c", "r", "e", "y")):
        after.rename(after.values[name], f"v{at}")
    found = compare_layers(before, after, _data(before, _samples(3)))
    assert [layer.sqnr_db for layer in found] == [None] * 4


def test_padding_does_not_count() -> None:
    before, samples = _graph(batch="4"), _samples(6)
    bounds = observed_bounds(before.copy(), {"x": samples[:4]})
    after = quantized(before, bounds)
    free = _graph()
    found = compare_layers(before, after, _data(before, samples))
    wanted = compare_layers(free, quantized(free, bounds), _data(free, samples))
    for one, other in zip(found, wanted, strict=True):
        assert one.sqnr_db == pytest.approx(other.sqnr_db, rel=1e-6)


def _most_beyond_start() -> int:
    """Bytes that a comparison takes at its peak, of models in segments with 160 MB of values."""
    rng = np.random.default_rng(0)
    graphs = []
    for scale in (1.0, 1.001):
        graph = Graph.from_text("""<ir_version: 9, opset_import: ["": 20]>
            g (float[1, 8192, 128] x) => (float[1, 8192, 128] y) { y = Identity(x) }""")
        (last,), value = graph.nodes(), graph.inputs[0]
        for _ in range(40):
            weight = (rng.standard_normal((128, 128)) * scale / 11).astype(np.float32)
            value = graph.add("MatMul", [value, graph.constant(weight, "w")]).output
        last.set_input(0, value)
        infer_types(graph)
        graphs.append(graph)
    data = read({"x": np.ones((1, 8192, 128), np.float32)}, Session(to_proto(graphs[0])).inputs)
    # Starts the peak anew.
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    layers.compare_layers(*graphs, data, 4 * 128 * 128 * 4)
    return _status("VmHWM") - before


def _status(field: str) -> int:
    (size,) = re.findall(rf"^{field}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    return int(size) * 1024


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells of peaks")
def test_no_more_than_a_segments_values_are_in_memory() -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(_most_beyond_start).result() < 80e6
