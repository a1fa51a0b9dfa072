from __future__ import annotations

import numpy as np
import pytest

from onnxq.ir import Context, Graph, save
from onnxq.ir.loading import load
from onnxq.passes.cleanup.constant_initializers import ConstantInitializers, settle_overridable
from onnxq.runtime import Session
from tests.helpers import run

HEAD = '<ir_version: 10, opset_import: ["": 21]>'


def test_inputs_with_a_default_become_constants(tmp_path) -> None:
    before = Graph.from_text(
        f"""{HEAD} g (float[2] x, float[2] w = {{3, 4}}) => (float[2] y) {{ y = Mul(x, w) }}"""
    )
    assert [v.name for v in before.inputs] == ["x", "w"]
    after = before.copy()
    assert ConstantInitializers().run(after, Context()) == 1
    assert ConstantInitializers().run(after, Context()) == 0
    after.check()
    assert [v.name for v in after.inputs] == ["x"]
    assert after.values["w"].is_constant
    save(after, tmp_path / "after.onnx")
    x = np.array([5, 6], dtype=np.float32)
    given = Session(tmp_path / "after.onnx").run({"x": x})
    np.testing.assert_array_equal(given["y"], [15, 24])
    assert not load(tmp_path / "after.onnx").inputs[0].data


def test_inputs_without_a_default_stay() -> None:
    graph = Graph.from_text(
        f"{HEAD} g (float[2] x, float[2] w) => (float[2] y) {{ y = Mul(x, w) }}"
    )
    assert ConstantInitializers().run(graph, Context()) == 0
    two = np.full(2, 2, dtype=np.float32)
    np.testing.assert_array_equal(run(graph, {"x": two, "w": two})["y"], [4, 4])


W = "float[2, 2] w = {1, 2, 3, 4}"
B = "float[2] b = {5, 6}"
V = "float[2, 2] v = {1, 0, 0, 1}"
P = "float[1, 2] p = {7, 8}"
ADDED = "h = MatMul(x, w)  i = MatMul(h, v)  j = Add(i, b)  y = Mul(j, p)"
BODY = "h = MatMul(x, w)  i = MatMul(h, v)  y = Add(i, b)"


@pytest.mark.parametrize(
    ("inputs", "own", "body", "kept"),
    [
        (f"{W}, {V}, {B}", "", BODY, ["x"]),
        (f"{W}, {V}", f"<{B}>", BODY, ["x"]),
        (f"{W}, {B}", f"<{V}>", BODY, ["x", "w", "b"]),
        (f"{W}, {B}", "", f"v = Constant <value = {V}> () {BODY}", ["x", "w", "b"]),
        (f"{W}, {V}, {B}", "", f"p = Constant <value = {P}> () {ADDED}", ["x"]),
        (B, f"<{W}, {V}>", BODY, ["x", "b"]),
        (B, "", "y = Add(x, b)", ["x", "b"]),
    ],
    ids=[
        "all",
        "all weights",
        "some",
        "a Constant is none",
        "boxes in a Constant are no weight",
        "no weight",
        "no weights at all",
    ],
)
def test_weights_are_settled_where_all_are_inputs(
    inputs: str, own: str, body: str, kept: list[str]
) -> None:
    graph = Graph.from_text(
        f"{HEAD} g (float[2, 2] x, {inputs}) => (float[2, 2] y) {own} {{ {body} }}"
    )
    feeds = {"x": np.ones((2, 2), np.float32)}
    wanted, given = run(graph, feeds)["y"], graph.copy()
    assert settle_overridable(given, Context(), keep=True) == ()
    assert len(given.inputs) == len(graph.inputs)
    notes = settle_overridable(graph, Context())
    assert [v.name for v in graph.inputs] == kept
    assert bool(notes) == (kept == ["x"])
    np.testing.assert_array_equal(run(graph, feeds)["y"], wanted)
