from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from onnxq.ir import Graph, Pipeline
from onnxq.passes.cleanup.eliminate_common_subexpressions import EliminateCommonSubexpressions
from onnxq.passes.fusion.fuse_softmax import FuseSoftmax
from tests.helpers import run
from tests.passes.rewriting import check_kept, check_pair, operators, rewritten

STEP = FuseSoftmax()
NUMBERS = "int64[1] axes = {-1}, int64[1] middle = {1}, int64[2] two = {1, 2}, float one = {1}"
MAXIMUM = "m = ReduceMax<axes = [-1]>(x) d = Sub(x, m) "


def model(body: str, opset: int = 13, shape: str = "N, 3, 4", dtype: str = "float") -> str:
    return (
        f'<ir_version: 8, opset_import: ["": {opset}]> g ({dtype}[{shape}] x) => '
        f"({dtype}[{shape}] y) <{NUMBERS}> {{ {body} }}"
    )


SOFTMAX = "y = Softmax<axis = -1>(x)"
LOG_SOFTMAX = "y = LogSoftmax<axis = -1>(x)"
PAIRS = {
    "plain": (model("e = Exp(x) s = ReduceSum(e, axes) y = Div(e, s)"), model(SOFTMAX)),
    "by the reciprocal": (
        model("e = Exp(x) s = ReduceSum(e, axes) i = Reciprocal(s) y = Mul(i, e)"),
        model(SOFTMAX),
    ),
    "less the maximum": (
        model(MAXIMUM + "e = Exp(d) s = ReduceSum(e, axes) y = Div(e, s)"),
        model(SOFTMAX),
    ),
    "less the maximum, by the reciprocal": (
        model(MAXIMUM + "e = Exp(d) s = ReduceSum(e, axes) i = Reciprocal(s) y = Mul(e, i)"),
        model(SOFTMAX),
    ),
    "opset 18": (
        model(
            "m = ReduceMax(x, axes) d = Sub(x, m) e = Exp(d) s = ReduceSum(e, axes) y = Div(e, s)",
            18,
        ),
        model(SOFTMAX, 18),
    ),
    "another axis": (
        model("e = Exp(x) s = ReduceSum(e, middle) y = Div(e, s)"),
        model("y = Softmax<axis = -2>(x)"),
    ),
    "less the maximum over another axis": (
        model(
            "m = ReduceMax<axes = [1]>(x) d = Sub(x, m) e = Exp(d) s = ReduceSum(e, axes) "
            "y = Div(e, s)"
        ),
        model("m = ReduceMax<axes = [1]>(x) d = Sub(x, m) y = Softmax<axis = -1>(d)"),
    ),
    "double": (
        model("e = Exp(x) s = ReduceSum(e, axes) y = Div(e, s)", dtype="double"),
        model(SOFTMAX, dtype="double"),
    ),
    "the logarithm": (model("p = Softmax<axis = -1>(x) y = Log(p)"), model(LOG_SOFTMAX)),
    "the logarithm, along the default axis of old": (
        model("p = Softmax(x) y = Log(p)", 12),
        model("y = LogSoftmax(x)", 12),
    ),
    "the logarithm of the parts": (
        model("e = Exp(x) s = ReduceSum(e, axes) p = Div(e, s) y = Log(p)"),
        model(LOG_SOFTMAX),
    ),
    "less the logarithm of the sum": (
        model("e = Exp(x) s = ReduceSum(e, axes) l = Log(s) y = Sub(x, l)"),
        model(LOG_SOFTMAX),
    ),
    "less the maximum and the logarithm of the sum": (
        model(MAXIMUM + "e = Exp(d) s = ReduceSum(e, axes) l = Log(s) y = Sub(d, l)"),
        model(LOG_SOFTMAX),
    ),
    "less the sum of maximum and logarithm": (
        model(MAXIMUM + "e = Exp(d) s = ReduceSum(e, axes) l = Log(s) k = Add(l, m) y = Sub(x, k)"),
        model(LOG_SOFTMAX),
    ),
    "less the logarithm of the sum of exponentials": (
        model("l = ReduceLogSumExp<axes = [2]>(x) y = Sub(x, l)"),
        model(LOG_SOFTMAX),
    ),
    "the same, less the maximum": (
        model(MAXIMUM + "l = ReduceLogSumExp<axes = [-1]>(d) y = Sub(d, l)"),
        model(LOG_SOFTMAX),
    ),
}


@pytest.mark.parametrize("case", PAIRS)
def test_pair(case: str) -> None:
    made = 2 if case == "the logarithm of the parts" else 1
    check_pair(STEP, *PAIRS[case], made=made)


KEPT = {
    "opset 12": model("e = Exp(x) s = ReduceSum<axes = [-1]>(e) y = Div(e, s)", 12),
    "two axes": model("e = Exp(x) s = ReduceSum(e, two) y = Div(e, s)"),
    "no axes": model("e = Exp(x) s = ReduceSum(e) y = Div(e, s)"),
    "an axis that is dropped": model(
        "e = Exp(x) s = ReduceSum<keepdims = 0>(e, axes) u = Unsqueeze(s, axes) y = Div(e, u)"
    ),
    "the sum over the exponential": model("e = Exp(x) s = ReduceSum(e, axes) y = Div(s, e)"),
    "the sum of something else": model("e = Exp(x) s = ReduceSum(x, axes) y = Div(e, s)"),
    "a sum that is read elsewhere": model(
        "e = Exp(x) s = ReduceSum(e, axes) p = Div(e, s) y = Add(p, s)"
    ),
    "the logarithm of what else is read": model(
        "p = Softmax<axis = -1>(x) l = Log(p) y = Mul(p, l)"
    ),
    "two maxima over different axes": model(
        "m = ReduceMax<axes = [-1]>(x) d = Sub(x, m) e = Exp(d) n = ReduceMax<axes = [1]>(x) "
        "c = Sub(x, n) f = Exp(c) s = ReduceSum(f, axes) y = Div(e, s)"
    ),
    "less the maximum of another axis": model(
        "m = ReduceMax<axes = [1]>(x) d = Sub(x, m) e = Exp(d) s = ReduceSum(e, axes) l = Log(s) "
        "k = Add(l, m) y = Sub(x, k)"
    ),
}


@pytest.mark.parametrize("case", KEPT)
def test_kept(case: str) -> None:
    check_kept(STEP, KEPT[case])


def test_what_is_computed_twice_is_merged_first() -> None:
    body = "e = Exp(x) f = Exp(x) s = ReduceSum(f, axes) y = Div(e, s)"
    graph = Graph.from_text(model(body))
    Pipeline((EliminateCommonSubexpressions(), STEP)).run(graph)
    assert operators(graph) == ["Softmax"]


@pytest.mark.parametrize("case", ["plain", "less the logarithm of the sum"])
def test_large_numbers_are_safe_in_the_fused_form(case: str) -> None:
    before = Graph.from_text(PAIRS[case][0])
    after, _ = rewritten(STEP, before)
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32) * 1000
    assert not np.isfinite(run(before, {"x": x})["y"]).all()
    wanted = (softmax if case == "plain" else log_softmax)(x.astype(np.float64), -1)
    np.testing.assert_allclose(run(after, {"x": x})["y"], wanted, rtol=1e-6, atol=1e-30)
