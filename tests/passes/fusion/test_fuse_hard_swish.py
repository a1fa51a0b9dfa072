from __future__ import annotations

import numpy as np
import pytest

from onnxq.ir import Graph, Pipeline
from onnxq.passes.fusion.fuse_clip import FuseClip
from onnxq.passes.fusion.fuse_hard_swish import FuseHardSwish
from tests.helpers import run
from tests.passes.rewriting import check_kept, check_pair, operators, rewritten

STEP = FuseHardSwish()
NUMBERS = (
    "float three = {3}, float zero = {0}, float six = {6}, float sixth = {0.16666667}, "
    "float half = {0.5}, float one = {1}, float fifth = {0.2}, float two = {2}"
)
SIGMOID = "HardSigmoid<alpha = 0.16666667, beta = 0.5>(x)"
LINE = "a = Add(x, three) c = Clip(a, zero, six) "


def model(body: str, opset: int = 14, constants: str = NUMBERS, shape: str = "N, 3") -> str:
    return (
        f'<ir_version: 7, opset_import: ["": {opset}]> g (float[{shape}] x) => (float[{shape}] y) '
        f"<{constants}> {{ {body} }}"
    )


PAIRS = {
    "a clipped line over six": (model(LINE + "y = Div(c, six)"), model(f"y = {SIGMOID}")),
    "a clipped line times a sixth": (
        model("a = Add(three, x) c = Clip(a, zero, six) y = Mul(sixth, c)"),
        model(f"y = {SIGMOID}"),
    ),
    "bounds as attributes": (
        model("a = Add(x, three) c = Clip<min = 0.0, max = 6.0>(a) y = Div(c, six)", 10),
        model(f"y = {SIGMOID}", 10),
    ),
    "another shift and bound": (
        model("a = Add(x, one) c = Clip(a, zero, two) y = Div(c, two)"),
        model("y = HardSigmoid<alpha = 0.5, beta = 0.5>(x)"),
    ),
    "slope and shift, as Keras writes it": (
        model("m = Mul(x, fifth) a = Add(m, half) y = Clip(a, zero, one)"),
        model("y = HardSigmoid<alpha = 0.2, beta = 0.5>(x)"),
    ),
    "times x": (model(LINE + "d = Div(c, six) y = Mul(x, d)"), model("y = HardSwish(x)")),
    "times x before the division": (
        model(LINE + "d = Mul(x, c) y = Div(d, six)"),
        model("y = HardSwish(x)"),
    ),
    "times x before the product": (
        model(LINE + "d = Mul(c, x) y = Mul(d, sixth)"),
        model("y = HardSwish(x)"),
    ),
    "times a sixth of x": (
        model(LINE + "d = Div(x, six) y = Mul(d, c)"),
        model("y = HardSwish(x)"),
    ),
    "HardSigmoid times x": (model(f"h = {SIGMOID} y = Mul(h, x)"), model("y = HardSwish(x)")),
    "no HardSwish before opset 14": (
        model(LINE + "d = Div(c, six) y = Mul(x, d)", 13),
        model(f"d = {SIGMOID} y = Mul(x, d)", 13),
    ),
    "another product before opset 14": (
        model(LINE + "d = Mul(x, c) y = Div(d, six)", 13),
        model(f"d = {SIGMOID} y = Mul(x, d)", 13),
    ),
}


@pytest.mark.parametrize("case", PAIRS)
def test_pair(case: str) -> None:
    check_pair(STEP, *PAIRS[case])


KEPT = {
    "another lower bound": model("a = Add(x, three) c = Clip(a, one, six) y = Div(c, six)"),
    "no upper bound": model("a = Add(x, three) c = Clip(a, zero) y = Div(c, six)"),
    "another divisor": model(LINE + "y = Div(c, three)"),
    "a division by it": model(LINE + "y = Div(six, c)"),
    "a slope below zero": model(
        "m = Mul(x, fifth) a = Add(m, half) y = Clip(a, zero, one)",
        constants=NUMBERS.replace("0.2", "-0.2"),
    ),
    "a HardSigmoid of another slope": model("h = HardSigmoid(x) y = Mul(x, h)"),
    "a HardSigmoid of something else": model(f"z = Neg(x) h = {SIGMOID} y = Mul(z, h)"),
    "a sum that is read elsewhere": model(LINE + "d = Div(c, six) y = Add(d, a)"),
    "double": model(LINE + "y = Div(c, six)").replace("float", "double"),
    "bounds that are computed": model(
        "a = Add(x, three) r = Neg(six) t = Neg(r) c = Clip(a, zero, t) y = Div(c, six)"
    ),
    "a shift that adds a dimension": model(
        "a = Add(x, wide) c = Clip(a, zero, six) d = Div(c, six) y = Squeeze(d, axes)",
        constants=NUMBERS + ", float[1, 1, 1] wide = {3}, int64[1] axes = {0}",
    ),
}


@pytest.mark.parametrize("case", KEPT)
def test_kept(case: str) -> None:
    check_kept(STEP, KEPT[case])


def test_max_and_min_count_once_they_are_a_clip() -> None:
    body = "a = Add(x, three) b = Max(a, zero) c = Min(b, six) d = Div(c, six) y = Mul(x, d)"
    for steps in ((FuseClip(), STEP), (STEP, FuseClip())):
        graph = Graph.from_text(model(body))
        Pipeline(steps).run(graph)
        assert operators(graph) == ["HardSwish"]


def test_against_numpy() -> None:
    text = model(LINE + "d = Div(c, six) y = Mul(x, d)", shape="N")
    after, _ = rewritten(STEP, Graph.from_text(text))
    x = np.linspace(-8, 8, 999).astype(np.float32)
    wide = x.astype(np.float64)
    wanted = wide * np.clip(wide + 3, 0, 6) / 6
    np.testing.assert_allclose(run(after, {"x": x})["y"], wanted, rtol=0, atol=1e-6)
