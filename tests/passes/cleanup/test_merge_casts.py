from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.ir import Context, DataType, Graph, ModelInfo, TensorType, infer_types
from onnxq.passes.cleanup.merge_casts import MergeCasts
from tests.helpers import assert_equivalent, assert_same_graph

HEAD = '<ir_version: 10, opset_import: ["": 21]>'
CODES = {"float": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7, "bool": 9, "float16": 10}
CODES |= {"double": 11, "bfloat16": 16}


def merge(before: Graph) -> tuple[Graph, int]:
    """The rewritten graph and the rewrites made; a second run must find nothing."""
    infer_types(before)
    after = before.copy()
    made = MergeCasts().run(after, Context())
    after.check()
    assert MergeCasts().run(after, Context()) == 0
    return after, made


def chain(*types: str) -> Graph:
    """Casts of x from each type to the next."""
    names = ["x", *(f"v{at}" for at in range(1, len(types) - 1)), "y"]
    nodes = "".join(
        f"{made} = Cast<to = {CODES[kind]}>({read})  "
        for read, made, kind in zip(names, names[1:], types[1:], strict=False)
    )
    return Graph.from_text(f"{HEAD} g ({types[0]}[N] x) => ({types[-1]}[N] y) {{ {nodes} }}")


@pytest.mark.parametrize(
    "types, kept",
    [
        (("int8", "int32", "float"), ("int8", "float")),
        (("uint8", "float", "float16"), ("uint8", "float16")),
        (("int32", "int64", "int8"), ("int32", "int8")),
        (("int32", "double", "float"), ("int32", "float")),
        (("float16", "float", "int32"), ("float16", "int32")),
        (("float", "double", "float16"), ("float", "float16")),
        (("bool", "int64", "float"), ("bool", "float")),
        (("int8", "int32", "int64", "float"), ("int8", "float")),
    ],
)
def test_first_loses_nothing(types: tuple[str, ...], kept: tuple[str, ...]) -> None:
    before = chain(*types)
    after, made = merge(before)
    assert made == len(types) - len(kept)
    assert_same_graph(after, chain(*kept))
    assert_equivalent(before, after)


@pytest.mark.parametrize(
    "types",
    [
        ("float", "float16", "float"),
        ("int32", "float", "int32"),
        ("int64", "int32", "int64"),
        ("int8", "uint8", "int32"),
        ("float", "int32", "float"),
        ("double", "float", "float16"),
        ("int64", "double", "float"),
        # What is out of range becomes something else from float64 than from float32.
        ("float", "double", "int32"),
        ("int32", "double", "int8"),
        ("float", "bool", "float"),
    ],
)
def test_first_loses_something(types: tuple[str, ...]) -> None:
    before = chain(*types)
    after, made = merge(before)
    assert made == 0
    assert_same_graph(after, before)


def test_back_to_where_it_came_from() -> None:
    before = Graph.from_text(
        f"""{HEAD} g (float16[N] x) => (float16[N] y)
        {{ a = Neg(x)  b = Cast<to = 1>(a)  c = Cast<to = 10>(b)  y = Abs(c) }}"""
    )
    after, made = merge(before)
    assert made == 1
    assert_same_graph(
        after,
        Graph.from_text(f"{HEAD} g (float16[N] x) => (float16[N] y) {{ a = Neg(x)  y = Abs(a) }}"),
    )
    assert_equivalent(before, after)


def test_inner_cast_that_is_read_elsewhere_stays() -> None:
    before = Graph.from_text(
        f"""{HEAD} g (int8[N] x) => (float[N] y, int32[N] z)
        {{ b = Cast<to = 6>(x)  y = Cast<to = 1>(b)  z = Neg(b) }}"""
    )
    after, made = merge(before)
    assert made == 1
    assert_same_graph(
        after,
        Graph.from_text(
            f"""{HEAD} g (int8[N] x) => (float[N] y, int32[N] z)
            {{ b = Cast<to = 6>(x)  y = Cast<to = 1>(x)  z = Neg(b) }}"""
        ),
    )
    assert_equivalent(before, after)


def test_unknown_dtype_and_text_stay() -> None:
    before = Graph.from_text(
        f"""{HEAD} g (int32[N] x) => (string[N] y)
        {{ b = Cast<to = 7>(x)  y = Cast<to = 8>(b) }}"""
    )
    assert merge(before)[1] == 0
    unknown = chain("int8", "int32", "float")
    unknown.values["x"].type = None
    assert MergeCasts().run(unknown, Context()) == 0


NUMERIC = sorted(set(CODES) - {"bfloat16"})


@settings(max_examples=80)
@given(
    a=st.sampled_from(NUMERIC),
    b=st.sampled_from(NUMERIC),
    c=st.sampled_from(NUMERIC),
    bits=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=8),
)
def test_whatever_is_merged_keeps_every_bit(a: str, b: str, c: str, bits: list[int]) -> None:
    """Random bit patterns, infinities and NaN among them, but nothing out of an integer's range."""
    graph = Graph("g", model=ModelInfo(10, {"": 21}))
    dtype = DataType(CODES[a]).numpy
    numbers = np.array(bits, dtype=np.uint64).view(np.uint8)
    numbers = numbers % 2 if a == "bool" else numbers
    fed = np.frombuffer(numbers.tobytes(), dtype=dtype)
    if fed.dtype.kind == "f":
        limit = 100 if np.dtype(DataType(CODES[c]).numpy).kind in "iu" else np.inf
        fed = np.where(np.isnan(fed) | (np.abs(fed) > limit) | (fed < 0), 1, fed).astype(dtype)
    value = graph.add_input("x", TensorType(DataType(CODES[a]), (len(fed),)))
    for target in (b, c):
        value = graph.add("Cast", [value], {"to": CODES[target]}).output
    value.type = TensorType(DataType(CODES[c]))
    graph.add_output(graph.add("Identity", [value]).output)
    after, _ = merge(graph)
    assert_equivalent(graph, after, feeds={"x": fed})
