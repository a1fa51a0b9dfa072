"""Random graphs: every simplifying pass alone and all together keep every bit of the outputs."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.ir import DataType, Graph, ModelInfo, Pass, Pipeline, TensorType, Value
from onnxq.passes.eliminate_common_subexpressions import EliminateCommonSubexpressions
from onnxq.passes.eliminate_dead import EliminateDead
from onnxq.passes.eliminate_identity import EliminateIdentity
from onnxq.passes.fold_constants import FoldConstants
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
