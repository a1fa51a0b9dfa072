"""Sensitivity, costs, plans and their application as functions of their own."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from onnxq.errors import InputError
from onnxq.ir import Graph, load, save, to_proto
from onnxq.optimization import optimize
from onnxq.options import Options
from onnxq.plan import Pin, Plan
from onnxq.planning import (
    Limit,
    apply_plan,
    find_costs,
    find_front,
    find_sensitivity,
    make_plan,
)
from onnxq.verify.precision import describe
from tests.networks import chain, computed, inputs

__all__ = ["computed"]

FLOAT = "float32"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    save(chain(), path)
    return path


@pytest.fixture
def data() -> dict[str, np.ndarray]:
    return inputs(chain(), 32)


def sizes(model: Path, data: dict[str, np.ndarray], **options: object) -> Plan:
    return make_plan(model, data, cost="size", **options)  # type: ignore[arg-type]


def test_sensitivity_of_the_precisions_asked_for(model: Path, data: dict[str, np.ndarray]) -> None:
    options = Options(precisions=("int8", "int4-weight"))
    found = find_sensitivity(model, data, options)
    assert found.precisions() == ["int8", "int4-weight"]
    weighty = {"conv0", "conv1", "conv2", "conv3", "head"}
    assert {name for name, _ in found.ranking("int4-weight")} == weighty
    assert dict(found.ranking("int4-weight"))["head"] > dict(found.ranking("int8"))["head"]
    assert find_sensitivity(to_proto(load(model)), data, options).nodes == found.nodes


def test_costs_without_data_and_with(model: Path, data: dict[str, np.ndarray]) -> None:
    made_up, given = find_costs(model), find_costs(model, data)
    assert made_up.kind == given.kind == "latency"
    assert set(made_up.nodes) == set(given.nodes) >= {"conv0", "head"}
    assert set(made_up.nodes["head"]) == {FLOAT, "int8", "int8-dynamic"}
    assert find_costs(model, cost="size").nodes["conv1"]["int8"] == 8 * 8 * 9 + 8 * 4


def test_costs_of_a_model_that_takes_text() -> None:
    graph = Graph.from_text("""<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 4] x, string[N] s) => (float[N, 2] y, string[N] t)
        <float[4, 2] w = {1, 2, 3, 4, 5, 6, 7, 8}> { y = MatMul(x, w) t = Identity(s) }""")
    with pytest.raises(InputError, match=r"no random values for .* s string \[N\]; .*with --data"):
        find_costs(to_proto(graph))


def test_a_plan_within_a_loss(model: Path, data: dict[str, np.ndarray]) -> None:
    loose = sizes(model, data)
    assert {k for n, k in loose.precisions().items() if "conv" in n} == {"int8"}
    assert loose.promise == ("sqnr>=15",)
    tight = sizes(model, data, limit=Limit(min_sqnr=-10 * np.log10(loose.loss / 3)))
    assert tight.loss <= loose.loss / 3 * (1 + 1e-6)
    assert tight.cost > loose.cost
    assert {k for n, k in tight.precisions().items() if "conv" in n} == {"int8", FLOAT}
    same = sizes(model, data, limit=Limit(loss=loose.loss / 3))
    assert same.precisions() == tight.precisions()
    left = [node for node in tight.nodes if node.precision == FLOAT and "conv" in node.name]
    assert any("too much for the promise" in node.reason for node in left)
    found = {n.name: n.reason for n in loose.nodes if n.float_cost > 0}
    # Scales are counted: 576 bytes and 8 scales instead of 576 floats.
    assert found["conv1"].startswith("takes 1/3.79 of the bytes") and len(found) == 5


def test_a_plan_within_bytes(model: Path, data: dict[str, np.ndarray]) -> None:
    every = sum(c[FLOAT] for c in find_costs(model, cost="size").nodes.values())
    found = sizes(model, data, limit=Limit(bytes=every * 0.7))
    assert 0.25 * every < found.cost <= 0.7 * every
    assert found.loss < sizes(model, data).loss
    with pytest.raises(InputError, match="no plan keeps 'weight_bytes<=10': the least cost"):
        sizes(model, data, limit=Limit(bytes=10))


def test_a_plan_for_a_table_of_costs(model: Path, data: dict[str, np.ndarray]) -> None:
    table = find_costs(model, data)
    slow = {name: dict.fromkeys(c, 1.0) | {"int8": 2.0} for name, c in table.nodes.items()}
    found = make_plan(model, data, cost_table=replace(table, nodes=slow))
    assert set(found.precisions().values()) <= {FLOAT, "int8-dynamic"}
    with pytest.raises(InputError, match="for another model"):
        make_plan(model, data, cost_table=replace(table, model_sha256="ff"))


@pytest.mark.parametrize(
    ("limit", "cost", "message"),
    [
        (Limit(loss=1.0, bytes=3), "size", "one limit, not both loss and bytes"),
        (Limit(bytes=3), "flops", "needs costs of kind 'size', not 'flops'"),
        (Limit(latency=3), "size", "needs costs of kind 'latency'"),
        (Limit(loss=-1.0), "size", "a loss of -1 is not possible"),
    ],
)
def test_limits_that_make_no_sense(
    limit: Limit, cost: str, message: str, model: Path, data: dict[str, np.ndarray]
) -> None:
    with pytest.raises(InputError, match=message):
        make_plan(model, data, limit=limit, cost=cost)  # type: ignore[arg-type]


def test_a_recipe_of_one_precision_is_its_plan(model: Path, data: dict[str, np.ndarray]) -> None:
    assert set(sizes(model, data, recipe="int8").precisions().values()) == {"int8"}
    with pytest.raises(InputError, match="limits and costs are for a search"):
        sizes(model, data, recipe="int8", limit=Limit(min_sqnr=3))


def test_the_front_falls_in_loss_and_rises_in_cost(
    model: Path, data: dict[str, np.ndarray]
) -> None:
    points = find_front(model, data, cost="size")
    assert len(points) > 3
    assert sum(points[0].nodes.values()) == 8 and points[0].nodes["int8"] >= 4
    assert points[-1].loss == 0 and points[-1].nodes[FLOAT] >= 5
    for first, second in itertools.pairwise(points):
        assert second.loss < first.loss and second.cost >= first.cost


def test_applied_plans_are_what_they_say(model: Path, data: dict[str, np.ndarray]) -> None:
    plan = sizes(model, data, pins=["conv2=float32", Pin("head", "int8-dynamic")])
    graph = apply_plan(model, plan)
    layers = {layer.node: layer for layer in describe(graph)}
    for node in plan.nodes:
        assert layers[node.name].precision == node.precision, node.name
        assert layers[node.name].reason == node.reason
    assert layers["conv2"].reason == layers["head"].reason == "pinned by hand"


def test_a_plan_edited_by_hand(model: Path, data: dict[str, np.ndarray], tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    sizes(model, data).save(path)
    text = path.read_text()
    at = text.index('name = "conv1"')
    text = text[:at] + text[at:].replace('precision = "int8"', 'precision = "float32"', 1)
    path.write_text(text + '\n[[pin]]\nnodes = "hea?"\nprecision = "int4-weight"\n')
    layers = {layer.node: layer for layer in describe(apply_plan(model, path))}
    assert (layers["conv1"].precision, layers["conv1"].reason) == (FLOAT, "pinned by hand")
    assert (layers["head"].precision, layers["head"].reason) == ("int4-weight", "pinned by hand")
    assert layers["conv0"].precision == "int8" and layers["conv0"].reason != "pinned by hand"


@pytest.mark.parametrize(
    ("pin", "message"),
    [
        (Pin("conv0", "int8-dynamic"), "'conv0' cannot have the precision 'int8-dynamic'"),
        (Pin("conv0", "int7"), "'conv0' is to have 'int7', but there is no precision 'int7'"),
        (Pin("nobody", "int8"), "pin 'nobody' matches no node of the plan"),
    ],
)
def test_precisions_by_hand_that_cannot_be(
    pin: Pin, message: str, model: Path, data: dict[str, np.ndarray], tmp_path: Path
) -> None:
    plan = replace(sizes(model, data), pins=(pin,))
    with pytest.raises(InputError, match=message):
        apply_plan(model, plan, output=tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_a_plan_for_another_model(model: Path, data: dict[str, np.ndarray], tmp_path: Path) -> None:
    save(chain(seed=3), tmp_path / "other.onnx")
    with pytest.raises(InputError, match="the plan is for another model"):
        apply_plan(tmp_path / "other.onnx", sizes(model, data))


@pytest.mark.usefixtures("computed")
def test_weights_that_are_inputs_too_are_made_constants_again(tmp_path: Path) -> None:
    graph = chain()
    proto = to_proto(graph)
    for tensor in proto.graph.initializer:
        given = proto.graph.input.add()
        given.name = tensor.name
        given.type.tensor_type.elem_type = tensor.data_type
        for size in tensor.dims:
            given.type.tensor_type.shape.dim.add().dim_value = size
    path, out = tmp_path / "m.onnx", tmp_path / "q.onnx"
    path.write_bytes(proto.SerializeToString())
    found = optimize(
        path,
        inputs(graph, 32),
        output=out,
        plan_output=tmp_path / "p.toml",
        min_speedup=0,
    )
    assert found.passed and [v.name for v in found.graph.inputs] == ["x"]
    apply_plan(path, tmp_path / "p.toml", output=tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == out.read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(recipe="int7"), "no recipe 'int7'"),
        (Options(target="toaster"), "no target 'toaster'"),
        (Options(calibrator="dowsing"), "dowsing"),
        (Options(precisions=("int7",)), "cannot choose 'int7'"),
        (
            Options(precisions=("float16",)),
            "a search cannot choose 'float16'; use some of int16-act, ",
        ),
        (
            Options(precisions=("int8", "bfloat16")),
            "cannot choose 'bfloat16'; use some of .*int8-dynamic, ",
        ),
        (Options(opset=999), "999"),
    ],
)
def test_options_that_cannot_be_used(
    options: Options, message: str, model: Path, data: dict[str, np.ndarray]
) -> None:
    with pytest.raises(InputError, match=message):
        make_plan(model, data, replace(options, cost="size"))
