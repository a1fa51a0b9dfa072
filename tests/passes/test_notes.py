"""The note of what was left in float: merged over passes, robust against what others wrote."""

from __future__ import annotations

import json

import pytest

from onnxq.ir import Graph
from onnxq.passes.notes import (
    LEFT_IN_FLOAT_KEY,
    Reason,
    left_in_float,
    node_name,
    note_left_in_float,
)

SLOW, LARGE = Reason("slow", "slow"), Reason("shape", "large")


@pytest.fixture
def graph() -> Graph:
    made = Graph.from_text("""<ir_version: 10, opset_import: ["": 21]>
        g (float[1] x) => (float[1] y) { a = Exp(x) b = Exp(a) y = Exp(b) }""")
    made.rename_node(made.nodes()[0], "first")
    return made


def test_notes_are_merged_and_newer_ones_win(graph: Graph) -> None:
    first, second, third = graph.nodes()
    note_left_in_float(graph, {first: SLOW, second: SLOW})
    assert json.loads(graph.model.metadata[LEFT_IN_FLOAT_KEY]) == {"slow": ["first", "b"]}
    note_left_in_float(graph, {second: LARGE, third: SLOW})
    assert left_in_float(graph) == {"first": "slow", "b": "large", "y": "slow"}
    note_left_in_float(graph, {}, ["first", "elsewhere"])
    assert json.loads(graph.model.metadata[LEFT_IN_FLOAT_KEY]) == {"large": ["b"], "slow": ["y"]}


def test_nothing_to_say_leaves_no_note(graph: Graph) -> None:
    note_left_in_float(graph, {})
    assert LEFT_IN_FLOAT_KEY not in graph.model.metadata
    note_left_in_float(graph, {graph.nodes()[0]: SLOW})
    note_left_in_float(graph, {}, ["first"])
    assert LEFT_IN_FLOAT_KEY not in graph.model.metadata


@pytest.mark.parametrize("text", ["", "no json", "[1]", '{"reason": 3}'])
def test_what_others_wrote_is_replaced(graph: Graph, text: str) -> None:
    graph.model.metadata[LEFT_IN_FLOAT_KEY] = text
    assert left_in_float(graph) == {}
    note_left_in_float(graph, {graph.nodes()[0]: SLOW})
    assert left_in_float(graph) == {"first": "slow"}


def test_nodes_without_a_name_are_called_after_their_output(graph: Graph) -> None:
    assert [node_name(n) for n in graph.nodes()] == ["first", "b", "y"]
