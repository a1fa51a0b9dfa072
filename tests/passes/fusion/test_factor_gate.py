from __future__ import annotations

import pytest

from onnxq.passes.fusion.factor_gate import FactorGate
from tests.passes.rewriting import check_kept, check_pair

STEP = FactorGate()


def model(body: str, gate: str = "float[N, 2, 1, 1] g", opset: int = 13) -> str:
    return (
        f'<ir_version: 8, opset_import: ["": {opset}]> m (float[N, 2, H, W] x, {gate}) '
        f"=> (float[N, 2, H, W] y) {{ {body} }}"
    )


AFTER = """<ir_version: 8, opset_import: ["": 13]>
    m (float[N, 2, H, W] x, float[N, 2, 1, 1] g) => (float[N, 2, H, W] y) <float one = {1}>
    { a = Add(g, one) y = Mul(x, a) }"""


@pytest.mark.parametrize(
    "body",
    ["p = Mul(x, g) y = Add(x, p)", "p = Mul(g, x) y = Add(p, x)"],
    ids=["behind", "before"],
)
def test_pair(body: str) -> None:
    check_pair(STEP, model(body), AFTER)


KEPT = {
    "as large": model("p = Mul(x, g) y = Add(x, p)", "float[N, 2, H, W] g"),
    "unknown": model("p = Mul(x, g) y = Add(x, p)", "float[A, B, C, D] g"),
    "another shortcut": model("p = Mul(x, g) n = Neg(x) y = Add(n, p)"),
    "read elsewhere": model("p = Mul(x, g) e = Add(x, p) y = Sub(e, p)"),
    "an old opset": model("p = Mul<broadcast = 1>(x, g) y = Add(x, p)", opset=6),
}


@pytest.mark.parametrize("case", KEPT)
def test_kept(case: str) -> None:
    check_kept(STEP, KEPT[case])
