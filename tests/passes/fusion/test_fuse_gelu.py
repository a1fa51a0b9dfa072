from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.special import erf

from onnxq.ir import Graph
from onnxq.passes.fusion.fuse_gelu import FuseGelu
from tests.helpers import run
from tests.passes.rewriting import check_kept, check_pair, operators, rewritten

STEP = FuseGelu()
NUMBERS = (
    "float root = {1.4142135}, float inverse = {0.70710677}, float half = {0.5}, float one = {1}, "
    "float two = {2}, float three = {3}, float slope = {0.7978846}, float cubic = {0.044715}, "
    "float[1, 1, 1] wide = {0.5}"
)


def model(body: str, opset: int = 20, constants: str = NUMBERS, shape: str = "N, 3") -> str:
    return (
        f'<ir_version: 9, opset_import: ["": {opset}]> g (float[{shape}] x) => (float[{shape}] y) '
        f"<{constants}> {{ {body} }}"
    )


ERF = {"divided": "d = Div(x, root) e = Erf(d) ", "multiplied": "d = Mul(inverse, x) e = Erf(d) "}
TANH = {
    "cube as a power": "c = Pow(x, three) k = Mul(c, cubic) s = Add(x, k) d = Mul(slope, s) ",
    "cube as a product": "p = Mul(x, x) c = Mul(p, x) k = Mul(cubic, c) s = Add(x, k) "
    "d = Mul(s, slope) ",
    "x outside, as torch's gelu_new of old": "k = Mul(x, cubic) p = Mul(k, x) s = Add(one, p) "
    "f = Mul(x, slope) d = Mul(f, s) ",
    "x outside, its square": "p = Mul(x, x) k = Mul(cubic, p) s = Add(k, one) f = Mul(x, slope) "
    "d = Mul(f, s) ",
    "x outside, a power": "p = Pow(x, two) k = Mul(cubic, p) s = Add(k, one) f = Mul(slope, x) "
    "d = Mul(s, f) ",
}
PRODUCT = {
    "half of x": "a = Add(e, one) h = Mul(x, half) y = Mul(h, a)",
    "half of the sum": "a = Add(one, e) h = Mul(half, a) y = Mul(x, h)",
    "half of all": "a = Add(e, one) h = Mul(x, a) y = Mul(h, half)",
    "x over two": "a = Add(e, one) h = Div(x, two) y = Mul(a, h)",
    "the sum over two": "a = Add(e, one) h = Div(a, two) y = Mul(x, h)",
    "all over two": "a = Add(e, one) h = Mul(a, x) y = Div(h, two)",
    "half multiplied in": "a = Mul(e, half) h = Add(a, half) y = Mul(x, h)",
}


@pytest.mark.parametrize("inner, product", list(itertools.product(ERF, PRODUCT)))
def test_exact(inner: str, product: str) -> None:
    check_pair(STEP, model(ERF[inner] + PRODUCT[product]), model("y = Gelu(x)"))


@pytest.mark.parametrize("inner, product", list(itertools.product(TANH, PRODUCT)))
def test_approximate(inner: str, product: str) -> None:
    before = model(TANH[inner] + "e = Tanh(d) " + PRODUCT[product])
    check_pair(STEP, before, model('y = Gelu<approximate = "tanh">(x)'))


USUAL = ERF["divided"] + PRODUCT["half of x"]
KEPT = {
    "opset 19": model(USUAL, 19),
    "another root": model(USUAL, constants=NUMBERS.replace("1.4142135", "1.414")),
    "another half": model(
        USUAL, constants=NUMBERS.replace("float half = {0.5}", "float half = {1}")
    ),
    "another slope": model(
        TANH["cube as a power"] + "e = Tanh(d) " + PRODUCT["half of x"],
        constants=NUMBERS.replace("0.7978846", "0.8"),
    ),
    "a product with something else": model(
        ERF["divided"] + "z = Neg(x) a = Add(e, one) h = Mul(z, half) y = Mul(h, a)"
    ),
    "a sum that is read elsewhere": model(
        ERF["divided"] + "a = Add(e, one) h = Mul(x, half) g = Mul(h, a) y = Add(g, a)"
    ),
    "a half that adds a dimension": model(
        ERF["divided"] + "a = Add(e, one) h = Mul(x, wide) g = Mul(h, a) y = Squeeze(g, axes)",
        constants=NUMBERS + ", int64[1] axes = {0}",
    ),
    "double": model(USUAL).replace("float", "double"),
}


@pytest.mark.parametrize("case", KEPT)
def test_kept(case: str) -> None:
    check_kept(STEP, KEPT[case])


def test_constants_of_one_element_and_as_many_dimensions_are_numbers() -> None:
    constants = NUMBERS.replace("float half", "float[1, 1] half").replace(
        "float one", "float[1] one"
    )
    check_pair(STEP, model(USUAL, constants=constants), model("y = Gelu(x)"))


@pytest.mark.parametrize("approximate", [False, True])
def test_against_scipy(approximate: bool) -> None:
    inner = TANH["cube as a power"] + "e = Tanh(d) " if approximate else ERF["multiplied"]
    after, _ = rewritten(STEP, Graph.from_text(model(inner + PRODUCT["half of x"], shape="N")))
    assert operators(after) == ["Gelu"]
    x = np.concatenate([np.linspace(-12, 12, 997), [0.0, -0.0, 1e-30, 1e30, -1e30]])
    wide = x.astype(np.float32).astype(np.float64)
    with np.errstate(over="ignore"):
        factor = (
            np.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3))
            if approximate
            else erf(wide / math.sqrt(2))
        )
    wanted = 0.5 * wide * (1 + factor)
    found = run(after, {"x": x.astype(np.float32)})["y"]
    np.testing.assert_allclose(found, wanted, rtol=2e-6, atol=2e-6)
