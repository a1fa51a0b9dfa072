from __future__ import annotations

import numpy as np
import pytest

from onnxq.ir import Graph, infer_types
from onnxq.passes.layout.fold_reshape_targets import FoldReshapeTargets
from tests.helpers import assert_equivalent
from tests.passes.rewriting import check_kept, check_pair, operators, rewritten

STEP = FoldReshapeTargets()
NUMBERS = (
    "int64 first = {0}, int64[1] zero = {0}, int64[1] two = {2}, int64[1] six = {6}, "
    "int64[1] rest = {-1}"
)
BATCH = "s = Shape(x) b = Gather<axis = 0>(s, first) c = Unsqueeze(b, zero) "
LEADING = "s = Shape(x) u = Slice(s, zero, two) "


def model(
    body: str,
    read: str = "N, 3, 4",
    made: str = "N, 2, 6",
    constants: str = NUMBERS,
    more: str = "",
    opset: int = 17,
) -> str:
    return (
        f'<ir_version: 8, opset_import: ["": {opset}]> '
        f"g (float[{read}] x{more}) => (float[{made}] y) <{constants}> {{ {body} }}"
    )


def constant(*target: int, read: str = "N, 3, 4", made: str = "N, 2, 6", more: str = "") -> str:
    numbers = ", ".join(map(str, target))
    values = f"int64[{len(target)}] t = {{{numbers}}}"
    return model("y = Reshape(x, t)", read, made, values, more)


PAIRS = {
    "a batch": (
        model(BATCH + "t = Concat<axis = 0>(c, two, six) y = Reshape(x, t)"),
        constant(0, 2, 6),
    ),
    "a batch and what is left": (
        model(BATCH + "t = Concat<axis = 0>(c, rest) y = Reshape(x, t)", made="N, 12"),
        constant(0, 12, made="N, 12"),
    ),
    "a batch that is elsewhere": (
        model(BATCH + "t = Concat<axis = 0>(two, six, c) y = Reshape(x, t)", made="2, 6, N"),
        constant(2, 6, -1, made="2, 6, N"),
    ),
    "everything known": (
        model("t = Shape(w) y = Reshape(x, t)", "2, 6", "3, 4", more=", float[3, 4] w"),
        constant(3, 4, read="2, 6", made="3, 4", more=", float[3, 4] w"),
    ),
    "two dimensions that stay": (
        model(
            LEADING + "t = Concat<axis = 0>(u, two, two) y = Reshape(x, t)", "N, M, 4", "N, M, 2, 2"
        ),
        constant(0, 0, 2, 2, read="N, M, 4", made="N, M, 2, 2"),
    ),
    "two that stay, allowzero": (
        model(
            LEADING + "t = Concat<axis = 0>(u, two, two) y = Reshape<allowzero = 1>(x, t)",
            "N, M, 4",
            "N, M, 2, 2",
        ),
        constant(0, 0, 2, 2, read="N, M, 4", made="N, M, 2, 2"),
    ),
}


@pytest.mark.parametrize("case", PAIRS)
def test_pair(case: str) -> None:
    check_pair(STEP, *PAIRS[case], exact=True)


@pytest.mark.parametrize("case", PAIRS)
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_any_batch(case: str, batch: int) -> None:
    if not batch and case in ("a batch and what is left", "a batch that is elsewhere"):
        pytest.skip("the target it begins with fails on an empty batch")
    before = Graph.from_text(PAIRS[case][0])
    after, _ = rewritten(STEP, before)
    sizes = {"N": batch, "M": 2}
    feeds = {}
    for value in before.inputs:
        shape = [sizes[d] if isinstance(d, str) else d for d in value.shape or ()]
        feeds[value.name] = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    assert_equivalent(before, after, feeds=feeds)


KEPT = {
    "a target that is fed": model("y = Reshape(x, t)", made="A, B", more=", int64[2] t"),
    "a constant target": constant(-1, 2, 6),
    "two dimensions that are not known": model(
        "s = Shape(w) y = Reshape(x, s)", made="A, B", more=", float[A, B] w"
    ),
    "one to copy and one to infer": model(
        LEADING + "a = Mul(u, two) t = Concat<axis = 0>(a, rest) z = Reshape(x, t) y = Abs(z)",
        "N, 4, M",
        "A, 8, B",
    ),
    "no elements": model("t = Shape(w) y = Reshape(x, t)", "0, 6", "3, 0", more=", float[3, 0] w"),
    "before opset 5": model("y = Reshape<shape = [-1, 12]>(x)", made="N, 12", opset=4),
}


@pytest.mark.parametrize("case", KEPT)
def test_kept(case: str) -> None:
    check_kept(STEP, KEPT[case])


def test_result_of_unknown_shape_stays() -> None:
    before = Graph.from_text(model("t = Abs(z) r = Reshape(x, t) y = Abs(r)", more=", int64[N] z"))
    assert rewritten(STEP, before)[1] == 0


def test_target_from_an_outer_graph_and_one_that_is_read_elsewhere() -> None:
    before = Graph.from_text(
        f"""<ir_version: 10, opset_import: ["": 21]>
        g (bool q, float[N, 3, 4] x) => (float[N, 12] y, int64[2] o) <{NUMBERS}>
        {{ {BATCH} t = Concat<axis = 0>(c, rest)  o = Neg(c)
           y = If(q) <then_branch = a () => (float[N, 12] p) {{ p = Reshape(x, t) }},
                      else_branch = e () => (float[N, 12] r)
                      {{ z = Neg(x)  r = Reshape(z, t) }}> }}""".replace("int64[2] o", "int64[1] o")
    )
    infer_types(before)
    after, made = rewritten(STEP, before)
    assert made == 2
    assert operators(after) == [
        *("Shape", "Gather", "Unsqueeze", "Neg", "If"),
        *("Reshape", "Neg", "Reshape"),
    ]
    for flag in (True, False):
        x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
        assert_equivalent(before, after, feeds={"q": np.array(flag), "x": x})
