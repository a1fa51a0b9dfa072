from __future__ import annotations

import pytest

from onnxq.passes.layout.gemm_of_transposed import GemmOfTransposed
from onnxq.targets import load_target
from tests.passes.rewriting import check_kept, check_pair

STEP = GemmOfTransposed()
WEIGHT = "float[2, 3] w = {1, 2, 3, 4, 5, 6}"


def model(shape: str, body: str, constants: str = WEIGHT, opset: int = 13) -> str:
    made = ", ".join([*shape.split(", ")[:-1], "2"])
    return (
        f'<ir_version: 8, opset_import: ["": {opset}]> g (float[{shape}] x) => '
        f"(float[{made}] y) <{constants}> {{ {body} }}"
    )


@pytest.mark.parametrize("perm", ["", "<perm = [1, 0]>"])
def test_a_matrix(perm: str) -> None:
    before = model("N, 3", f"t = Transpose{perm}(w) y = MatMul(x, t)")
    check_pair(STEP, before, model("N, 3", "y = Gemm<transB = 1>(x, w)"))


@pytest.mark.parametrize(("shape", "target"), [("4, 5, 3", "4, 5, 2"), ("N, 5, 3", "-1, 5, 2")])
def test_more_dimensions_are_flattened(shape: str, target: str) -> None:
    constants = f"{WEIGHT}, int64[2] rows = {{-1, 3}}, int64[3] whole = {{{target}}}"
    after = "m = Reshape(x, rows) p = Gemm<transB = 1>(m, w) y = Reshape(p, whole)"
    before = model(shape, "t = Transpose(w) y = MatMul(x, t)")
    check_pair(STEP, before, model(shape, after, constants))


@pytest.mark.parametrize(
    "text",
    [
        model("N, 3", "t = Transpose(w) y = MatMul(x, t)", opset=10),
        model("M, N, 3", "t = Transpose(w) y = MatMul(x, t)"),
        model("0, 5, 3", "t = Transpose(w) y = MatMul(x, t)"),
        model(
            "N, 2",
            "t = Transpose<perm = [0, 1]>(w) y = MatMul(x, t)",
            "float[2, 2] w = {1, 2, 3, 4}",
        ),
        model(
            "4, 5, 3",
            "t = Transpose<perm = [0, 2, 1]>(w) y = MatMul(x, t)",
            "float[1, 2, 3] w = {1, 2, 3, 4, 5, 6}",
        ),
    ],
    ids=["opset", "two unknown", "empty", "as it is", "rank"],
)
def test_kept(text: str) -> None:
    check_kept(STEP, text)


def test_processors_want_it() -> None:
    target = load_target("cpu-x64")
    assert STEP.name in target.passes.split(",") and STEP.name in target.forms
