from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.errors import InputError
from onnxq.ir import DataType, Graph, Tensor, Value, infer_types
from onnxq.ir.shape_values import (
    Elements,
    constant_ints,
    elements_of,
    find_elements,
    known_elements,
)
from tests.helpers import random_feeds, run

HEAD = '<ir_version: 10, opset_import: ["": 21]>'
CONSTANTS = """<int64 zero = {0}, int64[1] v0 = {0}, int64[1] v1 = {1}, int64[1] v2 = {2},
    int64[2] both = {2, 0}, int64[1] minus = {-1}, int64[1] far = {9}, int32[2] narrow = {7, 8},
    float[2] f = {1, 2}, int64[2, 2] square = {1, 2, 3, 4}, int64[1] five = {5}>"""


def symbolic_elements(graph: Graph) -> dict[Value, Elements]:
    found: dict[Value, Elements] = {}
    find_elements(graph.nodes(), found)
    return found


def known(nodes: str, opset: int = 21) -> object:
    """What is known of y, with None for an element that is not."""
    head = f'<ir_version: 8, opset_import: ["": {opset}]>'
    graph = Graph.from_text(
        f"{head} g (float[2, N, 4] x, float[2, 3] w, int64[2] fed, int64[K] open) => (int64[A] y) "
        f"{CONSTANTS} {{ {nodes} }}"
    )
    infer_types(graph)
    found = known_elements(graph)
    graph.check()
    elements = found.get(graph.values["y"])
    return None if elements is None else elements.tolist()


@pytest.mark.parametrize(
    "nodes, wanted",
    [
        ("y = Shape(x)", [2, None, 4]),
        ("y = Shape<start = 1>(x)", [None, 4]),
        ("y = Shape<start = -3, end = -1>(x)", [2, None]),
        ("y = Size(w)", 6),
        ("y = Size(x)", None),
        ("s = Shape(x)  y = Gather(s, v2)", [4]),
        ("s = Shape(x)  y = Gather(s, zero)", 2),
        ("s = Shape(x)  y = Gather(s, both)", [4, 2]),
        ("s = Shape(x)  y = Gather(s, minus)", [4]),
        ("s = Shape(x)  y = Gather(s, v1)", [None]),
        ("s = Shape(x)  y = Gather(s, far)", None),
        ("s = Shape(x)  y = Gather(s, fed)", None),
        ("y = Gather(both, zero)", 2),
        ("y = Gather(square, zero)", None),
        ("s = Shape(x)  y = Slice(s, v1, far)", [None, 4]),
        ("s = Shape(x)  y = Slice(s, minus, far)", [4]),
        ("s = Shape(x)  y = Slice(s, v0, far, v0, v1)", [2, None, 4]),
        ("s = Shape(x)  y = Slice(s, v0, far, v0, v2)", None),
        ("s = Shape(x)  a = Slice(fed, v0, v1)  y = Slice(s, a, far)", None),
        ("s = Shape(x)  y = Slice(s, v0, both)", None),
        ("y = Slice(fed, v0, v1)", None),
        ("s = Shape(w)  y = Concat<axis = 0>(s, minus)", [2, 3, -1]),
        ("s = Shape(w)  y = Concat<axis = 0>(s, fed)", [2, 3, None, None]),
        ("s = Shape(w)  y = Concat<axis = 0>(s, open)", None),
        ("s = Shape(w)  t = Cast<to = 7>(f)  y = Concat<axis = 0>(s, t)", [2, 3, None, None]),
        ("a = Squeeze(five)  y = Unsqueeze(a, v0)", [5]),
        ("y = Squeeze(five)", 5),
        ("y = Squeeze(both)", None),
        ("a = Squeeze(five)  y = Unsqueeze(a, minus)", [5]),
        ("y = Unsqueeze(both, v0)", None),
        ("y = Identity(both)", [2, 0]),
        ("s = Shape(w)  a = Cast<to = 6>(s)  y = Cast<to = 7>(a)", [2, 3]),
        ("y = Cast<to = 7>(narrow)", [7, 8]),
        ("y = Cast<to = 7>(f)", None),
        ("y = Cast<to = 1>(both)", None),
        ("y = Identity(f)", None),
        ("s = Shape(x)  y = Abs(s)", None),
        ("y = com.acme.Shape(x)", None),
    ],
)
def test_known(nodes: str, wanted: object) -> None:
    assert known(nodes) == wanted


@pytest.mark.parametrize(
    "nodes, wanted",
    [
        ("s = Shape(x)  y = Slice<starts = [1], ends = [3]>(s)", [None, 4]),
        ("s = Shape(x)  y = Slice<starts = [0], ends = [9]>(s)", [2, None, 4]),
        ("a = Squeeze<axes = [0]>(five)  y = Unsqueeze<axes = [0]>(a)", [5]),
    ],
)
def test_known_in_old_opsets(nodes: str, wanted: object) -> None:
    assert known(nodes, opset=9) == wanted


def symbolic(nodes: str) -> object:
    """What is known of y, with symbols for sizes."""
    graph = Graph.from_text(
        f"{HEAD} g (float[2, N, 4] x, float[M, N] w) => (int64[A] y) {CONSTANTS} {{ {nodes} }}"
    )
    infer_types(graph)
    elements = symbolic_elements(graph).get(graph.values["y"])
    assert elements is None or elements.dtype == object
    return None if elements is None else elements.tolist()


@pytest.mark.parametrize(
    "nodes, wanted",
    [
        ("y = Shape(x)", [2, "N", 4]),
        ("y = Size(x)", None),
        # Sizes beside symbols stay numbers.
        (
            "s = Shape(x)  a = Gather(s, zero)  b = Unsqueeze(a, v0)  t = Shape(w) "
            "y = Concat<axis = 0>(b, t)",
            [2, "M", "N"],
        ),
        (
            "s = Shape(w)  a = Gather(s, zero)  b = Unsqueeze(a, v0) y = Concat<axis = 0>(b, five)",
            ["M", 5],
        ),
        ("s = Shape(x)  y = Slice(s, v1, far)", ["N", 4]),
        ("s = Shape(w)  y = Mul(s, v1)", ["M", "N"]),
        ("s = Shape(w)  y = Mul(v1, s)", ["M", "N"]),
        ("s = Shape(w)  y = Div(s, v1)", ["M", "N"]),
        ("s = Shape(w)  y = Div(v1, s)", [None, None]),
        ("s = Shape(w)  y = Add(s, v0)", ["M", "N"]),
        ("s = Shape(w)  y = Sub(s, v0)", ["M", "N"]),
        ("s = Shape(w)  y = Sub(v0, s)", [None, None]),
        ("s = Shape(w)  y = Sub(s, v1)", [None, None]),
        ("s = Shape(w)  y = Add(s, s)", [None, None]),
        ("s = Shape(x)  y = Mul(s, five)", [10, None, 20]),
        ("s = Shape(x)  y = Div(s, minus)", [-2, None, -4]),
        ("s = Shape(x)  y = Div(s, v0)", [None, None, None]),
        ("s = Shape(x)  t = Shape(w)  y = Add(s, t)", None),
    ],
)
def test_symbols(nodes: str, wanted: object) -> None:
    assert symbolic(nodes) == wanted


def test_only_numbers_are_known_elements() -> None:
    graph = Graph.from_text(HEAD + "g (float[2, N, 4] x) => (int64[3] y) { y = Shape(x) }")
    (elements,) = known_elements(graph).values()
    assert elements.tolist() == [2, None, 4]


def test_what_is_no_longer_known_is_forgotten() -> None:
    graph = Graph.from_text(HEAD + "g (float[2, N] x) => (int64[2] y) { y = Shape(x) }")
    found = symbolic_elements(graph)
    y = graph.values["y"]
    wanted = found[y].tolist()
    assert wanted == [2, "N"]
    graph.values["x"].type = None
    find_elements(graph.nodes(), found)
    assert y not in found and elements_of(y, found) is None


def test_a_cast_that_would_overflow() -> None:
    graph = Graph("g", model=Graph.from_text(HEAD + "g () => () {}").model)
    for number, fits in ((2**31 - 1, True), (2**31, False), (-(2**31), True)):
        constant = graph.constant(np.array([number]))
        made = graph.add("Cast", [constant], {"to": int(DataType.INT32)}).output
        assert (made in known_elements(graph)) == fits


def test_rank_that_is_not_known() -> None:
    graph = Graph.from_text(HEAD + "g (float[] x) => (y, n) { y = Shape(x)  n = Size(x) }")
    assert known_elements(graph) == {}


def test_constant_ints() -> None:
    graph = Graph("g")
    assert constant_ints(None) is None
    for array, wanted in (
        (np.array([3, -4]), [3, -4]),
        (np.array(5, np.int32), [5]),
        (np.zeros(0, np.int64), []),
        (np.array([1.0]), None),
        (np.array([[1]]), None),
        (np.zeros(65, np.int64), None),
        (np.array([1], np.int8), None),
    ):
        assert constant_ints(graph.constant(array)) == wanted
    fed = graph.add_input("fed", None)
    fed.data = Tensor(np.array([1]))
    assert constant_ints(fed) is None


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 99), st.integers(-3, 3)), max_size=8),
    st.integers(1, 5),
)
def test_what_is_known_is_what_the_model_computes(
    plan: list[tuple[int, int, int]], size: int
) -> None:
    graph = Graph.from_text(HEAD + "g (float[2, N, 4] x) => (int64[3] y) { y = Shape(x) }")
    values = [graph.values["y"]]
    for verb, which, number in plan:
        read = values[which % len(values)]
        vector = graph.constant(np.array([number]))
        if verb == 0:
            made = graph.add("Gather", [read, vector])
        elif verb == 1:
            made = graph.add("Gather", [read, graph.constant(np.array(number))])
        elif verb == 2:
            made = graph.add("Slice", [read, vector, graph.constant(np.array([9]))])
        elif verb == 3:
            made = graph.add("Concat", [read, vector], {"axis": 0})
        elif verb == 4:
            made = graph.add("Squeeze", [read])
        elif verb == 5:
            made = graph.add("Unsqueeze", [read, graph.constant(np.array([0]))])
        else:
            made = graph.add("Cast", [read], {"to": int(DataType.INT32)})
            made = graph.add("Cast", [made.output], {"to": int(DataType.INT64)})
        values.append(made.output)
    infer_types(graph)
    found = known_elements(graph)
    for value in values[1:]:
        if value in found:
            alone = graph.extract([], [value])
            feeds = random_feeds(alone, dims={"N": size})
            try:
                computed = run(alone, feeds)[value.name]
            except InputError:
                continue
            assert computed.shape == found[value].shape
            for wanted, element in zip(
                computed.reshape(-1).tolist(), found[value].reshape(-1).tolist(), strict=True
            ):
                assert element is None or element == wanted
