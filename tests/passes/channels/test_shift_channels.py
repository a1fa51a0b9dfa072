from __future__ import annotations

import numpy as np
import pytest

from onnxq.errors import InputError
from onnxq.ir import Context, Graph, infer_types
from onnxq.passes.channels.shift_channels import ShiftChannels, shiftables
from tests.helpers import assert_same_graph, assert_same_outputs, run

HEAD = '<ir_version: 11, opset_import: ["": 20]>'
PLANE = "g (float[N, 2] x) => (float[N, 2] y) <"
IMAGE = "g (float[N, 2, 3, 3] x) => (float[N, 2, 3, 3] y) <"
W = "float[2, 2] w = {1, 2, 3, 4}"
SHIFT = np.array([2, 1], np.float32)

# What is behind the Relu gets (2, 1) times the weights: (5, 8), or (4, 10) where transposed.
PAIRS = {
    "MatMuls with vectors": (
        PLANE
        + f"""float[2, 2] k = {{1, 0, 0, 1}}, float[2] b = {{9, 9}}, float[2] c = {{1, 1}}, {W}>
        {{ p = MatMul(x, k)  q = Add(p, b)  a = Relu(q)  m = MatMul(a, w)  y = Add(c, m) }}""",
        PLANE
        + f"""float[2, 2] k = {{1, 0, 0, 1}}, float[2] b = {{7, 8}}, float[2] c = {{6, 9}}, {W}>
        {{ p = MatMul(x, k)  q = Add(p, b)  a = Relu(q)  m = MatMul(a, w)  y = Add(c, m) }}""",
    ),
    "Gemms, one of which has no bias yet": (
        PLANE
        + f"""float[2, 2] k = {{1, 0, 0, 1}}, float[2] b = {{9, 9}}, {W}>
        {{ q = Gemm<beta = 2.0>(x, k, b)  a = Relu(q)
           y = Gemm<alpha = 3.0, transB = 1>(a, w) }}""",
        PLANE
        + f"""float[2, 2] k = {{1, 0, 0, 1}}, float[2] b = {{8, 8.5}}, float[2] c = {{12, 30}}, {W}>
        {{ q = Gemm<beta = 2.0>(x, k, b)  a = Relu(q)
           y = Gemm<alpha = 3.0, transB = 1>(a, w, c) }}""",
    ),
    "Convs, the second depthwise": (
        IMAGE
        + """float[2, 2, 1, 1] k = {1, 0, 0, 1}, float[2] b = {9, 9}, float[2, 1, 1, 1] w = {3, 4}>
        { q = Conv(x, k, b)  a = Relu(q)  y = Conv<group = 2>(a, w) }""",
        IMAGE
        + """float[2, 2, 1, 1] k = {1, 0, 0, 1}, float[2] b = {7, 8}, float[2, 1, 1, 1] w = {3, 4},
        float[2] c = {6, 4}>
        { q = Conv(x, k, b)  a = Relu(q)  y = Conv<group = 2>(a, w, c) }""",
    ),
}


def graph_of(text: str) -> Graph:
    graph = Graph.from_text(HEAD + text)
    infer_types(graph)
    return graph


@pytest.mark.parametrize("name", PAIRS)
def test_a_shift_moves_into_the_next_biases(name: str) -> None:
    text, wanted = PAIRS[name]
    before = graph_of(text)
    after = before.copy()
    assert ShiftChannels({"a": SHIFT}).run(after, Context()) == 1
    after.check()
    assert_same_graph(after, graph_of(wanted), rtol=0)
    assert {"a_shifted", "q_shifted"} <= after.values.keys()
    shape = (4, *(d for d in before.inputs[0].shape or () if isinstance(d, int)))
    # Not below -5, and with the bias of 9 not below 2.
    fed = {"x": np.random.default_rng(0).uniform(-5, 5, shape).astype(np.float32)}
    assert_same_outputs(run(before, fed), run(after, fed), exact=False, rtol=1e-6)
    assert not np.array_equal(run(before, {"x": -2 * fed["x"]})["y"], run(after, fed)["y"])


@pytest.mark.parametrize(
    "text",
    [
        "{ q = Conv(x, k, b)  a = Relu(q)  y = Conv<pads = [1, 1, 1, 1]>(a, w) }",
        '{ q = Conv(x, k, b)  a = Relu(q)  y = Conv<auto_pad = "SAME_UPPER">(a, w) }',
        "{ q = Conv(x, k, b)  a = Relu(q)  c = Conv(a, w)  y = Add(a, c) }",
        "{ q = Conv(x, k, b)  a = Relu(q)  c = Conv(a, w)  y = Add(q, c) }",
        "{ q = Abs(x)  a = Relu(q)  y = Conv(a, w) }",
        "{ q = Conv(x, k, b)  a = Sigmoid(q)  y = Conv(a, w) }",
    ],
)
def test_other_tensors_are_refused(text: str) -> None:
    graph = graph_of(
        "g (float[N, 2, 3, 3] x) => (float[N, 2, M, M] y) <float[2, 2, 1, 1] k = {1, 0, 0, 1},"
        f"float[2] b = {{9, 9}}, float[2, 2, 1, 1] w = {{1, 2, 3, 4}}> {text}"
    )
    assert not shiftables(graph)
    with pytest.raises(InputError, match="the channels of 'a' cannot be shifted"):
        ShiftChannels({"a": SHIFT}).run(graph, Context())


@pytest.mark.parametrize("numbers", [[1.0], [1.0, -1.0], [1.0, np.inf]])
def test_numbers_that_do_not_fit_are_refused(numbers: list[float]) -> None:
    graph = graph_of(PAIRS["Convs, the second depthwise"][0])
    with pytest.raises(InputError, match="'a' need 2 finite numbers, none below 0"):
        ShiftChannels({"a": np.array(numbers)}).run(graph, Context())
