from __future__ import annotations

import numpy as np

from onnxq.ir import Context, Graph, save
from onnxq.ir.loading import load
from onnxq.passes.cleanup.constant_initializers import ConstantInitializers
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
