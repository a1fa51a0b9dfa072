from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.errors import InputError
from onnxq.ir import DataType, Graph, TensorType, Value
from onnxq.ir.shape_rules import computed_shapes
from onnxq.ir.shape_values import Elements, find_elements
from tests.helpers import random_feeds, run

HEAD = '<ir_version: 10, opset_import: ["": 21]>'


def symbolic_elements(graph: Graph) -> dict[Value, Elements]:
    found: dict[Value, Elements] = {}
    find_elements(graph.nodes(), found)
    return found


def computed(text: str, opset: int = 21) -> dict[str, TensorType]:
    """What the rules say of each value, from the types that the text gives."""
    graph = Graph.from_text(HEAD.replace("21", str(opset)) + text)
    found = computed_shapes(graph.nodes(), symbolic_elements(graph))
    return {value.name: known for value, known in found.items()}


@pytest.mark.parametrize(
    "shape, target, wanted",
    [
        ("N, 6", "{0, 2, 3}", ("N", 2, 3)),
        ("N, 6", "{-1, 6}", ("N", 6)),
        ("N, 6", "{-1, 3}", (None, 3)),
        ("N, 6", "{0, -1}", ("N", 6)),
        ("N, 6", "{0, -1, 4}", ("N", None, 4)),
        ("N, M, 4", "{0, 0, 2, -1}", ("N", "M", 2, 2)),
        ("N, M, 4", "{-1, 4}", (None, 4)),
        ("4, 6", "{-1}", (24,)),
        ("4, 6", "{5, -1}", (5, None)),
    ],
)
def test_reshape(shape: str, target: str, wanted: tuple[object, ...]) -> None:
    length = target.count(",") + 1
    found = computed(
        f"g (float[{shape}] x) => (float[...] y) <int64[{length}] t = {target}> "
        "{ y = Reshape(x, t) }".replace("float[...]", "")
    )
    assert found["y"] == TensorType(DataType.FLOAT, wanted)  # type: ignore[arg-type]


def test_zero_is_a_size_where_it_is_allowed() -> None:
    text = "g (float[N, 0] x) => (y) <int64[2] t = {{0, 7}}> {{ y = Reshape{}(x, t) }}"
    assert computed(text.format("<allowzero = 1>"))["y"].shape == (0, 7)
    assert computed(text.format(""))["y"].shape == ("N", 7)


def test_copying_a_dimension_that_is_not_there() -> None:
    assert not computed("g (float[N, 6] x) => (y) <int64[3] t = {0, 0, 0}> { y = Reshape(x, t) }")


def test_reshape_of_old_opsets_is_left_alone() -> None:
    assert not computed("g (float[N, 6] x) => (y) { y = Reshape<shape = [2, -1]>(x) }", opset=1)


@pytest.mark.parametrize(
    "shape, target, wanted",
    [
        ("N, 1", "{3, 1, 4}", (3, "N", 4)),
        ("N, 5", "{1, 1}", ("N", 5)),
        ("1, 5", "{7, 1}", (7, 5)),
        ("3", "{1, 1}", (1, 3)),
    ],
)
def test_expand(shape: str, target: str, wanted: tuple[object, ...]) -> None:
    length = target.count(",") + 1
    found = computed(
        f"g (float[{shape}] x) => (y) <int64[{length}] t = {target}> {{ y = Expand(x, t) }}"
    )
    assert found["y"] == TensorType(DataType.FLOAT, wanted)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "one, other, wanted",
    [("N", "N", "N"), ("N", "M", None), ("1", "M", "M"), ("N", "1", "N"), ("4", "M", 4)],
)
def test_expand_to_the_shape_of_another(one: str, other: str, wanted: object) -> None:
    found = computed(
        f"g (float[{one}] x, float[{other}] z) => (y) {{ t = Shape(z)  y = Expand(x, t) }}"
    )
    assert found["y"].shape == (wanted,)


def test_constant_of_shape() -> None:
    found = computed(
        """g (float[N, 6] x) => (float[...] y, z) <int64[1] rest = {5}>
        { s = Shape(x)  t = Concat<axis = 0>(s, rest)  y = ConstantOfShape(t)
          z = ConstantOfShape(s) }""".replace("float[...] y", "float y")
    )
    # The declared scalar is closed already; of the other the element type is not known.
    assert not found


def test_what_is_known_already_is_left_alone() -> None:
    text = "g (float[2, 6] x) => (float[12] y) <int64[1] t = {-1}> { y = Reshape(x, t) }"
    assert not computed(text)
    # An operator of another domain may do something else.
    other = text.replace("float[12] y", "y").replace("Reshape", "com.acme.Reshape")
    assert not computed(other.replace("g (", "g (", 1))


@settings(max_examples=80)
@given(
    st.lists(st.sampled_from([1, 2, 3, "N", "M"]), min_size=1, max_size=4),
    st.data(),
    st.integers(1, 4),
    st.integers(1, 4),
)
def test_reshapes_say_what_the_model_does(
    shape: list[int | str], data: st.DataObject, n: int, m: int
) -> None:
    sizes = {"N": n, "M": m}
    total = math.prod(sizes.get(d, d) if isinstance(d, str) else d for d in shape)
    graph = Graph("g")
    x = graph.add_input("x", TensorType(DataType.FLOAT, tuple(shape)))
    taken = graph.add("Shape", [x]).output
    parts, left = [], total
    for at, dim in enumerate(shape):
        kind = data.draw(st.sampled_from(["size", "zero", "gather", "skip"]))
        size = sizes.get(dim, dim) if isinstance(dim, str) else dim
        if kind == "skip":
            continue
        left //= size
        if kind == "zero" and at == len(parts):
            parts.append(graph.constant(np.array([0])))
        elif kind == "gather":
            parts.append(graph.add("Gather", [taken, graph.constant(np.array([at]))]).output)
        else:
            parts.append(graph.constant(np.array([size])))
    parts.insert(data.draw(st.integers(0, len(parts))), graph.constant(np.array([-1])))
    target = graph.add("Concat", parts, {"axis": 0}).output
    graph.add_output(graph.add("Reshape", [x, target], outputs=["y"]).output)
    found = computed_shapes(graph.nodes(), symbolic_elements(graph)).get(graph.values["y"])
    try:
        real = run(graph, random_feeds(graph, dims=sizes))["y"].shape
    except InputError:
        return
    assert found is not None and found.shape is not None and len(found.shape) == len(real)
    for known, size in zip(found.shape, real, strict=True):
        assert known is None or (sizes[known] if isinstance(known, str) else known) == size
