"""convert-float: float16 and bfloat16 with Casts at borders.

Constants of these types stand in the texts as their bits: 15360 is 1.0 in float16, 16384 is 2.0
there and in bfloat16.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from onnxq.errors import InputError
from onnxq.ir import (
    Context,
    DataType,
    Graph,
    Pipeline,
    default_passes,
    infer_types,
    load,
    raise_opset,
    to_proto,
)
from onnxq.ir.operators import schema_of
from onnxq.passes.halves.convert_float import ConvertFloat
from onnxq.passes.halves.float_regions import KEEP_REASONS
from onnxq.passes.notes import LEFT_IN_FLOAT_KEY, left_in_float
from onnxq.verify.precision import describe
from tests.helpers import assert_same_graph, random_feeds, run
from tests.passes.test_random_graphs import square_graphs

HEAD = '<ir_version: 10, opset_import: ["": 22, "com.example": 1]>'
MODELS = Path(__file__).parents[3] / "models"
UNIT = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Largest relative error of rounding to each format."""


def converted(before: Graph, **options: Any) -> tuple[Graph, int]:
    """The converted graph and the operators converted; a second run must find nothing."""
    infer_types(before)
    after = before.copy()
    step = ConvertFloat(**options)
    made = step.run(after, Context())
    after.check()
    if is_valid(before):
        onnx.checker.check_model(to_proto(after), full_check=True)
    text, noted = str(after), dict(after.model.metadata)
    assert step.run(after, Context()) == 0
    assert (str(after), after.model.metadata) == (text, noted)
    assert not pairs_of_casts(after, before)
    return after, made


def is_valid(graph: Graph) -> bool:
    """Whether ONNX takes the graph; it wants shapes of the outputs of every subgraph."""
    try:
        onnx.checker.check_model(to_proto(graph), full_check=True)
    except onnx.checker.ValidationError:
        return False
    return True


def pairs_of_casts(graph: Graph, before: Graph) -> list[str]:
    """New Casts from one float type to another that read a Cast."""
    return [
        node.label
        for node in graph.all_nodes()
        if node.is_op("Cast")
        and (source := node.input(0)) is not None
        and source.producer is not None
        and source.producer.is_op("Cast")
        and source.dtype in (DataType.FLOAT, DataType.FLOAT16, DataType.BFLOAT16)
        and before.find(node.output.name) is None
    ]


def check_pair(text: str, wanted: str, *, made: int, **options: Any) -> Graph:
    before = Graph.from_text(f"{HEAD} {text}")
    after, found = converted(before, **options)
    assert_same_graph(after, Graph.from_text(f"{HEAD} {wanted}"))
    assert found == made
    return after


def check_kept(text: str, reason: str, *names: str, **options: Any) -> None:
    """Nothing is converted, and the nodes are noted with a reason that holds a text."""
    before = Graph.from_text(f"{HEAD} {text}")
    after, made = converted(before, **options)
    assert made == 0
    assert_same_graph(after, before)
    noted = left_in_float(after)
    assert sorted(noted) == sorted(names)
    assert all(reason in r for r in noted.values()), noted


def deviation(before: Graph, after: Graph, seed: int = 0) -> float:
    """Largest difference over the largest magnitude, both under the reference evaluator."""
    feeds = random_feeds(before, seed)
    wanted = ReferenceEvaluator(to_proto(before)).run(None, feeds)
    typed = {v.name: feeds[v.name].astype(v.dtype.numpy) for v in after.inputs if v.dtype}
    found = ReferenceEvaluator(to_proto(after)).run(None, typed)
    worst = 0.0
    for one, other in zip(wanted, found, strict=True):
        a, b = np.asarray(one, np.float64), np.asarray(other).astype(np.float64)
        assert a.shape == b.shape
        worst = max(worst, float(np.abs(a - b).max() / np.abs(a).max()))
    return worst


NET = """g (float[N, 2] x) => (float[N, 2] y)
    <float[2, 2] w = {1.0, 2.0, 2.0, 1.0}, float[2] b = {1.0, 2.0}>
    { h = MatMul(x, w)  a = Add(h, b)  r = Relu(a)  t = MatMul(r, w)  y = Tanh(t) }"""


def test_casts_stand_at_the_borders_only() -> None:
    after = check_pair(
        NET,
        """g (float[N, 2] x) => (float[N, 2] y)
        <float16[2, 2] w = {15360, 16384, 16384, 15360}, float16[2] b = {15360, 16384}>
        { c = Cast<to = 10>(x)  h = MatMul(c, w)  a = Add(h, b)  r = Relu(a)
          t = MatMul(r, w)  z = Tanh(t)  y = Cast<to = 1>(z) }""",
        made=5,
    )
    assert [v.type.dtype for v in after.outputs] == [DataType.FLOAT]
    assert {after.values[name].dtype for name in "hart"} == {DataType.FLOAT16}
    assert LEFT_IN_FLOAT_KEY not in after.model.metadata


def test_the_opset_that_each_format_needs() -> None:
    assert ConvertFloat(format="float16").needed_opset == 6
    assert ConvertFloat(format="bfloat16").needed_opset == 13


def test_bfloat16() -> None:
    check_pair(
        NET,
        """g (float[N, 2] x) => (float[N, 2] y)
        <bfloat16[2, 2] w = {16256, 16384, 16384, 16256}, bfloat16[2] b = {16256, 16384}>
        { c = Cast<to = 16>(x)  h = MatMul(c, w)  a = Add(h, b)  r = Relu(a)
          t = MatMul(r, w)  z = Tanh(t)  y = Cast<to = 1>(z) }""",
        made=5,
        format="bfloat16",
    )


def test_interface_changes_too_on_request() -> None:
    check_pair(
        NET,
        """g (float16[N, 2] x) => (float16[N, 2] y)
        <float16[2, 2] w = {15360, 16384, 16384, 15360}, float16[2] b = {15360, 16384}>
        { h = MatMul(x, w)  a = Add(h, b)  r = Relu(a)  t = MatMul(r, w)  y = Tanh(t) }""",
        made=5,
        interface=True,
    )


def test_interface_of_kept_operators_is_cast_inside() -> None:
    after = check_pair(
        """g (float[2, 2] x, float[2, 2] u) => (float[2, 2] y, float[2, 2] z)
        { h = MatMul(x, x)  y = Exp(h)  z = Exp(u) }""",
        """g (float16[2, 2] x, float16[2, 2] u) => (float16[2, 2] y, float16[2, 2] z)
        { h = MatMul(x, x)  f = Cast<to = 1>(h)  e = Exp(f)  y = Cast<to = 10>(e)
          v = Cast<to = 1>(u)  s = Exp(v)  z = Cast<to = 10>(s) }""",
        made=1,
        interface=True,
    )
    assert {v.dtype for v in (*after.inputs, *after.outputs)} == {DataType.FLOAT16}


@pytest.mark.parametrize("bounds, kept", [((-1e6, 1.0), True), ((-3e4, 3e4), False)])
def test_interface_with_a_wide_range_stays(bounds: tuple[float, float], kept: bool) -> None:
    before = Graph.from_text(
        f"{HEAD} g (float[2, 2] x, float[2, 2] u) => (float[2, 2] y) "
        "{ h = MatMul(u, u)  m = Tanh(x)  y = MatMul(h, m) }"
    )
    after, _ = converted(before, interface=True, ranges={"x": bounds})
    assert [v.dtype for v in after.inputs] == [
        DataType.FLOAT if kept else DataType.FLOAT16,
        DataType.FLOAT16,
    ]


def test_needed_in_both_types_is_cast_once() -> None:
    check_pair(
        """g (float[2, 2] x) => (float[2, 2] y, float[2, 2] h)
        { h = MatMul(x, x)  e = Exp(h)  f = Cosh(h)  a = MatMul(e, f)  b = MatMul(f, e)
          c = MatMul(a, b)  y = MatMul(c, h) }""",
        """g (float[2, 2] x) => (float[2, 2] y, float[2, 2] h)
        { xc = Cast<to = 10>(x)  i = MatMul(xc, xc)  h = Cast<to = 1>(i)
          e = Exp(h)  f = Cosh(h)  ec = Cast<to = 10>(e)  fc = Cast<to = 10>(f)
          a = MatMul(ec, fc)  b = MatMul(fc, ec)  c = MatMul(a, b)  z = MatMul(c, i)
          y = Cast<to = 1>(z) }""",
        made=5,
    )


def test_constant_needed_in_both_types_is_stored_twice() -> None:
    check_pair(
        """g (float[2, 2] x) => (float[2, 2] y)
        <float[2, 2] w = {1.0, 2.0, 2.0, 1.0}> { h = MatMul(x, w)  y = Pow(h, w) }""",
        """g (float[2, 2] x) => (float[2, 2] y)
        <float[2, 2] w = {1.0, 2.0, 2.0, 1.0}, float16[2, 2] v = {15360, 16384, 16384, 15360}>
        { c = Cast<to = 10>(x)  h = MatMul(c, v)  f = Cast<to = 1>(h)  y = Pow(f, w) }""",
        made=1,
    )


def test_nodes_that_make_constants() -> None:
    check_pair(
        """g (float[2, 2] x) => (float[2, 2] y)
        { k = Constant<value_float = 2.0>()  s = Shape(x)  o = ConstantOfShape(s)
          h = MatMul(x, x)  a = Mul(h, k)  y = Add(a, o) }""",
        """g (float[2, 2] x) => (float[2, 2] y)
        { c = Cast<to = 10>(x)  k = Constant<value = float16 {16384}>()  s = Shape(x)
          o = ConstantOfShape<value = float16[1] {0}>(s)
          h = MatMul(c, c)  a = Mul(h, k)  z = Add(a, o)  y = Cast<to = 1>(z) }""",
        made=3,
    )


def test_casts_of_the_model_are_used() -> None:
    """What a Cast made is cast from its source, and what a Cast reads stays as it is."""
    check_pair(
        """g (int64[2, 2] n, float16[2, 2] u, float[2, 2] x) => (float[2, 2] y, int32[2, 2] i,
            float16[2, 2] k)
        { a = Cast<to = 1>(n)  b = Cast<to = 1>(u)  h = MatMul(a, b)  t = MatMul(h, x)
          i = Cast<to = 6>(t)  d = Cast<to = 10>(t)  k = Neg(d)  y = Exp(b) }""",
        """g (int64[2, 2] n, float16[2, 2] u, float[2, 2] x) => (float[2, 2] y, int32[2, 2] i,
            float16[2, 2] k)
        { a = Cast<to = 10>(n)  h = MatMul(a, u)  c = Cast<to = 10>(x)  t = MatMul(h, c)
          i = Cast<to = 6>(t)  k = Neg(t)  b = Cast<to = 1>(u)  y = Exp(b) }""",
        made=2,
    )


def test_casts_to_the_format_are_shared_with_the_model() -> None:
    check_pair(
        """g (float[2, 2] x) => (float[2, 2] y, float16[2, 2] k)
        { d = Cast<to = 10>(x)  k = Neg(d)  y = MatMul(x, x) }""",
        """g (float[2, 2] x) => (float[2, 2] y, float16[2, 2] k)
        { d = Cast<to = 10>(x)  k = Neg(d)  z = MatMul(d, d)  y = Cast<to = 1>(z) }""",
        made=1,
    )


def test_output_that_is_an_input_in_the_format() -> None:
    check_pair(
        """g (float16[2, 2] u, float[2, 2] x) => (float[2, 2] y, float[2, 2] z)
        { y = Cast<to = 1>(u)  z = MatMul(x, x) }""",
        """g (float16[2, 2] u, float16[2, 2] x) => (float16[2, 2] y, float16[2, 2] z)
        { y = Identity(u)  z = MatMul(x, x) }""",
        made=1,
        interface=True,
    )


def test_shapes_are_read_off_either_type() -> None:
    check_pair(
        """g (float[N, 2] x) => (float[M, K] y, int64[2] s, int64 n)
        { s = Shape(x)  h = MatMul(x, x)  n = Size(h)  y = Reshape(h, s) }""",
        """g (float[N, 2] x) => (float[M, K] y, int64[2] s, int64 n)
        { s = Shape(x)  c = Cast<to = 10>(x)  h = MatMul(c, c)  n = Size(h)
          z = Reshape(h, s)  y = Cast<to = 1>(z) }""",
        made=2,
    )


def test_scales_of_resize_stay() -> None:
    check_pair(
        """g (float[1, 1, 2, 2] x) => (float[1, 1, 4, 4] y)
        <float[1, 1, 1, 1] w = {2.0}, float[4] s = {1.0, 1.0, 2.0, 2.0}>
        { h = Conv(x, w)  y = Resize<mode = "nearest">(h, , s) }""",
        """g (float[1, 1, 2, 2] x) => (float[1, 1, 4, 4] y)
        <float16[1, 1, 1, 1] w = {16384}, float[4] s = {1.0, 1.0, 2.0, 2.0}>
        { c = Cast<to = 10>(x)  h = Conv(c, w)  z = Resize<mode = "nearest">(h, , s)
          y = Cast<to = 1>(z) }""",
        made=2,
    )


def test_statistics_of_layer_normalization_stay() -> None:
    check_pair(
        """g (float[2, 2] x) => (float[2, 2] y, float[2, 1] m) <float[2] s = {1.0, 2.0}>
        { h = MatMul(x, x)  y, m = LayerNormalization<epsilon = 1e-12>(h, s) }""",
        """g (float[2, 2] x) => (float[2, 2] y, float[2, 1] m) <float16[2] s = {15360, 16384}>
        { c = Cast<to = 10>(x)  h = MatMul(c, c)
          z, m = LayerNormalization<epsilon = 1e-12>(h, s)  y = Cast<to = 1>(z) }""",
        made=2,
    )


def test_bounds_beyond_the_range_bound_nothing() -> None:
    text = """g (float[2, 2] x) => (float[2, 2] y)
        <float l = {-1e38}, float u = {1e38}> { h = MatMul(x, x)  y = Clip(h, l, u) }"""
    after, made = converted(Graph.from_text(f"{HEAD} {text}"))
    assert made == 2
    assert [float(after.values[n].numpy()) for n in "lu"] == [-65504, 65504]


@pytest.mark.parametrize("name", ["vanish", "overflow", "range"])
def test_what_a_bound_is_called_changes_nothing(name: str) -> None:
    text = f"""g (float[2, 2] x) => (float[2, 2] y)
        <float l = {{-1e38}}, float {name} = {{1e38}}> {{
        h = MatMul(x, x)  y = Clip(h, l, {name}) }}"""
    assert converted(Graph.from_text(f"{HEAD} {text}"))[1] == 2
    # A bound that becomes zero bounds everything.
    text = text.replace("1e38}> {", "1e-30}> {")
    after, made = converted(Graph.from_text(f"{HEAD} {text}"))
    assert made == 1 and left_in_float(after) == {"y": f"all numbers of '{name}' vanish in float16"}


@pytest.mark.parametrize(
    "number, kept",
    [(1e5, True), (65519.0, False), (65520.0, True), (-1e38, True), (2.9e-8, True), (6e-8, False)],
)
def test_planted_constants(number: float, kept: bool) -> None:
    before = Graph.from_text(
        f"{HEAD} g (float[2, 2] x) => (float[2, 2] y) <float k = {{{number}}}> "
        "{ h = MatMul(x, x)  m = Mul(h, k)  t = Tanh(m)  y = MatMul(t, x) }"
    )
    after, made = converted(before)
    assert made == (2 if kept else 4)
    noted = left_in_float(after)
    # Numbers that do not fit are passed on as far as Tanh, which bounds them.
    assert set(noted) == ({"m", "t"} if kept else set())
    assert all("'k'" in reason for reason in noted.values())
    if abs(number) > 1:
        assert deviation(before, after) < 32 * UNIT["float16"]


def test_infinity_is_representable() -> None:
    before = Graph.from_text(
        f"{HEAD} g (float[2, 2] x) => (float[2, 2] y) "
        "{ h = MatMul(x, x)  k = Constant<value_float = 1.0>()  z = Constant<value_float = 0.0>() "
        "  i = Div(k, z)  m = Min(h, i)  y = Softmax(m) }"
    )
    after, made = converted(before)
    assert made == 4
    assert deviation(before, after) < 8 * UNIT["float16"]


def test_mask_of_huge_numbers_stays_up_to_the_softmax() -> None:
    """A row that is masked as a whole would be NaN if the mask became infinite."""
    before = Graph.from_text(
        f"""{HEAD} g (float[2, 2] x, bool[2, 2] c) => (float[2, 2] y)
        <float l = {{-3.4e38}}, float o = {{0.0}}>
        {{ h = MatMul(x, x)  w = Where(c, o, l)  u = Unsqueeze(w, a)  v = Squeeze(u, a)
           s = Add(h, v)  p = Softmax(s)  y = MatMul(p, x) }}""".replace(
            "<float l", "<int64[1] a = {0}, float l"
        )
    )
    after, made = converted(before)
    assert made == 2
    assert set(left_in_float(after)) == {"w", "u", "v", "s", "p"}
    feeds = {"x": np.ones((2, 2), np.float32), "c": np.zeros((2, 2), dtype=bool)}
    np.testing.assert_allclose(run(after, feeds)["y"], run(before, feeds)["y"], rtol=1e-3)


def test_calibrated_range_allows_what_numbers_forbid() -> None:
    text = f"""{HEAD} g (float[2, 2] x) => (float[2, 2] y) <float k = {{1e5}}>
        {{ t = Mul(x, k)  u = Add(t, x)  y = MatMul(u, u) }}"""
    assert converted(Graph.from_text(text))[1] == 0
    after, made = converted(Graph.from_text(text), ranges={"t": (0, 50), "u": (0, 60)})
    assert made == 2
    assert set(left_in_float(after)) == {"t"}


def test_planted_activation_range() -> None:
    before = Graph.from_text(
        f"{HEAD} g (float[2, 2] x) => (float[2, 2] y) "
        "{ a = MatMul(x, x)  b = MatMul(a, a)  c = Tanh(b)  y = MatMul(c, c) }"
    )
    ranges = {"x": (-1.0, 1.0), "a": (-1.0, 40.0), "b": (-1e6, 10.0), "c": (-1.0, 1.0)}
    after, made = converted(before, ranges=ranges)
    assert made == 2
    assert left_in_float(after) == dict.fromkeys(
        "bc", "'b' reaches 1e+06, more than half of what float16 can hold"
    )
    assert converted(before, ranges=ranges, format="bfloat16")[1] == 4
    unknown, _ = converted(before, ranges={"b": (-np.inf, 1.0)})
    assert set(left_in_float(unknown)) == {"b", "c"}


@pytest.mark.parametrize("largest, made", [(32752.0, 1), (32753.0, 0), (np.nan, 0)])
def test_half_of_the_range_is_left_for_unseen_inputs(largest: float, made: int) -> None:
    before = Graph.from_text(f"{HEAD} g (float[2, 2] x) => (float[2, 2] y) {{ y = MatMul(x, x) }}")
    assert converted(before, ranges={"y": (-largest, 1.0)})[1] == made
    assert converted(before, ranges={"y": (-1.0, largest)})[1] == made


def test_epsilon_that_vanishes_stays_up_to_the_division() -> None:
    before = Graph.from_text(
        f"""{HEAD} g (float[2, 2] x) => (float[2, 2] y) <float e = {{1e-12}}>
        {{ h = MatMul(x, x)  a = Abs(h)  v = Add(a, e)  s = Sqrt(v)  d = Div(h, s)
           y = MatMul(d, x) }}"""
    )
    after, made = converted(before)
    assert set(left_in_float(after)) == {"v", "s", "d"}
    assert made == 3
    feeds = {"x": np.zeros((2, 2), np.float32)}
    np.testing.assert_array_equal(run(after, feeds)["y"], run(before, feeds)["y"])


@pytest.mark.parametrize("operator", sorted(set(KEEP_REASONS) & {"Exp", "Log", "ReduceMean"}))
def test_keep_list(operator: str) -> None:
    text = f"g (float[2, 2] x) => (float[M, K] y) {{ y = {operator}(x) }}"
    check_kept(text, KEEP_REASONS[operator], "y")
    text = f"g (float[2, 2] x) => (float[M, K] y) {{ h = MatMul(x, x) y = {operator}(h) }}"
    assert converted(Graph.from_text(f"{HEAD} {text}"), keep_operators=())[1] == 2


def test_every_kept_operator_exists() -> None:
    known = {s.name for s in onnx.defs.get_all_schemas() if not s.domain}
    assert set(KEEP_REASONS) <= known


@pytest.mark.parametrize(
    "text, reason, name, options",
    [
        ("y = MatMul(x, x)", "by request", "y", {"keep_float": ("y",)}),
        ("y = MatMul(x, x)", "by request", "y", {"keep_operators": ("MatMul",)}),
        ("y = com.example.Custom(x)", "no operator com.example:Custom", "y", {}),
        ("y = RandomUniformLike<dtype = 1>(x)", "other numbers", "y", {}),
        ("y = EyeLike<dtype = 1>(x)", "attribute dtype depends", "y", {}),
        ("y = CastLike(x, x)", "meaning depends", "y", {}),
        ("y = LeakyRelu<alpha = 100000.0>(x)", "attribute alpha holds 1e+05", "y", {}),
        ("y = Relu(x)", "neighbours stay in float32", "y", {}),
    ],
)
def test_left_in_float(text: str, reason: str, name: str, options: dict[str, Any]) -> None:
    check_kept(f"g (float[2, 2] x) => (float[2, 2] y) {{ {text} }}", reason, name, **options)


def test_operators_without_the_type_stay() -> None:
    """Convolution takes bfloat16 from opset 22 on."""
    text = """g (float[1, 1, 2, 2] x) => (float[1, 1, 2, 2] y) <float[1, 1, 1, 1] w = {2.0}>
        { h = Conv(x, w)  r = Relu(h)  y = Conv(r, w) }"""
    old = Graph.from_text(f'<ir_version: 10, opset_import: ["": 21]> {text}')
    after, made = converted(old, format="bfloat16")
    assert made == 0
    assert left_in_float(after) == {
        "h": "it takes no bfloat16 in opset 21",
        "y": "it takes no bfloat16 in opset 21",
        "r": "its neighbours stay in float32, and Casts would cost more than it saves",
    }
    assert converted(Graph.from_text(f"{HEAD} {text}"), format="bfloat16")[1] == 3
    assert converted(old, format="float16")[1] == 3


def test_moving_alone_gains_nothing() -> None:
    text = "g (float[2, 2] x) => (float[2, 2] y) { t = Transpose(x)  e = Exp(t)  y = Neg(e) }"
    after, made = converted(Graph.from_text(f"{HEAD} {text}"))
    assert made == 0
    assert set(left_in_float(after)) == {"e", "y"}


def test_embedding_is_worth_it() -> None:
    check_pair(
        """g (int64[N] i) => (float[N, 2] y) <float[2, 2] w = {1.0, 2.0, 2.0, 1.0}>
        { y = Gather(w, i) }""",
        """g (int64[N] i) => (float[N, 2] y) <float16[2, 2] w = {15360, 16384, 16384, 15360}>
        { z = Gather(w, i)  y = Cast<to = 1>(z) }""",
        made=1,
    )


@pytest.mark.parametrize("format", ["float16", "bfloat16"])
def test_naming_all_nodes_is_naming_none(format: str) -> None:
    """Those that only move values and those in subgraphs too."""
    text = f"""{HEAD} g (float[2, 2] x, bool c) => (float[2, 2] y, float[2, 2] z)
        <float k = {{1e38}}>
        {{ a = MatMul(x, x)  t = Transpose(a)  i = Identity(t)  s = Shape(i)  e = Exp(i)
           r = Reshape(e, s)  m = Mul(r, k)  f = Tanh(m)
           u = Cast<to = 11>(t)  d = Cast<to = 1>(u)
           y = If(c) <then_branch = t1 () => (float[2, 2] p) {{ o = MatMul(d, a)  p = Relu(o) }},
                      else_branch = e1 () => (float[2, 2] q) {{ q = Flatten(a) }}>
           z = Add(f, t) }}"""
    alone, made = converted(Graph.from_text(text), format=format)
    step = ConvertFloat(format)
    before = Graph.from_text(text)
    infer_types(before)
    nodes = {n.output.name: n for n in before.all_nodes()}
    taken = tuple(name for name, n in nodes.items() if step.takes(n))
    fitting = tuple(n for n in taken if step.reason(nodes[n]) is None)
    assert {"a", "t", "i", "o", "p", "q"} <= set(fitting) < set(taken)
    assert set(nodes) - set(taken) == {"s", "u", "d"}
    named, named_made = converted(before, format=format, only=taken)
    assert made == named_made >= 6
    assert to_proto(named) == to_proto(alone)
    some, _ = converted(before, format=format, only=fitting)
    refused = {name: reason.text for name in taken if (reason := step.reason(nodes[name]))}
    assert left_in_float(alone) == {**left_in_float(some), **refused}
    some.model.metadata.update(alone.model.metadata)
    assert to_proto(some) == to_proto(alone)


def test_only_some_nodes() -> None:
    before = Graph.from_text(
        f"{HEAD} g (float[2, 2] x) => (float[2, 2] y) "
        "{ [first] a = MatMul(x, x)  [second] b = MatMul(a, a)  y = MatMul(b, b) }"
    )
    after, made = converted(before, only=("second",))
    assert made == 1
    assert left_in_float(after) == {}
    layers = {layer.node: layer.precision for layer in describe(after)}
    assert (layers["first"], layers["second"], layers["y"]) == ("float32", "float16", "float32")
    assert deviation(before, after) < 4 * UNIT["float16"]


def test_quantized_parts_are_left_alone() -> None:
    text = f"""{HEAD} g (float[2, 2] x) => (float[2, 2] y)
        <float s = {{0.5}}, int8 z = {{0}}, int8[2, 2] q = {{1, 2, 3, 4}}>
        {{ a = QuantizeLinear(x, s, z)  b = DequantizeLinear(a, s, z)
           w = DequantizeLinear(q, s, z)  h = MatMul(b, w)  r = Relu(h)
           c = QuantizeLinear(r, s, z)  d = DequantizeLinear(c, s, z)  e = MatMul(d, w)
           f = MatMul(e, e)  y = MatMul(f, f) }}"""
    after, made = converted(Graph.from_text(text))
    assert made == 2
    assert [n.op_type for n in after.nodes()].count("Cast") == 2
    layers = {layer.node: layer.precision for layer in describe(after)}
    assert (layers["h"], layers["r"], layers["e"]) == ("int8", "int8", "int8")
    assert layers["f"] == "float16"


def test_products_of_integers_are_left_alone() -> None:
    text = f"""{HEAD} g (float[2, 2] x) => (float[2, 2] y) <int8[2, 2] w = {{1, 2, 3, 4}}>
        {{ q, s, z = DynamicQuantizeLinear(x)  i = MatMulInteger(q, w, z)  f = Cast<to = 1>(i)
           m = Mul(f, s)  y = MatMul(m, m) }}"""
    after, made = converted(Graph.from_text(text))
    assert made == 1
    assert [n.op_type for n in after.nodes()].count("Cast") == 3


def test_scaled_products_of_integers_are_left_alone() -> None:
    text = f"""{HEAD} g (uint8[2, 2] q) => (float[2, 2] y)
        <int8[2, 2] w = {{1, 2, 3, 4}}, float s = {{0.5}}>
        {{ i = MatMulInteger(q, w)  f = Cast<to = 1>(i)  m = Mul(f, s)  y = MatMul(m, m) }}"""
    after, made = converted(Graph.from_text(text))
    assert made == 1
    assert after.values["m"].dtype is DataType.FLOAT


def test_subgraphs_and_what_they_capture() -> None:
    """The border of a body is float32; a captured value is read in the type it is needed in."""
    check_pair(
        """g (float[2, 2] x, bool c) => (float[2, 2] y)
        { h = MatMul(x, x)
          y = If(c) <then_branch = t () => (float[2, 2] p) { p = MatMul(h, h) },
                     else_branch = e () => (float[2, 2] q) { q = Exp(h) }> }""",
        """g (float[2, 2] x, bool c) => (float[2, 2] y)
        { xc = Cast<to = 10>(x)  h = MatMul(xc, xc)  f = Cast<to = 1>(h)
          y = If(c) <then_branch = t () => (float[2, 2] p)
                     { m = MatMul(h, h)  p = Cast<to = 1>(m) },
                     else_branch = e () => (float[2, 2] q) { q = Exp(f) }> }""",
        made=2,
    )


def test_loop_carries_float32() -> None:
    before = Graph.from_text(
        f"""{HEAD} g (float[2, 2] x, int64 n) => (float[2, 2] y)
        <float[2, 2] w = {{0.5, 0.25, 0.25, 0.5}}>
        {{ h = MatMul(x, w)
           l = Loop(n, , h) <body = b (int64 i, bool c, float[2, 2] s) =>
               (bool d, float[2, 2] t) {{ d = Identity(c)  m = MatMul(s, w)  t = Tanh(m) }}>
           y = MatMul(l, w) }}"""
    )
    after, made = converted(before)
    assert made == 4
    assert "subgraphs" in left_in_float(after)["l"]
    assert deviation(before, after) < 16 * UNIT["float16"]


def test_initializers_that_callers_may_override_are_cast() -> None:
    before = Graph.from_text(
        f"{HEAD} g (float[2, 2] x, float[2] b) => (float[2, 2] y) <float[2] b = {{1.0, 2.0}}> "
        "{ h = MatMul(x, x)  y = Add(h, b) }"
    )
    after, made = converted(before)
    assert made == 2
    assert after.values["b"].dtype is DataType.FLOAT
    changed, _ = converted(before, interface=True)
    assert changed.values["b"].dtype is DataType.FLOAT16
    np.testing.assert_array_equal(changed.values["b"].data.numpy(), np.array([1, 2], np.float16))


def test_default_values_beyond_the_range_stay() -> None:
    before = Graph.from_text(
        f"{HEAD} g (float[2, 2] x, float b) => (float[2, 2] y) <float b = {{1e5}}> "
        "{ h = MatMul(x, x)  y = MatMul(h, h)  }"
    )
    after, made = converted(before, interface=True)
    assert made == 2
    assert [v.dtype for v in after.inputs] == [DataType.FLOAT16, DataType.FLOAT]


def test_old_reasons_stay_and_foreign_metadata_is_no_failure() -> None:
    before = Graph.from_text(f"{HEAD} g (float[2, 2] x) => (float[2, 2] y) {{ y = Exp(x) }}")
    before.model.metadata[LEFT_IN_FLOAT_KEY] = json.dumps({"no rule for Exp": ["other"]})
    after, _ = converted(before)
    assert left_in_float(after) == {"other": "no rule for Exp", "y": KEEP_REASONS["Exp"]}
    before.model.metadata[LEFT_IN_FLOAT_KEY] = "no JSON"
    assert converted(before)[1] == 0


@pytest.mark.parametrize(
    "options, opset, message",
    [
        ({"format": "float8"}, 22, "no format 'float8'; available: float16, bfloat16"),
        ({"format": "bfloat16"}, 12, "bfloat16 needs opset 13"),
    ],
)
def test_bad_options(options: dict[str, str], opset: int, message: str) -> None:
    graph = Graph.from_text(
        f'<ir_version: 7, opset_import: ["": {opset}]> '
        "g (float[2, 2] x) => (float[2, 2] y) { y = MatMul(x, x) }"
    )
    infer_types(graph)
    if opset < 13:
        # No operator takes the format there, so nothing has to be cast.
        assert ConvertFloat(**options).run(graph, Context()) == 0
        assert "opset 12" in left_in_float(graph)["y"]
        return
    with pytest.raises(InputError, match=message):
        ConvertFloat(**options).run(graph, Context())


@pytest.mark.parametrize("format_", ["float16", "bfloat16"])
@pytest.mark.parametrize("model", ["digits_resnet", "digits_vit", "text_lm"])
def test_models_convert(model: str, format_: str) -> None:
    graph = load(MODELS / f"{model}.onnx")
    Pipeline(default_passes()).run(graph)
    graph = raise_opset(graph, 22)
    before = len(to_proto(graph).SerializeToString())
    after, made = converted(graph, format=format_)
    assert made > 30
    assert 0.5 <= len(to_proto(after).SerializeToString()) / before <= 0.53
    products = [n for n in after.nodes() if n.is_op("Conv", "MatMul", "Gemm")]
    label = {n.output.dtype.label for n in products if n.output.dtype}
    assert label == {format_}


@pytest.mark.parametrize("model, key", [("digits_resnet", "image"), ("text_lm", "tokens")])
def test_models_keep_their_answers(model: str, key: str) -> None:
    graph = load(MODELS / f"{model}.onnx")
    Pipeline(default_passes()).run(graph)
    after, _ = converted(graph)
    with np.load(
        MODELS / f"{key.replace('image', 'digits').replace('tokens', 'text')}.npz"
    ) as data:
        samples = data[key][:8]
    for sample in samples:
        feeds = {key: sample[None]}
        wanted = next(iter(run(graph, feeds).values())).astype(np.float64)
        found = next(iter(run(after, feeds).values())).astype(np.float64)
        assert np.square(wanted).sum() > 1e5 * np.square(wanted - found).sum()
        assert (wanted.argmax(-1) == found.argmax(-1)).mean() >= 0.98


@settings(max_examples=40, deadline=None)
@given(
    square_graphs(),
    st.sampled_from(["float16", "bfloat16"]),
    st.booleans(),
    st.lists(st.sampled_from(["Sin", "Tanh", "Mul", "Max", "Transpose", "Add"]), unique=True),
    st.booleans(),
)
def test_random_graphs(
    graph: Graph, format_: str, interface: bool, kept: list[str], flag: bool
) -> None:
    """Values are at most about 3 in magnitude, so errors are a few times those of rounding."""
    after, _ = converted(
        graph, format=format_, interface=interface, keep_operators=(*KEEP_REASONS, *kept)
    )
    rng = np.random.default_rng(0)
    feeds = {n: rng.uniform(-1, 1, (3, 3)).astype(np.float32) for n in "xz"}
    feeds["c"] = np.array(flag)
    wanted = ReferenceEvaluator(to_proto(graph)).run(None, feeds)
    typed = {v.name: feeds[v.name].astype(v.dtype.numpy) for v in after.inputs if v.dtype}
    found = ReferenceEvaluator(to_proto(after)).run(None, typed)
    operations = sum(schema_of(n) is not None for n in graph.all_nodes())
    bound = UNIT[format_] * 8 * (1 + operations)
    for one, other, value in zip(wanted, found, after.outputs, strict=True):
        assert value.dtype is not None and np.asarray(other).dtype == value.dtype.numpy
        gap = np.abs(np.asarray(one, np.float64) - np.asarray(other).astype(np.float64))
        assert gap.max(initial=0) <= bound * max(1.0, np.abs(one).max(initial=0))
