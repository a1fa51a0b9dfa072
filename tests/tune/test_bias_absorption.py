"""High-bias absorption: by hand where the shift is known, and by what the range loses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxq.errors import InputError
from onnxq.ir import DataType, Graph, ModelInfo, TensorType, infer_types, save
from onnxq.planning import apply_plan, make_plan
from tests.helpers import run

CHANNELS, LOUD = 8, 3


def network(bias: float, last: str = "Relu") -> Graph:
    """Two convolutions of one pixel; a channel between them lies around a bias."""
    rng = np.random.default_rng(0)
    graph = Graph("network", model=ModelInfo(8, {"": 17}))
    value = graph.add_input("x", TensorType(DataType.FLOAT, ("N", CHANNELS, 4, 4)))
    for name in ("first", "second"):
        weight = rng.normal(size=(CHANNELS, CHANNELS, 1, 1)) / 8
        offset = np.where(np.arange(CHANNELS) == LOUD, bias if name == "first" else 0, 0)
        read = [graph.constant(n.astype(np.float32), f"{name}_c") for n in (weight, offset)]
        value = graph.add("Conv", [value, *read], name=name).output
        if name == "first":
            value = graph.add(last, [value], name="between").output
    graph.add_output(value)
    graph.rename(value, "y")
    infer_types(graph)
    return graph


def data() -> dict[str, np.ndarray]:
    shape = (32, CHANNELS, 4, 4)
    return {"x": np.random.default_rng(1).normal(size=shape).astype(np.float32)}


def test_a_high_bias_leaves_the_range(tmp_path: Path) -> None:
    graph = network(bias=20.0)
    save(graph, tmp_path / "m.onnx")
    plans = [
        make_plan(tmp_path / "m.onnx", data(), recipe="int8", methods=(m,))
        for m in ("none", "bias-absorption")
    ]
    (made,) = plans[1].transformations
    assert (made.kind, made.nodes) == ("shift-channels", ("first", "second"))
    shift = plans[1].tuned[made.tensor][made.kind]
    weight = graph.values["first_c"].numpy()[LOUD].reshape(-1)
    seen = 20 + np.einsum("nchw,c->nhw", data()["x"], weight)
    # Of the samples that it was calibrated on, a part of these.
    assert 2.7 < (seen.mean() - shift[LOUD]) / seen.std() < 4
    assert made.gain_db > 10 and not np.delete(shift, LOUD).any()
    exact = run(graph, data())["y"]
    errors = [
        np.square(run(apply_plan(tmp_path / "m.onnx", plan), data())["y"] - exact).sum()
        for plan in plans
    ]
    assert errors[1] < errors[0] / 2


@pytest.mark.parametrize("bias", [0.0, 0.3])
def test_a_channel_that_is_also_silent_stays(bias: float, tmp_path: Path) -> None:
    save(network(bias), tmp_path / "m.onnx")
    plan = make_plan(tmp_path / "m.onnx", data(), recipe="int8", methods=("bias-absorption",))
    assert not plan.transformations


@pytest.mark.parametrize(("last", "precision"), [("HardSwish", "int8"), ("Relu", "int8-weight")])
def test_it_is_for_relu_between_integers(last: str, precision: str, tmp_path: Path) -> None:
    save(network(20.0, last), tmp_path / "m.onnx")
    with pytest.raises(InputError, match="none of the methods bias-absorption is for a node"):
        make_plan(tmp_path / "m.onnx", data(), recipe=precision, methods=("bias-absorption",))
