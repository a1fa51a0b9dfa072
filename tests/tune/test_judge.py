"""The error that is judged by, against the outputs themselves."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.ir import DataType, Graph, ModelInfo, TensorType, infer_types
from onnxq.precision import parse_precision
from onnxq.quant import dequantize, fake_quantize, weight_qparams
from onnxq.targets import load_target
from onnxq.tune import Layer
from onnxq.tune.judge import Errors
from onnxq.tune.weight_matrix import matrix_of

RNG = np.random.default_rng(0)
X = RNG.normal(size=(200, 64)).astype(np.float32)
WEIGHT = RNG.normal(size=(64, 12)).astype(np.float32)


def layer(text: str, turned: bool) -> Layer:
    graph = Graph("g", model=ModelInfo(13, {"": 25}))
    x = graph.add_input("x", TensorType(DataType.FLOAT, ("N", 64)))
    weight = graph.constant(np.ascontiguousarray(WEIGHT.T) if turned else WEIGHT, "w")
    node = graph.add("Gemm" if turned else "MatMul", [x, weight], {"transB": 1} if turned else {})
    graph.rename_node(node, "product")
    graph.add_output(node.output)
    infer_types(graph)
    return Layer(node, parse_precision(text), load_target("cpu-x64"))


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("text", ["int4-weight{block_size=16}", "int2-weight{block_size=0}"])
def test_it_is_the_relative_error_of_what_the_product_gives(text: str, turned: bool) -> None:
    matrix = matrix_of(layer(text, turned))
    read = X + RNG.normal(size=X.shape).astype(np.float32) / 10
    same, ours = ((x.astype(np.float64).T @ x)[np.newaxis] for x in (X, read))
    cross = (read.astype(np.float64).T @ X)[np.newaxis]
    numbers, granularity = matrix.numbers(), matrix.layout.own_granularity
    rounding = matrix.rounding
    qparams = weight_qparams(numbers, rounding.format, rounding.scheme, granularity)

    def wanted(x: np.ndarray, found: np.ndarray) -> float:
        (whole,), (made,) = (matrix.matrices(n).astype(np.float64) for n in (numbers, found))
        lost = X @ whole - x @ made
        return float(np.square(lost).sum() / np.square(X @ whole).sum())

    plain = fake_quantize(numbers, qparams)
    errors = [(X, Errors(matrix, same, same)), (read, Errors(matrix, ours, same, cross))]
    for x, judged in errors:
        assert judged.of({}) == pytest.approx(wanted(x, plain), rel=1e-5)
    values = RNG.integers(0, 4, numbers.shape).astype(rounding.format.storage)
    tensors = {"scale": qparams.scale, "zero_point": qparams.zero_point, "values": values}
    odd = dequantize(values, qparams)
    for x, judged in errors:
        assert judged.of(tensors) == pytest.approx(wanted(x, odd), rel=1e-5)


def test_nothing_is_lost_of_nothing() -> None:
    matrix = matrix_of(layer("int4-weight", False))
    assert Errors(matrix, *(np.zeros((1, 64, 64)),) * 2).of({}) == 0
