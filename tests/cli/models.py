"""A small classifier and its data, for the tests of the commands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
from onnx import helper

CLASSES = 5
SAMPLES = 40


@dataclass(frozen=True)
class Case:
    """Files that the tests only read."""

    model: Path
    data: Path
    candidate: Path


def classifier() -> onnx.ModelProto:
    """Conv, Relu, Conv, BatchNormalization, Flatten, Gemm over images of 2x6x6, batch open."""
    rng = np.random.default_rng(3)

    def normal(name: str, *shape: int) -> onnx.TensorProto:
        scale = float(np.prod(shape[1:] or (1,))) ** -0.5
        values = rng.standard_normal(shape) * scale
        return onnx.numpy_helper.from_array(values.astype(np.float32), name)

    pads = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["c0"], "first", **pads),
        helper.make_node("Relu", ["c0"], ["r0"], "relu"),
        helper.make_node("Conv", ["r0", "w1"], ["c1"], "second", **pads),
        helper.make_node("BatchNormalization", ["c1", "one", "b1", "b1", "one"], ["n1"], "norm"),
        helper.make_node("Flatten", ["n1"], ["f1"], "flatten"),
        helper.make_node("Gemm", ["f1", "w2", "b2"], ["y"], "head", transB=1),
    ]
    constants = [
        normal("w0", 8, 2, 3, 3),
        normal("b0", 8),
        normal("w1", 8, 8, 3, 3),
        normal("b1", 8),
        onnx.numpy_helper.from_array(np.ones(8, np.float32), "one"),
        normal("w2", CLASSES, 8 * 6 * 6),
        normal("b2", CLASSES),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 2, 6, 6])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", CLASSES])],
        constants,
    )
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, ir_version=8, opset_imports=opsets, producer_name="tests")


def images(count: int = SAMPLES) -> np.ndarray:
    rng = np.random.default_rng(4)
    return rng.standard_normal((count, 2, 6, 6)).astype(np.float32)


def samples(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Images with labels that the float model gets right by a wide margin."""
    from onnx.reference import ReferenceEvaluator

    candidates = images(SAMPLES * 10)
    scores = ReferenceEvaluator(model).run(None, {"x": candidates})[0]
    ordered = np.sort(scores, axis=1)
    clear = np.argsort(ordered[:, -2] - ordered[:, -1])[:SAMPLES]
    return {"x": candidates[clear], "labels": scores[clear].argmax(axis=1)}
