from __future__ import annotations

import numpy as np
import pytest

from onnxq.ir import Graph, to_proto
from onnxq.passes.fusion.fuse_linear_rows import FuseLinearRows
from onnxq.runtime import Session
from onnxq.targets import load_target
from tests.passes.rewriting import check_kept, check_pair, operators, rewritten

STEP = FuseLinearRows()
CONSTANTS = (
    "int64[1] zero = {0}, int64[1] two = {2}, int64[1] end = {9223372036854775807}, "
    "int64[1] last = {-1}, int64[2] halves = {2, 2}, float half = {0.5}, float[1, 2] each = {2, 4}"
)
CUT = "c = Slice(x, zero, two, last) s = Slice(x, two, end, last)"
CORNERS = "h = Mul(s, half) low = Sub(c, h) high = Add(c, h) y = Concat<axis = -1>(low, high)"
TO_CORNERS = (
    "float[4, 4] matrix = {1, 0, 1, 0, 0, 1, 0, 1, -0.5, 0, 0.5, 0, 0, -0.5, 0, 0.5}",
    "y = MatMul(x, matrix)",
)


def model(
    body: str, shape: str = "N, 64, 4", constants: str = CONSTANTS, made: str = "", dtype="float"
) -> str:
    return (
        f'<ir_version: 8, opset_import: ["": 13]> g ({dtype}[{shape}] x) => '
        f"({dtype}[{made or shape}] y) <{constants}> {{ {body} }}"
    )


@pytest.mark.parametrize(
    "body",
    [
        f"{CUT} {CORNERS}",
        f"c, s = Split<axis = 2>(x, halves) {CORNERS}",
        f"{CUT} m = Neg(s) h = Mul(half, m) low = Add(c, h) high = Sub(c, h) "
        "y = Concat<axis = 2>(low, high)",
        f"j = Concat<axis = -1>(x, x) c = Slice(j, zero, two, last) "
        f"s = Slice(x, two, end, last) {CORNERS}",
    ],
    ids=["slices", "split", "negated", "cut again"],
)
def test_corners(body: str) -> None:
    matrix, after = TO_CORNERS
    check_pair(STEP, model(body), model(after, constants=matrix))


def test_results_of_several_values_are_sums_of_products() -> None:
    check_pair(
        STEP,
        model(f"{CUT} t = Exp(s) d = Div(t, each) y = Concat<axis = -1>(c, d)"),
        model(
            "s = MatMul(x, right) t = Exp(s) p = MatMul(x, left) q = MatMul(t, back) y = Add(p, q)",
            constants="float[4, 2] right = {0, 0, 0, 0, 1, 0, 0, 1}, "
            "float[4, 4] left = {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, "
            "float[2, 4] back = {0, 0, 0.5, 0, 0, 0, 0, 0.25}",
        ),
        made=2,
    )


def test_steps_back() -> None:
    body = "y = Slice(x, last, least, last, last)"
    constants = "int64[1] last = {-1}, int64[1] least = {-9223372036854775807}"
    turned = "float[2, 2] turned = {0, 1, 1, 0}"
    after = model("y = MatMul(x, turned)", "64, 2", turned)
    check_pair(STEP, model(body, "64, 2", constants), after, exact=True)


@pytest.mark.parametrize(
    "text",
    [
        model(f"{CUT} {CORNERS}", "N, 63, 4"),
        model(f"{CUT} {CORNERS}", "N, M, 4"),
        model(f"c, s = Split<axis = 1>(x) {CORNERS.replace('-1', '1')}", "4, 64, 4"),
        model(f"{CUT} y = Concat<axis = -1>(c, s)", "N, 64, 10", made="N, 64, 10"),
        model("a = Neg(x) b = Mul(a, half) y = Sub(x, b)"),
        model(
            "a, b = Split<axis = -1>(x) p = Exp(a) q = Exp(b) r = Neg(a) t = Neg(b) u = Sub(a, b) "
            "v = Add(a, b) w = Mul(a, half) y = Sum(p, q, r, t, u, v, w)",
            made="N, 64, 2",
        ),
        model("y = Concat<axis = -1>(x, x)", "64, 4", made="64, 8", dtype="double"),
    ],
    ids=["few", "unknown", "axis", "long", "nothing moves", "many results", "double"],
)
def test_kept(text: str) -> None:
    check_kept(STEP, text)


def test_what_differs_by_row_ends_a_region() -> None:
    rows = ", ".join(str(0.5 + i) for i in range(64))
    before = Graph.from_text(
        model(
            f"{CUT} f = Mul(s, every) y = Concat<axis = -1>(c, f)",
            "1, 64, 4",
            f"{CONSTANTS}, float[64, 1] every = {{{rows}}}",
        )
    )
    after, made = rewritten(STEP, before)
    assert made == 2
    assert operators(after) == ["MatMul", "Mul", "MatMul", "MatMul", "Add"]
    feeds = {"x": np.random.default_rng(0).standard_normal((1, 64, 4)).astype(np.float32)}
    wanted, found = (Session(to_proto(g)).run(feeds)["y"] for g in (before, after))
    np.testing.assert_array_equal(found, wanted)


def test_it_finishes_what_runs_on_processors() -> None:
    assert STEP.name in load_target("cpu-x64").finish.split(",")
