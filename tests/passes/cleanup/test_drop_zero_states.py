from __future__ import annotations

import pytest

from onnxq.ir import Graph, infer_types
from onnxq.passes.cleanup.drop_zero_states import DropZeroStates
from tests.helpers import assert_equivalent, assert_same_graph
from tests.passes.rewriting import check_kept, operators, rewritten

STEP = DropZeroStates()
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def model(operator: str, states: str, before: str = "", more: str = "") -> str:
    rows = 2 * GATES[operator]
    weights = ", ".join(str((at % 7 - 3) / 4) for at in range(rows * 2))
    return (
        f'<ir_version: 8, opset_import: ["": 17]> g (float[3, N, 2] x{more}) => '
        f"(float[3, 1, N, 2] y) <float[1, {rows}, 2] w = {{{weights}}}, "
        "int64[2] sides = {1, 2}, int64 one = {1}, int64[1] zero = {0}, int64[1] first = {1}, "
        "int64[1] second = {2}, float nothing = {0}, float[1, 1, 2] row = {0, 0}, "
        "float[1, 1, 2] ones = {1, 0}> "
        f"{{ {before} y = {operator}<hidden_size = 2>(x, w, w{states}) }}"
    )


SHAPE = (
    "s = Shape(x) n = Gather<axis = 0>(s, one) u = Unsqueeze(n, zero) "
    "t = Concat<axis = 0>(first, u, second) "
)
FILLED = SHAPE + "h = ConstantOfShape(t) "
BY_VALUE = SHAPE + "h = ConstantOfShape<value = float[1] {0}>(t) "
EXPANDED = SHAPE + "h = Expand(nothing, t) "


def cleaned(text: str) -> Graph:
    """A text's graph without the constants that nothing reads."""
    graph = Graph.from_text(text)
    for value in list(graph.initializers()):
        if not value.is_used:
            graph.discard(value)
    return graph


@pytest.mark.parametrize("operator", GATES)
@pytest.mark.parametrize("before", [FILLED, BY_VALUE, EXPANDED])
def test_pair(operator: str, before: str) -> None:
    states = ", , , h" + (", h" if operator == "LSTM" else "")
    graph = cleaned(model(operator, states, before))
    after, made = rewritten(STEP, graph)
    assert made == 1 + (operator == "LSTM")
    assert_same_graph(after, cleaned(model(operator, "")))
    assert_equivalent(graph, after)


def test_constant_zeros() -> None:
    text = model("GRU", ", , , row").replace("float[3, N, 2] x", "float[3, 1, 2] x")
    graph = cleaned(text.replace("float[3, 1, N, 2] y", "float[3, 1, 1, 2] y"))
    after, made = rewritten(STEP, graph)
    assert made == 1
    assert [len(n.inputs) for n in after.nodes()] == [3]
    assert "row" not in after.values
    assert_equivalent(graph, after)


def test_one_of_two_states_and_what_else_reads_the_zeros() -> None:
    graph = cleaned(model("LSTM", ", , , h, e", FILLED + "e = Exp(h) "))
    infer_types(graph)
    after, made = rewritten(STEP, graph)
    assert made == 1
    assert operators(after) == [*operators(graph)]
    (lstm,) = (n for n in after.nodes() if n.is_op("LSTM"))
    assert lstm.input(5) is None and lstm.input(6) is after.values["e"]
    assert_equivalent(graph, after)


KEPT = {
    "fed": model("GRU", ", , , h", more=", float[1, N, 2] h"),
    "ones": model("GRU", ", , , h", SHAPE + "h = ConstantOfShape<value = float[1] {1}>(t) "),
    "one that is no zero": model("GRU", ", , , h", SHAPE + "h = Expand(ones, t) "),
    "computed": model("GRU", ", , , h", SHAPE + "z = ConstantOfShape(t) h = Neg(z) "),
    "none": model("GRU", ""),
}


@pytest.mark.parametrize("case", KEPT)
def test_kept(case: str) -> None:
    check_kept(STEP, KEPT[case])
