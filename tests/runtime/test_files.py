"""Models with their weights beside them: the same outputs, shared weights, no files left."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxq.ir import Graph, load, save
from onnxq.ir.saving import SharedData, fingerprint
from onnxq.runtime import Session
from onnxq.runtime import files as module
from onnxq.runtime.files import ModelFiles

RNG = np.random.default_rng(0)
FEEDS = {"x": RNG.standard_normal((2, 30)).astype(np.float32)}


def _graph(shift: float = 0.0) -> Graph:
    """Two weights of which `shift` changes one; neither is a whole number of pages."""
    rng = np.random.default_rng(1)
    graph = Graph.from_text("""<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 30] x) => (float[N, 50] y) { y = Relu(x) }""")
    value = graph.inputs[0]
    for rows, columns, added in ((30, 70, 0.0), (70, 50, shift)):
        weight = (rng.standard_normal((rows, columns)) + added).astype(np.float32)
        value = graph.add("MatMul", [value, graph.constant(weight, f"w{rows}")]).output
    relu = graph.outputs[0].producer
    assert relu is not None
    relu.set_input(0, value)
    return graph


@pytest.fixture(autouse=True)
def _all_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGE", 1)


def test_equal_weights_lie_in_the_file_once(tmp_path: Path) -> None:
    files = ModelFiles(tmp_path)
    paths = [files.save(_graph(shift), f"{shift}.onnx") for shift in (0.0, 1.0, 0.0)]
    stored = (tmp_path / "weights.data").stat().st_size
    # One shared weight and two others, each from the beginning of a page on.
    assert 4 * (30 * 70 + 2 * 70 * 50) <= stored < 4 * (30 * 70 + 2 * 70 * 50) + 2 * 4096
    assert paths[0].read_bytes() == paths[2].read_bytes() != paths[1].read_bytes()
    for path, shift in zip(paths, (0.0, 1.0, 0.0), strict=True):
        wanted = Session(onnx.load(save_embedded(shift, tmp_path))).run(FEEDS)["y"]
        np.testing.assert_array_equal(Session(path).run(FEEDS)["y"], wanted)
        assert fingerprint(load(path)) == fingerprint(_graph(shift))
    assert fingerprint(_graph(1.0)) != fingerprint(_graph())


def save_embedded(shift: float, folder: Path) -> Path:
    save(_graph(shift), folder / "embedded.onnx")
    return folder / "embedded.onnx"


def test_a_session_leaves_no_file_and_runs_on_what_is_shared(tmp_path: Path) -> None:
    files = ModelFiles(tmp_path)
    files.share(_graph())
    before = {path: path.stat().st_size for path in tmp_path.iterdir()}
    session = files.session(_graph(1.0), pooled=True)
    assert {path: path.stat().st_size for path in tmp_path.iterdir()} == before
    wanted = Session(save_embedded(1.0, tmp_path)).run(FEEDS)["y"]
    np.testing.assert_array_equal(session.run(FEEDS)["y"], wanted)


def test_only_what_is_not_in_the_base_is_written(tmp_path: Path) -> None:
    base = SharedData(tmp_path / "base.data")
    base.add(_graph())
    own = SharedData(tmp_path / "own.data", base)
    save(_graph(1.0), tmp_path / "m.onnx", shared=own)
    assert own.path.stat().st_size == 4 * 70 * 50
    onnx.checker.check_model(tmp_path / "m.onnx")


def test_a_small_model_stays_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGE", 1 << 20)
    path = save_embedded(0.0, tmp_path)
    (tmp_path / "files").mkdir()
    files = ModelFiles(tmp_path / "files")
    assert files.beside(load(path), path) == path and not [*(tmp_path / "files").iterdir()]
