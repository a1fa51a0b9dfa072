"""Verifying by shards: the same numbers as in one process, in any order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxq.data import read
from onnxq.errors import InputError
from onnxq.ir import Graph, save
from onnxq.runtime import Session
from onnxq.runtime.executor import IN_PROCESS, Executor
from onnxq.runtime.files import ModelFiles
from onnxq.verify import CompareOptions, Reference, Report, compare_files
from onnxq.verify.workload import Workload
from tests.runtime.spreading import Spread, one_thread

TEXT = """<ir_version: 8, opset_import: ["": 17]>
g (float[N, 4] x) => (float[N, 4] y, float[N, 4] z) { y = Softmax(x) z = Exp(x) }"""
WORSE = TEXT.replace("y = Softmax(x)", "a = Round(x) y = Softmax(a)")


@pytest.fixture(autouse=True)
def single(monkeypatch: pytest.MonkeyPatch) -> None:
    one_thread(monkeypatch)


def _reports(
    folder: Path, executor: Executor, metric: str | None, labelled: bool, text: str = WORSE
) -> list[Report]:
    folder.mkdir()
    paths = [folder / "float.onnx", folder / "other.onnx"]
    for path, body in zip(paths, (TEXT, text), strict=True):
        save(Graph.from_text(body), path)
    values = np.random.default_rng(0).standard_normal((150, 4)).astype(np.float32)
    arrays: dict[str, Any] = {"x": values}
    if labelled:
        arrays["labels"] = values.argmax(axis=1)
    data = read(arrays, Session(paths[0]).inputs, batch_size=8)
    options = CompareOptions(metric=metric, layers=False, latency=False, operators=False)
    files = ModelFiles(folder)
    reference = Reference(
        paths[0], data, files=files, metric=metric, folder=folder, executor=executor
    )
    workload = Workload(next(data.batches()), "")
    return [
        compare_files(paths[0], path, data, workload, options, reference=reference)
        for path in paths
    ]


@pytest.mark.parametrize(
    ("metric", "labelled"),
    [(None, True), (None, False), ("f1", True), ("mse{output='z'}", False), ("sqnr", False)],
)
def test_the_numbers_are_those_of_one_process(
    metric: str | None, labelled: bool, tmp_path: Path
) -> None:
    alone = _reports(tmp_path / "alone", IN_PROCESS, metric, labelled)
    for seed in (0, 1):
        executor = Spread(tmp_path / f"spread-{seed}", seed)
        executor.folder.mkdir()
        spread = _reports(tmp_path / f"own-{seed}", executor, metric, labelled)
        # What the float model gives is computed once, and both models are held against it.
        assert executor.done == 3 * 5
        for one, other in zip(alone, spread, strict=True):
            assert (one.metric, one.agreement) == (other.metric, other.agreement)
            assert one.outputs == other.outputs
    assert alone[1].outputs[0].sqnr_db < 60


def test_a_model_that_cannot_run_is_called_by_its_name(tmp_path: Path) -> None:
    executor = Spread(tmp_path / "spread", 0)
    executor.folder.mkdir()
    broken = TEXT.replace("a = ", "").replace("Exp(x)", "Unknown(x)")
    with pytest.raises(InputError, match=r" '\S*other\.onnx'"):
        _reports(tmp_path / "own", executor, None, False, broken)
