"""The float model's outputs: computed once, the same on every pass, never all in memory."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from onnxq.data import Dataset, read
from onnxq.errors import InputError
from onnxq.ir import Graph, save
from onnxq.runtime import Session
from onnxq.runtime.files import ModelFiles
from onnxq.verify import CompareOptions, Reference, compare_files
from onnxq.verify import reference as module
from onnxq.verify.workload import Workload

TEXT = """<ir_version: 8, opset_import: ["": 17]>
g (float[N, 4] x) => (float[N, 4] y) { y = Exp(x) }"""
LARGE = 1 << 18


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save(Graph.from_text(TEXT), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every run of any session."""
    found: list[int] = []
    original = Session.run

    def run(self: Session, feeds: dict[str, np.ndarray], *more: object) -> object:
        found.append(len(feeds["x"]))
        return original(self, feeds, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(Session, "run", run)
    return found


def _data(path: Path, count: int = 10) -> Dataset:
    samples = np.random.default_rng(0).standard_normal((count, 4)).astype(np.float32)
    return read(
        {"x": samples, "labels": samples.argmax(axis=1)}, Session(path).inputs, batch_size=4
    )


def _all(reference: Reference) -> np.ndarray:
    return np.concatenate([outputs["y"] for _, outputs in reference.batches()])


def test_a_candidate_is_run_and_looked_into_once(
    path: Path, tmp_path: Path, runs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "processors", lambda: 1)
    other, data = tmp_path / "other.onnx", _data(path)
    save(Graph.from_text(TEXT.replace("Exp", "Tanh")), other)
    reference = Reference(path, data, files=ModelFiles(tmp_path), folder=tmp_path)
    workload = Workload(next(data.batches()), "")
    brief = CompareOptions(layers=False, latency=False, operators=False)
    first = compare_files(path, other, data, workload, brief, reference=reference)
    assert sorted(runs) == [2, 2, 4, 4, 4, 4]
    counted = replace(brief, operators=True)
    second = compare_files(path, other, data, workload, counted, reference=reference)
    assert len(runs) == 6
    assert (second.metric, second.outputs) == (first.metric, first.outputs)
    monkeypatch.setattr(module, "model_facts", None)
    assert compare_files(path, other, data, workload, counted, reference=reference)


def test_every_batch_is_run_once(
    path: Path, tmp_path: Path, runs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "processors", lambda: 1)
    reference = Reference(path, _data(path), files=ModelFiles(tmp_path), folder=tmp_path)
    # A pass that ends early is gone on with, not begun anew.
    next(reference.batches())
    first, second = _all(reference), _all(reference)
    assert runs == [4, 4, 2]
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first, np.exp(np.concatenate(
        [batch.feeds["x"] for batch in _data(path).batches()])), rtol=1e-6)  # fmt: skip
    assert reference.metric is not None and reference.metric.result().samples == 10
    assert reference.metric.result().value == 1.0


def test_what_the_disk_has_no_room_for_is_run_again(
    path: Path, tmp_path: Path, runs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FREE_SHARE", 0.0)
    reference = Reference(path, _data(path), files=ModelFiles(tmp_path), folder=tmp_path)
    np.testing.assert_array_equal(_all(reference), _all(reference))
    assert runs == [4, 4, 2] * 2 and reference.metric is not None
    assert reference.metric.result().samples == 10


def test_the_float_model_itself_is_run_no_second_time(path: Path, runs: list[int]) -> None:
    data = _data(path)
    options = CompareOptions(latency=False, layers=False)
    report = compare_files(path, path, data, Workload(next(data.batches())), options)
    assert runs == [4, 4, 2] and report.sqnr_db == np.inf
    assert report.metric is not None and report.metric.float == report.metric.candidate == 1.0


def test_what_is_too_large_for_memory_is_no_reason_for_another_provider(
    path: Path, tmp_path: Path
) -> None:
    """Segments run on the CPU provider, so nothing else may be reported of them."""
    data, files = _data(path), ModelFiles(tmp_path)
    large = Graph.from_text(TEXT.replace("{ y = Exp(x)", "<float w = {1}> { y = Add(x, w)"))
    save(large, path)
    with pytest.raises(InputError, match="provider 'cuda' is not in the installed onnxruntime"):
        Reference(path, data, files=files, room=0).load(large, path, "cuda")
    reference = Reference(path, data, files=files, room=0)
    options = CompareOptions(providers=("cpu", "cuda"), layers=False, latency_seconds=0.01)
    workload = Workload(next(data.batches()))
    with pytest.raises(InputError, match="provider 'cuda' is not in the installed onnxruntime"):
        compare_files(path, path, data, workload, options, reference=reference)


def test_outputs_are_in_memory_for_a_few_rows_at_a_time(tmp_path: Path) -> None:
    """Sixteen samples of 16 MiB each, in one batch as they are read."""
    graph = Graph.from_text(f"""<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 4] x) => (float[N, {LARGE}, 16] y)
        <int64[3] t = {{-1, 4, 1}}, int64[3] r = {{1, {LARGE // 4}, 16}}>
        {{ e = Reshape(x, t) w = Tile(e, r) y = Exp(w) }}""")
    save(graph, tmp_path / "large.onnx")
    samples = np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32)
    data = read({"x": samples}, Session(tmp_path / "large.onnx").inputs, batch_size=16)
    reference = Reference(
        tmp_path / "large.onnx", data, files=ModelFiles(tmp_path), folder=tmp_path
    )
    tracemalloc.start()
    try:
        count = sum(outputs["y"].shape[0] for _, outputs in reference.batches())
        passed_again = sum(outputs["y"].shape[0] for _, outputs in reference.batches())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # All of them together are 256 MiB.
    assert count == passed_again == 16 and peak < 80 << 20
