"""Sorted inputs: by hand where the order is known, and by what the blocks lose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxq.errors import InputError
from onnxq.ir import DataType, Graph, ModelInfo, TensorType, infer_types, save
from onnxq.planning import apply_plan, make_plan
from tests.helpers import run

INPUTS, INNER, OUTPUTS = 32, 64, 512
PRECISION = "int4-weight{block_size=32}"


def network(softer: float) -> Graph:
    """Two products with an activation between; every other input of the second is softer."""
    rng = np.random.default_rng(0)
    graph = Graph("network", model=ModelInfo(10, {"": 21}))
    value = graph.add_input("x", TensorType(DataType.FLOAT, ("N", INPUTS)))
    first = rng.normal(size=(INPUTS, INNER))
    second = rng.normal(size=(INNER, OUTPUTS))
    second[::2] *= softer
    for name, weight in (("first", first), ("second", second)):
        constant = graph.constant((weight / 8).astype(np.float32), f"{name}_w")
        value = graph.add("MatMul", [value, constant], name=name).output
        if name == "first":
            value = graph.add("Gelu", [value], name="gelu").output
    graph.add_output(value)
    graph.rename(value, "y")
    infer_types(graph)
    return graph


def data() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).normal(size=(64, INPUTS)).astype(np.float32)}


def test_like_inputs_share_a_scale(tmp_path: Path) -> None:
    graph = network(0.3)
    save(graph, tmp_path / "m.onnx")
    plans = [
        make_plan(tmp_path / "m.onnx", data(), recipe=PRECISION, methods=(method,), opset=21)
        for method in ("none", "group-order")
    ]
    (made,) = plans[1].transformations
    assert (made.kind, made.method) == ("permute-channels", "group-order")
    assert made.gain_db > 1 and set(made.nodes) == {"first", "second"}
    order = plans[1].tuned[made.tensor][made.kind].tolist()
    assert sorted(order[: INNER // 2]) == [*range(0, INNER, 2)]
    exact = run(graph, data())["y"]
    errors = [
        np.square(run(apply_plan(tmp_path / "m.onnx", plan), data())["y"] - exact).sum()
        for plan in plans
    ]
    assert errors[1] < errors[0] * 0.85


def test_each_product_counts_with_what_it_reads(tmp_path: Path) -> None:
    graph = network(0.3)
    rng = np.random.default_rng(2)
    (gelu,) = (node.output for node in graph.nodes() if node.name == "gelu")
    louder = np.where(np.arange(INNER) % 2, 1, 6).astype(np.float32)
    scaled = graph.add("Mul", [gelu, graph.constant(louder, "louder")]).output
    weight = (rng.normal(size=(INNER, OUTPUTS)) / 8).astype(np.float32)
    weight[::2] *= 0.3
    other = graph.add("MatMul", [scaled, graph.constant(weight, "third_w")], name="third").output
    graph.add_output(other)
    graph.rename(other, "z")
    infer_types(graph)
    save(graph, tmp_path / "m.onnx")
    plans = [
        make_plan(
            *(tmp_path / "m.onnx", data()),
            **{"recipe": PRECISION, "methods": (method,), "opset": 21},  # type: ignore[arg-type]
            pins=["first=float32"],
        )
        for method in ("none", "group-order")
    ]
    (made,) = plans[1].transformations
    exact = run(graph, data())
    noise = [
        sum(
            np.square(found[name] - exact[name]).sum() / np.square(exact[name]).sum()
            for name in ("y", "z")
        )
        for found in (run(apply_plan(tmp_path / "m.onnx", plan), data()) for plan in plans)
    ]
    assert made.gain_db == pytest.approx(10 * np.log10(noise[0] / noise[1]), abs=0.3)


def test_inputs_that_are_alike_already_keep_their_places(tmp_path: Path) -> None:
    save(network(1.0), tmp_path / "m.onnx")
    options = {"recipe": PRECISION, "methods": ("group-order",)}
    plan = make_plan(tmp_path / "m.onnx", data(), opset=21, **options)  # type: ignore[arg-type]
    assert not plan.transformations


@pytest.mark.parametrize("precision", ["int8", "int8-weight", "int4-weight{block_size=64}"])
def test_it_is_for_several_blocks(precision: str, tmp_path: Path) -> None:
    save(network(0.3), tmp_path / "m.onnx")
    with pytest.raises(InputError, match="none of the methods group-order is for a node"):
        make_plan(
            *(tmp_path / "m.onnx", data()),
            **{"recipe": precision, "methods": ("group-order",), "opset": 21},  # type: ignore[arg-type]
        )
