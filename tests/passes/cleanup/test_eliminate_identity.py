from __future__ import annotations

import numpy as np
import pytest

from onnxq.ir import Graph, Pipeline
from onnxq.passes.cleanup.eliminate_identity import EliminateIdentity
from tests.helpers import assert_equivalent, assert_same_graph, run

HEAD = '<ir_version: 10, opset_import: ["": 21]>'
OLD = '<ir_version: 8, opset_import: ["": 6]>'


def eliminate(before: Graph) -> tuple[Graph, int]:
    """The rewritten graph and the rewrites made; a second run must find nothing."""
    after = before.copy()
    pipeline = Pipeline((EliminateIdentity(),))
    made = sum(r.rewrites for r in pipeline.run(after))
    assert sum(r.rewrites for r in pipeline.run(after)) == 0
    after.check()
    return after, made


# Type of x, of the result, constants, and the operator between; then whether it goes.
CASES = [
    ("float[N] -> float[N]", "", "Identity(a)", True),
    ("float[N] -> float[N]", "", "Dropout(a)", True),
    ("float[N] -> float[N]", "float r = {0.5}, bool t = {0}", "Dropout(a, r, t)", True),
    ("float[N] -> float[N]", "float r = {0}, bool t = {1}", "Dropout(a, r, t)", False),
    ("float[N] -> float[N]", "", "Cast<to = 1>(a)", True),
    ("float[N] -> double[N]", "", "Cast<to = 11>(a)", False),
    ("float[N] -> float[N]", "float l = {0}", "CastLike(a, l)", True),
    ("float[N] -> int64[N]", "int64 l = {0}", "CastLike(a, l)", False),
    ("float[2, 2] -> float[2, 2]", "", "Transpose<perm = [0, 1]>(a)", True),
    ("float[2, 2] -> float[2, 2]", "", "Transpose<perm = [1, 0]>(a)", False),
    ("float[2, 2] -> float[2, 2]", "", "Transpose(a)", False),
    ("float[N] -> float[N]", "", "Transpose(a)", True),
    ("float[2, 3] -> float[2, 3]", "int64[2] t = {2, 3}", "Reshape(a, t)", True),
    ("float[2, 3] -> float[3, 2]", "int64[2] t = {3, 2}", "Reshape(a, t)", False),
    ("float[N, 3] -> float[N, 3]", "int64[2] t = {-1, 3}", "Reshape(a, t)", True),
    ("float[N, M, 3] -> float[N, M, 3]", "int64[3] t = {0, 0, 3}", "Reshape(a, t)", True),
    ("float[N, M, 3] -> float[N, M, 3]", "int64[3] t = {0, -1, 3}", "Reshape(a, t)", True),
    ("float[N, M] -> float[A, B]", "int64[2] t = {2, -1}", "Reshape(a, t)", False),
    ("float[N, M] -> float[N, M]", "int64[2] t = {0, 0}", "Reshape<allowzero = 1>(a, t)", False),
    ("float[2, 3] -> float[6]", "int64[1] t = {-1}", "Reshape(a, t)", False),
    ("float[2, M] -> float[2, M]", "", "Flatten(a)", True),
    ("float[N, M] -> float[N, M]", "", "Flatten<axis = -1>(a)", True),
    ("float[N, M] -> float[A, B]", "", "Flatten<axis = 0>(a)", False),
    ("float[N, 2, 3] -> float[A, B]", "", "Flatten(a)", False),
    ("float[2, 3] -> float[2, 3]", "", "Squeeze(a)", True),
    ("float[2, 1] -> float[2]", "", "Squeeze(a)", False),
    ("float[2] -> float[1, 2]", "int64[1] t = {0}", "Unsqueeze(a, t)", False),
    ("float[N, 3] -> float[N, 3]", "int64[2] t = {1, 3}", "Expand(a, t)", True),
    ("float[N, 3] -> float[N, 3]", "int64[1] t = {1}", "Expand(a, t)", True),
    ("float[N, 3] -> float[A, 3]", "int64[2] t = {2, 3}", "Expand(a, t)", False),
    ("float[3] -> float[1, 3]", "int64[2] t = {1, 3}", "Expand(a, t)", False),
    ("float[N, 3] -> float[N, 3]", "int64[2] t = {1, 1}", "Tile(a, t)", True),
    ("float[N, 3] -> float[N, 6]", "int64[2] t = {1, 2}", "Tile(a, t)", False),
    ("float[N, 3] -> float[N, 3]", "int64[4] t = {0, 0, 0, 0}", "Pad(a, t)", True),
    ("float[N, 3] -> float[N, 4]", "int64[4] t = {0, 0, 0, 1}", "Pad(a, t)", False),
    ("float[N, 3] -> float[N, 3]", "int64[1] s = {0}, int64[1] e = {9223372036854775807}",
     "Slice(a, s, e)", True),
    ("float[N, 3] -> float[N, 3]", "int64[1] s = {0}, int64[1] e = {3}, int64[1] x_axis = {1}",
     "Slice(a, s, e, x_axis)", True),
    ("float[N, 3] -> float[N, 3]", "int64[1] s = {-3}, int64[1] e = {9}, int64[1] x_axis = {-1}",
     "Slice(a, s, e, x_axis)", True),
    ("float[N, 3] -> float[M, 3]", "int64[1] s = {0}, int64[1] e = {3}", "Slice(a, s, e)", False),
    ("float[N, 3] -> float[N, 3]", "int64[1] s = {1}, int64[1] e = {9223372036854775807}",
     "Slice(a, s, e)", False),
    ("float[N, 3] -> float[N, 2]",
     "int64[1] s = {0}, int64[1] e = {3}, int64[1] x_axis = {1}, int64[1] step = {2}",
     "Slice(a, s, e, x_axis, step)", False),
    ("float[N, 3] -> float[N, 3]", "", "Split<axis = 1, num_outputs = 1>(a)", True),
    ("float[N, 3] -> float[N, 3]", "", "Concat<axis = 1>(a)", True),
    ("float[N, 3] -> float[N, 6]", "", "Concat<axis = 1>(a, a)", False),
    ("float[N] -> float[N]", "", "Sum(a)", True),
    ("float[N] -> float[N]", "", "Mean(a)", True),
    ("float[N] -> float[N]", "", "Max(a)", True),
    ("float[N] -> float[N]", "", "Min(a)", True),
    ("float[2] -> float[2]", "bool[2] c = {1, 1}, float[2] o = {7, 8}", "Where(c, a, o)", True),
    ("float[2] -> float[2]", "bool c = {0}, float[2] o = {7, 8}", "Where(c, o, a)", True),
    ("float[2] -> float[2]", "bool[2] c = {1, 0}, float[2] o = {7, 8}", "Where(c, a, o)", False),
    ("float[1] -> float[2]", "bool[2] c = {1, 1}, float[2] o = {7, 8}", "Where(c, a, o)", False),
    ("float[N] -> float[N]", "float[1] c = {1}", "Mul(c, a)", True),
    ("float[N, 3] -> float[N, 3]", "float[3] c = {1, 1, 1}", "Mul(a, c)", True),
    ("float[N, 1] -> float[N, 3]", "float[3] c = {1, 1, 1}", "Mul(a, c)", False),
    ("float[N] -> float[1, N]", "float[1, 1] c = {1}", "Mul(a, c)", False),
    ("float[N, 3] -> float[N, 3]", "float[3] c = {1, 1, 2}", "Mul(a, c)", False),
    ("float[N] -> float[N]", "float c = {1}", "Div(a, c)", True),
    ("float[N] -> float[N]", "float c = {1}", "Div(c, a)", False),
    ("float[N] -> float[N]", "float c = {0}", "Sub(a, c)", True),
    ("float[N] -> float[N]", "float c = {0}", "Sub(c, a)", False),
    ("float[N] -> float[N]", "float c = {-0.0}", "Sub(a, c)", False),
    ("float[N] -> float[N]", "float c = {0}", "Add(a, c)", False),
    ("float[N] -> float[N]", "float c = {-0.0}", "Add(a, c)", True),
    ("int64[N] -> int64[N]", "int64 c = {0}", "Add(c, a)", True),
    ("int64[N] -> int64[N]", "int64 c = {1}", "Div(a, c)", True),
    ("float[1, 1, 2, 2] -> float[1, 1, 2, 2]", "float[4] s = {1, 1, 1, 1}",
     'Resize<mode = "linear">(a, , s)', True),
    ("float[1, 1, 2, 2] -> float[1, 1, 2, 2]", "int64[4] s = {1, 1, 2, 2}",
     'Resize<mode = "cubic">(a, , , s)', True),
    ("float[N, 1, 2, 2] -> float[N, 1, 2, 2]", "int64[2] s = {2, 2}",
     "Resize<axes = [2, 3]>(a, , , s)", True),
    ("float[1, 1, 2, 2] -> float[1, 1, 4, 2]", "float[4] s = {1, 1, 2, 1}",
     "Resize(a, , s)", False),
    ("float[1, 1, 2, 2] -> float[1, 1, 2, 2]",
     "float[8] r = {0, 0, 0, 0, 1, 1, 0.5, 1}, float[4] s = {1, 1, 1, 1}",
     'Resize<mode = "linear", coordinate_transformation_mode = "tf_crop_and_resize">(a, r, s)',
     False),
    ("int32[N] -> int32[N]", "", "Clip(a)", True),
    ("float[N] -> float[N]", "", "Clip(a)", False),
    ("int8[1, 1, 4] -> int8[1, 1, 4]", "", "MaxPool<kernel_shape = [1]>(a)", True),
    ("int8[1, 1, 4] -> int8[1, 1, 2]", "",
     "MaxPool<kernel_shape = [1], strides = [2]>(a)", False),
    ("float[1, 1, 4] -> float[1, 1, 4]", "", "MaxPool<kernel_shape = [1]>(a)", False),
    ("float[1, 1, 4] -> float[1, 1, 4]", "", "AveragePool<kernel_shape = [1]>(a)", False),
]  # fmt: skip


@pytest.mark.parametrize(("types", "constants", "operator", "goes"), CASES)
def test_operator_between_two_others(types: str, constants: str, operator: str, goes: bool) -> None:
    taken, given = types.split(" -> ")
    held = f"<{constants}>" if constants else ""
    first, last = ("Abs", "Abs") if "int" in taken else ("Sin", "Abs")
    nodes = f"a = {first}(x)  b = {operator}  y = {last}(b)"
    graph = Graph.from_text(f"{HEAD} g ({taken} x) => ({given} y) {held} {{ {nodes} }}")
    after, made = eliminate(graph)
    if goes:
        wanted = f"{HEAD} g ({taken} x) => ({given} y) {{ a = {first}(x)  y = {last}(a) }}"
        assert_same_graph(after, Graph.from_text(wanted))
        assert made == 1
        assert all(not v.is_constant for v in after.values.values())
    else:
        assert made == 0
        assert_same_graph(after, graph)
    if "allowzero" not in operator:
        assert_equivalent(graph, after)


@pytest.mark.parametrize("operator", ["Mul(a, one)", "Sub(a, zero)", "Add(a, negative)", "Max(a)"])
def test_special_numbers_keep_every_bit(operator: str) -> None:
    graph = Graph.from_text(
        f"""{HEAD} g (float[8] x) => (float[8] y)
        <float one = {{1}}, float zero = {{0}}, float negative = {{-0.0}}>
        {{ a = Neg(x)  b = {operator}  y = Neg(b) }}"""
    )
    after, made = eliminate(graph)
    assert made == 1
    tiny = np.finfo(np.float32).smallest_subnormal
    x = np.array([0, -0.0, np.inf, -np.inf, np.nan, tiny, -tiny, 3.4e38], np.float32)
    assert_equivalent(graph, after, feeds={"x": x})


def test_plus_zero_would_change_the_sign_of_zero() -> None:
    """Why float Add of +0.0 is left: here the rewrite would show."""
    graph = Graph.from_text(
        f"""{HEAD} g (float[1] x) => (float[1] y) <float zero = {{0}}, float one = {{1}}>
        {{ a = Neg(x)  b = Add(a, zero)  y = Div(one, b) }}"""
    )
    assert run(graph, {"x": np.zeros(1, np.float32)})["y"] == np.inf
    after, _ = eliminate(graph)
    assert run(after, {"x": np.zeros(1, np.float32)})["y"] == np.inf


OUTPUTS = {
    "a node's value takes the output's name": (
        "g (float[N] x) => (float[N] y) { a = Neg(x)  y = Identity(a) }",
        "g (float[N] x) => (float[N] y) { y = Neg(x) }",
        1,
    ),
    "an input stays apart from the output": (
        "g (float[N] x) => (float[N] y) { y = Identity(x) }",
        "g (float[N] x) => (float[N] y) { y = Identity(x) }",
        0,
    ),
    "a constant stays apart from the output": (
        "g (float[1] x) => (float[1] y, float[1] z) <float[1] c = {1}> "
        "{ y = Identity(c)  z = Add(x, c) }",
        "g (float[1] x) => (float[1] y, float[1] z) <float[1] c = {1}> "
        "{ y = Identity(c)  z = Add(x, c) }",
        0,
    ),
    "two outputs of one value": (
        "g (float[N] x) => (float[N] y, float[N] z) { y = Neg(x)  z = Identity(y) }",
        "g (float[N] x) => (float[N] y, float[N] z) { y = Neg(x)  z = Identity(y) }",
        0,
    ),
    "readers of an output's Identity read the source": (
        "g (float[N] x) => (float[N] y, float[N] z) { y = Identity(x)  z = Neg(y) }",
        "g (float[N] x) => (float[N] y, float[N] z) { y = Identity(x)  z = Neg(x) }",
        1,
    ),
    "another operator from input to output becomes an Identity": (
        "g (float[N] x) => (float[N] y) { y = Cast<to = 1>(x) }",
        "g (float[N] x) => (float[N] y) { y = Identity(x) }",
        1,
    ),
    "packed integers have no Identity": (
        "g (int4[2] x) => (int4[2] y) { y = Transpose<perm = [0]>(x) }",
        "g (int4[2] x) => (int4[2] y) { y = Transpose<perm = [0]>(x) }",
        0,
    ),
    "a chain": (
        "g (float[N] x) => (float[N] y) { a = Identity(x)  b = Identity(a)  c = Neg(b) "
        "d = Identity(c)  e = Cast<to = 1>(d)  y = Identity(e) }",
        "g (float[N] x) => (float[N] y) { y = Neg(x) }",
        5,
    ),
    "a used mask keeps Dropout": (
        "g (float[N] x) => (float[N] y, bool[N] m) { a, m = Dropout(x)  y = Neg(a) }",
        "g (float[N] x) => (float[N] y, bool[N] m) { a, m = Dropout(x)  y = Neg(a) }",
        0,
    ),
    "an unused mask does not": (
        "g (float[N] x) => (float[N] y) { a, m = Dropout(x)  y = Neg(a) }",
        "g (float[N] x) => (float[N] y) { y = Neg(x) }",
        1,
    ),
    "in subgraphs, where a captured value cannot be an output": (
        """g (bool c, float[N] x) => (float[N] y) { v = Identity(x)
        y = If(c) <then_branch = t () => (float[N] p) { a = Identity(v)  p = Identity(a) },
                   else_branch = e () => (float[N] q) { b = Neg(v)  q = Identity(b) }> }""",
        """g (bool c, float[N] x) => (float[N] y) {
        y = If(c) <then_branch = t () => (float[N] p) { p = Identity(x) },
                   else_branch = e () => (float[N] q) { q = Neg(x) }> }""",
        3,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_keep_their_names(name: str) -> None:
    before, wanted, rewrites = OUTPUTS[name]
    graph = Graph.from_text(HEAD + before)
    after, made = eliminate(graph)
    assert_same_graph(after, Graph.from_text(HEAD + wanted))
    assert made == rewrites
    if "packed" not in name:
        assert_equivalent(graph, after)


@pytest.mark.parametrize(
    ("operator", "goes"),
    [
        ("Dropout<is_test = 1>(a)", True),
        ("Dropout(a)", False),
        ("Pad<pads = [0, 0, 0, 0]>(a)", True),
        ("Slice<starts = [0], ends = [9223372036854775807]>(a)", True),
        ("Slice<starts = [0, 0], ends = [9, 3], axes = [1, 0]>(a)", False),
        ("Add<broadcast = 1>(a, negative)", False),
    ],
)
def test_old_opsets(operator: str, goes: bool) -> None:
    text = f"{OLD} g (float[N, 4] x) => (float[N, 4] y) <float[1] negative = {{-0.0}}>"
    graph = Graph.from_text(f"{text} {{ a = Neg(x)  b = {operator}  y = Neg(b) }}")
    assert eliminate(graph)[1] == goes
