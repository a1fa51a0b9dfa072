from __future__ import annotations

import pytest

from onnxq.ir import Graph, to_proto
from onnxq.passes.fusion.residual_as_sum import ResidualAsSum
from onnxq.runtime.operators import optimized_operators
from tests.passes.rewriting import check_kept, check_pair, rewritten

STEP = ResidualAsSum()


def model(body: str, opset: int = 17, dtype: str = "float", more: str = "") -> str:
    return (
        f'<ir_version: 8, opset_import: ["": {opset}]> '
        f"g ({dtype}[N, 3, 4] x, {dtype}[N, 3, 4] z) => ({dtype}[N, 3, 4] y{more}) "
        f"<{dtype}[4] s = {{1, 2, 3, 4}}, {dtype} eps = {{1e-5}}, {dtype} two = {{2}}> {{ {body} }}"
    )


PARTS = (
    "m = ReduceMean<axes = [-1]>(t) d = Sub(t, m) q = Pow(d, two) v = ReduceMean<axes = [-1]>(q) "
    "e = Add(v, eps) r = Sqrt(e) n = Div(d, r) g = Mul(n, s) y = Add(g, s)"
)
PAIRS = {
    "before LayerNormalization": (
        model("t = Add(x, z) y = LayerNormalization(t, s)"),
        model("t = Sum(x, z) y = LayerNormalization(t, s)"),
    ),
    "before its parts": (
        model("t = Add(x, z) " + PARTS, 11),
        model("t = Sum(x, z) " + PARTS, 11),
    ),
    "twice": (
        model(
            "t = Add(x, z) n = LayerNormalization(t, s) u = Add(n, z) y = LayerNormalization(u, s)"
        ),
        model(
            "t = Sum(x, z) n = LayerNormalization(t, s) u = Sum(n, z) y = LayerNormalization(u, s)"
        ),
    ),
}


@pytest.mark.parametrize("case", PAIRS)
def test_pair(case: str) -> None:
    check_pair(STEP, *PAIRS[case], made=2 if case == "twice" else 1, exact=True)


@pytest.mark.parametrize("case", PAIRS)
def test_onnxruntime_does_not_fuse_the_sum(case: str) -> None:
    before = Graph.from_text(PAIRS[case][0])
    after, _ = rewritten(STEP, before)
    skip = "com.microsoft:SkipLayerNormalization"
    assert optimized_operators(to_proto(before))[skip] > 0
    counts = optimized_operators(to_proto(after))
    assert counts[skip] == 0
    assert counts["LayerNormalization"] == counts["Sum"] > 0


KEPT = {
    "opset 7": model("t = Add(x, z) " + PARTS, 7),
    "no normalization": model("t = Add(x, z) y = Relu(t)"),
    "a constant": model("t = Add(x, s) y = LayerNormalization(t, s)"),
    "a sum that is read elsewhere": model(
        "t = Add(x, z) n = LayerNormalization(t, s) y = Add(n, t)"
    ),
    "a sum that is an output": model(
        "t = Add(x, z) y = LayerNormalization(t, s)", more=", float[N, 3, 4] t"
    ),
    "a sum that is the scale": model(
        "t = Add(x, z) a = ReduceMean<axes = [0], keepdims = 0>(x) y = LayerNormalization(z, a, a)"
    ),
    "before RMSNormalization": model("t = Add(x, z) y = RMSNormalization(t, s)", 23),
    "another mean": model(
        "t = Add(x, z) m = ReduceMean<axes = [-1]>(t) d = Sub(m, t) y = Mul(d, s)", 11
    ),
    "double": model("t = Add(x, z) y = LayerNormalization(t, s)", dtype="double"),
}


@pytest.mark.parametrize("case", KEPT)
def test_kept(case: str) -> None:
    check_kept(STEP, KEPT[case])
