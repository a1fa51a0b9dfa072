from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.ir import DataType, Graph, ModelInfo, TensorType
from onnxq.passes.fusion.fuse_clip import FuseClip
from tests.helpers import run
from tests.passes.rewriting import check_kept, check_pair, operators, rewritten

STEP = FuseClip()
NUMBERS = (
    "float zero = {0}, float three = {3}, float six = {6}, float minus = {-1}, "
    "float[1, 1] flat = {6}, float[3] many = {1, 2, 3}"
)
BIG = np.finfo(np.float32).max


def model(body: str, opset: int = 13, shape: str = "N, 3", constants: str = NUMBERS) -> str:
    return (
        f'<ir_version: 7, opset_import: ["": {opset}]> g (float[{shape}] x) => (float[{shape}] y) '
        f"<{constants}> {{ {body} }}"
    )


RELU6 = "y = Clip(x, zero, six)"
PAIRS = {
    "Max, Min": (model("a = Max(x, zero) y = Min(a, six)"), model(RELU6)),
    "Min, Max": (model("a = Min(six, x) y = Max(zero, a)"), model(RELU6)),
    "Relu, Min": (model("a = Relu(x) y = Min(a, flat)"), model(RELU6)),
    "Relu, Clip": (model("a = Relu(x) y = Clip(a, minus, six)"), model(RELU6)),
    "Clip, Relu": (model("a = Clip(x, minus, six) y = Relu(a)"), model(RELU6)),
    "Clip, Clip": (
        model("a = Clip(x, minus, six) y = Clip(a, zero, three)"),
        model("y = Clip(x, zero, three)"),
    ),
    "bounds that do not meet": (
        model("a = Clip(x, minus, zero) y = Clip(a, three, six)"),
        model("y = Clip(x, three, three)"),
    ),
    "bounds the wrong way round": (
        model("a = Clip(x, six, three) y = Relu(a)"),
        model("y = Clip(x, six, three)"),
    ),
    "Clip without a bound, Relu": (model("a = Clip(x, , six) y = Relu(a)"), model(RELU6)),
    "Relu, Clip without a bound": (
        model("a = Relu(x) y = Clip(a, three)"),
        model("y = Clip(x, three)"),
    ),
    "Clip without a lower bound, twice": (
        model("a = Clip(x, , six) y = Clip(a, , three)"),
        model("y = Clip(x, , three)"),
    ),
    "Relu, Relu": (model("a = Relu(x) y = Relu(a)"), model("y = Relu(x)")),
    "Max with zero": (model("y = Max(x, zero)"), model("y = Relu(x)")),
    "three in a row": (
        model("a = Relu(x) b = Clip(a, minus, six) y = Min(b, three)"),
        model("y = Clip(x, zero, three)"),
    ),
    "as attributes, opset 10": (
        model("a = Relu(x) b = Clip<max = 6.0>(a) y = Min(b, three)", 10),
        model("y = Clip<min = 0.0, max = 3.0>(x)", 10),
    ),
    "as attributes without a lower bound": (
        model("a = Clip<max = 6.0>(x) y = Clip<max = 3.0>(a)", 10),
        model("y = Clip<max = 3.0>(x)", 10),
    ),
}
MADE = {"Max, Min": 2, "three in a row": 2, "as attributes, opset 10": 2}


@pytest.mark.parametrize("case", PAIRS)
def test_pair(case: str) -> None:
    check_pair(STEP, *PAIRS[case], made=MADE.get(case, 1), exact=True)


KEPT = {
    "opset 7": model("a = Relu(x) y = Clip<max = 6.0>(a)", 7),
    "Min alone": model("y = Min(x, six)"),
    "Max with another number": model("y = Max(x, three)"),
    "Relu, Max, which has no upper end": model("a = Relu(x) y = Max(a, three)"),
    "a number for each element": model("a = Relu(x) y = Min(a, many)"),
    "a bound that is computed": model("b = Neg(six) a = Relu(x) y = Clip(a, b)"),
    "a value that is read elsewhere": model("a = Relu(x) b = Min(a, six) y = Add(a, b)"),
    "a constant that adds a dimension": model(
        "a = Max(x, wide) b = Min(a, six) y = Squeeze(b, axes)",
        constants=NUMBERS + ", float[1, 1, 1] wide = {0}, int64[1] axes = {0}",
    ),
    "Max of three": model("y = Max(x, zero, three)"),
    "one Clip": model(RELU6),
    "integers": model("a = Max(x, zero) y = Min(a, six)").replace("float", "int32"),
    "double, opset 10": model("a = Relu(x) y = Clip<max = 6.0>(a)", 10).replace("float", "double"),
}


@pytest.mark.parametrize("case", KEPT)
def test_kept(case: str) -> None:
    check_kept(STEP, KEPT[case])


BOUND = st.sampled_from([-np.inf, -BIG, -2.0, -0.5, 0.0, 0.5, 1.0, 2.0, BIG, np.inf])


@settings(max_examples=150)
@given(
    kinds=st.lists(st.sampled_from(["Relu", "Clip", "Max", "Min"]), min_size=1, max_size=5),
    data=st.data(),
    dtype=st.sampled_from([DataType.FLOAT, DataType.DOUBLE]),
)
def test_any_row_keeps_all_values(kinds: list[str], data: st.DataObject, dtype: DataType) -> None:
    graph = Graph("g", model=ModelInfo(10, {"": 21}))
    value = graph.add_input("x", TensorType(dtype, ("N",)))
    for kind in kinds:
        inputs = [value]
        if kind in ("Max", "Min"):
            inputs.append(graph.constant(np.array(data.draw(BOUND), dtype.numpy)))
        if kind == "Clip":
            for _ in range(data.draw(st.integers(0, 2))):
                inputs.append(graph.constant(np.array(data.draw(BOUND), dtype.numpy)))
        value = graph.add(kind, inputs, types=[TensorType(dtype, ("N",))]).output
    graph.add_output(value)
    after, made = rewritten(STEP, graph)
    assert len(operators(after)) <= len(kinds)
    assert made >= (set(kinds) == {"Relu"} and len(kinds) > 1)
    x = np.array([-np.inf, np.inf, np.nan, -BIG, BIG, -1e30, 1e30, *np.linspace(-3, 3, 13)])
    before, found = (run(g, {"x": x.astype(dtype.numpy)})[value.name] for g in (graph, after))
    # Compared as numbers: the sign of zero is left to chance by the kernels themselves.
    np.testing.assert_array_equal(found, before)
