"""Scales of the least squared error, against scales tried one by one in float64."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.ir import Node, raise_opset
from onnxq.observe import Observations
from onnxq.precision import parse_precision
from onnxq.targets import load_target
from onnxq.tune import Layer
from onnxq.tune.mse import Mse
from tests.networks import products

GRAPH = raise_opset(products(), 25)
GEMM = next(node for node in GRAPH.nodes() if node.name == "gemm")
WEIGHT = GRAPH.values["w1"].numpy().astype(np.float64)


def _layer(node: Node, text: str) -> Layer:
    return Layer(node, parse_precision(text), load_target("cpu-x64"))


def error(blocks: np.ndarray, scale: np.ndarray, low: int, high: int) -> np.ndarray:
    """Squared error of every block, one a row, rounded with its scale."""
    codes = np.clip(np.rint(blocks / scale[:, None]), low, high)
    return np.square(blocks - codes * scale[:, None]).sum(axis=1)


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [("int2-weight", -2, 1), ("int4-weight{scheme=absmax}", -8, 7), ("int3-weight", -4, 3)],
)
def test_no_scale_tried_is_much_better(text: str, low: int, high: int) -> None:
    found = Mse().tune(_layer(GEMM, text), Observations())
    scale = found["scale"].astype(np.float64)
    size = WEIGHT.shape[0] // scale.shape[0]
    blocks = WEIGHT.reshape(-1, size, WEIGHT.shape[1]).transpose(0, 2, 1).reshape(-1, size)
    ours = error(blocks, scale.reshape(-1), low, high)
    largest = np.abs(blocks).max(axis=1)
    tried = np.stack(
        [error(blocks, largest * share, low, high) for share in np.linspace(0.02, 1.2, 400)]
    )
    assert (ours <= tried.min(axis=0) * 1.05 + 1e-12).mean() > 0.95
    assert ours.sum() <= tried.min(axis=0).sum() * 1.01
    assert ours.sum() < error(blocks, largest / high, low, high).sum() * 0.98


def test_it_is_for_weights_that_are_rounded() -> None:
    for text in ("int2-weight", "int8", "int8-dynamic"):
        assert not Mse().refusal(_layer(GEMM, text))
    relu = next(node for node in GRAPH.nodes() if node.name == "relu")
    for node, text in ((relu, "int2-weight"), (GEMM, "ternary"), (GEMM, "float16")):
        assert Mse().refusal(_layer(node, text)) == "it is for weights that are rounded"
