from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.ir import Context, Graph, infer_types
from onnxq.passes.fusion.fuse_layer_norm import FuseLayerNorm
from tests.helpers import assert_equivalent, run
from tests.passes.rewriting import check_kept, check_pair, operators, rewritten

STEP = FuseLayerNorm()
NUMBERS = (
    "float eps = {1e-5}, float two = {2}, float one = {1}, float half = {0.5}, "
    "float less = {-0.5}, int64[1] last = {-1}, int64[2] lasts = {1, 2}, "
    "float[4] s = {1, 2, 3, 4}, float[4] b = {5, 6, 7, 8}, float[1, 1, 4] s3 = {1, 2, 3, 4}, "
    "float[3, 4] t = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}"
)
FUSED = "y = LayerNormalization<axis = -1, epsilon = 1e-5>(x, s, b)"


def model(body: str, opset: int = 17, shape: str = "N, 3, 4", constants: str = NUMBERS) -> str:
    return (
        f'<ir_version: 8, opset_import: ["": {opset}]> g (float[{shape}] x) => (float[{shape}] y) '
        f"<{constants}> {{ {body} }}"
    )


def parts(square: str = "Pow(d, two)", divide: str = "r = Sqrt(e) n = Div(d, r)") -> str:
    return (
        "m = ReduceMean<axes = [-1]>(x) d = Sub(x, m) "
        f"q = {square} v = ReduceMean<axes = [-1]>(q) e = Add(v, eps) {divide} "
    )


TAIL = "g = Mul(n, s) y = Add(g, b)"

PAIRS = {
    "torch, opset 17": (model(parts() + TAIL), model(FUSED)),
    "the square as a product": (model(parts("Mul(d, d)") + TAIL), model(FUSED)),
    "operands the other way round": (
        model(
            "m = ReduceMean<axes = [-1]>(x) d = Sub(x, m) q = Pow(d, two) "
            "v = ReduceMean<axes = [-1]>(q) e = Add(eps, v) r = Sqrt(e) n = Div(d, r) "
            "g = Mul(s, n) y = Add(b, g)"
        ),
        model(FUSED),
    ),
    "Reciprocal": (
        model(parts(divide="r = Sqrt(e) i = Reciprocal(r) n = Mul(d, i)") + TAIL),
        model(FUSED),
    ),
    "one over the root": (
        model(parts(divide="r = Sqrt(e) i = Div(one, r) n = Mul(d, i)") + TAIL),
        model(FUSED),
    ),
    "the root as a power": (
        model(parts(divide="r = Pow(e, half) n = Div(d, r)") + TAIL),
        model(FUSED),
    ),
    "a negative power": (
        model(parts("Mul(d, d)", "r = Pow(e, less) n = Mul(r, d)") + TAIL),
        model(FUSED),
    ),
    "axes as an input, opset 18": (
        model(
            "m = ReduceMean(x, last) d = Sub(x, m) q = Mul(d, d) v = ReduceMean(q, last) "
            "e = Add(v, eps) r = Sqrt(e) n = Div(d, r) " + TAIL,
            18,
        ),
        model(FUSED, 18),
    ),
    "a positive axis": (model((parts() + TAIL).replace("[-1]", "[2]")), model(FUSED)),
    "several axes": (
        model(
            "m = ReduceMean(x, lasts) d = Sub(x, m) q = Mul(d, d) v = ReduceMean(q, lasts) "
            "e = Add(v, eps) r = Sqrt(e) n = Div(d, r) g = Mul(n, t) y = Add(g, t)",
            18,
        ),
        model("y = LayerNormalization<axis = -2, epsilon = 1e-5>(x, t, t)", 18),
    ),
    "a scale alone": (
        model(parts() + "y = Mul(n, s)"),
        model("y = LayerNormalization<axis = -1, epsilon = 1e-5>(x, s)"),
    ),
    "neither scale nor bias": (
        model(parts() + "y = Identity(n)"),
        model(
            "n = LayerNormalization<axis = -1, epsilon = 1e-5>(x, u) y = Identity(n)",
            constants="float[4] u = {1, 1, 1, 1}",
        ),
    ),
    "a scale with dimensions of one before it": (
        model(parts() + "g = Mul(n, s3) y = Add(g, b)"),
        model(FUSED),
    ),
    "a scale of one number stays": (
        model(parts() + "y = Mul(n, two)"),
        model(
            "n = LayerNormalization<axis = -1, epsilon = 1e-5>(x, u) y = Mul(n, two)",
            constants="float[4] u = {1, 1, 1, 1}, float two = {2}",
        ),
    ),
    "a bias without a scale stays": (
        model(parts() + "y = Add(n, b)"),
        model(
            "n = LayerNormalization<axis = -1, epsilon = 1e-5>(x, u) y = Add(n, b)",
            constants="float[4] u = {1, 1, 1, 1}, float[4] b = {5, 6, 7, 8}",
        ),
    ),
}


@pytest.mark.parametrize("case", PAIRS)
def test_pair(case: str) -> None:
    check_pair(STEP, *PAIRS[case])


KEPT = {
    "opset 16": model(parts() + TAIL, 16),
    "another axis": model((parts() + "y = Identity(n)").replace("[-1]", "[1]")),
    "a gap between the axes": model((parts() + "y = Identity(n)").replace("[-1]", "[0, 2]")),
    "two means over different axes": model(
        parts().replace("v = ReduceMean<axes = [-1]>", "v = ReduceMean<axes = [1, 2]>")
        + "y = Identity(n)"
    ),
    "a mean that drops its axis": model(
        parts().replace("v = ReduceMean<axes = [-1]>", "v = ReduceMean<axes = [0], keepdims = 0>")
        + "y = Identity(n)"
    ),
    "a mean over all": model(
        parts().replace("v = ReduceMean<axes = [-1]>", "v = ReduceMean") + "y = Identity(n)"
    ),
    "another power": model(parts("Pow(d, one)") + TAIL),
    "another root": model(parts(divide="r = Pow(e, one) n = Div(d, r)") + TAIL),
    "a negative epsilon": model(parts() + TAIL, constants=NUMBERS.replace("1e-5", "-1e-5")),
    "an epsilon that adds dimensions": model(
        parts() + "y = Reshape(n, shape)",
        constants=NUMBERS.replace("float eps =", "float[1, 1, 1, 1] eps =")
        + ", int64[3] shape = {-1, 3, 4}",
    ),
    "a size that is not known": model(parts() + TAIL, shape="N, 3, M"),
    "the mean of something else": model(
        "z = Neg(x) m = ReduceMean<axes = [-1]>(z) d = Sub(x, m) q = Mul(d, d) "
        "v = ReduceMean<axes = [-1]>(q) e = Add(v, eps) r = Sqrt(e) n = Div(d, r) " + TAIL
    ),
    "a variance that is read elsewhere": model(parts() + "g = Mul(n, s) y = Add(g, v)"),
}


@pytest.mark.parametrize("case", KEPT)
def test_kept(case: str) -> None:
    check_kept(STEP, KEPT[case])


def test_other_types_stay() -> None:
    check_kept(STEP, model(parts() + TAIL).replace("float", "double"))


def test_old_opset_is_told_of() -> None:
    graph = Graph.from_text(model(parts() + TAIL, 16))
    lines: list[str] = []
    infer_types(graph)
    assert STEP.run(graph, Context(2, lines.append)) == 0
    assert len(lines) == 1 and "'y'" in lines[0] and "opset 17" in lines[0]


def test_in_a_subgraph_that_reads_outer_values() -> None:
    before = Graph.from_text(
        '<ir_version: 8, opset_import: ["": 17]> '
        f"g (bool c, float[2, 3, 4] x) => (float[2, 3, 4] o) <{NUMBERS}> "
        f"{{ o = If(c) <then_branch = yes () => (float[2, 3, 4] y) {{ {parts()} {TAIL} }}, "
        "else_branch = no () => (float[2, 3, 4] z) { z = Neg(x) }> }"
    )
    after, made = rewritten(STEP, before)
    assert made == 1
    assert operators(after) == ["If", "LayerNormalization", "Neg"]
    feeds = {"c": np.array(True), "x": np.arange(24, dtype=np.float32).reshape(2, 3, 4) ** 1.5}
    assert_equivalent(before, after, exact=False, feeds=feeds)


@settings(max_examples=25)
@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    last=st.integers(1, 4),
    scale=st.floats(1e-3, 1e3),
    seed=st.integers(0, 99),
)
def test_any_shape_against_numpy(shape: list[int], last: int, scale: float, seed: int) -> None:
    last = min(last, len(shape))
    axes = ", ".join(str(a) for a in range(-last, 0))
    sizes = ", ".join(map(str, shape))
    body = (parts("Mul(d, d)") + "y = Identity(n)").replace("[-1]", f"[{axes}]")
    after, made = rewritten(STEP, Graph.from_text(model(body, shape=sizes)))
    assert made == 1
    x = (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)
    wide = x.astype(np.float64)
    over = tuple(range(-last, 0))
    centred = wide - wide.mean(over, keepdims=True)
    wanted = centred / np.sqrt((centred**2).mean(over, keepdims=True) + 1e-5)
    np.testing.assert_allclose(run(after, {"x": x})["y"], wanted, rtol=0, atol=2e-5)
