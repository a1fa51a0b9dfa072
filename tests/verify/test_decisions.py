"""What is taken as a decision, by the last operator and by values."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import entropy as scipy_entropy

from onnxq.ir import Graph
from onnxq.verify.decisions import Decision, find_decisions
from tests.helpers import run

HEAD = '<ir_version: 10, opset_import: ["": 21]>'
W = "float[4, 9] w = {" + ", ".join(str(i * i % 7 - 3) for i in range(36)) + "}"
K = "float[5, 3, 1, 1] k = {" + ", ".join(str(i % 4 - 1) for i in range(15)) + "}"
TWO = "float two = {2}"


def found(inputs: str, outputs: str, body: str, *, is_asked: bool = False) -> list[Decision]:
    graph = Graph.from_text(f"{HEAD} g ({inputs}) => ({outputs}) <{W}, {K}, {TWO}> {{ {body} }}")
    rng = np.random.default_rng(0)
    shapes = [[int(d) for d in v.shape or ()] for v in graph.inputs]
    feeds = {
        v.name: rng.normal(size=shape).astype(np.float32)
        for v, shape in zip(graph.inputs, shapes, strict=True)
    }
    return list(find_decisions(graph, run(graph, feeds), is_asked=is_asked))


X, Y = "float[6, 4] x", "float[6, 9] y"
NORMAL = "h = MatMul(x, w)  n = ReduceL2<keepdims = 1>(h, a)  y = Div(h, n)"


@pytest.mark.parametrize(
    ("inputs", "outputs", "body", "kind", "axis", "why"),
    [
        (X, Y, "h = MatMul(x, w)  y = Softmax(h)", "classes", 1, "9 probabilities that sum to 1"),
        (X, Y, "h = MatMul(x, w)  y = LogSoftmax(h)", "classes", 1, "9 probabilities"),
        (X, Y, "y = MatMul(x, w)", "classes", 1, "scores of 9 classes, straight from MatMul"),
        (X, Y, "y = Gemm(x, w)", "classes", 1, "scores of 9 classes, straight from Gemm"),
        (X, Y, "h = MatMul(x, w)  y = Add(h, two)", "classes", 1, "straight from MatMul"),
        (X, Y, "h = MatMul(x, w)  i = Identity(h)  y = Div(i, two)", "classes", 1, "from MatMul"),
        ("float[2, 3, 4] x", "float[2, 3, 9] y", "y = MatMul(x, w)", "classes", 2, "9 classes"),
        ("float[2, 3, 1, 1] x", "float[2, 5, 1, 1] y", "y = Conv(x, k)", "classes", 1, "from Conv"),
        (
            *("float[2, 3, 4, 4] x", "float[2, 5, 4, 4] y"),
            *("h = Conv(x, k)  y = Softmax<axis = 1>(h)", "classes", 1, "5 probabilities"),
        ),
        (X, Y, "h = MatMul(x, w)  y = Sigmoid(h)", "threshold", -1, "numbers that Sigmoid gives"),
        (
            *(X, Y, "a = Constant <value_ints = [1]> () " + NORMAL),
            *("neighbour", 1, "rows of 9 numbers of length 1"),
        ),
    ],
)
def test_decisions(inputs: str, outputs: str, body: str, kind: str, axis: int, why: str) -> None:
    (decision,) = found(inputs, outputs, body)
    assert (decision.output, decision.kind, decision.axis) == ("y", kind, axis)
    assert why in decision.why


@pytest.mark.parametrize(
    ("inputs", "outputs", "body"),
    [
        (X, Y, "h = MatMul(x, w)  y = Relu(h)"),
        (X, Y, "h = MatMul(x, w)  y = Add(h, h)"),
        (X, Y, "h = MatMul(x, w)  y = Div(two, h)"),
        ("float[2, 3, 4, 4] x", "float[2, 5, 4, 4] y", "y = Conv(x, k)"),
        (X, "int64[6] y", "h = MatMul(x, w)  y = ArgMax<axis = 1, keepdims = 0>(h)"),
        (X, "float y", "h = MatMul(x, w)  y = ReduceSum<keepdims = 0>(h)"),
    ],
    ids=["Relu", "a sum", "a quotient", "an image", "integers", "a number"],
)
def test_numbers(inputs: str, outputs: str, body: str) -> None:
    assert found(inputs, outputs, body) == []


def test_numbers_with_classes_are_decisions_by_request() -> None:
    (decision,) = found(X, Y, "h = MatMul(x, w)  y = Relu(h)", is_asked=True)
    assert (decision.kind, decision.axis, decision.why) == (
        "classes",
        -1,
        "scores of 9 classes, as the metric takes them",
    )


def test_only_the_clearest_kind_counts() -> None:
    """Boxes and masks beside scores are what is found, not what is decided."""
    outputs = "float[6, 9] y, float[6, 9] z, float[6, 9] s"
    body = "h = MatMul(x, w)  y = Softmax(h)  i = Relu(h)  z = Softmax(i)  s = Sigmoid(h)"
    assert [d.output for d in found(X, outputs, body)] == ["y", "z"]


@pytest.mark.parametrize(
    ("then", "other", "why"),
    [
        ("Sigmoid", "Sigmoid", "numbers that Sigmoid gives"),
        ("Sigmoid", "HardSigmoid", "numbers that Sigmoid or HardSigmoid gives"),
        ("Identity", "Identity", "scores of 9 classes, straight from MatMul"),
        ("Sigmoid", "Relu", ""),
        ("Relu", "Sigmoid", ""),
        ("Identity", "Sigmoid", ""),
    ],
)
def test_what_an_if_gives_is_what_its_branches_give(then: str, other: str, why: str) -> None:
    branches = [
        f"g () => (float[6, 9] o) {{ h = MatMul(x, w)  o = {op}(h) }}" for op in (then, other)
    ]
    body = f"""c = Constant <value = bool {{1}}> ()
        i = If (c) <then_branch = {branches[0]}, else_branch = {branches[1]}>
        y = Identity(i)"""
    assert [d.why for d in found(X, Y, body)] == ([why] if why else [])


def test_entropy_is_that_of_the_choices_at_a_position() -> None:
    sure, even = np.log([[0.98, 0.01, 0.01]]), np.zeros((1, 3))
    rows = np.concatenate([sure, even]).astype(np.float32)
    wanted = [scipy_entropy(np.exp(row)) for row in rows]
    for axis, values in ((1, rows), (-1, rows[None]), (1, rows.T[None])):
        decision = Decision("y", "classes", axis, "")
        assert decision.entropy(values) == pytest.approx(np.mean(wanted), rel=1e-5)
    flags = Decision("y", "threshold", -1, "")
    assert flags.entropy(np.float32([[0.5, 1.0]])) == pytest.approx(np.log(2) / 2, rel=1e-4)
    assert Decision("y", "classes", 1, "").entropy(np.float32([[0, np.nan]])) == np.inf
