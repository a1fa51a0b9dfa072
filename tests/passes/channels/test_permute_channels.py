from __future__ import annotations

import numpy as np
import pytest

from onnxq.errors import InputError
from onnxq.ir import Context, Graph, infer_types, load
from onnxq.passes.channels.permute_channels import PermuteChannels, bundles
from tests.helpers import assert_equivalent, assert_same_graph

HEAD = '<ir_version: 11, opset_import: ["": 20]>'
PLANE = "g (float[N, 2] x) => (float[N, 2] y) <"
W = "float[3, 2] w = {1, 2, 3, 4, 5, 6}"
PERMUTED_W = "float[3, 2] w = {5, 6, 1, 2, 3, 4}"
ORDER = np.array([2, 0, 1])

PAIRS = {
    "a vector that is added, and an activation": (
        PLANE
        + f"""float[2, 3] a_w = {{1, 2, 3, 4, 5, 6}}, float[3] b = {{7, 8, 9}}, {W}>
        {{ a = MatMul(x, a_w)  c = Add(b, a)  d = Gelu(c)  y = MatMul(d, w) }}""",
        PLANE
        + f"""float[2, 3] a_w = {{3, 1, 2, 6, 4, 5}}, float[3] b = {{9, 7, 8}}, {PERMUTED_W}>
        {{ a = MatMul(x, a_w)  c = Add(b, a)  d = Gelu(c)  y = MatMul(d, w) }}""",
    ),
    "a gate, one number, and transposed weights": (
        PLANE
        + """float[3, 2] a_w = {1, 2, 3, 4, 5, 6}, float[3] b = {7, 8, 9},
        float[2, 3] g_w = {1, 2, 3, 4, 5, 6}, float k = {2}, float[2, 3] w = {1, 2, 3, 4, 5, 6}>
        { a = Gemm<transB = 1>(x, a_w, b)  g = MatMul(x, g_w)  h = Mul(g, k)  s = Sigmoid(h)
          m = Mul(a, s)  y = Gemm<transB = 1>(m, w) }""",
        PLANE
        + """float[3, 2] a_w = {5, 6, 1, 2, 3, 4}, float[3] b = {9, 7, 8},
        float[2, 3] g_w = {3, 1, 2, 6, 4, 5}, float k = {2}, float[2, 3] w = {3, 1, 2, 6, 4, 5}>
        { a = Gemm<transB = 1>(x, a_w, b)  g = MatMul(x, g_w)  h = Mul(g, k)  s = Sigmoid(h)
          m = Mul(a, s)  y = Gemm<transB = 1>(m, w) }""",
    ),
    "a Reshape that leaves the last axis": (
        "g (float[2, 5, 2] x) => (float[10, 2] y)"
        f"<float[2, 3] a_w = {{1, 2, 3, 4, 5, 6}}, int64[2] to = {{-1, 3}}, {W}>"
        "{ a = MatMul(x, a_w)  r = Reshape(a, to)  y = Gemm(r, w) }",
        "g (float[2, 5, 2] x) => (float[10, 2] y)"
        f"<float[2, 3] a_w = {{3, 1, 2, 6, 4, 5}}, int64[2] to = {{-1, 3}}, {PERMUTED_W}>"
        "{ a = MatMul(x, a_w)  r = Reshape(a, to)  y = Gemm(r, w) }",
    ),
}


def graph_of(text: str) -> Graph:
    graph = Graph.from_text(HEAD + text)
    infer_types(graph)
    return graph


@pytest.mark.parametrize("name", PAIRS)
def test_channels_change_places(name: str) -> None:
    text, wanted = PAIRS[name]
    before = graph_of(text)
    after = before.copy()
    assert PermuteChannels({"a": ORDER}).run(after, Context()) == 1
    assert_same_graph(after, graph_of(wanted), rtol=0)
    assert_equivalent(before, after, exact=False, rtol=1e-6)
    made = {node.output.name for node in after.nodes()} - {"y"}
    assert all(value.endswith("_permuted") for value in made)


MADE = "float[2, 3] a_w = {1, 2, 3, 4, 5, 6}"
REFUSED = {
    "'a' is an input or output": "(float[N, 2] y, float[N, 3] a) <{made}, {w}>"
    "{{ a = MatMul(x, a_w)  y = MatMul(a, w) }}",
    "Softmax '.*' reads 'a'": "(float[N, 2] y, float[N, 3] z) <{made}, {w}>"
    "{{ a = MatMul(x, a_w)  y = MatMul(a, w)  z = Softmax(a) }}",
    "Softmax '.*' makes 'a'": "(float[N, 2] y) <{made}, {w}>"
    "{{ b = MatMul(x, a_w)  a = Softmax(b)  y = MatMul(a, w) }}",
    "Reshape '.*' reads 'a'": "(float[N, 2] y, float[M, 6] z)"
    "<{made}, {w}, int64[2] to = {{-1, 6}}>"
    "{{ a = MatMul(x, a_w)  z = Reshape(a, to)  y = MatMul(a, w) }}",
    "MatMul '.*' reads 'b'": "(float[N, N] y, float[N, 2] z) <{made}, {w}>"
    "{{ a = MatMul(x, a_w)  b = Relu(a)  c = Transpose(x)  d = Tanh(x)  e = MatMul(d, c)"
    "  f = MatMul(e, b)  z = MatMul(a, w)  y = Neg(e) }}",
}


@pytest.mark.parametrize("reason", REFUSED)
def test_other_tensors_are_refused(reason: str) -> None:
    graph = graph_of("g (float[N, 2] x) => " + REFUSED[reason].format(made=MADE, w=W))
    with pytest.raises(InputError, match=f"the channels of 'a' cannot change places: {reason}"):
        PermuteChannels({"a": ORDER}).run(graph, Context())


@pytest.mark.parametrize("order", [[0, 1], [0, 0, 1], [0, 1, 3]])
def test_an_order_names_each_channel_once(order: list[int]) -> None:
    graph = graph_of(PAIRS["a vector that is added, and an activation"][0])
    with pytest.raises(InputError, match="'d' has to name each of its 3 channels once"):
        PermuteChannels({"d": np.array(order)}).run(graph, Context())
    with pytest.raises(InputError, match="the channels of 'a' change places twice"):
        PermuteChannels({"d": ORDER, "a": ORDER}).run(graph, Context())


def test_all_bundles_of_a_model_at_once_change_no_output() -> None:
    before = load("models/text_lm.onnx")
    infer_types(before)
    after, rng = before.copy(), np.random.default_rng(0)
    found = {id(b): (name, b.size) for name, b in bundles(after).items() if not isinstance(b, str)}
    assert len(found) == 4, "the feed-forward part of each block"
    PermuteChannels({name: rng.permutation(size) for name, size in found.values()}).run(
        after, Context()
    )
    assert_equivalent(before, after, exact=False, rtol=1e-5, seeds=(0,), dims={"batch": 2})
