"""Data in files beside the model: read, written, and refused where it cannot be used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.checker
import onnx.reference
import pytest
from onnx import TensorProto, numpy_helper

from onnxq.errors import InputError
from onnxq.ir import load, save
from tests.helpers import assert_same_outputs, random_feeds, run
from tests.ir.loading import assert_one_sentence, parsed


def external_model(folder: Path) -> onnx.ModelProto:
    """x times a matrix plus a vector, both in weights.bin; a small one stays inside."""
    model = parsed(
        """g (float[N, 40] x) => (float[N, 40] y) <float[1] s = {2}>
        { m = MatMul(x, w)  b = Add(m, v)  y = Mul(b, s) }"""
    )
    generator = np.random.default_rng(0)
    for name, shape in (("w", (40, 40)), ("v", (400,))):
        array = generator.standard_normal(shape).astype(np.float32)
        if name == "v":
            array = array[:40]
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    path = folder / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=100)
    return onnx.load(path, load_external_data=False)


def test_external_data_is_read_and_written(tmp_path: Path) -> None:
    external_model(tmp_path)
    graph = load(tmp_path / "model.onnx")
    assert all(graph.values[n].data.is_external for n in "wv")  # type: ignore[union-attr]
    feeds = random_feeds(graph)
    inside = tmp_path / "inside.onnx"
    save(graph, inside)
    assert not (tmp_path / "inside.onnx.data").exists()
    outside = tmp_path / "outside.onnx"
    save(graph, outside, external_data=True)
    held = {t.name: t for t in onnx.load(outside, load_external_data=False).graph.initializer}
    # Only what is 1024 bytes or more is worth a place in the other file.
    assert [n for n, t in held.items() if t.data_location == TensorProto.EXTERNAL] == ["w"]
    assert (tmp_path / "outside.onnx.data").stat().st_size == 6400
    expected = run(load(inside), feeds)
    assert np.abs(expected["y"]).max() > 1
    reference = onnx.reference.ReferenceEvaluator(onnx.load(tmp_path / "model.onnx"))
    assert np.allclose(reference.run(None, feeds)[0], expected["y"], rtol=1e-5, atol=1e-4)
    assert_same_outputs(expected, run(load(outside), feeds))
    # Saved again under the same name, from data that lies in the file being replaced.
    before = (tmp_path / "outside.onnx.data").read_bytes(), outside.read_bytes()
    save(load(outside), outside, external_data=True)
    assert ((tmp_path / "outside.onnx.data").read_bytes(), outside.read_bytes()) == before


def test_external_data_of_attributes_and_subgraphs(tmp_path: Path) -> None:
    model = parsed(
        """g (bool q, float[400] x) => (float[400] y) { y = If(q) <
            then_branch = then () => (float[400] t) { t = Add(x, w) },
            else_branch = other () => (float[400] e)
                { k = Constant<value = float[1] {0}>()  e = Add(x, k) }> }"""
    )
    weight = numpy_helper.from_array(np.arange(400, dtype=np.float32), "w")
    then, other = (a.g for a in model.graph.node[0].attribute)
    then.initializer.append(weight)
    other.node[0].attribute[0].t.CopyFrom(weight)
    path = tmp_path / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, convert_attribute=True, size_threshold=100)
    graph = load(path)
    save(graph, tmp_path / "o.onnx", external_data=True)
    again = load(tmp_path / "o.onnx")
    for q in (True, False):
        feeds = {"q": np.array(q), "x": np.ones(400, np.float32)}
        assert np.array_equal(run(again, feeds)["y"], np.arange(400) + 1)


@pytest.mark.parametrize(
    "break_it, message",
    [
        (lambda t: _entry(t, "location", "../weights.bin"), "outside the model's folder"),
        (lambda t: _entry(t, "location", "/etc/passwd"), "outside the model's folder"),
        (lambda t: _entry(t, "location", "no.bin"), "which is not there"),
        (lambda t: _entry(t, "offset", "6000"), "needs 6400 bytes at offset 6000"),
    ],
)
def test_external_data_that_cannot_be_used(
    tmp_path: Path, break_it: Callable[[TensorProto], None], message: str
) -> None:
    model = external_model(tmp_path)
    break_it(next(t for t in model.graph.initializer if t.name == "w"))
    path = tmp_path / "broken.onnx"
    path.write_bytes(model.SerializeToString())
    assert_one_sentence(path, "tensor 'w'", message, str(path))


def _entry(tensor: TensorProto, key: str, text: str) -> None:
    next(e for e in tensor.external_data if e.key == key).value = text


def test_external_data_of_a_message_without_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tensor 'w' .* was not read from a folder"):
        load(external_model(tmp_path))
