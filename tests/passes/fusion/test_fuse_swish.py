from __future__ import annotations

import pytest

from onnxq.ir import default_passes
from onnxq.passes.fusion.fuse_swish import FuseSwish
from tests.passes.rewriting import check_kept, check_pair

STEP = FuseSwish()


def model(body: str, opset: int = 24, number: str = "float alpha") -> str:
    return (
        f'<ir_version: 11, opset_import: ["": {opset}]> g (float[N, 3] x) => (float[N, 3] y) '
        f"<{number} = {{1.5}}> {{ {body} }}"
    )


PAIRS = {
    "plain": (model("s = Sigmoid(x) y = Mul(x, s)"), model("y = Swish(x)")),
    "the other way round": (model("s = Sigmoid(x) y = Mul(s, x)"), model("y = Swish(x)")),
    "with a number": (
        model("a = Mul(alpha, x) s = Sigmoid(a) y = Mul(x, s)"),
        model("y = Swish<alpha = 1.5>(x)"),
    ),
}


@pytest.mark.parametrize("case", PAIRS)
def test_pair(case: str) -> None:
    check_pair(STEP, *PAIRS[case])


KEPT = {
    "opset 23": model("s = Sigmoid(x) y = Mul(x, s)", 23),
    "another tensor": model("z = Neg(x) s = Sigmoid(z) y = Mul(x, s)"),
    "a gate that is read elsewhere": model("s = Sigmoid(x) m = Mul(x, s) y = Add(m, s)"),
    "a number for each element": model(
        "a = Mul(x, alpha) s = Sigmoid(a) y = Mul(x, s)", number="float[3] alpha"
    ).replace("{1.5}", "{1, 2, 3}"),
    "double": model("s = Sigmoid(x) y = Mul(x, s)").replace("float", "double"),
}


@pytest.mark.parametrize("case", KEPT)
def test_kept(case: str) -> None:
    check_kept(STEP, KEPT[case])


def test_the_default_pipeline_leaves_it_alone() -> None:
    assert not any(isinstance(step, FuseSwish) for step in default_passes())
