"""Quantization in torch: the integers of onnxruntime, and the gradients of LSQ's paper."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason='needs torch: pip install "onnxq[train]"')

from onnxq.ir import Graph, infer_types
from onnxq.tune.train.executor import Executor
from onnxq.tune.train.straight_through import round_through
from tests.helpers import assert_same_outputs, run


def pair(dtype: str, scale: str, zero_point: str, opset: int = 21, attributes: str = "") -> Graph:
    graph = Graph.from_text(
        f"""<ir_version: 10, opset_import: ["": {opset}]>
        g (float[4, 6] x) => (float[4, 6] y)
        <{scale}, {zero_point}> {{
            q = QuantizeLinear{attributes}(x, s, z)
            y = DequantizeLinear{attributes}(q, s, z)
        }}"""
    )
    infer_types(graph)
    return graph


PAIRS = {
    "int8": pair("int8", "float s = {0.05}", "int8 z = {3}"),
    "uint8": pair("uint8", "float s = {0.05}", "uint8 z = {131}"),
    "uint16": pair("uint16", "float s = {0.0002}", "uint16 z = {30001}"),
    "int4": pair("int4", "float s = {0.3}", "int4 z = {0}"),
    "uint4": pair("uint4", "float s = {0.3}", "uint4 z = {7}"),
    "by channel": pair(
        "int8", "float[4] s = {0.05, 0.1, 0.02, 0.01}", "int8[4] z = {0, 1, -2, 5}", 21, "<axis=0>"
    ),
    "by block": pair(
        "int8",
        "float[4, 2] s = {0.03, 0.02, 0.01, 0.04, 0.05, 0.06, 0.07, 0.005}",
        "int8[4, 2] z = {0, 1, -1, 2, 0, 0, 3, 0}",
        21,
        "<axis=1, block_size=3>",
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_gives_what_onnxruntime_gives(name: str) -> None:
    graph = PAIRS[name]
    x = np.random.default_rng(0).normal(0, 4, (4, 6)).astype(np.float32)
    x[0, :4] = [0.0, 0.15, -0.45, 0.025]
    feeds = {"x": x}
    assert_same_outputs(run(graph, feeds), Executor(graph).evaluate(feeds))


@pytest.mark.parametrize("folds_pairs", [False, True])
def test_gradients_are_those_of_lsq(folds_pairs: bool) -> None:
    """Equations 3 and 5 of Esser et al., 2020, where Q_N = 8 and Q_P = 7."""
    graph = PAIRS["int4"]
    executor = Executor(graph, trainable=lambda value: True, folds_pairs=folds_pairs).double()
    v = np.random.default_rng(1).normal(0, 3, (4, 6))
    fed = torch.tensor(v, requires_grad=True)
    weight = np.random.default_rng(2).normal(size=(4, 6))
    (executor({"x": fed})["y"] * torch.tensor(weight)).sum().backward()
    step = float(np.float32(0.3))
    ratio = v / step
    inside = (ratio > -8) & (ratio < 7)
    assert 0 < inside.sum() < inside.size
    of_step = np.where(inside, np.round(ratio) - ratio, np.where(ratio <= -8, -8, 7))
    np.testing.assert_allclose(fed.grad.numpy(), np.where(inside, weight, 0), 1e-12)
    np.testing.assert_allclose(executor.constant("s").grad.item(), (of_step * weight).sum(), 1e-12)


def test_gradients_of_the_scale_meet_those_of_blocks() -> None:
    """The same by block: each scale's gradient is the sum over what shares it."""
    graph = PAIRS["by block"]
    executor = Executor(graph, trainable=lambda value: value.name == "s").double()
    v = np.random.default_rng(1).normal(0, 1.6, (4, 6))
    executor({"x": torch.tensor(v)})["y"].sum().backward()
    scale = executor.constant("s")
    zero = np.repeat([[0, 1], [-1, 2], [0, 0], [3, 0]], 3, axis=1)
    ratio = v / np.repeat(scale.detach().numpy(), 3, axis=1)
    low, high = -128 - zero, 127 - zero
    assert 0 < (ratio > high).sum() < ratio.size
    inside = (ratio > low) & (ratio < high)
    each = np.where(inside, np.round(ratio) - ratio, np.where(ratio <= low, low, high))
    np.testing.assert_allclose(scale.grad.numpy(), each.reshape(4, 2, 3).sum(-1), rtol=1e-10)


def test_rounding_passes_gradients_as_they_are() -> None:
    x = torch.tensor([0.5, 1.5, -0.4], requires_grad=True)
    y = round_through(x)
    (y * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert y.tolist() == [0, 2, 0]
    assert x.grad.tolist() == [1, 2, 3]


def test_dynamic_quantization_passes_gradients() -> None:
    graph = Graph.from_text(
        """<ir_version: 10, opset_import: ["": 21]>
        g (float[N] x) => (float[N] y) {
            q, s, z = DynamicQuantizeLinear(x)
            y = DequantizeLinear(q, s, z)
        }"""
    )
    infer_types(graph)
    x = np.array([-1.0, 0.25, 3.0, 0.5], np.float32)
    executor = Executor(graph)
    assert_same_outputs(run(graph, {"x": x}), executor.evaluate({"x": x}))
    fed = torch.tensor(x, requires_grad=True)
    executor({"x": fed})["y"][1:2].sum().backward()
    assert fed.grad[1] == 1


def test_products_of_integers_are_those_of_onnxruntime() -> None:
    graph = Graph.from_text(
        """<ir_version: 10, opset_import: ["": 21]>
        g (float[5, 900] x, int8[900, 3] w, int8 w_zero) => (int32[5, 3] sums, float[5, 3] y) {
            q, s, z = DynamicQuantizeLinear(x)
            sums = MatMulInteger(q, w, z, w_zero)
            floats = Cast<to=1>(sums)
            y = Mul(floats, s)
        }"""
    )
    infer_types(graph)
    generator = np.random.default_rng(0)
    feeds = {
        "x": generator.normal(size=(5, 900)).astype(np.float32),
        "w": generator.integers(-128, 128, (900, 3)).astype(np.int8),
        "w_zero": np.array(0, np.int8),
    }
    found = Executor(graph).evaluate(feeds)
    assert_same_outputs(run(graph, feeds), found, exact=False, rtol=1e-6)
    assert found["sums"].dtype == np.int32
