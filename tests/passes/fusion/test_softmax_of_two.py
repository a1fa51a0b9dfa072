from __future__ import annotations

import numpy as np
import pytest

from onnxq.ir import Graph, to_proto
from onnxq.passes.fusion.softmax_of_two import SoftmaxOfTwo
from onnxq.runtime import Session
from onnxq.targets import load_target
from tests.passes.rewriting import check_kept, check_pair, rewritten

STEP = SoftmaxOfTwo()


def model(body: str, shape: str = "N, 64, 2", opset: int = 13, dtype: str = "float") -> str:
    return (
        f'<ir_version: 8, opset_import: ["": {opset}]> g ({dtype}[{shape}] x) => '
        f"({dtype}[{shape}] y) <float[2, 2] differences = {{1, -1, -1, 1}}> {{ {body} }}"
    )


AFTER = "d = MatMul(x, differences) y = Sigmoid(d)"


@pytest.mark.parametrize(
    ("body", "shape", "opset"),
    [
        ("y = Softmax(x)", "N, 64, 2", 13),
        ("y = Softmax<axis = 2>(x)", "N, 64, 2", 13),
        ("y = Softmax(x)", "70, 2", 11),
        ("y = Softmax<axis = 3>(x)", "2, 8, 9, 2", 9),
    ],
)
def test_pair(body: str, shape: str, opset: int) -> None:
    check_pair(STEP, model(body, shape, opset), model(AFTER, shape, opset))


@pytest.mark.parametrize(
    "text",
    [
        model("y = Softmax<axis = 1>(x)"),
        model("y = Softmax(x)", "N, 2, 64"),
        model("y = Softmax(x)", "N, 64, 3"),
        model("y = Softmax(x)", "N, M, 2"),
        model("y = Softmax(x)", "N, 63, 2"),
        model("y = Softmax(x)", "N, 64, 2", opset=12),
        model("y = Softmax(x)", dtype="double"),
        model("y = LogSoftmax(x)"),
    ],
    ids=["axis", "last axis", "three", "unknown", "few", "flattened", "double", "logarithm"],
)
def test_kept(text: str) -> None:
    check_kept(STEP, text)


def test_scores_far_apart_do_not_overflow() -> None:
    before = Graph.from_text(model("y = Softmax(x)", "64, 2"))
    after, _ = rewritten(STEP, before)
    x = np.zeros((64, 2), np.float32)
    x[:4] = [[3e38, -3e38], [-200, 200], [88, -1], [-np.inf, 3]]
    wanted, found = (
        next(iter(Session(to_proto(g)).run({"x": x}).values())) for g in (before, after)
    )
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_it_finishes_what_runs_on_processors() -> None:
    assert STEP.name in load_target("cpu-x64").finish.split(",")
