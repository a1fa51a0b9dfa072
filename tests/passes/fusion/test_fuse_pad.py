from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from onnxq.ir import Context, DataType, Graph, ModelInfo, TensorType
from onnxq.passes.fusion.fuse_pad import FusePad
from tests.helpers import assert_equivalent, assert_same_graph

HEAD = '<ir_version: 10, opset_import: ["": 21]>'
CONV = "float[2, 1, 2, 2] w = {1, 2, 3, 4, 5, 6, 7, 8}"


def fuse(before: Graph) -> tuple[Graph, int]:
    """The rewritten graph and the rewrites made; a second run must find nothing."""
    after = before.copy()
    made = FusePad().run(after, Context())
    after.check()
    assert FusePad().run(after, Context()) == 0
    return after, made


def with_pad(amounts: str, node: str, more: str = "", head: str = HEAD) -> Graph:
    """``node`` reads p, which is x padded by constant amounts."""
    extra = f", {more}" if more else ""
    count = len(amounts.split(","))
    return Graph.from_text(
        f"""{head} g (float[N, 1, 5, 6] x) => (float[N, C, H, W] y)
        <int64[{count}] a = {{{amounts}}}{extra}> {{ p = Pad(x, a)  {node} }}"""
    )


def without_pad(node: str, more: str = "", head: str = HEAD) -> Graph:
    constants = f"<{more}>" if more else ""
    return Graph.from_text(
        f"{head} g (float[N, 1, 5, 6] x) => (float[N, C, H, W] y) {constants} {{ {node} }}"
    )


CONVOLUTIONS = {
    "no padding of its own": ("", "pads = [1, 0, 2, 3]"),
    "VALID": ('auto_pad = "VALID"', "pads = [1, 0, 2, 3]"),
    "padding of its own": (
        "pads = [1, 1, 0, 2], strides = [2, 1], dilations = [1, 2]",
        "pads = [2, 1, 2, 5], strides = [2, 1], dilations = [1, 2]",
    ),
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_into_conv(case: str) -> None:
    own, wanted = CONVOLUTIONS[case]
    options = f"<{own}>" if own else ""
    before = with_pad("0, 0, 1, 0, 0, 0, 2, 3", f"y = Conv{options}(p, w)", CONV)
    after, made = fuse(before)
    assert made == 1
    assert_same_graph(after, without_pad(f"y = Conv<{wanted}>(x, w)", CONV))
    assert_equivalent(before, after, exact=False, dims={"N": 2})


def test_several_pads_and_several_readers() -> None:
    before = Graph.from_text(
        f"""{HEAD} g (float[1, 1, 4, 4] x) => (float[1, 2, A, B] y, float[1, 2, C, D] z)
        <{CONV}, int64[8] a = {{0, 0, 1, 0, 0, 0, 0, 1}}, int64[2] s = {{2, 1}},
         int64[1] axes = {{-1}}, float zero = {{0}}>
        {{ p = Pad(x, a, zero)  q = Pad(p, s, , axes)  y = Conv(q, w)
           z = Conv<strides = [2, 2]>(q, w) }}"""
    )
    after, made = fuse(before)
    assert made == 2
    assert_same_graph(
        after,
        Graph.from_text(
            f"""{HEAD} g (float[1, 1, 4, 4] x) => (float[1, 2, A, B] y, float[1, 2, C, D] z)
            <{CONV}> {{ y = Conv<pads = [1, 2, 0, 2]>(x, w)
            z = Conv<pads = [1, 2, 0, 2], strides = [2, 2]>(x, w) }}"""
        ),
    )
    assert_equivalent(before, after, exact=False)


@pytest.mark.parametrize("opset", [2, 7, 10])
def test_amounts_in_an_attribute(opset: int) -> None:
    head = f'<ir_version: 3, opset_import: ["": {opset}]>'
    inputs = "float[N, 1, 5, 6] x, float[2, 1, 2, 2] w"
    before, wanted, cropped, filled = (
        Graph.from_text(f"{head} g ({inputs}) => (float[N, 2, H, W] y) {{ {nodes} }}")
        for nodes in (
            "p = Pad<pads = [0, 0, 1, 0, 0, 0, 2, 3]>(x)  y = Conv(p, w)",
            "y = Conv<pads = [1, 0, 2, 3]>(x, w)",
            "p = Pad<pads = [0, 0, -1, 0, 0, 0, 2, 3]>(x)  y = Conv(p, w)",
            "p = Pad<pads = [0, 0, 1, 0, 0, 0, 2, 3], value = 1.0>(x)  y = Conv(p, w)",
        )
    )
    after, made = fuse(before)
    assert made == 1
    assert_same_graph(after, wanted)
    assert fuse(cropped)[1] == fuse(filled)[1] == 0
    if opset >= 7:
        assert_equivalent(before, after, exact=False, dims={"N": 2})


POOLS = {
    "average that counts nothing": (
        "AveragePool<kernel_shape = [2, 3]>",
        "AveragePool<kernel_shape = [2, 3], pads = [1, 0, 0, 2], count_include_pad = 1>",
        "",
    ),
    "average that counts its padding": (
        "AveragePool<kernel_shape = [2, 4], pads = [0, 1, 1, 0], count_include_pad = 1>",
        "AveragePool<kernel_shape = [2, 4], pads = [1, 1, 1, 2], count_include_pad = 1>",
        "",
    ),
    "maximum": (
        "MaxPool<kernel_shape = [2, 4], pads = [0, 1, 0, 0], strides = [2, 1]>",
        "MaxPool<kernel_shape = [2, 4], pads = [1, 1, 0, 2], strides = [2, 1]>",
        "f",
    ),
}


def padded_pool(pool: str, value: str) -> Graph:
    return Graph.from_text(
        f"""{HEAD} g (float[N, 1, 5, 6] x) => (float[N, 1, H, W] y)
        <int64[8] a = {{0, 0, 1, 0, 0, 0, 0, 2}}, float zero = {{0}}, float f = {{-inf}}>
        {{ p = Pad(x, a, {value})  y = {pool}(p) }}"""
    )


@pytest.mark.parametrize("case", POOLS)
def test_into_pool(case: str) -> None:
    pool, wanted, value = POOLS[case]
    before = padded_pool(pool, value)
    after, made = fuse(before)
    assert made == 1
    assert [n.op_type for n in after.nodes()] == [pool.split("<")[0]]
    assert_same_graph(
        after,
        Graph.from_text(
            f"{HEAD} g (float[N, 1, 5, 6] x) => (float[N, 1, H, W] y) <int64[8] a = "
            f"{{0, 0, 1, 0, 0, 0, 0, 2}}, float zero = {{0}}, float f = {{-inf}}> "
            f"{{ y = {wanted}(x) }}"
        ),
    )
    assert_equivalent(before, after, exact=False, dims={"N": 2})


@pytest.mark.parametrize(
    "pool, value",
    [
        ("MaxPool<kernel_shape = [2, 3]>", ""),
        ("MaxPool<kernel_shape = [2, 3], dilations = [2, 2]>", "f"),
        ("MaxPool<kernel_shape = [2, 3], ceil_mode = 1>", "f"),
        ("AveragePool<kernel_shape = [2, 3]>", "f"),
        ("AveragePool<kernel_shape = [2, 3], ceil_mode = 1>", ""),
        ("AveragePool<kernel_shape = [2, 3], dilations = [2, 2]>", ""),
        ("AveragePool<kernel_shape = [2, 3], pads = [0, 1, 0, 0]>", ""),
        ("AveragePool<kernel_shape = [2, 2]>", ""),
        ("MaxPool<kernel_shape = [2, 2]>", "f"),
        ("LpPool<kernel_shape = [2, 3]>", ""),
    ],
)
def test_pool_that_would_give_something_else(pool: str, value: str) -> None:
    assert fuse(padded_pool(pool, value))[1] == 0


def test_indices_of_a_maximum_that_are_used() -> None:
    before = Graph.from_text(
        f"""{HEAD} g (float[N, 1, 5, 6] x) => (float[N, 1, H, W] y, int64[N, 1, H, W] i)
        <int64[8] a = {{0, 0, 1, 0, 0, 0, 0, 2}}, float f = {{-inf}}>
        {{ p = Pad(x, a, f)  y, i = MaxPool<kernel_shape = [2, 3]>(p) }}"""
    )
    assert fuse(before)[1] == 0


@pytest.mark.parametrize(
    "amounts, node, more",
    [
        ("0, 0, -1, 0, 0, 0, 0, 0", "y = Conv(p, w)", CONV),
        ("0, 1, 0, 0, 0, 0, 0, 0", "y = Conv(p, v)", "float[1, 2, 1, 1] v = {1, 2}"),
        ("1, 0, 0, 0, 0, 0, 0, 0", "y = Conv(p, w)", CONV),
        ("0, 0, 1, 0, 0, 0, 0, 0", 'y = Conv<auto_pad = "SAME_UPPER">(p, w)', CONV),
        ("0, 0, 1, 0, 0, 0, 0, 0", "q = Conv(p, w)  r = Neg(p)  y = Concat<axis = 0>(q, r)", CONV),
        ("0, 0, 1, 0, 0, 0, 0, 0", "y = Neg(p)", ""),
        ("0, 0, 1, 0, 0, 0, 0, 0", "y = Conv(x, p)", ""),
        ("0, 0, 1, 0, 0, 0, 0, 0", "y = ConvTranspose(p, v)", "float[1, 1, 1, 1] v = {2}"),
        ("0, 0, 1, 0, 0, 0", "y = Conv(p, w)", CONV),
    ],
    ids=["cropped", "channels", "batch", "same", "read", "no", "weight", "transposed", "short"],
)
def test_kept(amounts: str, node: str, more: str) -> None:
    before = with_pad(amounts, node, more)
    after, made = fuse(before)
    assert made == 0
    assert_same_graph(after, before)


@pytest.mark.parametrize(
    "inputs, pad",
    [
        ("", 'Pad<mode = "edge">(x, a)'),
        ("", "Pad(x, a, one)"),
        (", float v", "Pad(x, a, v)"),
        (", int64[8] v", "Pad(x, v)"),
        (", int64[4] v", "Pad(x, a, , v)"),
        ("", "Pad(x, two, , far)"),
    ],
)
def test_amounts_or_values_that_do_not_fit(inputs: str, pad: str) -> None:
    before = Graph.from_text(
        f"""{HEAD} g (float[N, 1, 5, 6] x{inputs}) => (float[N, 2, H, W] y)
        <int64[8] a = {{0, 0, 1, 0, 0, 0, 2, 3}}, float one = {{1}}, {CONV},
         int64[2] two = {{1, 1}}, int64[1] far = {{7}}> {{ p = {pad}  y = Conv(p, w) }}"""
    )
    assert fuse(before)[1] == 0


def test_padded_output_stays() -> None:
    before = Graph.from_text(
        f"""{HEAD} g (float[1, 1, 4, 4] x) => (float[A, B, C, D] y, float[E, F, G, H] p)
        <int64[8] a = {{0, 0, 1, 0, 0, 0, 0, 0}}, {CONV}> {{ p = Pad(x, a)  y = Conv(p, w) }}"""
    )
    assert fuse(before)[1] == 0


def test_weight_of_unknown_rank_stays() -> None:
    before = with_pad("0, 0, 1, 0, 0, 0, 0, 0", "v = Abs(w)  y = Conv(p, v)", CONV)
    assert fuse(before)[1] == 0


@settings(max_examples=30)
@given(
    rank=st.integers(1, 3),
    amounts=st.lists(st.integers(0, 2), min_size=6, max_size=6),
    own=st.lists(st.integers(0, 1), min_size=6, max_size=6),
    kernel=st.lists(st.integers(1, 4), min_size=3, max_size=3),
    stride=st.integers(1, 3),
    operator=st.sampled_from(["Conv", "AveragePool", "MaxPool"]),
    counts=st.booleans(),
)
def test_any_shape(
    rank: int,
    amounts: list[int],
    own: list[int],
    kernel: list[int],
    stride: int,
    operator: str,
    counts: bool,
) -> None:
    pads, kernel = own[: 2 * rank], kernel[:rank]
    assume(operator == "Conv" or all(p < k for p, k in zip(pads, kernel * 2, strict=True)))
    graph = Graph("g", model=ModelInfo(8, {"": 17}))
    x = graph.add_input("x", TensorType(DataType.FLOAT, (2, 4, *[5] * rank)))
    lists = [[0, 0, *amounts[:rank]], [0, 0, *amounts[3 : 3 + rank]]]
    given = graph.constant(np.array(lists, dtype=np.int64).reshape(-1))
    fill = graph.constant(np.float32(-np.inf) * np.ones((), np.float32))
    padded = graph.add("Pad", [x, given, fill if operator == "MaxPool" else None]).output
    attributes = {"pads": pads, "strides": [stride] * rank, "kernel_shape": kernel}
    inputs = [padded]
    if operator == "Conv":
        generator = np.random.default_rng(stride)
        weight = generator.standard_normal((4, 2, *kernel)).astype(np.float32)
        inputs.append(graph.constant(weight))
        attributes["group"] = 2
    elif operator == "AveragePool":
        attributes["count_include_pad"] = int(counts)
    made = graph.add(operator, inputs, attributes, outputs=["y"]).output
    made.type = TensorType(DataType.FLOAT)
    graph.add_output(made)
    after, rewrites = fuse(graph)
    total = [a + b for a, b in zip(lists[0][2:] + lists[1][2:], pads, strict=True)]
    fits = operator == "Conv" or all(p < k for p, k in zip(total, kernel * 2, strict=True))
    if operator == "AveragePool" and not counts and any(pads):
        fits = False
    assert rewrites == int(fits)
    assert_equivalent(graph, after, exact=False)
