from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.ir import Graph, default_passes
from onnxq.passes.fusion.fuse_attention import FuseAttention
from tests.helpers import assert_equivalent, run
from tests.passes.rewriting import check_kept, check_pair, operators, rewritten

STEP = FuseAttention()
SHAPES = "float[B, 2, 3, 4] q, float[B, 2, 5, 4] k, float[B, 2, 5, 6] v"
MASKS = "float[1, 1, 3, 5] mask"
NUMBERS = "float factor = {0.3}, float divisor = {2.5}, float four = {0.5}, float one = {1}"
SWAP = "t = Transpose<perm = [0, 1, 3, 2]>(k) "
LAST = "p = Softmax<axis = -1>(a) y = MatMul(p, v)"


def model(
    body: str,
    opset: int = 23,
    inputs: str = SHAPES,
    mask: str = MASKS,
    out: str = "B, 2, 3, 6",
    constants: str = NUMBERS,
) -> str:
    return (
        f'<ir_version: 10, opset_import: ["": {opset}]> g ({inputs}, {mask}) => '
        f"(float[{out}] y) <{constants}> {{ {body} }}"
    )


def fused(scale: str = "1.0", mask: str = "") -> str:
    return model(f"y = Attention<scale = {scale}>(q, k, v{mask})")


PAIRS = {
    "no scale": (model(SWAP + "a = MatMul(q, t) " + LAST), fused()),
    "a factor behind": (model(SWAP + "b = MatMul(q, t) a = Mul(factor, b) " + LAST), fused("0.3")),
    "a divisor behind": (
        model(SWAP + "b = MatMul(q, t) a = Div(b, divisor) " + LAST),
        fused("0.4"),
    ),
    "a mask, torch's older exporter": (
        model(SWAP + "b = MatMul(q, t) c = Div(b, divisor) a = Add(c, mask) " + LAST),
        fused("0.4", ", mask"),
    ),
    "a factor on both sides, torch's older exporter of today": (
        model("f = Mul(q, four) " + SWAP + "u = Mul(t, four) a = MatMul(f, u) " + LAST),
        fused("0.25"),
    ),
    "a factor on queries": (
        model("f = Mul(q, factor) " + SWAP + "a = MatMul(f, t) " + LAST),
        fused("0.3"),
    ),
    "a divisor on keys": (
        model(SWAP + "u = Div(t, divisor) a = MatMul(q, u) " + LAST),
        fused("0.4"),
    ),
    "a divisor on queries": (
        model("f = Div(q, divisor) " + SWAP + "b = MatMul(f, t) a = Add(mask, b) " + LAST),
        fused("0.4", ", mask"),
    ),
    "keys with heads split off in the same Transpose": (
        model(
            "t = Transpose<perm = [0, 2, 3, 1]>(k) b = MatMul(q, t) a = Mul(b, factor) " + LAST,
            inputs="float[B, 2, 3, 4] q, float[B, 5, 2, 4] k, float[B, 2, 5, 6] v",
        ),
        model(
            "t = Transpose<perm = [0, 2, 1, 3]>(k) y = Attention<scale = 0.3>(q, t, v)",
            inputs="float[B, 2, 3, 4] q, float[B, 5, 2, 4] k, float[B, 2, 5, 6] v",
        ),
    ),
    "keys transposed over three axes, torch's newer exporter": (
        model(
            "r = Reshape(k, merged) s = Transpose<perm = [0, 2, 1]>(r) t = Reshape(s, split) "
            "f = Mul(q, four) u = Mul(t, four) b = MatMul(f, u) a = Add(b, mask) " + LAST,
            inputs="float[1, 2, 3, 4] q, float[1, 2, 5, 4] k, float[1, 2, 5, 6] v",
            out="1, 2, 3, 6",
            constants=NUMBERS + ", int64[3] merged = {-1, 5, 4}, int64[4] split = {1, 2, 4, 5}",
        ),
        model(
            "y = Attention<scale = 0.25>(q, k, v, mask)",
            inputs="float[1, 2, 3, 4] q, float[1, 2, 5, 4] k, float[1, 2, 5, 6] v",
            out="1, 2, 3, 6",
        ),
    ),
}


@pytest.mark.parametrize("case", PAIRS)
def test_pair(case: str) -> None:
    check_pair(STEP, *PAIRS[case])


@pytest.mark.parametrize("mask", ["3, 5", "2, 3, 5", "1, 3, 5", "B, 1, 3, 5", "B, 2, 3, 5"])
def test_mask_of_any_shape_that_the_kernel_takes(mask: str) -> None:
    body = SWAP + "b = MatMul(q, t) a = Add(b, mask) " + LAST
    before = model(body, mask=f"float[{mask}] mask")
    wanted = model("y = Attention<scale = 1.0>(q, k, v, mask)", mask=f"float[{mask}] mask")
    check_pair(STEP, before, wanted)


MASKED = SWAP + "b = MatMul(q, t) a = Add(b, mask) " + LAST
KEPT = {
    "opset 22": model(SWAP + "a = MatMul(q, t) " + LAST, 22),
    "a mask that is broadcast along the queries": model(MASKED, mask="float[B, 1, 1, 5] mask"),
    "a mask that is broadcast along the keys": model(MASKED, mask="float[B, 1, 3, 1] mask"),
    "a mask that enlarges the batch": model(
        MASKED,
        inputs="float[1, 2, 3, 4] q, float[1, 2, 5, 4] k, float[1, 2, 5, 6] v",
        mask="float[7, 1, 3, 5] mask",
        out="7, 2, 3, 6",
    ),
    "another axis": model(SWAP + "a = MatMul(q, t) p = Softmax<axis = 2>(a) y = MatMul(p, v)"),
    "another Transpose": model(
        "t = Transpose<perm = [0, 2, 1, 3]>(k) a = MatMul(q, t) " + LAST,
        inputs="float[B, 2, 3, 4] q, float[B, 4, 2, 5] k, float[B, 2, 5, 6] v",
    ),
    "heads that keys share": model(
        SWAP + "a = MatMul(q, t) " + LAST,
        inputs="float[B, 2, 3, 4] q, float[B, 1, 5, 4] k, float[B, 1, 5, 6] v",
    ),
    "a batch that may be broadcast": model(
        SWAP + "a = MatMul(q, t) " + LAST,
        inputs="float[B, 2, 3, 4] q, float[A, 2, 5, 4] k, float[B, 2, 5, 6] v",
    ),
    "three dimensions": model(
        "t = Transpose<perm = [0, 2, 1]>(k) a = MatMul(q, t) " + LAST,
        inputs="float[B, 3, 4] q, float[B, 5, 4] k, float[B, 5, 6] v",
        out="B, 3, 6",
    ),
    "a factor below zero": model(
        SWAP + "b = MatMul(q, t) a = Mul(b, factor) " + LAST,
        constants=NUMBERS.replace("0.3", "-0.3"),
    ),
    "probabilities that are read elsewhere": model(
        SWAP + "a = MatMul(q, t) p = Softmax<axis = -1>(a) z = MatMul(p, v) m = ReduceMax(p) "
        "y = Add(z, m)"
    ),
    "double": model(SWAP + "a = MatMul(q, t) " + LAST).replace("float", "double"),
    "keys merged and split apart": model(
        "r = Reshape(k, merged) s = Transpose<perm = [0, 2, 1]>(r) t = Reshape(s, split) "
        "a = MatMul(q, t) " + LAST,
        inputs="float[1, 2, 3, 4] q, float[1, 2, 5, 4] k, float[1, 2, 5, 6] v",
        out="1, 2, 3, 6",
        constants=NUMBERS + ", int64[3] merged = {2, 4, 5}, int64[4] split = {1, 2, 4, 5}",
    ),
}


@pytest.mark.parametrize("case", KEPT)
def test_kept(case: str) -> None:
    check_kept(STEP, KEPT[case])


def test_excluded_keys_take_no_part() -> None:
    before = Graph.from_text(model(MASKED))
    after, _ = rewritten(STEP, before)
    rng = np.random.default_rng(0)
    feeds = {
        n: rng.standard_normal((2, 2, *s)) for n, s in (("q", (3, 4)), ("k", (5, 4)), ("v", (5, 6)))
    }
    feeds["mask"] = np.where(np.tri(3, 5), 0, -np.inf)[None, None]
    single = {name: array.astype(np.float32) for name, array in feeds.items()}
    assert_equivalent(before, after, exact=False, feeds=single)
    scores = feeds["q"] @ feeds["k"].swapaxes(2, 3) + feeds["mask"]
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    wanted = weights / weights.sum(-1, keepdims=True) @ feeds["v"]
    np.testing.assert_allclose(run(after, single)["y"], wanted, rtol=0, atol=1e-5)


@settings(max_examples=30)
@given(
    sizes=st.tuples(*[st.integers(1, 5)] * 6),
    query=st.sampled_from(["f = Mul(q, factor)", "f = Div(q, divisor)", "f = Identity(q)"]),
    key=st.sampled_from(["u = Mul(t, four)", "u = Identity(t)"]),
    after=st.sampled_from(["c = Mul(b, factor)", "c = Div(b, divisor)", "c = Identity(b)"]),
    mask=st.sampled_from(["a = Add(c, mask)", "a = Identity(c)"]),
)
def test_any_size_and_scale(
    sizes: tuple[int, ...], query: str, key: str, after: str, mask: str
) -> None:
    batch, heads, length, keys, size, width = sizes
    steps = [query, SWAP, key, "b = MatMul(f, u)", after, mask, LAST]
    graph = Graph.from_text(
        model(
            " ".join(steps),
            inputs=f"float[{batch}, {heads}, {length}, {size}] q, "
            f"float[{batch}, {heads}, {keys}, {size}] k, "
            f"float[{batch}, {heads}, {keys}, {width}] v",
            mask=f"float[{heads}, {length}, {keys}] mask",
            out=f"{batch}, {heads}, {length}, {width}",
        )
    )
    for node in list(graph.nodes()):
        if node.is_op("Identity"):
            read = node.input(0)
            assert read is not None
            graph.replace_uses(node.output, read)
            graph.remove(node)
    found, made = rewritten(STEP, graph)
    assert made == 1
    assert operators(found) == ["Attention"]
    assert_equivalent(graph, found, exact=False)


def test_the_default_pipeline_leaves_it_alone() -> None:
    assert not any(isinstance(step, FuseAttention) for step in default_passes())
