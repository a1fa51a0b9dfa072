"""A model in segments gives the numbers of the whole, to the last bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxq.data import read
from onnxq.ir import Graph, infer_types, save, to_proto
from onnxq.ir.saving import constant_bytes
from onnxq.ir.segments import cut_by_weight
from onnxq.observe import calibrate
from onnxq.runtime import Session, pool
from onnxq.runtime.files import ModelFiles
from onnxq.runtime.segmented import Segmented
from onnxq.verify import CompareOptions, compare_files
from onnxq.verify.workload import Workload

WIDTH, LAYERS = 32, 6
LIMIT = 2 * 4 * WIDTH * WIDTH
"""Bytes of two of the matrices."""


def _decoder(scale: float = 1.0) -> Graph:
    """Residual layers under a mask that all of them read, with what onnxruntime fuses: an Add
    before each LayerNormalization, and a Gelu in its parts."""
    rng = np.random.default_rng(0)
    graph = Graph.from_text(f"""<ir_version: 9, opset_import: ["": 20]>
        g (float[N, 5, {WIDTH}] x) => (float[N, 5, {WIDTH}] y) {{ y = Identity(x) }}""")
    last = graph.outputs[0].producer
    assert last is not None

    def weight(*shape: int) -> object:
        return graph.constant((rng.standard_normal(shape) * scale / 6).astype(np.float32), "w")

    def add(op: str, *inputs: object, **attributes: object) -> object:
        return graph.add(op, list(inputs), attributes).output  # type: ignore[arg-type]

    x: object = graph.inputs[0]
    axes = graph.constant(np.array([-1]), "axes")
    mask = add("Sigmoid", add("ReduceMean", x, axes))
    for _ in range(LAYERS):
        normal = add("LayerNormalization", x, weight(WIDTH), weight(WIDTH))
        inner = add("Gelu", add("Add", add("MatMul", normal, weight(WIDTH, WIDTH)), weight(WIDTH)))
        x = add("Add", x, add("Mul", add("MatMul", inner, weight(WIDTH, WIDTH)), mask))
    last.set_input(0, x)  # type: ignore[arg-type]
    infer_types(graph)
    return graph


SAMPLES = np.random.default_rng(1).standard_normal((10, 5, WIDTH)).astype(np.float32)


def test_no_segment_is_too_heavy_and_little_crosses() -> None:
    segments = cut_by_weight(_decoder(), LIMIT + 2000)
    assert len(segments) == LAYERS
    for segment in segments:
        assert constant_bytes(segment.graph) <= LIMIT + 2000
    # The residual and the mask.
    assert {len(segment.inputs) for segment in segments[1:]} == {2}


def test_values_that_are_held_count_like_weights() -> None:
    graph = _decoder()
    held = {node.output.name: LIMIT for node in graph.nodes() if node.is_op("Gelu")}
    segments = cut_by_weight(graph, 2 * LIMIT + 2000, held)
    assert len(segments) == len(cut_by_weight(graph, LIMIT + 2000)) == LAYERS
    for segment in segments:
        assert sum(name in held for name in segment.graph.values) == 1


@pytest.mark.parametrize("workers", [1, 3])
def test_outputs_are_those_of_one_session(tmp_path: Path, workers: int) -> None:
    graph = _decoder()
    save(graph, tmp_path / "m.onnx")
    session = Session(tmp_path / "m.onnx")
    segmented = Segmented(graph, ModelFiles(tmp_path), LIMIT)
    assert len(segmented.segments) >= LAYERS
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
    items = [(number, {"x": SAMPLES[number : number + 2]}) for number in range(0, 10, 2)]
    found = list(segmented.stages(items, workers))
    assert [number for number, _ in found] == [0, 2, 4, 6, 8]
    for (_, outputs), (_, feeds) in zip(found, items, strict=True):
        assert list(outputs) == ["y"]
        np.testing.assert_array_equal(outputs["y"], session.run(feeds)["y"])


ENDS = {
    "a constant output": ("", ", float[4, 4] z", "z = MatMul(w, v)"),
    "an initializer given out": ("", ", float[4, 4] w", ""),
    "an input given out": ("", ", float[N, 4] x", ""),
    "a weight that callers may feed": (
        ", float[4, 4] u = {%s}",
        ", float[N, 4] z",
        "z = MatMul(y, u)",
    ),
}


@pytest.mark.parametrize("case", ENDS)
def test_what_no_segment_computes_is_given_too(tmp_path: Path, case: str) -> None:
    numbers = ", ".join(["0.5"] * 16)
    given, made, node = ENDS[case]
    graph = Graph.from_text(f"""<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 4] x{given.replace("%s", numbers)}) => (float[N, 4] y{made})
        <float[4, 4] w = {{{numbers}}}, float[4, 4] v = {{{numbers}}}>
        {{ a = MatMul(x, w) y = MatMul(a, v) {node} }}""")
    feeds = {"x": SAMPLES[0, :, :4]}
    segmented = Segmented(graph, ModelFiles(tmp_path), 64)
    seen: dict[str, np.ndarray] = {}
    ((_, found),) = segmented.stages([(0, feeds)], see=lambda *shown: seen.update(shown[2]))
    assert (
        len(segmented.segments) > 1 and segmented.milliseconds(feeds, seconds=0.01, threads=1) > 0
    )
    for name, wanted in Session(to_proto(graph)).run(feeds).items():
        np.testing.assert_array_equal(found[name], wanted)
        assert name in seen or name in feeds


def test_a_comparison_is_that_of_whole_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = tmp_path / "m.onnx", tmp_path / "q.onnx"
    for path, scale in zip(paths, (1.0, 1.001), strict=True):
        save(_decoder(scale), path)
    data = read({"x": SAMPLES}, Session(paths[0]).inputs, batch_size=4)
    options = CompareOptions(latency_seconds=0.1)
    wanted = compare_files(*paths, data, Workload(next(data.batches())), options)
    monkeypatch.setattr(pool, "SMALLEST_ROOM", 2 * LIMIT)
    monkeypatch.setattr("os.sysconf", lambda _: 1)
    found = compare_files(*paths, data, Workload(next(data.batches())), options)
    assert found.outputs == wanted.outputs and found.layers == wanted.layers
    assert 20 < found.sqnr_db < 80
    assert found.latency is not None and found.latency.float_ms > 0


def test_ranges_are_those_of_the_whole_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = _decoder()
    save(graph, tmp_path / "m.onnx")
    data = read({"x": SAMPLES}, Session(tmp_path / "m.onnx").inputs, batch_size=4)
    names = ["x", *(v.name for v in graph.values.values() if v.producer is not None)]
    wanted = calibrate(graph, data, names, threads=1, histograms=True)
    monkeypatch.setattr(pool, "SMALLEST_ROOM", 2 * LIMIT)
    monkeypatch.setattr("os.sysconf", lambda _: 1)
    told: list[int] = []
    found = calibrate(graph, data, names, threads=1, histograms=True, progress=_Told(told))
    assert found.to_json() == wanted.to_json() and found.samples == 10
    assert told[-1] == 10


class _Told:
    def __init__(self, done: list[int]) -> None:
        self._done = done

    def stage(self, name: str, total: int | None = None) -> None:
        pass

    def advance(self, done: int) -> None:
        self._done.append(done)

    def finish(self) -> None:
        pass
