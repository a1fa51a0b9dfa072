"""From graphs to integer programs: hand-made graphs of which the right islands are known."""

from __future__ import annotations

import pytest

from onnxq.cost import Costs
from onnxq.ir import Graph, infer_types
from onnxq.passes.static.placement import place
from onnxq.plan import Problem, assign, build_problem
from onnxq.precision import FLOAT, Scene
from onnxq.targets import load_target
from tests.networks import chain, choices, shared


def program(
    graph: Graph,
    costs: dict[str, dict[str, float]],
    border: float,
    losses: dict[str, dict[str, float]] | None = None,
    precisions: tuple[str, ...] = ("int8",),
    pinned: dict[str, str] | None = None,
) -> Problem:
    infer_types(graph)
    target = load_target("cpu-x64")
    placed = place(graph, target)
    able = choices(Scene(placed, target), *precisions)
    borders = {value.name: (border, border) for value in placed.roots}
    table = Costs("latency", "", {}, costs, borders)
    return build_problem(graph, placed, able, losses or {}, table, pinned)


def chosen(problem: Problem, **options: float) -> dict[str, str]:
    found = assign(problem, **options)  # type: ignore[arg-type]
    assert found is not None
    return dict(found.precisions)


ROW = {f"conv{n}": {FLOAT: 2.0, "int8": 1.0} for n in range(4)} | {
    "residual": {FLOAT: 0.5, "int8": 0.5},
    "pool": {FLOAT: 0.1, "int8": 0.1},
    "flat": {FLOAT: 0.0, "int8": 0.0},
    "head": {FLOAT: 0.2, "int8": 0.1},
}


def test_items_are_what_the_target_can_quantize() -> None:
    problem = program(chain(), ROW, 0.1)
    assert {item.name for item in problem.items} == set(ROW), "a Relu belongs to its convolution"
    assert problem.is_possible({name: "int8" for name in ROW})
    assert problem.is_possible({name: FLOAT for name in ROW})


def test_a_border_is_paid_once_and_only_where_it_is() -> None:
    problem = program(chain(), ROW, 0.125)
    all_float = dict.fromkeys(ROW, FLOAT)
    assert problem.cost(all_float) == pytest.approx(8.8)
    everything = dict.fromkeys(ROW, "int8")
    # The input is quantized; the Gemm gives floats by itself.
    assert problem.cost(everything) == pytest.approx(4.7 + 0.125)
    # In and out of one convolution in the middle.
    assert problem.cost(all_float | {"conv1": "int8"}) == pytest.approx(7.8 + 0.25)
    # Two in a row have no border between them, though a Relu stands there.
    inner = {"conv0": "int8", "conv1": "int8"}
    assert problem.cost(all_float | inner) == pytest.approx(6.8 + 0.25)
    # conv2 is read as integers by conv3, and as floats by the residual: one border out.
    inner = {"conv2": "int8", "conv3": "int8"}
    assert problem.cost(all_float | inner) == pytest.approx(6.8 + 0.125 + 2 * 0.125)


def test_cheap_borders_leave_only_the_sensitive_node_in_float() -> None:
    losses = {"conv1": {"int8": 1.0}}
    found = chosen(program(chain(), ROW, 0.1, losses), budget=0.5)
    assert found == dict.fromkeys(ROW, "int8") | {"conv1": FLOAT}


def test_dear_borders_leave_its_neighbour_in_float_too() -> None:
    losses = {"conv1": {"int8": 1.0}}
    found = chosen(program(chain(), ROW, 0.7, losses), budget=0.5)
    assert found["conv0"] == FLOAT, "alone it saves 1.0 and costs two borders of 0.7"
    assert found["conv2"] == found["conv3"] == "int8"


def test_followers_are_integers_only_between_integers() -> None:
    problem = program(chain(), ROW, 0.1)
    everything = dict.fromkeys(ROW, "int8")
    assert not problem.is_possible(everything | {"conv3": FLOAT}), "the residual reads both"
    assert not problem.is_possible(everything | {"head": FLOAT, "flat": "int8"}), "serves nobody"
    row_of_moves = {"residual": FLOAT, "pool": FLOAT, "flat": FLOAT}
    assert problem.is_possible(everything | row_of_moves)


def test_nodes_of_one_weight_have_one_precision() -> None:
    costs = {"one": {FLOAT: 2.0, "int8": 1.0}, "other": {FLOAT: 2.0, "int8": 1.9}}
    problem = program(shared(), costs, 0.4)
    assert problem.ties == (("one", "other"),)
    assert set(chosen(problem).values()) == {"int8"}, "1.1 saved, 0.8 paid"
    assert set(chosen(program(shared(), costs, 0.6)).values()) == {FLOAT}


def test_dynamic_precision_has_no_borders_and_is_for_matrices() -> None:
    costs = ROW | {"head": {FLOAT: 0.2, "int8": 0.1, "int8-dynamic": 0.05}}
    problem = program(chain(), costs, 5.0, precisions=("int8", "int8-dynamic"))
    own = {item.name: [c.precision for c in item.choices] for item in problem.items}
    assert own["head"] == [FLOAT, "int8", "int8-dynamic"]
    assert own["conv0"] == [FLOAT, "int8"] == own["pool"]
    assert chosen(problem) == dict.fromkeys(ROW, FLOAT) | {"head": "int8-dynamic"}


def test_pins_leave_no_choice() -> None:
    everything = set(chosen(program(chain(), ROW, 0.1)).values())
    nothing = set(chosen(program(chain(), ROW, 5.0)).values())
    assert (everything, nothing) == ({"int8"}, {FLOAT})
    pinned = {"conv1": FLOAT, "conv3": "int8"}
    for border in (0.1, 5.0):
        found = chosen(program(chain(), ROW, border, pinned=pinned))
        assert {name: found[name] for name in pinned} == pinned


def test_both_widths_of_integers_have_no_border_between_them() -> None:
    both = ("int8", "int16-act")
    costs = {name: c | {"int16-act": c["int8"]} for name, c in ROW.items()}
    problem = program(chain(), costs, 0.125, precisions=both)
    own = {item.name: [c.precision for c in item.choices] for item in problem.items}
    assert all(found == [FLOAT, *both] for found in own.values())
    narrow = dict.fromkeys(ROW, "int8")
    wide = narrow | {"conv1": "int16-act"}
    assert problem.is_possible(wide)
    assert problem.cost(wide) == problem.cost(narrow) == pytest.approx(4.7 + 0.125)


def test_a_move_has_the_precision_of_what_it_reads() -> None:
    problem = program(chain(), ROW, 0.1, precisions=("int8", "int16-act"))
    narrow = dict.fromkeys(ROW, "int8")
    assert not problem.is_possible(narrow | {"flat": "int16-act"})
    assert not problem.is_possible(narrow | {"pool": "int16-act"})
    assert problem.is_possible(narrow | {"pool": "int16-act", "flat": "int16-act"})
    pinned = {"pool": "int16-act"}
    found = chosen(program(chain(), ROW, 0.1, precisions=("int8", "int16-act"), pinned=pinned))
    assert found["flat"] in ("int16-act", FLOAT)


def test_a_sensitive_node_has_wider_activations_rather_than_floats() -> None:
    losses = {"conv1": {"int8": 1.0, "int16-act": 0.01}}
    costs = {name: c | {"int16-act": c["int8"] + 0.2} for name, c in ROW.items()}
    problem = program(chain(), costs, 0.3, losses, ("int8", "int16-act"))
    found = chosen(problem, budget=0.5)
    assert found == dict.fromkeys(ROW, "int8") | {"conv1": "int16-act"}
