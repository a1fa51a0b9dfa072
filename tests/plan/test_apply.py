"""Precisions put into graphs are those that the graphs then have."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.cost import Costs
from onnxq.errors import InputError
from onnxq.ir import DataType, Graph, ModelInfo, TensorType, infer_types, raise_opset
from onnxq.passes.notes import reasons
from onnxq.plan import build_problem
from onnxq.plan.apply import apply_precisions, needed_opset
from onnxq.precision import FLOAT, Given, Scene, available_precisions, parse_precision
from onnxq.targets import load_target
from onnxq.verify.precision import describe
from tests.helpers import run
from tests.networks import chain, choices, dataset, inputs, scene

GRAPH = chain()
FOUND = scene(GRAPH, dataset(GRAPH, inputs(GRAPH)))
NODES = ("conv0", "conv1", "conv2", "conv3", "residual", "pool", "flat", "head")


def applied(precisions: dict[str, str], graph: Graph = GRAPH, found: Scene = FOUND) -> Graph:
    after = raise_opset(graph.copy(), needed_opset(precisions.values(), found.target))
    apply_precisions(after, precisions, Given(found.target, found.bounds))
    after.check()
    return after


def described(graph: Graph) -> dict[str, str]:
    return {layer.node: layer.precision for layer in describe(graph)}


def possible() -> list[dict[str, str]]:
    """All assignments that the integer program allows."""
    wanted = choices(FOUND, "int8", "int16-act", "int8-dynamic")
    problem = build_problem(GRAPH, FOUND.placed, wanted, {}, Costs("size", ""))
    own = {i.name: [c.precision for c in i.choices] for i in problem.items}
    every = itertools.product(*(own[name] for name in NODES))
    named = (dict(zip(NODES, chosen, strict=True)) for chosen in every)
    return [chosen for chosen in named if problem.is_possible(chosen)]


POSSIBLE = possible()


@settings(max_examples=60)
@given(st.sampled_from(POSSIBLE))
def test_every_possible_plan_is_what_the_graph_becomes(precisions: dict[str, str]) -> None:
    """Of all assignments that the integer program allows, each comes out as it was planned."""
    after = described(applied(precisions))
    assert {name: after[name] for name in NODES} == precisions


def test_there_are_possible_plans_to_test() -> None:
    narrow = [chosen for chosen in POSSIBLE if set(chosen.values()) <= {FLOAT, "int8"}]
    assert 20 < len(narrow) < 2 ** len(NODES)
    assert 400 < len(POSSIBLE) < 3 ** (len(NODES) - 1) * 4


def matrices(inputs: int = 64, outputs: int = 32) -> Graph:
    """Two matrices that have a block of every precision."""
    graph = Graph("matrices", model=ModelInfo(8, {"": 17}))
    rng = np.random.default_rng(0)
    value = graph.add_input("x", TensorType(DataType.FLOAT, ("N", inputs)))
    for name, shape in (("inner", (inputs, outputs)), ("outer", (outputs, 4))):
        weight = graph.constant(rng.standard_normal(shape).astype(np.float32), f"{name}_w")
        value = graph.add("MatMul", [value, weight], name=name).output
    graph.add_output(value)
    graph.rename(value, "y")
    infer_types(graph)
    return graph


@pytest.mark.parametrize("precision", [p for p in available_precisions() if p != FLOAT])
def test_every_precision_on_a_matrix(precision: str) -> None:
    graph = matrices()
    feeds = inputs(graph)
    after = applied({"inner": precision}, graph, scene(graph, dataset(graph, feeds)))
    found = described(after)
    assert found["inner"] == parse_precision(precision).described
    assert found["outer"] == FLOAT
    if precision == "bfloat16":
        # onnxruntime has no kernels for it here.
        return
    exact, ours = run(graph, feeds)["y"], run(after, feeds)["y"]
    noise = np.square(exact - ours).mean() / np.square(exact).mean()
    # Weights of two or three values keep little of normally distributed ones.
    assert 0 < noise < (0.7 if parse_precision(precision).weight_bits == 2 else 0.06)


def test_a_node_of_wider_activations_loses_less() -> None:
    feeds = inputs(GRAPH)
    exact = run(GRAPH, feeds)["y"].astype(float)
    noise = {}
    for precision in ("int8", "int16-act"):
        after = applied(dict.fromkeys(NODES, "int8") | {"conv0": precision, "conv1": precision})
        found = described(after)
        assert found["conv0"] == found["relu1"] == precision and found["conv2"] == "int8"
        noise[precision] = ((run(after, feeds)["y"] - exact) ** 2).sum()
    assert 0 < noise["int16-act"] < noise["int8"]


def test_widths_are_those_of_the_precision_whatever_the_target_prefers() -> None:
    found = scene(GRAPH, dataset(GRAPH, inputs(GRAPH)), "qnn-a16")
    precisions = dict.fromkeys(NODES, "int8") | {"conv1": "int16-act"}
    became = described(applied(precisions, found=found))
    assert {name: became[name] for name in NODES} == precisions


def test_what_small_floats_give_is_read_as_integers() -> None:
    graph = Graph.from_text("""<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {1, -2, 0.5, 0.75}>
        { h = MatMul(x, w) y = MatMul(h, w) }""")
    infer_types(graph)
    feeds = {"x": np.linspace(-1, 1, 16, dtype=np.float32).reshape(8, 2)}
    found = scene(graph, dataset(graph, feeds))
    after = applied({"h": "float16", "y": "int8"}, graph, found)
    became = described(after)
    assert (became["h"], became["y"]) == ("float16", "int8")
    assert abs(run(after, feeds)["y"] - run(graph, feeds)["y"]).max() < 0.1


@pytest.mark.parametrize("small", [("conv1",), ("conv0", "conv3"), ("conv2", "conv3", "head")])
def test_small_floats_between_integers(small: tuple[str, ...]) -> None:
    precisions = {n: "int8" for n in NODES if n.startswith("conv") or n == "head"}
    precisions |= dict.fromkeys(small, "float16")
    after = applied(precisions)
    became = described(after)
    assert {name: became[name] for name in precisions} == precisions
    feeds = inputs(GRAPH)
    exact, ours = run(GRAPH, feeds)["y"], run(after, feeds)["y"]
    assert 0 < abs(exact - ours).max() < 0.1 * abs(exact).max()


def test_a_matrix_behind_a_move_that_stays_in_float() -> None:
    """The Flatten has no range of its own: it moves values that were observed before it."""
    assert described(applied({"head": "int8"}))["head"] == "int8"


def test_reasons_are_noted() -> None:
    after = GRAPH.copy()
    given = Given(FOUND.target, FOUND.bounds)
    apply_precisions(after, {"conv0": "int8"}, given, {"conv0": "why not"})
    assert reasons(after) == {"conv0": "why not"}
    (layer,) = (layer for layer in describe(after) if layer.node == "conv0")
    assert layer.reason == "why not"


@pytest.mark.parametrize(
    ("precisions", "message"),
    [
        ({"nobody": "int8"}, "no node 'nobody'"),
        ({"conv0": "int7"}, "node 'conv0' is to have 'int7', but there is no precision 'int7'"),
    ],
)
def test_what_is_not_there(precisions: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        apply_precisions(GRAPH.copy(), precisions, Given(load_target("cpu-x64")))


def test_what_a_target_writes_otherwise_at_the_end_is_told_apart_from_what_it_was() -> None:
    weight = ", ".join(["1"] * 8)
    graph = Graph.from_text(f"""<ir_version: 8, opset_import: ["": 17]>
        g (float[64, 4] x) => (float[64, 2] y) <float[4, 2] w = {{{weight}}}> {{
            [product] h = MatMul(x, w) [shares] y = Softmax(h)
        }}""")
    infer_types(graph)
    after = applied({"product": "int8"}, graph, scene(graph, dataset(graph, inputs(graph, 64))))
    (found,) = (layer for layer in describe(after) if layer.op_type == "Sigmoid")
    assert found.reason == "it stands for Softmax: target cpu-x64 does not quantize Softmax"
