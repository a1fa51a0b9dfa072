"""GPTQ against optimal brain quantization, one input at a time with the inverse at hand."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq import apply_plan, make_plan
from onnxq.errors import InputError
from onnxq.ir import Context, DataType, Graph, ModelInfo, TensorType, infer_types, save, to_proto
from onnxq.needs import GramOf
from onnxq.observe import GramMatrix, Observations
from onnxq.passes.tuned import Tensors
from onnxq.plan import Plan
from onnxq.precision import Given, parse_precision
from onnxq.targets import load_target
from onnxq.tune import Layer, parse_method
from onnxq.tune.gptq import Gptq
from onnxq.tune.learned_rounding import LearnedRounding
from onnxq.tune.matrix_tuner import MatrixTuner
from onnxq.tune.tuned import sha256
from onnxq.tune.weight_matrix import matrix_of
from tests.helpers import run
from tests.networks import inputs, products

TARGET = load_target("cpu-x64")
FORMS = ("MatMul", "Transpose", "transB", "Conv", "grouped", "depthwise")
PRECISIONS = (
    "int4-weight",
    "int4-weight{block_size=128,scheme=absmax}",
    "int3-weight{block_size=0}",
    "int2-weight",
    "int8-weight",
    "int8",
    "int8-dynamic{convolutions=true}",
)


def layer(form: str, weight: np.ndarray, text: str = "int4-weight") -> Layer:
    """A node whose weight is a matrix [inputs, outputs], or [outputs, channels, 3, 3]."""
    graph = Graph("g", model=ModelInfo(13, {"": 25}))
    precision = parse_precision(text)
    if weight.ndim == 4:
        groups = {"Conv": 1, "grouped": 2, "depthwise": len(weight)}[form]
        shape: tuple[int | str, ...] = ("N", weight.shape[1] * groups, 7, 6)
        how = {"group": groups, "strides": [2, 1], "pads": [1, 0, 1, 2], "dilations": [1, 2]}
        kind, constant = "Conv", graph.constant(weight, "w")
    else:
        shape, how, kind = ("N", len(weight)), {}, "MatMul"
        turned = form in ("Transpose", "transB")
        constant = graph.constant(np.ascontiguousarray(weight.T) if turned else weight, "w")
        if form == "Transpose":
            constant = graph.add("Transpose", [constant], {"perm": [1, 0]}).output
        elif form == "transB":
            kind, how = "Gemm", {"transB": 1, "alpha": 1.0 if "int8" in text else 0.5}
    x = graph.add_input("x", TensorType(DataType.FLOAT, shape))
    node = graph.add(kind, [x, constant], how, name="layer")
    node.output.type = TensorType(DataType.FLOAT, None)
    graph.add_output(node.output)
    graph.rename(node.output, "y")
    infer_types(graph)
    return Layer(node, precision, TARGET)


def weights(form: str, rng: np.random.Generator, inputs: int, outputs: int) -> np.ndarray:
    """Weights for a form; convolutions have few channels."""
    if form in ("Conv", "grouped", "depthwise"):
        channels = 1 if form == "depthwise" else max(1, inputs // 9)
        return rng.standard_t(5, (2 * outputs, channels, 3, 3)).astype(np.float32)
    return rng.standard_t(5, (inputs, outputs)).astype(np.float32)


def feed(form: str, weight: np.ndarray, rng: np.random.Generator, rows: int) -> np.ndarray:
    """What a layer reads: correlated, and of different size in each channel."""
    if weight.ndim == 4:
        channels = len(weight) if form == "depthwise" else weight.shape[1] * (1 + (form != "Conv"))
        x = rng.standard_normal((rows, channels, 7, 6)) + rng.standard_normal((rows, 1, 1, 6))
        x *= rng.lognormal(0, 1, (1, channels, 1, 1))
    else:
        mixed = rng.standard_normal((len(weight), len(weight))) / 4 + np.eye(len(weight))
        x = rng.standard_normal((rows, len(weight))) @ mixed
        x *= rng.lognormal(0, 1, len(weight))
    return x.astype(np.float32)


def windows(of: Layer, x: np.ndarray) -> Iterator[np.ndarray]:
    """For each group what its outputs are products of, rows of inputs."""
    if not of.node.is_op("Conv"):
        yield x.astype(np.float64)
        return
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (0, 2)))
    size = of.node.inputs[1].shape[1]  # type: ignore[union-attr,index]
    for first in range(0, x.shape[1], size):  # type: ignore[call-overload]
        part = padded[:, first : first + size]
        yield np.stack(
            [
                image[:, row : row + 3, column : column + 5 : 2].reshape(-1)
                for image in part
                for row in range(0, part.shape[2] - 2, 2)
                for column in range(part.shape[3] - 4)
            ]
        )


def seen(of: Layer, x: np.ndarray) -> Observations:
    """The Gram matrices of a layer."""
    rows = list(windows(of, x))
    matrix = np.stack([r.T @ r for r in rows])
    need = Gptq().needs(of)[0]
    return Observations(len(x), {need: GramMatrix(matrix, len(rows[0]))})


def elements(of: Layer, tensors: Tensors) -> tuple[np.ndarray, ...]:
    """Weight, codes, scales and zero-points as [groups, inputs, outputs]."""
    matrix = matrix_of(of)
    numbers, granularity = matrix.numbers(), matrix.layout.own_granularity
    axis, block = granularity.axis, granularity.block_size

    def wide(array: np.ndarray) -> np.ndarray:
        index = np.indices(numbers.shape)
        if axis is None:
            return np.full(numbers.shape, array, np.float64)
        at = index[axis % numbers.ndim] // (block or 1)
        index[axis % numbers.ndim] = at
        return array.astype(np.float64)[at if block is None else tuple(index)]

    found = (numbers, tensors["values"], wide(tensors["scale"]), wide(tensors["zero_point"]))
    return tuple(matrix.matrices(array).astype(np.float64) for array in found)


def check_optimal_brain(of: Layer, x: np.ndarray, tensors: Tensors, damping: float) -> None:
    """Every code is the nearest to what is left of its weight once all before it are rounded.

    What is left is found by taking each input out of the inverse (Frantar & Alistarh, 2022).
    """
    low, high = matrix_of(of).rounding.bounds
    for group, rows in enumerate(windows(of, x)):
        left, codes, scale, zero = (array[group].copy() for array in elements(of, tensors))
        gram = rows.T @ rows
        diagonal = np.diag(gram)
        inverse = np.linalg.inv(gram + (damping * diagonal.mean() or 1.0) * np.eye(len(gram)))
        for k in np.argsort(-diagonal, kind="stable"):
            wanted = left[k] / scale[k] + zero[k]
            near = np.abs(codes[k] - np.clip(wanted, low, high)) <= 0.5 + 1e-6 * (1 + abs(wanted))
            assert near.all()
            error = (left[k] - scale[k] * (codes[k] - zero[k])) / inverse[k, k]
            left -= inverse[:, k, np.newaxis] * error
            inverse -= np.outer(inverse[:, k], inverse[k]) / inverse[k, k]
            inverse[k, k] = 1.0


@settings(max_examples=60, deadline=None)
@given(
    form=st.sampled_from(FORMS),
    text=st.sampled_from(PRECISIONS),
    what=st.sampled_from(["", "dead", "constant", "zero", "one row", "equal channels"]),
    inputs=st.integers(1, 150),
    rows=st.integers(1, 12),
    damping=st.sampled_from([0.01, 0.05, 1.0]),
    seed=st.integers(0, 1000),
)
def test_it_is_optimal_brain_quantization(
    form: str, text: str, what: str, inputs: int, rows: int, damping: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    weight = weights(form, rng, inputs, 4)
    x = feed(form, weight, rng, 1 if what == "one row" else rows)
    if what == "dead":
        x[:, :: 2 if x.shape[1] > 1 else 1] = 0
    elif what == "constant":
        weight[:], x[:] = 0.5, 3.0
    elif what == "zero":
        weight[:], x[:] = 0.0, 0.0
    elif what == "equal channels":
        x[:] = x[:, :1]
    of = layer(form, weight, text)
    assert Gptq().refusal(of) == ""
    tensors = Gptq(damping=damping).tune(of, seen(of, x))
    check_optimal_brain(of, x, tensors, damping)


def _noise(of: Layer, x: np.ndarray, tensors: Tensors) -> float:
    """Mean squared error of what the layer gives when it is quantized with some tensors."""
    graph = of.node.graph.copy()
    infer_types(graph)
    before = run(graph, {"x": x})["y"]
    bounds = {
        "x": (float(x.min()), float(x.max())),
        "y": (float(before.min()), float(before.max())),
    }
    given = Given(TARGET, bounds, {"layer": tensors} if tensors else {})
    for step in of.precision.passes(graph, {"layer": of.precision}, given):
        step.run(graph, Context())
    assert any(n.op_type in ("DequantizeLinear", "Mul") for n in graph.nodes())
    return float(np.square(run(graph, {"x": x})["y"] - before).mean())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("text", ["int4-weight", "int3-weight{block_size=0}", "int2-weight"])
def test_outputs_of_other_inputs_err_less_than_with_better_scales_alone(
    form: str, text: str
) -> None:
    rng = np.random.default_rng(1)
    weight = weights(form, rng, 96, 16)
    x = feed(form, weight, rng, 1024 if weight.ndim == 2 else 60)
    half = len(x) // 2
    of = layer(form, weight, text)
    ours = _noise(of, x[half:], Gptq().tune(of, seen(of, x[:half])))
    plain = _noise(of, x[half:], Gptq().tune(of, Observations()))
    # Nine inputs of a depthwise convolution have little to make up for each other.
    assert ours < (1.0 if form == "depthwise" else 0.6) * plain


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("text", ["int8", "int8-dynamic{convolutions=true}", "int8-weight"])
def test_weights_of_8_bits_are_those_that_it_found(form: str, text: str) -> None:
    rng = np.random.default_rng(2)
    weight = weights(form, rng, 40, 8)
    x = feed(form, weight, rng, 100)
    of = layer(form, weight, text)
    if form == "Transpose" and text == "int8":
        assert Gptq().refusal(of), "static integers are for weights that are folded"
        return
    tensors = dict(Gptq().tune(of, seen(of, x)))
    assert _noise(of, x, tensors) < 1.05 * _noise(of, x, {})
    tensors["values"] = -tensors["values"].clip(-127)
    assert _noise(of, x, tensors) > 100 * _noise(of, x, {}), "these are what is stored"


def test_padding_that_depends_on_the_size_is_resolved() -> None:
    weight = np.random.default_rng(3).standard_normal((4, 2, 3, 2)).astype(np.float32)
    of = layer("Conv", weight)
    for auto, pads in (("SAME_UPPER", (1, 0, 1, 1)), ("SAME_LOWER", (1, 1, 1, 0)), ("VALID", ())):
        for name, value in (("auto_pad", auto), ("pads", None), ("dilations", None)):
            of.node.graph.set_attribute(of.node, name, value)
        found = matrix_of(of).gram.windows
        assert found is not None and found.pads == pads and found.strides == (2, 1)


@pytest.mark.parametrize("what", ["nothing", "infinity"])
def test_without_usable_statistics_rounding_is_to_the_nearest(what: str) -> None:
    weight = weights("MatMul", np.random.default_rng(4), 96, 16)
    of = layer("MatMul", weight)
    matrix = np.full((1, 96, 96), np.inf)
    known = {} if what == "nothing" else {GramOf("x"): GramMatrix(matrix, 3)}
    found = Gptq().tune(of, Observations(1, known))
    numbers, codes, scale, zero = elements(of, found)
    np.testing.assert_array_equal(codes, np.clip(np.rint(numbers / scale) + zero, 0, 15))


@pytest.mark.parametrize("kind", [Gptq, LearnedRounding])
@pytest.mark.parametrize("lost", [(True, True), (False, True), (True, False)])
def test_what_is_not_finite_in_one_model_is_left_out_of_the_comparison(
    kind: type[Gptq | LearnedRounding], lost: tuple[bool, bool]
) -> None:
    rng = np.random.default_rng(4)
    weight = weights("MatMul", rng, 96, 16)
    of, tuner = layer("MatMul", weight), kind()
    rows = feed("MatMul", weight, rng, 200).astype(np.float64)
    known = {
        need: GramMatrix((rows.T @ rows)[np.newaxis] * (np.nan if is_lost else 1), 200)
        for need, is_lost in zip(tuner.needs(of), lost, strict=True)
    }
    gram = {tuner.needs(of)[0]: known[tuner.needs(of)[0]]}
    found, wanted = (tuner.tune(of, Observations(200, own)) for own in (known, gram))
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize(
    "text", ["gptq{damping=0}", "gptq{damping=-1}", "learned-rounding{damping=0}"]
)
def test_without_damping_it_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="damping"):
        parse_method(text)


def test_a_weight_with_infinite_values_has_no_tensors() -> None:
    weight = weights("MatMul", np.random.default_rng(4), 96, 16)
    weight[3, 3] = np.inf
    assert Gptq().tune(layer("MatMul", weight), Observations()) == {}


def test_asymmetric_weights_make_up_for_what_quantized_inputs_lack() -> None:
    rng = np.random.default_rng(6)
    weight = weights("MatMul", rng, 64, 8)
    x = feed("MatMul", weight, rng, 400)
    # What lies before has lost a part of the inputs that the others tell.
    noisy = x.copy()
    noisy[:, :8] = 0.7 * x[:, :8]
    of, tuner = layer("MatMul", weight, "int8-weight"), Gptq(damping=0.001, asymmetric=True)
    gram, cross = tuner.needs(of)
    rows, floats = noisy.astype(np.float64), x.astype(np.float64)
    known = {gram: GramMatrix((rows.T @ rows)[np.newaxis], 400)}
    plain = tuner.tune(of, Observations(400, known))
    known[cross] = GramMatrix((rows.T @ floats)[np.newaxis], 400)
    ours = tuner.tune(of, Observations(400, known))
    lost = []
    for tensors in (plain, ours):
        _, codes, scale, zero = elements(of, tensors)
        lost.append(np.square(rows @ (scale * (codes - zero))[0] - floats @ weight).mean())
    best = np.linalg.lstsq(rows, floats @ weight, rcond=None)[0]
    assert np.square(rows @ best - floats @ weight).mean() < 1e-9
    assert lost[1] < 0.03 * lost[0]


def test_what_it_is_not_for() -> None:
    rng = np.random.default_rng(5)
    weight = weights("MatMul", rng, 32, 4)

    def refusal(of: Layer) -> str:
        return Gptq().refusal(of)

    assert refusal(layer("MatMul", weight, "float16")) == (
        "it is for weights of products and convolutions"
    )
    for text in ("q4_0", "ternary"):
        said = "it is for weights that are rounded to integers"
        assert refusal(layer("MatMul", weight, text)) == said
    of = layer("MatMul", weight)
    of.node.graph.add("MatMul", [of.node.graph.values["x"], of.node.input(1)])
    assert refusal(of) == "its weight is read by several nodes"
    of = layer("transB", weight)
    of.node.graph.set_attribute(of.node, "transA", 1)
    assert refusal(of) == "it is not for products that transpose what they read"
    of = layer("Conv", weights("Conv", rng, 18, 4))
    of.node.graph.set_attribute(of.node, "auto_pad", "SAME_UPPER")
    of.node.graph.values["x"].type = TensorType(DataType.FLOAT, ("N", 2, "H", "W"))
    assert refusal(of) == "how far it pads is not known"


@pytest.mark.parametrize("tuner", [Gptq(), LearnedRounding(rounds=2)])
@pytest.mark.parametrize("text", ["int4-weight", "int8-weight", "int3-weight{block_size=0}"])
@pytest.mark.parametrize("form", ["MatMul", "transB", "Conv", "grouped"])
def test_outputs_are_tuned_some_at_a_time(
    form: str, text: str, tuner: MatrixTuner, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(5)
    weight = weights(form, rng, 40, 150)
    of = layer(form, weight, text)
    observations = seen(of, feed(form, weight, rng, 90))
    parts = tuner.parts(of)
    assert parts == {"grouped": 1, "Conv": 4}.get(form, 2)
    made = [tuner.tune_part(of, observations, number) for number in range(parts)]
    found = tuner.joined(of, made)
    assert sha256({"n": found}) == sha256({"n": tuner.tune(of, observations)})
    monkeypatch.setattr("onnxq.tune.weight_matrix._MOST_PARTS", 1)
    whole = tuner.tune(of, observations)
    for name, wanted in whole.items():
        assert found[name].shape == wanted.shape and found[name].dtype == wanted.dtype
    assert np.allclose(found["scale"], whole["scale"], rtol=1e-5)
    assert np.mean(np.asarray(found["values"] != whole["values"])) < 1e-3


SCRIPT = """
import sys, numpy as np
from tests.tune.test_gptq import Gptq, feed, layer, seen, weights
from onnxq.tune.tuned import sha256
rng = np.random.default_rng(0)
weight = weights("MatMul", rng, 600, 300)
of = layer("MatMul", weight)
print(sha256({"n": Gptq().tune(of, seen(of, feed("MatMul", weight, rng, 700)))}))
"""


@pytest.mark.slow
def test_the_number_of_threads_changes_no_bit() -> None:
    found = set()
    for threads in ("1", "2", "5"):
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": threads}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env=environment,
            check=True,
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        found.add(done.stdout)
    assert len(found) == 1 and len(found.pop()) == 65


def stored(graph: Graph) -> bytes:
    return to_proto(graph).SerializeToString(deterministic=True)


@pytest.mark.parametrize("recipe", ["int4-weight", "int8", "int8-dynamic"])
def test_its_plan_replays_byte_for_byte(recipe: str, tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    save(products(), model)
    data = inputs(products(), 24)
    made = [make_plan(model, data, recipe=recipe, methods=("gptq",)) for _ in range(2)]
    assert made[0].to_toml() == made[1].to_toml() and made[0].tuned
    assert {node.method for node in made[0].nodes if node.name in made[0].tuned} == {"gptq"}
    made[0].save(tmp_path / "p.toml")
    again = apply_plan(model, Plan.load(tmp_path / "p.toml"))
    assert stored(again) == stored(apply_plan(model, made[1]))
    untuned = make_plan(model, data, recipe=recipe, methods=("none",))
    assert stored(again) != stored(apply_plan(model, untuned))
