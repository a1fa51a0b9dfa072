"""Smoothing against its equation, and by what it is for: outlier channels that hide others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from onnxq.data import read
from onnxq.errors import InputError
from onnxq.ir import Graph, infer_types, load, save, to_proto
from onnxq.observe import observe
from onnxq.optimization import optimize
from onnxq.planning import apply_plan, make_plan
from onnxq.precision import parse_precision
from onnxq.runtime import Session
from onnxq.targets import load_target
from onnxq.tune import Change, Subject
from onnxq.tune.smooth_quant import SmoothQuant
from onnxq.verify import Report
from tests.helpers import run
from tests.networks import planted_channels

ANYTHING = {"min_speedup": 0.0, "min_sqnr": -100.0}
SIZE, PLANTED = 16, 5
FACTOR = 100.0


def network(middle: str = "", outputs: int = 24) -> Graph:
    """A LayerNormalization with one loud channel, and two products that read it softly."""
    rng = np.random.default_rng(0)
    graph = Graph.from_text(
        f"""<ir_version: 9, opset_import: ["": 20]>
        net (float[batch, 6, {SIZE}] x) => (float[batch, 6, {outputs}] y, float[batch, 6, 8] z)
        {{ a = Identity(x)  y = Identity(a)  z = Identity(a) }}"""
    )
    scale, bias = rng.uniform(0.5, 2, SIZE), rng.normal(size=SIZE)
    scale[PLANTED] *= FACTOR
    bias[PLANTED] *= FACTOR
    constants = [
        graph.constant(n.astype(np.float32), name) for n, name in ((scale, "k"), (bias, "b"))
    ]
    value = graph.add("LayerNormalization", [graph.inputs[0], *constants], name="norm").output
    graph.rename(value, "normal")
    if middle:
        value = graph.add(middle, [value], outputs=["middle"], name="middle").output
    for output, columns in zip(graph.outputs, (outputs, 8), strict=True):
        weight = rng.normal(size=(SIZE, columns)).astype(np.float32)
        weight[PLANTED] /= FACTOR
        read_weight = graph.constant(weight, f"{output.name}_w")
        made = graph.add("MatMul", [value, read_weight], name=f"to_{output.name}").output
        graph.replace_uses(output, made)
    for node in [n for n in graph.nodes() if n.is_op("Identity")][::-1]:
        graph.remove(node)
    infer_types(graph)
    return graph


def samples(count: int = 32) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.normal(size=(1, 6, SIZE)).astype(np.float32)} for _ in range(count)]


def subject(graph: Graph, text: str = "int8") -> Subject:
    names = [node.name for node in graph.nodes()]
    return Subject(graph, load_target("cpu-x64"), {n: [parse_precision(text)] for n in names})


def smoothed(graph: Graph, method: SmoothQuant | None = None, text: str = "int8") -> list[Change]:
    method, given = method or SmoothQuant(), subject(graph, text)
    data = read(samples(), Session(to_proto(graph)).inputs)
    seen = observe(graph, data, method.needs(given), threads=1)
    return [*method.transform(given, seen)]


@pytest.mark.parametrize("text", ["int8", "int8-dynamic"])
def test_the_loud_channel_is_divided_most(text: str) -> None:
    (change,) = smoothed(network(), text=text)
    assert (change.kind, change.tensor) == ("scale-channels", "normal")
    assert change.nodes == ("norm", "to_y", "to_z")
    others = np.delete(change.numbers, PLANTED)
    assert change.numbers[PLANTED] > 20 * others.max()
    assert change.gain_db > 15
    (again,) = smoothed(network(), text=text)
    assert (again.numbers == change.numbers).all()


def test_factors_are_those_of_the_equation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxq.tune.smooth_quant._STRENGTHS", (0.7,))
    monkeypatch.setattr("onnxq.tune.smooth_quant._SHARES", ())
    graph = network()
    (change,) = smoothed(graph)
    weights = [graph.values[name].numpy().astype(np.float64) for name in ("y_w", "z_w")]
    scale, bias = (graph.values[name].numpy().astype(np.float64) for name in ("k", "b"))
    x = np.concatenate([s["x"] for s in samples()]).astype(np.float64)
    normal = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    largest = np.abs(normal * scale + bias).max(axis=(0, 1))
    magnitude = np.max([np.sqrt(np.square(w).mean(axis=1)) for w in weights], axis=0)
    # Neither counts for less than a hundredth of the mean.
    magnitude, largest = (np.maximum(n, n.mean() / 100) for n in (magnitude, largest))
    wanted = largest**0.7 / magnitude**0.3
    np.testing.assert_allclose(change.numbers / change.numbers[0], wanted / wanted[0], rtol=1e-4)


def test_a_mul_is_put_in_where_it_gains_much_and_costs_little() -> None:
    loud = network(middle="Gelu", outputs=300)
    (change,) = smoothed(loud)
    assert change.tensor == "middle" and change.nodes == ("to_y", "to_z") and change.gain_db > 3
    assert not [*SmoothQuant(insert=False)._groups(subject(loud))]
    assert SmoothQuant(insert=False).refusal(subject(loud))
    few = network(middle="Gelu", outputs=100)
    assert SmoothQuant().refusal(subject(few)), "the Mul would take a good part of the time"


def test_a_few_rows_show_nothing() -> None:
    given = subject(network())
    data = read(samples(10), Session(to_proto(given.graph)).inputs)
    seen = observe(given.graph, data, SmoothQuant().needs(given), threads=1)
    assert not SmoothQuant().transform(given, seen)


@pytest.mark.parametrize("text", ["int4-weight", "float16", "int16-act", "int8-weight"])
def test_it_is_for_products_in_8_bit_integers(text: str) -> None:
    assert SmoothQuant().refusal(subject(network(), text)) == (
        "no product in 8-bit integers reads channels that can be scaled"
    )


@pytest.mark.parametrize("recipe", ["int8", "int8-dynamic"])
def test_in_the_chain_it_is_automatic_for_8_bits(recipe: str, tmp_path: Path) -> None:
    graph, data = network(), samples()
    save(graph, tmp_path / "m.onnx")
    plans = [
        make_plan(tmp_path / "m.onnx", data, recipe=recipe, methods=m) for m in ("none", "auto")
    ]
    assert [len(plan.transformations) for plan in plans] == [0, 1]
    fed = {"x": np.concatenate([s["x"] for s in samples(8)])}
    exact = run(graph, fed)
    errors = [
        [np.square(made[name] - exact[name]).sum() for name in exact]
        for made in (run(apply_plan(tmp_path / "m.onnx", plan), fed) for plan in plans)
    ]
    assert (np.array(errors[1]) < np.array(errors[0]) / 30).all()
    with pytest.raises(InputError, match="none of the methods smooth-quant is for a node"):
        make_plan(tmp_path / "m.onnx", data, recipe="int8-weight", methods=("smooth-quant",))


MODELS: Mapping[str, tuple[str, str, float]] = {
    # Points of accuracy, and bits per token.
    "digits_vit": ("digits.npz", "accuracy", 0.005),
    "text_lm": ("text.npz", "bits-per-byte", 0.01),
}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["int8", "int8-dynamic"])
@pytest.mark.parametrize("name", MODELS)
def test_planted_channels_cost_next_to_nothing(name: str, recipe: str, tmp_path: Path) -> None:
    data, metric, allowed = MODELS[name]
    graph = load(f"models/{name}.onnx")
    infer_types(graph)
    count = planted_channels(graph, 50.0)
    assert count >= 5
    save(graph, tmp_path / "m.onnx")

    def made(methods: Sequence[str]) -> Report:
        return optimize(
            *(tmp_path / "m.onnx", f"models/{data}"),
            **(ANYTHING | {"recipe": recipe, "methods": methods, "metric": metric}),  # type: ignore[arg-type]
        ).report

    smooth, plain = made(("auto",)), made(("none",))
    assert smooth.sqnr_db > plain.sqnr_db + 6
    assert smooth.metric is not None
    whole = smooth.metric.float if metric != "accuracy" else 1.0
    assert smooth.metric.drop / whole <= allowed
