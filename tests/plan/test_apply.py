"""Precisions put into graphs are those that the graphs then have."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.errors import InputError
from onnxq.ir import Graph, raise_opset
from onnxq.passes.notes import reasons
from onnxq.plan import Costs, build_problem
from onnxq.plan.apply import PRECISIONS, apply_precisions, needed_opset
from onnxq.sensitivity import Quantizable
from onnxq.verify.precision import describe
from tests.helpers import run
from tests.networks import chain, dataset, inputs, quantizable

GRAPH = chain()
FOUND: Quantizable = quantizable(GRAPH, dataset(GRAPH, inputs(GRAPH)))
NODES = ("conv0", "conv1", "conv2", "conv3", "residual", "pool", "flat", "head")
FLOAT = "float32"


def applied(precisions: dict[str, str], graph: Graph = GRAPH) -> Graph:
    after = raise_opset(graph.copy(), needed_opset(precisions, "cpu-x64"))
    apply_precisions(after, precisions, "cpu-x64", FOUND.ranges)
    after.check()
    return after


def described(graph: Graph) -> dict[str, str]:
    return {layer.node: layer.precision for layer in describe(graph)}


@settings(max_examples=40)
@given(st.tuples(*[st.booleans()] * len(NODES)), st.sampled_from([FLOAT, "int8-dynamic", "int8"]))
def test_every_possible_plan_is_what_the_graph_becomes(
    integer: tuple[bool, ...], head: str
) -> None:
    """Of all assignments that the integer program allows, each comes out as it was planned."""
    precisions = {n: "int8" if i else FLOAT for n, i in zip(NODES, integer, strict=True)}
    precisions["head"] = head
    both = ("int8", "int8-dynamic")
    losses = {n.name: dict.fromkeys(both, 0.0) for n, r in FOUND.nodes() if r.role == "compute"}
    for name in NODES[:4]:
        del losses[name]["int8-dynamic"]
    problem = build_problem(GRAPH, FOUND.placed, losses, Costs("size", ""), both)
    if not problem.is_possible(precisions):
        return
    after = described(applied(precisions))
    assert {name: after[name] for name in NODES} == precisions


def test_there_are_possible_plans_to_test() -> None:
    losses = {n.name: {"int8": 0.0} for n, r in FOUND.nodes() if r.role == "compute"}
    problem = build_problem(GRAPH, FOUND.placed, losses, Costs("size", ""), ["int8"])
    possible = [
        chosen
        for chosen in itertools.product((FLOAT, "int8"), repeat=len(NODES))
        if problem.is_possible(dict(zip(NODES, chosen, strict=True)))
    ]
    assert 20 < len(possible) < 2 ** len(NODES)


@pytest.mark.parametrize("precision", sorted(set(PRECISIONS) - {FLOAT}))
def test_every_precision_on_a_matrix(precision: str) -> None:
    after = applied({"head": precision})
    found = described(after)
    assert found["head"] == precision
    assert all(kind == FLOAT for name, kind in found.items() if name.startswith("conv"))
    if precision == "bfloat16":
        # onnxruntime has no kernels for it here.
        return
    feeds = inputs(GRAPH)
    exact, ours = run(GRAPH, feeds)["y"], run(after, feeds)["y"]
    assert 0 < abs(exact - ours).max() < 0.6 * abs(exact).max()


def test_a_matrix_behind_a_move_that_stays_in_float() -> None:
    """The Flatten has no range of its own: it moves values that were observed before it."""
    assert described(applied({"head": "int8"}))["head"] == "int8"


def test_reasons_are_noted() -> None:
    after = GRAPH.copy()
    apply_precisions(after, {"conv0": "int8"}, "cpu-x64", FOUND.ranges, {"conv0": "why not"})
    assert reasons(after) == {"conv0": "why not"}
    (layer,) = (layer for layer in describe(after) if layer.node == "conv0")
    assert layer.reason == "why not"


@pytest.mark.parametrize(
    ("precisions", "message"),
    [
        ({"nobody": "int8"}, "no node 'nobody'"),
        ({"conv0": "int7"}, "'int7', which node 'conv0' is to have, is no precision"),
    ],
)
def test_what_is_not_there(precisions: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        apply_precisions(GRAPH.copy(), precisions, "cpu-x64", FOUND.ranges)
