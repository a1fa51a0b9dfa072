from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.ir import Context, DataType, Graph, ModelInfo, Pipeline, TensorType, infer_types
from onnxq.passes.cleanup.eliminate_identity import EliminateIdentity
from onnxq.passes.layout.merge_reshapes import MergeReshapes
from tests.helpers import assert_equivalent, assert_same_graph

HEAD = '<ir_version: 10, opset_import: ["": 21]>'


def merge(before: Graph) -> tuple[Graph, int]:
    """The rewritten graph and the rewrites made; a second run must find nothing."""
    infer_types(before)
    after = before.copy()
    made = MergeReshapes().run(after, Context())
    after.check()
    infer_types(after)
    assert MergeReshapes().run(after, Context()) == 0
    return after, made


def graph(shape: str, result: str, nodes: str, head: str = HEAD, **constants: list[int]) -> Graph:
    given = ", ".join(
        f"int64[{len(numbers)}] {name} = {{{', '.join(map(str, numbers))}}}"
        for name, numbers in constants.items()
    )
    return Graph.from_text(
        f"{head} g (float[{shape}] x) => (float[{result}] y) <{given}> {{ {nodes} }}"
    )


TWO = "a = Reshape(x, s)  y = Reshape(a, t)"
PAIRS = {
    "known sizes": (
        graph("2, 6", "3, 4", TWO, s=[12], t=[3, 4]),
        graph("2, 6", "3, 4", "y = Reshape(x, t)", t=[3, 4]),
    ),
    "a copied dimension becomes its size": (
        graph("2, 6", "4, 3", TWO, s=[4, 3, 1], t=[0, -1]),
        graph("2, 6", "4, 3", "y = Reshape(x, t)", t=[4, -1]),
    ),
    "a copied dimension is that of the input": (
        graph("N, 2, 6", "N, 3, 4", TWO, s=[0, 12], t=[0, 3, 4]),
        graph("N, 2, 6", "N, 3, 4", "y = Reshape(x, t)", t=[0, 3, 4]),
    ),
    "Unsqueeze after Flatten": (
        graph("N, 2, 3", "N, 1, 6", "a = Flatten(x)  y = Unsqueeze(a, t)", t=[1]),
        graph("N, 2, 3", "N, 1, 6", "y = Reshape(x, t)", t=[0, 1, 6]),
    ),
    "Flatten after Reshape": (
        graph("N, 12", "N, 12", "a = Reshape(x, s)  y = Flatten(a)", s=[0, 3, 4]),
        graph("N, 12", "N, 12", "y = Reshape(x, t)", t=[0, 12]),
    ),
    "Squeeze of what Unsqueeze made": (
        graph("N, M", "N, M", "b = Neg(x)  a = Unsqueeze(b, s)  y = Squeeze(a, t)", s=[1], t=[-2]),
        graph("N, M", "N, M", "y = Neg(x)"),
    ),
    "Unsqueeze of what Squeeze took": (
        graph(
            "N, 1, M", "N, 1, M", "b = Neg(x)  a = Squeeze(b, s)  y = Unsqueeze(a, t)", s=[1], t=[1]
        ),
        graph("N, 1, M", "N, 1, M", "y = Neg(x)"),
    ),
    "two Unsqueezes of unknown sizes": (
        graph("N, M", "N, 1, M, 1", "a = Unsqueeze(x, s)  y = Unsqueeze(a, t)", s=[-1], t=[1]),
        graph("N, M", "N, 1, M, 1", "y = Unsqueeze(x, t)", t=[1, 3]),
    ),
    "two Squeezes of unknown sizes": (
        graph("1, N, 1, M", "N, M", "a = Squeeze(x, s)  y = Squeeze(a, t)", s=[0], t=[-2]),
        graph("1, N, 1, M", "N, M", "y = Squeeze(x, t)", t=[0, 2]),
    ),
    "a chain": (
        graph(
            "2, 6",
            "12, 1",
            "a = Reshape(x, s)  b = Flatten<axis = 2>(a)  c = Squeeze(b)  y = Reshape(c, t)",
            s=[3, 4],
            t=[12, 1],
        ),
        graph("2, 6", "12, 1", "y = Reshape(x, t)", t=[12, 1]),
    ),
    "to a scalar": (
        graph("1, 1", "", "a = Flatten(x)  y = Squeeze(a, s)", s=[0, 1]),
        graph("1, 1", "", "y = Reshape(x, t)", t=[]),
    ),
}


@pytest.mark.parametrize("case", PAIRS)
def test_pair(case: str) -> None:
    before, wanted = PAIRS[case]
    after, made = merge(before)
    assert made >= 1
    assert_same_graph(after, wanted)
    for size in (1, 3):
        assert_equivalent(before, after, dims={"N": size, "M": size + 1})


LEFT = {
    "two dimensions that are not known": graph("N, M", "A, B, 1", TWO, s=[-1], t=[-1, 0, 1]),
    "Flatten of unknown sizes": graph(
        "N, M, K, L", "A, B, 1", "a = Flatten<axis = 2>(x)  y = Unsqueeze(a, s)", s=[2]
    ),
    "zeros that are sizes": graph(
        "0, 6", "0, 3", "a = Reshape(x, s)  y = Reshape<allowzero = 1>(a, t)", s=[6, 0], t=[0, 3]
    ),
    "an empty tensor": graph("0, 6", "0, 6, 1", "a = Flatten(x)  y = Unsqueeze(a, s)", s=[2]),
    "something in between": graph(
        "2, 6", "3, 4", "a = Reshape(x, s)  b = Neg(a)  y = Reshape(b, t)", s=[12], t=[3, 4]
    ),
    "one alone": graph("2, 6", "3, 4", "y = Reshape(x, t)", t=[3, 4]),
    "the shape is computed": graph(
        "2, 6", "A, B", "a = Reshape(x, s)  b = Shape(a)  y = Reshape(a, b)", s=[12]
    ),
}


@pytest.mark.parametrize("case", LEFT)
def test_left(case: str) -> None:
    after, made = merge(LEFT[case])
    assert made == 0
    assert_same_graph(after, LEFT[case])


def test_value_that_is_read_or_given_out_stays() -> None:
    given = Graph.from_text(
        f"""{HEAD} g (float[2, 6] x) => (float[3, 4] y, float[12] a)
        <int64[1] s = {{12}}, int64[2] t = {{3, 4}}> {{ {TWO} }}"""
    )
    assert merge(given)[1] == 0
    read = Graph.from_text(
        f"""{HEAD} g (float[2, 6] x) => (float[3, 4] y, float[12] z)
        <int64[1] s = {{12}}, int64[2] t = {{3, 4}}> {{ {TWO}  z = Neg(a) }}"""
    )
    assert merge(read)[1] == 0


def test_several_readers_of_the_same_kind() -> None:
    before = Graph.from_text(
        f"""{HEAD} g (float[2, 6] x) => (float[3, 4] y, float[6, 2] z)
        <int64[1] s = {{12}}, int64[2] t = {{3, 4}}, int64[2] u = {{6, 2}}>
        {{ {TWO}  z = Reshape(a, u) }}"""
    )
    after, made = merge(before)
    assert made == 2
    assert [n.op_type for n in after.nodes()] == ["Reshape", "Reshape"]
    assert_equivalent(before, after)


def test_target_made_at_run_time() -> None:
    text = f"""{HEAD} g (float[2, 6] x, int64[2] t) => (float[A, B] y) <int64[1] s = {{12}}>
    {{ a = Reshape(x, s)  y = Reshape<allowzero = %d>(a, t) }}"""
    before = Graph.from_text(text % 1)
    after, made = merge(before)
    assert made == 1
    assert [n.op_type for n in after.nodes()] == ["Reshape"]
    feeds = {"x": np.arange(12, dtype=np.float32).reshape(2, 6), "t": np.array([4, 3])}
    assert_equivalent(before, after, feeds=feeds)
    # A zero would copy a dimension of what was between.
    assert merge(Graph.from_text(text % 0))[1] == 0


@pytest.mark.parametrize("opset", [4, 5, 11])
def test_axes_in_attributes(opset: int) -> None:
    head = f'<ir_version: 3, opset_import: ["": {opset}]>'
    nodes = "a = Unsqueeze<axes = [0]>(x)  b = Unsqueeze<axes = [2]>(a)  y = Squeeze<axes = [0]>(b)"
    before = graph("N, 3", "N, 1, 3", nodes, head)
    after, made = merge(before)
    assert made == (2 if opset >= 5 else 0)
    if made:
        assert len(after) == 1
    if opset > 7:
        assert_equivalent(before, after)


def test_names_stay() -> None:
    before = graph(
        "N, 2, 3", "A, 1, 6", "[flat] a = Flatten(x)  [more] b = Unsqueeze(a, t)  y = Neg(b)", t=[1]
    )
    after, _ = merge(before)
    assert [(n.op_type, n.name) for n in after.nodes()] == [("Reshape", "more"), ("Neg", "")]
    assert "b" in after.values and "a" not in after.values


@settings(max_examples=60)
@given(
    data=st.data(),
    dims=st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=4),
    free=st.integers(0, 2),
)
def test_any_chain(data: st.DataObject, dims: list[int], free: int) -> None:
    """Chains of random operators of these kinds, some dimensions unknown."""
    built = Graph("g", model=ModelInfo(10, {"": 21}))
    shape = tuple(f"D{at}" if at < free else d for at, d in enumerate(dims))
    value = built.add_input("x", TensorType(DataType.FLOAT, shape))
    now = list(dims)
    for _ in range(data.draw(st.integers(2, 5))):
        ones = [at for at, d in enumerate(now) if d == 1]
        kinds = ["Flatten", "Unsqueeze", "Reshape"] + ["Squeeze"] * bool(ones)
        kind = data.draw(st.sampled_from(kinds))
        if kind == "Flatten":
            axis = data.draw(st.integers(0, len(now)))
            value = built.add("Flatten", [value], {"axis": axis}).output
            now = [int(np.prod(now[:axis])), int(np.prod(now[axis:]))]
        elif kind == "Reshape":
            left, wanted = int(np.prod(now)), []
            for at in range(data.draw(st.integers(0, 2))):
                choices = [d for d in (1, 2, 3) if left % d == 0]
                size = data.draw(st.sampled_from(choices))
                wanted.append(0 if at < len(now) and now[at] == size else size)
                left //= size
            wanted.append(data.draw(st.sampled_from([-1, left])))
            target = built.constant(np.array(wanted, dtype=np.int64))
            value = built.add("Reshape", [value, target]).output
            now = [now[at] if n == 0 else n for at, n in enumerate(wanted[:-1])] + [left]
        elif kind == "Unsqueeze":
            axis = data.draw(st.integers(-len(now) - 1, len(now)))
            value = built.add("Unsqueeze", [value, built.constant(np.array([axis]))]).output
            now.insert(axis if axis >= 0 else axis + len(now) + 1, 1)
        else:
            axis = data.draw(st.sampled_from(ones))
            value = built.add("Squeeze", [value, built.constant(np.array([axis]))]).output
            del now[axis]
    value.type = TensorType(DataType.FLOAT)
    built.add_output(built.add("Neg", [value]).output)
    built.outputs[0].type = TensorType(DataType.FLOAT)
    after, _ = merge(built)
    sizes = {f"D{at}": dims[at] for at in range(min(free, len(dims)))}
    assert_equivalent(built, after, dims=sizes)
    both = built.copy()
    Pipeline((MergeReshapes(), EliminateIdentity())).run(both)
    assert_equivalent(built, both, dims=sizes)
    if not free:
        # With every size known nothing but one operator, or none, is left.
        assert len(both) <= 2
