"""A graph as a page draws it: sections, blocks that fold, and safe names."""

from __future__ import annotations

import math
from dataclasses import replace

from onnxq.report.drawing import drawing
from onnxq.verify.result import EndFacts, GraphFacts, LayerFacts, RepeatFacts

LAYERS = tuple(
    LayerFacts(name, op, precision, sqnr, None, reason, local_db=sqnr and -sqnr)
    for name, op, precision, sqnr, reason in (
        ("mask", "Cast", "float32", None, ""),
        ("a0", "Conv", "int8", 30.04, "why"),
        ("a1", "Add", "int8", math.inf, "why"),
        ("b0", "Conv", "float32", math.nan, ""),
        ("b1", "Add", "int8", -math.inf, ""),
        ("weight", "Transpose", "float32", None, ""),
    )
)
GRAPH = GraphFacts(
    ((0, 3), (1, 2), (2, 3), (2, 4), (3, 4), (5, 1)),
    ("int64[N]", "", "float[N]", "", "", ""),
    (0, 1, 1, 2, 2, -1),
    (RepeatFacts(1, 1, 2),),
    (EndFacts("x", (1,)), EndFacts("m\n", (0,)), EndFacts("unused", ())),
    (EndFacts("y", (4,)),),
)


def test_nodes_have_what_is_told_of_them() -> None:
    found = drawing(LAYERS, GRAPH)
    assert found["kinds"] == ["float", "int8"] and found["precisions"] == ["float32", "int8"]
    said = found["said"]
    told = [(n[0], n[1], n[2], n[3], said[n[4]], said[n[5]]) for n in found["nodes"]]
    assert told[:5] == [
        ("mask", "Cast", 0, None, "int64[N]", ""),
        ("a0", "Conv", 1, 30.0, "", "why"),
        ("a1", "Add", 1, 999.0, "float[N]", "why"),
        ("b0", "Conv", 0, None, "", ""),
        ("b1", "Add", 1, -999.0, "", ""),
    ]
    assert [n[6] for n in found["nodes"][:5]] == [None, -30.0, -999.0, None, 999.0]
    assert found["errors"] == ["local", "accumulated"]
    ends = [(n[0], n[1], n[2]) for n in found["nodes"][6:]]
    assert ends == [("x", "input", -1), ("m\\n", "input", -1), ("y", "output", -1)]


def test_only_errors_that_were_measured_can_be_shown() -> None:
    old = tuple(replace(layer, local_db=None) for layer in LAYERS)
    assert drawing(old, GRAPH)["errors"] == ["accumulated"]
    unknown = tuple(replace(layer, sqnr_db=None) for layer in old)
    assert drawing(unknown, GRAPH)["errors"] == []


def test_sections_lie_below_each_other() -> None:
    found = drawing(LAYERS, GRAPH)
    first, second, third, fourth = found["sections"]
    # The input of the mask, and the mask; a weight's layout is nobody's.
    assert first["nodes"] == [[7, 0.0, 0], [0, 0.0, 1]]
    assert second["nodes"] == [[6, 0.0, 0], [1, 0.0, 1], [2, 0.0, 2]] and second["from"] == -1
    # What is computed from the section before begins above row 0, and bends where it passes.
    assert third["from"] == 2 and third["rows"] == 2
    assert [row for _, _, row in third["nodes"]] == [0, 1]
    links = {(a, b): bends for a, b, bends in third["links"]}
    assert set(links) == {(-1, 3), (-1, 4), (3, 4)}
    # An only output is below everything.
    assert fourth["nodes"] == [[8, 0.0, 0]] and fourth["from"] == 4
    assert len(links[-1, 4]) == 1 and not links[-1, 3]
    assert found["far"] == [(0, 3)]


def test_blocks_that_recur_have_numbers() -> None:
    assert drawing(LAYERS, GRAPH)["units"] == [
        {"sections": [0], "number": 1, "count": 1},
        {"sections": [1], "number": 1, "count": 2},
        {"sections": [2], "number": 2, "count": 2},
        {"sections": [3], "number": 1, "count": 1},
    ]
