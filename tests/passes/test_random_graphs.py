"""Random graphs: passes alone and all together, in any order, keep the outputs.

Simplifying passes keep every bit; all default passes together keep them up to rounding.
"""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.ir import (
    DataType,
    Graph,
    ModelInfo,
    Pass,
    Pipeline,
    TensorType,
    Value,
    available_passes,
    default_passes,
    infer_types,
)
from onnxq.ir.saving import fingerprint
from onnxq.passes.cleanup.eliminate_common_subexpressions import EliminateCommonSubexpressions
from onnxq.passes.cleanup.eliminate_dead import EliminateDead
from onnxq.passes.cleanup.eliminate_identity import EliminateIdentity
from onnxq.passes.cleanup.fold_constants import FoldConstants
from tests.helpers import assert_equivalent

PASSES: tuple[Pass, ...] = (
    FoldConstants(),
    EliminateIdentity(),
    EliminateCommonSubexpressions(),
    EliminateDead(),
)
VECTOR = TensorType(DataType.FLOAT, (3,))
UNARY = ("Identity", "Neg", "Abs", "Sin", "Dropout", "Relu")
BINARY = ("Add", "Sub", "Mul", "Max", "Concat")


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Graphs over float vectors of one length, some constant, with shared values and an If."""
    graph = Graph("g", model=ModelInfo(10, {"": 21}))
    values = [graph.add_input(name, VECTOR) for name in ("x", "z")]
    flag = graph.add_input("c", TensorType(DataType.BOOL, ()))
    for numbers in draw(st.lists(st.sampled_from([0.0, -0.0, 1.0, 2.5]), max_size=3)):
        values.append(graph.constant(np.full(draw(st.sampled_from([1, 3])), numbers, np.float32)))
    _grow(draw, graph, values, draw(st.integers(1, 12)))
    if draw(st.booleans()):
        branches = {}
        for name in ("then_branch", "else_branch"):
            branch = Graph(name, outer=graph)
            inner = list(values)
            _grow(draw, branch, inner, draw(st.integers(1, 5)))
            branch.add_output(branch.add("Sum", [inner[-1], values[0]]).output)
            branches[name] = branch
        values.append(graph.add("If", [flag], branches).output)
    made = [v for v in values if v.producer is not None]
    for value in draw(st.lists(st.sampled_from(made), min_size=1, max_size=3, unique=True)):
        value.type = None
        graph.add_output(value)
    graph.check()
    return graph


def _grow(draw: st.DrawFn, graph: Graph, values: list[Value], count: int) -> None:
    for _ in range(count):
        operator = draw(st.sampled_from(UNARY + BINARY))
        inputs = [draw(st.sampled_from(values)) for _ in range(1 if operator in UNARY else 2)]
        if operator == "Concat":
            # Of one input: it gives that input back.
            values.append(graph.add("Concat", inputs[:1], {"axis": 0}).output)
        else:
            values.append(graph.add(operator, inputs).output)


@settings(max_examples=60)
@given(graphs(), st.permutations(PASSES), st.booleans())
def test_outputs_keep_every_bit(graph: Graph, order: list[Pass], flag: bool) -> None:
    rng = np.random.default_rng(0)
    feeds = {
        "x": rng.standard_normal(3).astype(np.float32),
        "z": np.array([0.0, -0.0, np.inf], np.float32),
        "c": np.array(flag),
    }
    for step in order:
        after = graph.copy()
        Pipeline((step,)).run(after)
        assert_equivalent(graph, after, feeds=feeds)
    after = graph.copy()
    pipeline = Pipeline(tuple(order))
    pipeline.run(after)
    assert_equivalent(graph, after, feeds=feeds)
    assert not any(r.rewrites for r in pipeline.run(after))


SQUARE = TensorType(DataType.FLOAT, (3, 3))


@st.composite
def square_graphs(draw: st.DrawFn) -> Graph:
    """Graphs over float matrices of one size, all bounded, in which every kind of pass has work."""
    graph = Graph("g", model=ModelInfo(10, {"": draw(st.sampled_from([17, 21, 24]))}))
    values = [graph.add_input(name, SQUARE) for name in ("x", "z")]
    flag = graph.add_input("c", TensorType(DataType.BOOL, ()))
    matrix = np.random.default_rng(draw(st.integers(0, 3))).uniform(-1, 1, (3, 3))
    values.append(graph.constant(matrix.astype(np.float32), "k"))
    _grow_square(draw, graph, values, draw(st.integers(2, 8)))
    for _ in range(draw(st.integers(0, 2))):
        values.append(_holder(draw, graph, values, flag))
        _grow_square(draw, graph, values, draw(st.integers(0, 3)))
    made = [v for v in values if v.producer is not None]
    others = draw(st.lists(st.sampled_from(made), max_size=2, unique=True))
    for value in dict.fromkeys([made[-1], *others]):
        value.type = None
        graph.add_output(value)
    graph.check()
    return graph


def _holder(draw: st.DrawFn, graph: Graph, values: list[Value], flag: Value) -> Value:
    """An If of fed or constant condition, or a Loop, whose bodies read outer values."""
    if draw(st.booleans()):
        branches = {}
        for name in ("then_branch", "else_branch"):
            branch = Graph(name, outer=graph)
            inner = list(values)
            _grow_square(draw, branch, inner, draw(st.integers(1, 4)))
            branch.add_output(branch.add("Tanh", [inner[-1]]).output)
            branches[name] = branch
        condition = draw(st.sampled_from([flag, graph.constant(np.array(True))]))
        return graph.add("If", [condition], branches).output
    body = Graph("body", outer=graph)
    body.add_input("turn", TensorType(DataType.INT64, ()))
    going = body.add_input("going", TensorType(DataType.BOOL, ()))
    inner = [*values, body.add_input("carried", SQUARE)]
    _grow_square(draw, body, inner, draw(st.integers(1, 4)))
    body.add_output(body.add("Identity", [going]).output)
    body.add_output(body.add("Sin", [inner[-1]]).output)
    trips = graph.constant(np.array(draw(st.integers(0, 2))))
    return graph.add("Loop", [trips, None, draw(st.sampled_from(values))], {"body": body}).output


def _grow_square(draw: st.DrawFn, graph: Graph, values: list[Value], count: int) -> None:
    steps = (
        *(_unary, _binary, _transposed, _reshaped, _cut, _cast, _scaled, _reduced),
        *(_clipped, _activated, _normalized, _attended),
    )
    for _ in range(count):
        step = draw(st.sampled_from(steps))
        # Mostly the last one, so that chains grow.
        recent = draw(st.booleans())
        value = values[-1] if recent else draw(st.sampled_from(values))
        values.append(step(draw, graph, value, values))


def _ints(graph: Graph, *numbers: int) -> Value:
    return graph.constant(np.array(numbers, dtype=np.int64), "n")


def _unary(draw: st.DrawFn, graph: Graph, value: Value, values: list[Value]) -> Value:
    kind = draw(st.sampled_from(["Sin", "Tanh", "Neg", "Identity"]))
    return graph.add(kind, [value]).output


def _binary(draw: st.DrawFn, graph: Graph, value: Value, values: list[Value]) -> Value:
    kind = draw(st.sampled_from(["Add", "Max", "Mul"]))
    made = graph.add(kind, [value, draw(st.sampled_from(values))]).output
    return graph.add("Tanh", [made]).output


def _transposed(draw: st.DrawFn, graph: Graph, value: Value, values: list[Value]) -> Value:
    return graph.add("Transpose", [value], {"perm": [1, 0]}).output


def _reshaped(draw: st.DrawFn, graph: Graph, value: Value, values: list[Value]) -> Value:
    if draw(st.booleans()):
        value = graph.add("Unsqueeze", [value, _ints(graph, draw(st.integers(0, 2)))]).output
    if draw(st.booleans()):
        value = graph.add("Flatten", [value], {"axis": draw(st.integers(0, 2))}).output
    return graph.add("Reshape", [value, _ints(graph, draw(st.sampled_from([-1, 3])), 3)]).output


def _cut(draw: st.DrawFn, graph: Graph, value: Value, values: list[Value]) -> Value:
    axis, border = draw(st.integers(0, 1)), draw(st.sampled_from([1, 2, -1]))
    limits = [(0, border), (border, 9)]
    parts = [
        graph.add("Slice", [value, *(_ints(graph, n) for n in (*limit, axis))]).output
        for limit in limits
    ]
    if draw(st.booleans()):
        parts.reverse()
    return graph.add("Concat", parts, {"axis": axis}).output


def _cast(draw: st.DrawFn, graph: Graph, value: Value, values: list[Value]) -> Value:
    wide = graph.add("Cast", [value], {"to": int(DataType.DOUBLE)}).output
    narrow = graph.add("Cast", [wide], {"to": int(DataType.FLOAT)}).output
    # No subgraph may read the second Cast: onnxruntime loses its result there.
    return graph.add("Neg", [narrow]).output


def _scaled(draw: st.DrawFn, graph: Graph, value: Value, values: list[Value]) -> Value:
    scale = draw(st.sampled_from([np.float32(0.5), np.array([0.25, 0.5, 2], np.float32)]))
    factor = graph.constant(np.asarray(scale), "s")
    kinds = draw(st.permutations(["MatMul", "Mul", "Add"]))
    for kind in kinds:
        other = next(v for v in values if v.name == "k") if kind == "MatMul" else factor
        value = graph.add(kind, [value, other]).output
    return graph.add("Tanh", [value]).output


def _over(graph: Graph, kind: str, value: Value, axis: int) -> Value:
    """A reduction, its axis an attribute or an input as the opset has it."""
    if kind == "ReduceSum" or graph.opset >= 18:
        return graph.add(kind, [value, _ints(graph, axis)]).output
    return graph.add(kind, [value], {"axes": [axis]}).output


def _reduced(draw: st.DrawFn, graph: Graph, value: Value, values: list[Value]) -> Value:
    axis = draw(st.integers(-2, 1))
    top = _over(graph, "ReduceMax", value, axis)
    if draw(st.booleans()):
        power = graph.add("Exp", [graph.add("Sub", [value, top]).output]).output
        return graph.add("Div", [power, _over(graph, "ReduceSum", power, axis)]).output
    made = graph.add("Sub", [value, top]).output
    return graph.add("Softmax", [made], {"axis": draw(st.integers(-2, 1))}).output


def _number(graph: Graph, number: float) -> Value:
    return graph.constant(np.array(number, np.float32), "c")


def _clipped(draw: st.DrawFn, graph: Graph, value: Value, values: list[Value]) -> Value:
    return _limited(draw, graph, _limited(draw, graph, value))


def _limited(draw: st.DrawFn, graph: Graph, value: Value) -> Value:
    kind = draw(st.sampled_from(["Relu", "Max", "Min", "Clip"]))
    if kind == "Relu":
        return graph.add(kind, [value]).output
    low, high = _number(graph, draw(st.sampled_from([0.0, -0.5]))), _number(graph, 0.25)
    if kind != "Clip":
        return graph.add(kind, [value, draw(st.sampled_from([low, high]))]).output
    bounds = draw(st.sampled_from([(low,), (low, high), (None, high), ()]))
    return graph.add(kind, [value, *bounds]).output


def _activated(draw: st.DrawFn, graph: Graph, value: Value, values: list[Value]) -> Value:
    kind = draw(st.sampled_from(["gelu", "swish", "hard"]))
    if kind == "swish":
        return graph.add("Mul", [value, graph.add("Sigmoid", [value]).output]).output
    if kind == "gelu":
        inner = graph.add("Erf", [graph.add("Div", [value, _number(graph, 2**0.5)]).output]).output
        more = graph.add("Add", [inner, _number(graph, 1)]).output
        half = graph.add("Mul", [value, _number(graph, 0.5)]).output
        return graph.add("Mul", [half, more]).output
    shifted = graph.add("Add", [value, _number(graph, 3)]).output
    cut = graph.add("Clip", [shifted, _number(graph, 0), _number(graph, 6)]).output
    sixth = graph.add("Div", [cut, _number(graph, 6)]).output
    return graph.add("Mul", [value, sixth]).output if draw(st.booleans()) else sixth


def _normalized(draw: st.DrawFn, graph: Graph, value: Value, values: list[Value]) -> Value:
    if draw(st.booleans()):
        value = graph.add("Add", [value, draw(st.sampled_from(values))]).output
    if draw(st.booleans()):
        value = graph.add("Sub", [value, _over(graph, "ReduceMean", value, -1)]).output
    square = graph.add("Mul", [value, value]).output
    mean = graph.add("Add", [_over(graph, "ReduceMean", square, -1), _number(graph, 0.1)]).output
    made = graph.add("Div", [value, graph.add("Sqrt", [mean]).output]).output
    if draw(st.booleans()):
        scale = graph.constant(np.array([1, -0.5, 0.25], np.float32), "s")
        made = graph.add("Mul", [made, scale]).output
        if draw(st.booleans()):
            made = graph.add("Add", [made, scale]).output
    return graph.add("Tanh", [made]).output


def _attended(draw: st.DrawFn, graph: Graph, value: Value, values: list[Value]) -> Value:
    heads = [
        graph.add("Reshape", [v, _ints(graph, 1, 1, 3, 3)]).output
        for v in (value, draw(st.sampled_from(values)), draw(st.sampled_from(values)))
    ]
    turned = graph.add("Transpose", [heads[1]], {"perm": [0, 1, 3, 2]}).output
    scores = graph.add("MatMul", [heads[0], turned]).output
    if draw(st.booleans()):
        scores = graph.add("Mul", [scores, _number(graph, 0.5)]).output
    if draw(st.booleans()):
        scores = graph.add("Add", [scores, draw(st.sampled_from(values))]).output
    shares = graph.add("Softmax", [scores], {"axis": -1}).output
    mixed = graph.add("MatMul", [shares, heads[2]]).output
    return graph.add("Reshape", [mixed, _ints(graph, 3, 3)]).output


# Without the passes that are meant to change numbers, and the one that changes the interface.
EVERY = tuple(
    kind()
    for name, kind in available_passes().items()
    if kind.numerics != "approximates" and name != "remove-unused-interface"
)


@settings(max_examples=60)
@given(square_graphs(), st.lists(st.sampled_from(EVERY), min_size=4, max_size=4), st.booleans())
def test_every_pass_alone(graph: Graph, passes: list[Pass], flag: bool) -> None:
    feeds = square_feeds(flag)
    infer_types(graph)
    for step in passes:
        after = graph.copy()
        if not sum(r.rewrites for r in Pipeline((step,), fixed_point=False).run(after)):
            assert fingerprint(after) == fingerprint(graph), step.name
            continue
        assert_equivalent(graph, after, feeds=feeds, exact=False, rtol=1e-4)
        pipeline = Pipeline((step,))
        pipeline.run(after)
        assert not any(r.rewrites for r in pipeline.run(after))


def square_feeds(flag: bool) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    feeds = {name: rng.uniform(-1, 1, (3, 3)).astype(np.float32) for name in ("x", "z")}
    return feeds | {"c": np.array(flag)}


@settings(max_examples=30)
@given(square_graphs(), st.permutations(default_passes()), st.booleans())
def test_all_default_passes_in_any_order(graph: Graph, order: list[Pass], flag: bool) -> None:
    feeds = square_feeds(flag)
    after = graph.copy()
    for step in order:
        infer_types(after)
        before = fingerprint(after)
        if any(record.rewrites for record in Pipeline((step,)).run(after)):
            assert_equivalent(graph, after, feeds=feeds, exact=False, rtol=1e-4)
        else:
            assert fingerprint(after) == before, step.name
    after = graph.copy()
    pipeline = Pipeline(tuple(order))
    pipeline.run(after)
    assert_equivalent(graph, after, feeds=feeds, exact=False, rtol=1e-4)
    assert not any(r.rewrites for r in pipeline.run(after))
