from __future__ import annotations

import numpy as np
import pytest

from onnxq.errors import InputError
from onnxq.ir import Context, Graph, infer_types, load
from onnxq.passes.channels.groups import Groups, find_groups
from onnxq.passes.channels.scale_channels import ScaleChannels
from tests.helpers import assert_equivalent, assert_same_graph

PLANE = "g (float[N, 2] x) => (float[N, 2] y) <"
IMAGE = "g (float[N, 2, 3, 3] x) => (float[N, 2, 3, 3] y) <"
HEAD = '<ir_version: 11, opset_import: ["": 23]>'
W = "float[2, 2] w = {1, 2, 3, 4}"
SCALED_W = "float[2, 2] w = {2, 4, 12, 16}"

PAIRS = {
    "LayerNormalization with a bias": (
        PLANE
        + f"""float[2] k = {{4, 8}}, float[2] b = {{2, 8}}, {W}>
        {{ a = LayerNormalization(x, k, b)  y = MatMul(a, w) }}""",
        PLANE
        + f"""float[2] k = {{2, 2}}, float[2] b = {{1, 2}}, {SCALED_W}>
        {{ a_scaled = LayerNormalization(x, k, b)  y = MatMul(a_scaled, w) }}""",
    ),
    "RMSNormalization that two products read": (
        "g (float[N, 2] x) => (float[N, 2] y, float[N, 1] z)"
        f"""<float[2] k = {{4, 8}}, {W}, float[2, 1] v = {{1, 1}}>
        {{ a = RMSNormalization(x, k)  y = MatMul(a, w)  z = Gemm(a, v) }}""",
        "g (float[N, 2] x) => (float[N, 2] y, float[N, 1] z)"
        f"""<float[2] k = {{2, 2}}, {SCALED_W}, float[2, 1] v = {{2, 4}}>
        {{ a_scaled = RMSNormalization(x, k)  y = MatMul(a_scaled, w)  z = Gemm(a_scaled, v) }}""",
    ),
    "Mul by a vector": (
        PLANE + f"float[1, 2] a_k = {{4, 8}}, {W}> {{ a = Mul(a_k, x)  y = MatMul(a, w) }}",
        PLANE + f"float[1, 2] a_k = {{2, 2}}, {SCALED_W}> {{ b = Mul(a_k, x)  y = MatMul(b, w) }}",
    ),
    "Div by a vector, and a transposed weight": (
        PLANE + f"float[2] k = {{4, 8}}, {W}> {{ a = Div(x, k)  y = Gemm<transB = 1>(a, w) }}",
        PLANE
        + """float[2] k = {8, 32}, float[2, 2] w = {2, 8, 6, 16}>
        { b = Div(x, k)  y = Gemm<transB = 1>(b, w) }""",
    ),
    "MatMul, and its bias behind it": (
        PLANE
        + f"""float[2, 2] a_w = {{2, 4, 6, 8}}, float[2] b = {{2, 4}}, {W}>
        {{ a = MatMul(x, a_w)  c = Add(b, a)  d = Relu(c)  y = MatMul(d, w) }}""",
        PLANE
        + f"""float[2, 2] a_w = {{1, 1, 3, 2}}, float[2] b = {{1, 1}}, {SCALED_W}>
        {{ a = MatMul(x, a_w)  c = Add(b, a)  d = Relu(c)  y = MatMul(d, w) }}""",
    ),
    "Gemm with factors, transposed, and one number that is added": (
        PLANE
        + f"""float[2, 2] a_w = {{2, 4, 6, 8}}, float[2] b = {{2, 4}}, float s = {{8}}, {W}>
        {{ a = Gemm<alpha = 2.0, beta = 3.0, transB = 1>(x, a_w, b)
           c = Sub(a, s)  y = MatMul(c, w) }}""",
        PLANE
        + f"""float[2, 2] a_w = {{1, 2, 1.5, 2}}, float[2] b = {{1, 1}},
        float[2] s = {{4, 2}}, {SCALED_W}>
        {{ a = Gemm<alpha = 2.0, beta = 3.0, transB = 1>(x, a_w, b)
           c = Sub(a, s)  y = MatMul(c, w) }}""",
    ),
    "Conv, pooling and a depthwise Conv": (
        IMAGE
        + """float[2, 2, 1, 1] a_w = {2, 4, 4, 8}, float[2] b = {2, 4},
        float[2, 1, 1, 1] w = {1, 2}>
        { a = Conv(x, a_w, b)  c = LeakyRelu(a)
          d = MaxPool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(c)
          y = Conv<group = 2>(d, w) }""",
        IMAGE
        + """float[2, 2, 1, 1] a_w = {1, 2, 1, 2}, float[2] b = {1, 1},
        float[2, 1, 1, 1] w = {2, 8}>
        { a = Conv(x, a_w, b)  c = LeakyRelu(a)
          d = MaxPool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(c)
          y = Conv<group = 2>(d, w) }""",
    ),
    "depthwise Conv and ConvTranspose": (
        IMAGE
        + """float[2, 1, 1, 1] a_w = {2, 8}, float[2, 2, 1, 1] w = {1, 2, 3, 4}>
        { a = Conv<group = 2>(x, a_w)  y = ConvTranspose(a, w) }""",
        IMAGE
        + """float[2, 1, 1, 1] a_w = {1, 2}, float[2, 2, 1, 1] w = {2, 4, 12, 16}>
        { a = Conv<group = 2>(x, a_w)  y = ConvTranspose(a, w) }""",
    ),
    "a Mul where nothing takes factors up, and other readers": (
        PLANE + f"{W}> {{ a = Sigmoid(x)  b = MatMul(a, w)  y = Add(a, b) }}",
        PLANE
        + f"""float[2] k = {{0.5, 0.25}}, {SCALED_W}>
        {{ a = Sigmoid(x)  s = Mul(a, k)  b = MatMul(s, w)  y = Add(a, b) }}""",
    ),
    "a Mul on the channels of an image": (
        IMAGE + "float[2, 2, 1, 1] w = {1, 2, 3, 4}> { a = Sigmoid(x)  y = Conv(a, w) }",
        IMAGE
        + """float[2, 1, 1] k = {0.5, 0.25}, float[2, 2, 1, 1] w = {2, 8, 6, 16}>
        { a = Sigmoid(x)  s = Mul(a, k)  y = Conv(s, w) }""",
    ),
    "a small weight that others read keeps its numbers there": (
        "g (float[N, 2] x) => (float[N, 2] y, float[N, 2] z)"
        f"<float[2] k = {{4, 8}}, {W}>"
        "{ a = Mul(x, k)  y = MatMul(a, w)  z = MatMul(x, w) }",
        "g (float[N, 2] x) => (float[N, 2] y, float[N, 2] z)"
        f"<float[2] k = {{2, 2}}, float[2, 2] v = {{2, 4, 12, 16}}, {W}>"
        "{ a = Mul(x, k)  y = MatMul(a, v)  z = MatMul(x, w) }",
    ),
}


def scaled(text: str, factors: dict[str, np.ndarray]) -> tuple[Graph, Graph]:
    """A graph before and after."""
    before = Graph.from_text(HEAD + text)
    infer_types(before)
    after = before.copy()
    made = ScaleChannels(factors).run(after, Context())
    assert made == len(factors)
    after.check()
    return before, after


@pytest.mark.parametrize("name", PAIRS)
def test_factors_go_from_the_producer_into_the_weights(name: str) -> None:
    text, wanted = PAIRS[name]
    before, after = scaled(text, {"a": np.array([2, 4], np.float32)})
    assert_same_graph(after, Graph.from_text(HEAD + wanted), rtol=0)
    assert_equivalent(before, after, exact=False, rtol=1e-6)


def test_what_is_divided_has_other_names() -> None:
    before, after = scaled(PAIRS["MatMul, and its bias behind it"][0], {"a": np.array([2.0, 4.0])})
    made = [[node.output.name for node in graph.nodes()] for graph in (before, after)]
    assert made == [["a", "c", "d", "y"], ["a_scaled", "c_scaled", "d_scaled", "y"]]


ATTENTION = """
g (float[batch, length, 6] x) => (float[batch, length, 2] y)
<float[6, {columns}] w = {{{w}}}, float[{columns}] b = {{{b}}},
 float[4, 2] v = {{1, 2, 3, 4, 5, 6, 7, 8}},
 int64[4] q_shape = {{0, 0, 2, 2}}, int64[4] v_shape = {{0, 0, {heads}, 2}},
 int64[3] whole = {{0, 0, 4}}, int64[3] parts = {{4, 4, {values}}},
 int64[5] many = {{1, 1, 2, 1, 1}},
 int64[4] merged = {{0, 2, -1, 2}}, int64[1] two = {{2}}>
{{
  p = MatMul(x, w)  c = Add(p, b)
  q, k, u = Split <axis = -1> (c, parts)
  q4 = Reshape(q, q_shape)  qt = Transpose <perm = [0, 2, 1, 3]> (q4)
  k4 = Reshape(k, q_shape)  kt = Transpose <perm = [0, 2, 3, 1]> (k4)
  u4 = Reshape(u, v_shape)  ut = Transpose <perm = [0, 2, 1, 3]> (u4)
  {repeated}
  s = MatMul(qt, kt)  m = Softmax(s)  o = MatMul(m, {values_read})
  ot = Transpose <perm = [0, 2, 1, 3]> (o)  oo = Reshape(ot, whole)
  y = MatMul(oo, v)
}}"""


def attention(heads: int) -> str:
    """Attention whose queries, keys and values are one product, with so many heads of values."""
    columns = 8 + 2 * heads
    generator = np.random.default_rng(0)
    numbers = [generator.standard_normal(n).round(2) for n in (6 * columns, columns)]
    w, b = (", ".join(map(str, n)) for n in numbers)
    repeated = (
        """e = Unsqueeze(ut, two)  f = Expand(e, many)  r = Reshape(f, merged)"""
        if heads == 1
        else ""
    )
    return ATTENTION.format(
        columns=columns,
        w=w,
        b=b,
        heads=heads,
        values=2 * heads,
        repeated=repeated,
        values_read="r" if heads == 1 else "ut",
    )


@pytest.mark.parametrize("heads", [1, 2])
def test_the_values_of_attention_take_factors_and_queries_do_not(heads: int) -> None:
    graph = Graph.from_text(HEAD + attention(heads))
    infer_types(graph)
    group = find_groups(graph).folded["p"]
    assert group.free.tolist() == [False] * 8 + [True] * 2 * heads
    ((consumer,), values) = group.consumers, list(range(8, 8 + 2 * heads))
    assert consumer.channels.tolist() == values * (2 // heads)
    factors = np.where(group.free, np.exp2(np.arange(group.size) % 5 - 2), 1)
    before, after = scaled(attention(heads), {"p": factors})
    for length in (1, 5):
        assert_equivalent(
            before, after, exact=False, rtol=1e-6, dims={"batch": 2, "length": length}
        )


REFUSED = {
    "an output": (
        "g (float[N, 2] x) => (float[N, 2] y, float[N, 2] a)"
        f"<float[2] k = {{1, 2}}, {W}> {{ a = Mul(x, k)  y = MatMul(a, w) }}",
        "'a' is an output of its graph",
    ),
    "a residual": (
        PLANE + f"float[2] k = {{1, 2}}, {W}> {{ a = Mul(x, k)  b = MatMul(a, w)  y = Add(a, b) }}",
        "factors do not go through Add",
    ),
    "what is not homogeneous": (
        PLANE + f"float[2] k = {{1, 2}}, {W}> {{ a = Mul(x, k)  b = Gelu(a)  y = MatMul(b, w) }}",
        "factors do not go through Gelu",
    ),
    "a square": (
        PLANE + f"float[2] k = {{1, 2}}, {W}> {{ a = Mul(x, k)  b = Mul(a, a)  y = MatMul(b, w) }}",
        "factors do not go through Mul",
    ),
    "what is divided by it": (
        PLANE + f"float[2] k = {{1, 2}}, {W}> {{ a = Mul(x, k)  b = Div(x, a)  y = MatMul(b, w) }}",
        "factors do not go through Div",
    ),
    "no product": (
        PLANE + "float[2] k = {1, 2}> { a = Mul(x, k)  y = Softmax(a) }",
        "factors do not go through Softmax",
    ),
    "channels that a Reshape mixes with samples": (
        "g (float[N, 4] x) => (float[M, 2] y)"
        f"<float[4] k = {{1, 2, 3, 4}}, {W}, int64[2] s = {{-1, 2}}>"
        "{ a = Mul(x, k)  b = Reshape(a, s)  y = MatMul(b, w) }",
        "it multiplies along another axis",
    ),
    "channels that a Transpose mixes with samples": (
        "g (float[N, 2, 3] x) => (float[N, 6] y)"
        "<float[2, 1] k = {1, 2}, float[6, 6] w = {" + ", ".join("1" * 36) + "}, "
        "int64[2] s = {-1, 6}>"
        "{ a = Mul(x, k)  b = Transpose<perm = [1, 0, 2]>(a)  c = Reshape(b, s)"
        "  y = MatMul(c, w) }",
        "it multiplies along another axis",
    ),
    "a body that reads it": (
        "g (float[N, 2] x, bool c) => (float[N, 2] y, float[N, 2] z)"
        f"<float[2] k = {{1, 2}}, {W}>"
        """{ a = Mul(x, k)  y = MatMul(a, w)
        z = If (c) <then_branch = t () => (float[N, 2] t1) { t1 = Relu(a) },
                    else_branch = e () => (float[N, 2] e1) { e1 = Neg(a) }> }""",
        "'a' is read in the body of a node",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_groups_are_refused_with_a_reason(name: str) -> None:
    text, reason = REFUSED[name]
    graph = Graph.from_text(HEAD + text)
    infer_types(graph)
    found = find_groups(graph)
    assert reason in found.refused["a"].text
    if "a" not in found.inserted:
        with pytest.raises(InputError, match="the channels of 'a' cannot be scaled: "):
            ScaleChannels({"a": np.ones(2)}).run(graph, Context())


def test_a_large_weight_that_others_read_is_left_to_them() -> None:
    graph = Graph.from_text(
        HEAD
        + "g (float[N, 256] x) => (float[N, 256] y, float[N, 256] z) { y = Abs(x)  z = Neg(x) }"
    )
    table = graph.constant(np.ones((256, 256), np.float32), "table")
    vector = graph.constant(np.ones(256, np.float32), "vector")
    x = graph.inputs[0]
    a = graph.add("Mul", [x, vector], outputs=["a"]).output
    for output, read in zip(graph.outputs, (a, x), strict=True):
        made = graph.add("MatMul", [read, table])
        graph.replace_uses(output, made.output)
    infer_types(graph)
    found = find_groups(graph)
    assert "its weight is read by others, too" in found.refused["a"].text
    assert not [*found]


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({"b": np.ones(2)}, "the channels of 'b' cannot be scaled: no product"),
        ({"a": np.ones(3)}, "need 2 finite factors above 0"),
        ({"a": np.array([1.0, -1.0])}, "need 2 finite factors above 0"),
        ({"a": np.array([1.0, np.inf])}, "need 2 finite factors above 0"),
        ({"a": np.array([1.0, 1e-38])}, "'k' would leave the range of its type"),
    ],
)
def test_factors_that_do_not_fit_are_refused(factors: dict[str, np.ndarray], message: str) -> None:
    text = PLANE + f"float[2] k = {{9, 9}}, {W}> {{ a = Mul(x, k)  y = MatMul(a, w) }}"
    with pytest.raises(InputError, match=message):
        scaled(text, factors)


def test_channels_that_something_else_reads_keep_the_factor_1() -> None:
    with pytest.raises(InputError, match="channel 7 of 'p' cannot be scaled"):
        scaled(attention(2), {"p": np.where(np.arange(12) == 7, 2.0, 1.0)})


def every_factor(groups: Groups) -> dict[str, np.ndarray]:
    """Random factors for all groups, powers of two and others."""
    generator = np.random.default_rng(1)
    return {
        group.tensor.name: np.where(group.free, np.exp(generator.normal(size=group.size)), 1)
        for group in groups
    }


@pytest.mark.parametrize("name", ["digits_vit", "text_lm", "digits_resnet"])
def test_all_groups_of_a_model_at_once_change_no_output(name: str) -> None:
    before = load(f"models/{name}.onnx")
    infer_types(before)
    after = before.copy()
    factors = every_factor(find_groups(after))
    assert len(factors) > 5
    assert ScaleChannels(factors).run(after, Context()) == len(factors)
    assert_equivalent(before, after, exact=False, rtol=1e-5, seeds=(0,), dims={"batch": 2})
