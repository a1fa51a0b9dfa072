from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.ir import Graph, Pipeline
from onnxq.passes.fusion.fuse_layer_norm import FuseLayerNorm
from onnxq.passes.fusion.fuse_rms_norm import FuseRmsNorm
from tests.helpers import run
from tests.passes.rewriting import check_kept, check_pair, operators, rewritten

STEP = FuseRmsNorm()
NUMBERS = (
    "float eps = {1e-6}, float two = {2}, float one = {1}, float less = {-0.5}, "
    "int64[1] last = {-1}, int64[2] lasts = {-2, -1}, int64[1] middle = {1}, "
    "float[4] s = {1, 2, 3, 4}, float[1, 4] s2 = {1, 2, 3, 4}"
)
FUSED = "y = RMSNormalization<axis = -1, epsilon = 1e-6>(x, s)"


def model(body: str, opset: int = 23, shape: str = "N, 3, 4", constants: str = NUMBERS) -> str:
    return (
        f'<ir_version: 10, opset_import: ["": {opset}]> g (float[{shape}] x) => '
        f"(float[{shape}] y) <{constants}> {{ {body} }}"
    )


def parts(square: str = "Pow(x, two)", divide: str = "r = Sqrt(e) n = Div(x, r)") -> str:
    return f"q = {square} v = ReduceMean(q, last) e = Add(v, eps) {divide} "


PAIRS = {
    "Pow and Div": (model(parts() + "y = Mul(n, s)"), model(FUSED)),
    "Mul and Reciprocal": (
        model(parts("Mul(x, x)", "r = Sqrt(e) i = Reciprocal(r) n = Mul(x, i)") + "y = Mul(s, n)"),
        model(FUSED),
    ),
    "torch's rsqrt": (
        model(parts(divide="r = Sqrt(e) i = Div(one, r) n = Mul(x, i)") + "y = Mul(s, n)"),
        model(FUSED),
    ),
    "a negative power": (
        model(parts(divide="r = Pow(e, less) n = Mul(x, r)") + "y = Mul(s2, n)"),
        model(FUSED),
    ),
    "several axes, no scale": (
        model((parts() + "y = Identity(n)").replace("last", "lasts")),
        model(
            "n = RMSNormalization<axis = -2, epsilon = 1e-6>(x, u) y = Identity(n)",
            constants="float[3, 4] u = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}",
        ),
    ),
    "a scale of one number stays": (
        model(parts() + "y = Mul(n, two)"),
        model(
            "n = RMSNormalization<axis = -1, epsilon = 1e-6>(x, u) y = Mul(n, two)",
            constants="float[4] u = {1, 1, 1, 1}, float two = {2}",
        ),
    ),
}


@pytest.mark.parametrize("case", PAIRS)
def test_pair(case: str) -> None:
    check_pair(STEP, *PAIRS[case])


KEPT = {
    "opset 22": model(parts() + "y = Mul(n, s)", 22),
    "another axis": model((parts() + "y = Mul(n, s)").replace("last", "middle")),
    "a size that is not known": model(parts() + "y = Mul(n, s)", shape="N, 3, M"),
    "the root of something else": model(
        "z = Neg(x) " + parts("Pow(z, two)") + "y = Mul(n, s)", shape="N, 3, 4"
    ),
    "a root that is read elsewhere": model(parts() + "y = Mul(n, r)"),
    "double": model(parts() + "y = Mul(n, s)").replace("float", "double"),
    "a layer normalization": model(
        "m = ReduceMean(x, last) d = Sub(x, m) q = Mul(d, d) v = ReduceMean(q, last) "
        "e = Add(v, eps) r = Sqrt(e) n = Div(d, r) y = Mul(n, s)"
    ),
}


@pytest.mark.parametrize("case", KEPT)
def test_kept(case: str) -> None:
    check_kept(STEP, KEPT[case])


def test_with_the_mean_taken_off_it_is_a_layer_normalization_in_any_order() -> None:
    for steps in ((FuseLayerNorm(), STEP), (STEP, FuseLayerNorm())):
        graph = Graph.from_text(KEPT["a layer normalization"])
        Pipeline(steps).run(graph)
        assert operators(graph) == ["LayerNormalization"]


@settings(max_examples=25)
@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    last=st.integers(1, 4),
    scale=st.floats(1e-2, 1e3),
    seed=st.integers(0, 99),
)
def test_any_shape_against_numpy(shape: list[int], last: int, scale: float, seed: int) -> None:
    last = min(last, len(shape))
    axes = ", ".join(str(a) for a in range(-last, 0))
    body = (parts() + "y = Identity(n)").replace("last", "over")
    constants = f"{NUMBERS}, int64[{last}] over = {{{axes}}}"
    text = model(body, shape=", ".join(map(str, shape)), constants=constants)
    after, made = rewritten(STEP, Graph.from_text(text))
    assert made == 1
    x = (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)
    wide = x.astype(np.float64)
    wanted = wide / np.sqrt((wide**2).mean(tuple(range(-last, 0)), keepdims=True) + 1e-6)
    np.testing.assert_allclose(run(after, {"x": x})["y"], wanted, rtol=0, atol=1e-5)
