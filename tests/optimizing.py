"""What tests of whole runs share: a small network, samples, and quick timing."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from onnxq.ir import DataType, Graph, ModelInfo, TensorType, save, to_proto
from onnxq.optimization import optimize as optimize_by_recipe
from onnxq.recipe import Recipe
from onnxq.runtime import (
    Backend,
    Session,
    interleaved,
)

optimize = partial(optimize_by_recipe, recipe="int8")
"""These tests are about static integers; those of the search are in test_search.py."""

FAST = {"min_speedup": 0.0}
"""So small a network may be slower in integers, which is not what these tests are about."""


def network(batch: int | str = "N", seed: int = 0) -> Graph:
    """Conv, BatchNormalization, Relu, a residual, pooling and a Gemm: 4 classes of 3x8x8."""
    rng = np.random.default_rng(seed)

    def constant(*shape: int, scale: float = 1.0) -> object:
        return graph.constant((rng.standard_normal(shape) * scale).astype(np.float32), "c")

    graph = Graph("net", model=ModelInfo(8, {"": 17}))
    x = graph.add_input("x", TensorType(DataType.FLOAT, (batch, 3, 8, 8)))
    pads = {"pads": [1, 1, 1, 1]}
    c = graph.add("Conv", [x, constant(16, 3, 3, 3, scale=0.3)], pads, name="stem").output
    ones = graph.constant(np.ones(16, np.float32), "ones")
    norm = [c, ones, constant(16), constant(16), ones]
    b = graph.add("BatchNormalization", norm, name="norm").output
    r = graph.add("Relu", [b], name="relu").output
    d = graph.add("Conv", [r, constant(16, 16, 3, 3, scale=0.1)], pads, name="inner").output
    a = graph.add("Add", [r, d], name="residual").output
    p = graph.add("GlobalAveragePool", [a], name="pool").output
    f = graph.add("Flatten", [p], name="flat").output
    y = graph.add("Gemm", [f, constant(16, 4), constant(4)], name="head").output
    y.type = TensorType(DataType.FLOAT, (batch, 4))
    graph.add_output(y)
    graph.rename(y, "y")
    return graph


def samples(count: int = 48, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module", autouse=True)
def short_timing() -> Iterator[None]:
    """Latency is measured in three rounds, not for seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Backend, "time", staticmethod(partial(interleaved, rounds=3)))
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    save(network(), path)
    return path


@pytest.fixture(scope="module")
def data(model: Path) -> dict[str, np.ndarray]:
    """Samples with the float model's own answers for labels, and a split."""
    x = samples()
    labels = Session(model).run({"x": x})["y"].argmax(axis=1)
    return {"x": x, "labels": labels, "split": np.arange(48) % 2}


def kept(*names: str) -> Recipe:
    """All int8 but some nodes."""
    return Recipe(precision="int8", keep_float=names)


def listed(weights: str) -> dict[str, object]:
    graph = Graph.from_text(f"""<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 2] x, {weights}
        {{ h = MatMul(x, w)  k = Gather(v, j)  y = Add(h, k) }}""")
    return {"model": to_proto(graph), "data": {"x": np.ones((8, 2), np.float32)}}
