"""narrow-weights: the same integers in fewer bits, behind a Cast that onnxruntime computes once."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.ir import Context, DataType, Graph, infer_types, to_proto
from onnxq.passes.weights.narrow_weights import NarrowWeights
from onnxq.runtime import optimized_operators
from tests.helpers import assert_equivalent
from tests.passes.rewriting import check_kept, operators, rewritten

STEP = NarrowWeights()
ROWS = 8


def model(numbers: list[int], body: str, opset: int, dtype: str = "int8", more: str = "") -> str:
    held = ", ".join(map(str, numbers))
    return (
        f'<ir_version: 10, opset_import: ["": {opset}]> g (float[N, {ROWS}] x) => (float[N, M] y) '
        f"<{dtype}[{ROWS}, {len(numbers) // ROWS}] w = {{{held}}}, float s = {{0.5}}{more}> "
        f"{{ {body} }}"
    )


def repeated(*pattern: int) -> list[int]:
    return [*pattern] * (64 // len(pattern))


BODY = "d = DequantizeLinear(w, s) y = MatMul(x, d)"


@pytest.mark.parametrize(
    ("pattern", "opset", "dtype", "narrow"),
    [
        ((-8, 7, 0, 1), 21, "int8", "int4"),
        ((-2, 1, 0, 1), 21, "int8", "int4"),
        ((0, 15), 21, "uint8", "uint4"),
        ((-3, 1, 0, 1), 25, "int8", "int4"),
        ((-2, 1, 0, 1), 25, "int8", "int2"),
        ((0, 3), 25, "uint8", "uint2"),
    ],
)
def test_stored(pattern: tuple[int, ...], opset: int, dtype: str, narrow: str) -> None:
    numbers = repeated(*pattern)
    before = Graph.from_text(model(numbers, BODY, opset, dtype))
    # The text form has no constants of fewer bits than a byte.
    after, made = rewritten(STEP, before)
    assert made == 1
    (stored,) = (v for v in after.initializers() if v.shape == (ROWS, 8))
    assert stored.dtype is DataType[narrow.upper()]
    np.testing.assert_array_equal(stored.numpy().astype(int).ravel(), numbers)
    assert operators(after) == ["Cast", "DequantizeLinear", "MatMul"]
    assert_equivalent(before, after, exact=True)


@pytest.mark.parametrize(
    "text",
    [
        model(repeated(-9, 7), BODY, 25),
        model(repeated(-8, 7), BODY, 20),
        model(repeated(-2, 1)[:56], BODY, 25),
        model(repeated(-2, 1), BODY, 21, more=", float t = {1.0}").replace(
            "y = MatMul(x, d)", "f = Cast<to = 1>(w) e = Add(d, f) y = MatMul(x, e)"
        ),
    ],
    ids=["too wide", "old opset", "few numbers", "another reader"],
)
def test_kept(text: str) -> None:
    check_kept(STEP, text)


def test_onnxruntime_computes_the_cast_when_it_loads() -> None:
    graph = Graph.from_text(model(repeated(-8, 7, 3, 1), BODY, 21))
    infer_types(graph)
    STEP.run(graph, Context())
    assert "Cast" not in np.unique(optimized_operators(to_proto(graph)))
