from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.ir import Context, DataType, Graph, ModelInfo, Pipeline, TensorType, Value, infer_types
from onnxq.passes.cleanup.eliminate_identity import EliminateIdentity
from onnxq.passes.layout.merge_transposes import MergeTransposes
from tests.helpers import assert_equivalent, assert_same_graph

HEAD = '<ir_version: 10, opset_import: ["": 21]>'
TO_LAST, TO_FIRST = "Transpose<perm = [0, 2, 3, 1]>", "Transpose<perm = [0, 3, 1, 2]>"


def transposes(graph: Graph) -> int:
    return sum(node.op_type == "Transpose" for node in graph.all_nodes())


def merge(before: Graph) -> tuple[Graph, int]:
    """The rewritten graph and the rewrites made; a second run must find nothing."""
    infer_types(before)
    after = before.copy()
    made = MergeTransposes().run(after, Context())
    after.check()
    assert transposes(after) <= transposes(before)
    again = after.copy()
    assert MergeTransposes().run(again, Context()) == 0
    # No type may be wrong after axes have changed places.
    stated = {v.name: v.type for v in after.values.values()}
    for value in after.values.values():
        if value.producer is not None and not value.is_output:
            value.type = None
    infer_types(after)
    for value in after.values.values():
        known = stated[value.name]
        if isinstance(known, TensorType) and isinstance(value.type, TensorType):
            assert known.dtype is value.type.dtype
            for a, b in zip(known.shape or (), value.shape or (), strict=False):
                assert not (isinstance(a, int) and isinstance(b, int)) or a == b, value.name
    return after, made


PAIRS = {
    "two that undo each other": (
        f"""g (float[N, 2, 3, 4] x) => (float[A, B, C, D] y)
        {{ a = Neg(x)  b = {TO_LAST}(a)  c = {TO_FIRST}(b)  y = Abs(c) }}""",
        "g (float[N, 2, 3, 4] x) => (float[A, B, C, D] y) { a = Neg(x)  y = Abs(a) }",
    ),
    "two become one": (
        f"""g (float[N, 2, 3, 4] x) => (float[A, B, C, D] y)
        {{ b = {TO_LAST}(x)  y = {TO_LAST}(b) }}""",
        f"g (float[N, 2, 3, 4] x) => (float[A, B, C, D] y) {{ y = {TO_FIRST}(x) }}",
    ),
    "reversals without a stated order": (
        "g (float[N, 2] x) => (float[A, B] y) "
        "{ a = Transpose(x)  b = Relu(a)  c = Transpose(b)  y = Abs(c) }",
        "g (float[N, 2] x) => (float[A, B] y) { b = Relu(x)  y = Abs(b) }",
    ),
    "around elementwise operators with constants": (
        f"""g (float[N, 2, 3, 4] x) => (float[A, B, C, D] y)
        <float one = {{1}}, float[2] k = {{2, 3}}, float[1, 4, 1] w = {{1, 2, 3, 4}}>
        {{ a = {TO_LAST}(x)  b = Relu(a)  c = Mul(b, k)  d = Sub(one, c)  e = Add(w, d)
           y = {TO_FIRST}(e) }}""",
        """g (float[N, 2, 3, 4] x) => (float[A, B, C, D] y)
        <float one = {1}, float[1, 2, 1, 1] k = {2, 3}, float[1, 1, 1, 4] w = {1, 2, 3, 4}>
        { b = Relu(x)  c = Mul(b, k)  d = Sub(one, c)  y = Add(w, d) }""",
    ),
    "a residual connection": (
        f"""g (float[N, 2, 3, 4] x) => (float[A, B, C, D] y)
        {{ a = {TO_LAST}(x)  s = Sigmoid(x)  b = {TO_LAST}(s)  c = Add(a, b)
           y = {TO_FIRST}(c) }}""",
        """g (float[N, 2, 3, 4] x) => (float[A, B, C, D] y) { s = Sigmoid(x)  y = Add(x, s) }""",
    ),
    "two in, one out": (
        f"""g (float[N, 2, 3, 4] x, float[N, 2, 3, 4] z) => (float[A, B, C, D] y)
        {{ a = {TO_LAST}(x)  b = {TO_LAST}(z)  y = Add(a, b) }}""",
        f"""g (float[N, 2, 3, 4] x, float[N, 2, 3, 4] z) => (float[A, B, C, D] y)
        {{ c = Add(x, z)  y = {TO_LAST}(c) }}""",
    ),
    "one that is read elsewhere too": (
        f"""g (float[N, 2, 3, 4] x) => (float[A, B, C, D] y, float[E, F] z)
        {{ a = {TO_LAST}(x)  b = Relu(a)  y = {TO_FIRST}(b)
           c = Sigmoid(b)  z = Flatten(c) }}""",
        f"""g (float[N, 2, 3, 4] x) => (float[A, B, C, D] y, float[E, F] z)
        {{ y = Relu(x)  b = {TO_LAST}(y)
           c = Sigmoid(b)  z = Flatten(c) }}""",
    ),
    "a reduction that keeps its axes": (
        f"""g (float[N, 2, 3, 4] x) => (float[A, B, C, D] y) <int64[2] axes = {{1, -2}}>
        {{ a = {TO_LAST}(x)  b = ReduceMax(a, axes)  y = {TO_FIRST}(b) }}""",
        """g (float[N, 2, 3, 4] x) => (float[A, B, C, D] y) <int64[2] axes = {2, 3}>
        { y = ReduceMax(x, axes) }""",
    ),
    "a reduction that leaves nothing to reorder": (
        f"""g (float[N, 2, 3, 4] x) => (float[A, B] y) <int64[2] axes = {{1, 2}}>
        {{ a = {TO_LAST}(x)  y = ReduceMean<keepdims = 0>(a, axes) }}""",
        """g (float[N, 2, 3, 4] x) => (float[A, B] y) <int64[2] axes = {2, 3}>
        { y = ReduceMean<keepdims = 0>(x, axes) }""",
    ),
    "a reduction that leaves something to reorder": (
        f"""g (float[N, 2, 3, 4] x) => (float[A, B, C] y) <int64[1] axes = {{1}}>
        {{ a = {TO_LAST}(x)  b = ReduceMin<keepdims = 0>(a, axes)
           y = Transpose<perm = [0, 2, 1]>(b) }}""",
        """g (float[N, 2, 3, 4] x) => (float[A, B, C] y) <int64[1] axes = {2}>
        { y = ReduceMin<keepdims = 0>(x, axes) }""",
    ),
    "ArgMax": (
        f"""g (float[N, 2, 3, 4] x) => (int64[A, B, C] y)
        {{ a = {TO_LAST}(x)  y = ArgMax<axis = -1, keepdims = 0>(a) }}""",
        "g (float[N, 2, 3, 4] x) => (int64[A, B, C] y) { y = ArgMax<axis = 1, keepdims = 0>(x) }",
    ),
    "Concat, Split, Slice and Pad": (
        f"""g (float[N, 2, 3, 4] x) => (float[A, B, C, D] y)
        <int64[1] s = {{1}}, int64[1] e = {{3}}, int64[1] axis = {{-2}},
         int64[8] p = {{0, 1, 0, 0, 0, 0, 2, 3}}>
        {{ a = {TO_LAST}(x)  b = Concat<axis = -1>(a, a)  c, d = Split<axis = 3, num_outputs = 2>(b)
           f = Add(c, d)  h = Slice(f, s, e, axis)  i = Pad(h, p)  y = {TO_FIRST}(i) }}""",
        """g (float[N, 2, 3, 4] x) => (float[A, B, C, D] y)
        <int64[1] s = {1}, int64[1] e = {3}, int64[1] axis = {3},
         int64[8] p = {0, 0, 1, 0, 0, 3, 0, 2}>
        { b = Concat<axis = 1>(x, x)  c, d = Split<axis = 1, num_outputs = 2>(b)
           f = Add(c, d)  h = Slice(f, s, e, axis)  y = Pad(h, p) }""",
    ),
    "Softmax that comes to the last axis": (
        """g (float[N, 2, 3] x) => (float[A, B, C] y) { a = Transpose<perm = [0, 2, 1]>(x)
        b = Softmax<axis = 1>(a)  y = Transpose<perm = [0, 2, 1]>(b) }""",
        "g (float[N, 2, 3] x) => (float[A, B, C] y) { y = Softmax<axis = 2>(x) }",
    ),
    "quantization": (
        """g (float[N, 2, 3] x) => (float[A, B, C] y)
        <float[2] s = {0.5, 0.25}, float t = {0.5}, uint8[2] z = {3, 7}, uint8 u = {0}>
        { a = Transpose<perm = [0, 2, 1]>(x)  b = QuantizeLinear<axis = -1>(a, s, z)
          c = DequantizeLinear<axis = 2>(b, s, z)  d = QuantizeLinear(c, t, u)
          y = DequantizeLinear(f, t, u)  f = Transpose<perm = [0, 2, 1]>(d) }""",
        """g (float[N, 2, 3] x) => (float[A, B, C] y)
        <float[2] s = {0.5, 0.25}, float t = {0.5}, uint8[2] z = {3, 7}, uint8 u = {0}>
        { b = QuantizeLinear<axis = 1>(x, s, z)  c = DequantizeLinear<axis = 1>(b, s, z)
          d = QuantizeLinear(c, t, u)  y = DequantizeLinear(d, t, u) }""",
    ),
}


@pytest.mark.parametrize("case", PAIRS)
def test_pair(case: str) -> None:
    text, wanted = PAIRS[case]
    before = Graph.from_text(HEAD + text)
    after, made = merge(before)
    assert made == transposes(before) - transposes(after) > 0
    assert_same_graph(after, Graph.from_text(HEAD + wanted))
    for size in (1, 3):
        assert_equivalent(before, after, exact=False, dims={"N": size})


LEFT = {
    "alone": f"g (float[N, 2, 3, 4] x) => (float[A, B, C, D] y) {{ y = {TO_LAST}(x) }}",
    "nothing is saved": f"""g (float[N, 2, 3, 4] x) => (float[A, B, C, D] y)
        {{ a = {TO_LAST}(x)  y = Relu(a) }}""",
    "as many as before": f"""g (float[N, 2, 3, 4] x)
        => (float[A, B, C, D] y, float[A, B, C, D] z, float[A, B, C, D] w)
        {{ a = {TO_LAST}(x)  z = Relu(a)  y = {TO_FIRST}(z)  w = Neg(a) }}""",
    "another layout": """g (float[2, 2] x, float[2, 2] z) => (float[2, 2] y)
        { a = Transpose(x)  b = Add(a, z)  y = Transpose(b) }""",
    "a value of another layout": """g (float[2, 2, 2] x) => (float[2, 2, 2] y)
        { a = Transpose<perm = [1, 2, 0]>(x)  b = Transpose<perm = [2, 0, 1]>(x)  c = Add(a, b)
          y = Transpose<perm = [2, 0, 1]>(c) }""",
    "a constant of more axes": """g (float[2, 2] x) => (float[1, 2, 2] y)
        <float[1, 1, 1] k = {1}> { a = Transpose(x)  b = Mul(a, k)
          y = Transpose<perm = [0, 2, 1]>(b) }""",
    "axes made at run time": """g (float[2, 2] x, int64[1] axes) => (float[2, 2] y)
        { a = Transpose(x)  b = ReduceMax(a, axes)  y = Transpose(b) }""",
    "Softmax that leaves the last axis": """g (float[2, 3] x) => (float[2, 3] y)
        { a = Transpose(x)  b = Softmax(a)  y = Transpose(b) }""",
    "quantization in blocks": """g (int8[4, 2] x) => (float[4, 2] y)
        <float[2, 2] s = {1, 2, 3, 4}> { a = Transpose(x)
          b = DequantizeLinear<axis = 1, block_size = 2>(a, s)  y = Transpose(b) }""",
    "an operator of which nothing is known": """g (float[2, 2] x) => (float[2, 2] y)
        { a = Transpose(x)  b = CumSum(a, k)  y = Transpose(b) }""".replace(
        "{ a", "<int64 k = {0}> { a"
    ),
}


@pytest.mark.parametrize("case", LEFT)
def test_left(case: str) -> None:
    before = Graph.from_text(HEAD + LEFT[case])
    after, made = merge(before)
    assert made == 0
    assert_same_graph(after, before)


def test_operators_that_broadcast_by_attributes_stay() -> None:
    text = """<ir_version: 3, opset_import: ["": %d]> g (float[2, 2] x, float[2, 2] z)
        => (float[2, 2] y)
        { a = Transpose(x)  b = Transpose(z)  c = Add(a, b)  y = Transpose(c) }"""
    assert merge(Graph.from_text(text % 6))[1] == 0
    assert merge(Graph.from_text(text % 7))[1] == 3


def test_moving_more_elements_is_not_worth_it() -> None:
    text = """g (float[%s, 2] x, float[2, %s] z) => (float[2, 100] y)
        <float[1, 100] k = {%s}> { a = Transpose(x)  b = Relu(a)  c = Transpose(x)  d = Add(b, c)
        y = Mul(d, k) }"""
    numbers = ", ".join(["1"] * 100)
    before = Graph.from_text(HEAD + text % ("1", "1", numbers))
    after, made = merge(before)
    assert made == 1
    # The two are one after the sum, but not behind the product, which is a hundred times as large.
    kinds = [node.op_type for node in after.nodes()]
    assert kinds.index("Transpose") < kinds.index("Mul")
    assert_equivalent(before, after)


def test_values_in_another_order_have_another_name() -> None:
    before = Graph.from_text(
        f"""{HEAD} g (float[1, 2, 3, 4] x) => (float[1, 2, 3, 4] y)
        {{ [to] a = {TO_LAST}(x)  [act] b = Relu(a)  [back] c = {TO_FIRST}(b)  y = Abs(c) }}"""
    )
    after, _ = merge(before)
    assert [n.name for n in after.nodes()] == ["act", ""]
    assert set(after.values) == {"x", "b_reordered", "y"}
    assert after.values["b_reordered"].shape == (1, 2, 3, 4)


def test_output_keeps_its_description() -> None:
    before = Graph.from_text(
        f"""{HEAD} g (float[1, 2, 3, 4] x) => (float[A, B, C, D] y, float[E, F, G, H] z)
        {{ a = {TO_LAST}(x)  b = {TO_LAST}(x)  y = Add(a, b)  z = {TO_FIRST}(y) }}"""
    )
    before.values["y"].doc_string = "kept"
    after, made = merge(before)
    assert made == 2
    assert after.outputs[0].doc_string == "kept"
    assert after.outputs[0].producer is not None
    assert after.outputs[0].producer.op_type == "Transpose"
    assert_equivalent(before, after)


def test_subgraphs_and_what_they_read() -> None:
    before = Graph.from_text(
        HEAD
        + """g (bool c, float[2, 3] x) => (float[A, B] y) { a = Transpose(x)  r = Relu(a)
        s = Transpose(r)  y = If(c) <
          then_branch = t () => (float[P, Q] p) { b = Transpose(s)  d = Neg(b)  p = Transpose(d) },
          else_branch = e () => (float[R, S] q) { d = Abs(r)  q = Transpose(d) }> }"""
    )
    after, made = merge(before)
    assert made == transposes(before) - transposes(after) >= 3
    for flag in (True, False):
        x = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
        assert_equivalent(before, after, feeds={"c": np.array(flag), "x": x})


@pytest.mark.parametrize("opset", [7, 10, 12])
def test_axes_in_attributes(opset: int) -> None:
    slicing = "e = Slice<starts = [0], ends = [2], axes = [1]>(d)" if opset < 10 else "e = Abs(d)"
    before = Graph.from_text(
        f"""<ir_version: 6, opset_import: ["": {opset}]> g (float[1, 2, 3, 4] x)
        => (float[A, B, C, D] y) {{ a = {TO_LAST}(x)  d = ReduceSum<axes = [2]>(a)
        {slicing}  y = {TO_FIRST}(e) }}"""
    )
    after, made = merge(before)
    assert made == 2
    assert_equivalent(before, after, exact=False)


UNARY = ("Relu", "Neg", "Transpose", "Transpose", "Transpose", "ReduceMax", "Softmax", "Slice")
BINARY = ("Add", "Mul", "Concat", "Max")


@settings(max_examples=120)
@given(data=st.data(), rank=st.integers(2, 3))
def test_random_graphs(data: st.DataObject, rank: int) -> None:
    """Graphs of all equal dimensions, so that every operator takes every value of equal rank."""
    graph = Graph("g", model=ModelInfo(10, {"": 21}))
    side = 3
    x = graph.add_input("x", TensorType(DataType.FLOAT, (side,) * rank))
    values: list[Value] = [x]
    generator = np.random.default_rng(0)
    for _ in range(data.draw(st.integers(2, 12))):
        values.append(_random_node(data, graph, values, generator, rank, side))
    made = [v for v in values[1:]]
    for value in data.draw(st.lists(st.sampled_from(made), min_size=1, max_size=3, unique=True)):
        value.type = TensorType(DataType.FLOAT)
        graph.add_output(value)
    after, count = merge(graph)
    # What is left to make an output of an input is counted as gone already.
    assert transposes(graph) - transposes(after) <= count
    assert_equivalent(graph, after, exact=False, rtol=1e-6)
    Pipeline((MergeTransposes(), EliminateIdentity())).run(after)
    assert_equivalent(graph, after, exact=False, rtol=1e-6)


def _random_node(
    data: st.DataObject,
    graph: Graph,
    values: list[Value],
    generator: np.random.Generator,
    rank: int,
    side: int,
) -> Value:
    kind = data.draw(st.sampled_from(UNARY + BINARY))
    value = data.draw(st.sampled_from(values))
    axis = data.draw(st.integers(-rank, rank - 1))
    if kind == "Transpose":
        perm = data.draw(st.permutations(range(rank)))
        return graph.add("Transpose", [value], {"perm": list(perm)}).output
    if kind == "ReduceMax":
        # Back to the full size, so that everything stays square.
        top = graph.add("ReduceMax", [value, graph.constant(np.array([axis]))]).output
        return graph.add("Sub", [value, top]).output
    if kind == "Softmax":
        return graph.add("Softmax", [value], {"axis": axis}).output
    if kind == "Slice":
        limits = [graph.constant(np.array([n])) for n in (0, side, axis)]
        return graph.add("Slice", [value, *limits]).output
    if kind == "Concat":
        other = data.draw(st.sampled_from(values))
        joined = graph.add("Concat", [value, other], {"axis": axis}).output
        return graph.add("Split", [joined], {"axis": axis, "num_outputs": 2}, outputs=2).output
    if kind in BINARY:
        shape = data.draw(st.sampled_from([(), (side,), (1,) * rank, (side,) * rank, None]))
        if shape is None:
            return graph.add(kind, [value, data.draw(st.sampled_from(values))]).output
        array = np.asarray(generator.standard_normal(shape).astype(np.float32))
        return graph.add(kind, [graph.constant(array), value]).output
    return graph.add(kind, [value]).output
