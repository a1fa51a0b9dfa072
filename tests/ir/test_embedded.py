"""Large weights of a model file: left in it, and the same bytes as protobuf writes."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxq.errors import InputError
from onnxq.ir import Graph, load, save, to_proto
from onnxq.ir import embedded as module

ROWS = 600


@pytest.fixture(autouse=True)
def _no_file_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SMALLEST_FILE", 1)


def _model() -> onnx.ModelProto:
    """Weights of over and under a megabyte, as raw bytes and as a list, named and described."""
    rng = np.random.default_rng(0)
    raw = numpy_helper.from_array(rng.standard_normal((ROWS, 512)).astype(np.float32), "raw")
    half = numpy_helper.from_array(rng.standard_normal((512, 1100)).astype(np.float16), "half")
    small = numpy_helper.from_array(np.ones((1100,), np.float16), "small")
    listed = helper.make_tensor("listed", TensorProto.FLOAT, [300_000], np.ones(300_000))
    described = numpy_helper.from_array(np.ones(300_000, np.float32), "described")
    described.doc_string = "all ones"
    nodes = [
        helper.make_node("MatMul", ["x", "raw"], ["a"]),
        helper.make_node("Cast", ["a"], ["b"], to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["b", "half"], ["c"]),
        helper.make_node("Add", ["c", "small"], ["y"]),
        helper.make_node("Add", ["listed", "described"], ["z"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", ROWS])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT16, ["N", 1100]),
            helper.make_tensor_value_info("z", TensorProto.FLOAT, [300_000]),
        ],
        [raw, small, half, listed, described],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "m.onnx").write_bytes(_model().SerializeToString(deterministic=True))
    return tmp_path / "m.onnx"


def test_a_file_comes_back_byte_for_byte(path: Path, tmp_path: Path) -> None:
    graph = load(path)
    save(graph, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == path.read_bytes()
    # What was in memory is written like what was in a file.
    save(load(_model()), tmp_path / "other.onnx")
    assert (tmp_path / "other.onnx").read_bytes() == path.read_bytes()


def test_what_rewrites_make_is_written_as_protobuf_does(path: Path, tmp_path: Path) -> None:
    graph = load(path)
    for name in ("raw", "half"):
        value = graph.values[name]
        graph.replace_uses(value, graph.constant(value.numpy() * 2, f"{name}_twice"))
    save(graph, tmp_path / "made.onnx")
    wanted = to_proto(graph).SerializeToString(deterministic=True)
    assert (tmp_path / "made.onnx").read_bytes() == wanted
    onnx.checker.check_model(tmp_path / "made.onnx")


def test_numbers_are_those_of_the_file(path: Path) -> None:
    graph = load(path)
    for tensor in _model().graph.initializer:
        value = graph.values[tensor.name]
        np.testing.assert_array_equal(value.numpy(), numpy_helper.to_array(tensor))
        assert value.numpy().flags.aligned and not value.data.is_external
    assert not graph.values["raw"].data.is_message and graph.values["listed"].data.is_message


def test_neither_reading_nor_writing_holds_the_weights(path: Path, tmp_path: Path) -> None:
    model = _model()
    del model.graph.initializer[3:], model.graph.node[-1], model.graph.output[1]
    large = np.zeros((ROWS, 40_000), np.float32)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(large, "raw"))
    model.graph.initializer[2].CopyFrom(
        numpy_helper.from_array(np.zeros((40_000, 1100), np.float16), "half")
    )
    path.write_bytes(model.SerializeToString(deterministic=True))
    tracemalloc.start()
    try:
        save(load(path), tmp_path / "again.onnx")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # protobuf's own memory is not traced, the strings it takes and gives are.
    assert path.stat().st_size > 180e6 and peak < 20e6
    assert (tmp_path / "again.onnx").read_bytes() == path.read_bytes()


def test_a_graph_outlives_the_name_of_its_file(path: Path, tmp_path: Path) -> None:
    graph, wanted = load(path), numpy_helper.to_array(_model().graph.initializer[0])
    save(Graph.from_text("""<ir_version: 8, opset_import: ["": 17]>
        g (float[N] x) => (float[N] y) { y = Relu(x) }"""), path)  # fmt: skip
    np.testing.assert_array_equal(graph.values["raw"].numpy(), wanted)


def test_a_file_that_was_written_over_is_refused(path: Path) -> None:
    graph = load(path)
    path.write_bytes(b"something else")
    with pytest.raises(InputError, match="has changed since the model was loaded"):
        graph.values["raw"].numpy()


@pytest.mark.parametrize("cut", [1, 100, 1_000_000, 2_000_000])
def test_damaged_files_are_refused_as_small_ones_are(path: Path, cut: int) -> None:
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(InputError, match="is not an ONNX model or is cut off"):
        load(path)


def test_numbers_that_do_not_fit_the_shape_are_refused(path: Path) -> None:
    model = _model()
    model.graph.initializer[0].dims[0] += 1
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="raw"):
        load(path)
