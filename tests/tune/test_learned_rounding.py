"""Learned rounding: no single code or scale that is changed lowers the error any further."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from onnxq import apply_plan, make_plan
from onnxq.ir import save
from onnxq.observe import GramMatrix, Observations
from onnxq.passes.tuned import Tensors
from onnxq.plan import Plan
from onnxq.tune import Layer
from onnxq.tune.gptq import Gptq
from onnxq.tune.learned_rounding import LearnedRounding
from onnxq.tune.weight_matrix import matrix_of
from tests.networks import inputs, products
from tests.tune.test_gptq import elements, feed, layer, seen, weights

DAMPING = 0.05
CASES = [
    ("MatMul", "int4-weight"),
    ("Transpose", "int2-weight"),
    ("transB", "int3-weight{block_size=0}"),
    ("MatMul", "int2-weight{block_size=64}"),
    ("Conv", "int8"),
    ("grouped", "int8-weight"),
    ("depthwise", "int8-dynamic{convolutions=true}"),
]


def damped(of: Layer, observations: Observations) -> np.ndarray:
    grams = observations.get(matrix_of(of).gram).matrix
    sizes = np.trace(grams, axis1=1, axis2=2)[:, None, None] / grams.shape[1]
    return np.asarray(grams + DAMPING * sizes * np.eye(grams.shape[1]))


def error(of: Layer, grams: np.ndarray, tensors: Tensors) -> float:
    weight, values, scale, zero = elements(of, tensors)
    lost = weight - (values - zero) * scale
    return float(np.sum(lost * (grams @ lost)))


@pytest.mark.parametrize(("form", "text"), CASES)
def test_no_code_and_no_scale_is_better_with_all_others_as_they_are(form: str, text: str) -> None:
    rng = np.random.default_rng(4)
    weight = weights(form, rng, 96, 8)
    of = layer(form, weight, text)
    observations = seen(of, feed(form, weight, rng, 200))
    grams = damped(of, observations)
    tuner = LearnedRounding(rounds=200)
    assert not tuner.refusal(of)
    found, start = tuner.tune(of, observations), Gptq().tune(of, observations)
    ours, before = error(of, grams, found), error(of, grams, start)
    assert ours < (1.0 if "int8" in text else 0.98) * before
    weight, values, scale, zero = elements(of, found)
    low, high = matrix_of(of).rounding.bounds
    diagonal = np.einsum("gii->gi", grams)[..., None]
    slopes = grams @ ((values - zero) * scale - weight)
    gain = 0.0
    for step in (-1, 1):
        is_possible = (values + step >= low) & (values + step <= high)
        change = 2 * step * scale * slopes + np.square(scale) * diagonal
        gain = max(gain, float(np.max(-change * is_possible)))
    assert gain < 1e-3 * ours
    assert values.min() >= low and values.max() <= high


def test_scales_follow_their_codes() -> None:
    rng = np.random.default_rng(6)
    weight = weights("MatMul", rng, 64, 8)
    of = layer("MatMul", weight, "int2-weight")
    observations = seen(of, feed("MatMul", weight, rng, 300))
    grams, found = damped(of, observations), LearnedRounding(rounds=200).tune(of, observations)
    ours = error(of, grams, found)
    for place in np.ndindex(found["scale"].shape):
        for factor in (0.98, 1.02):
            scale = found["scale"].copy()
            scale[place] *= factor
            assert error(of, grams, {**found, "scale": scale}) > ours * (1 - 1e-3)


@pytest.mark.parametrize("text", ["int2-weight", "int8-weight"])
def test_asymmetric_rounding_makes_up_for_what_quantized_inputs_lack(text: str) -> None:
    rng = np.random.default_rng(7)
    weight = weights("MatMul", rng, 64, 8)
    exact = feed("MatMul", weight, rng, 400).astype(np.float64)
    ours = exact.copy()
    ours[:, :8] *= 0.7
    of, lost = layer("MatMul", weight, text), []
    matrix = matrix_of(of)
    known = {
        matrix.gram: GramMatrix((ours.T @ ours)[np.newaxis], 400),
        matrix.cross_gram: GramMatrix((ours.T @ exact)[np.newaxis], 400),
    }
    for tuner in (
        LearnedRounding(damping=0.001, asymmetric=False),
        Gptq(damping=0.001, asymmetric=True),
        LearnedRounding(damping=0.001),
    ):
        tensors = tuner.tune(of, Observations(400, known))
        _, values, scale, zero = elements(of, tensors)
        given = ours @ ((values - zero) * scale)[0]
        lost.append(float(np.square(given - exact @ weight).sum()))
    assert lost[2] < lost[1] < lost[0]


SCRIPT = """
import numpy as np
from onnxq.tune.learned_rounding import LearnedRounding
from onnxq.tune.tuned import sha256
from tests.tune.test_gptq import feed, layer, seen, weights
rng = np.random.default_rng(0)
weight = weights("MatMul", rng, 300, 300)
of = layer("MatMul", weight, "int2-weight")
tensors = LearnedRounding().tune(of, seen(of, feed("MatMul", weight, rng, 400)))
print(sha256({"n": tensors}))
"""


@pytest.mark.slow
def test_the_number_of_threads_changes_no_bit() -> None:
    found = set()
    for threads in ("1", "3"):
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": threads}
        folder, command = Path(__file__).parents[2], [sys.executable, "-c", SCRIPT]
        done = subprocess.run(
            command, env=environment, check=True, capture_output=True, text=True, cwd=folder
        )
        found.add(done.stdout)
    assert len(found) == 1


@pytest.mark.parametrize("what", ["nothing", "zero"])
def test_without_usable_statistics_weights_are_near(what: str) -> None:
    weight = weights("MatMul", np.random.default_rng(4), 96, 16)
    of = layer("MatMul", weight)
    known = {matrix_of(of).gram: GramMatrix(np.zeros((1, 96, 96)), 3)} if what == "zero" else {}
    found = LearnedRounding().tune(of, Observations(1, known))
    numbers, codes, scale, zero = elements(of, found)
    np.testing.assert_array_equal(codes, np.clip(np.rint(numbers / scale) + zero, 0, 15))


def test_a_plan_replays_to_the_byte(tmp_path: Path) -> None:
    graph = products()
    model, data = tmp_path / "m.onnx", inputs(graph, 24)
    save(graph, model)
    options = {"recipe": "int2-weight", "methods": "learned-rounding"}
    plan = make_plan(model, data, **options)
    plan.save(tmp_path / "plan.toml")
    assert {node.method for node in plan.nodes} == {"learned-rounding"}
    assert make_plan(model, data, **options).to_toml() == plan.to_toml()
    made = apply_plan(model, Plan.load(tmp_path / "plan.toml"))
    assert made.to_text() == apply_plan(model, plan).to_text()


def test_a_weight_with_infinite_values_has_no_tensors() -> None:
    weight = weights("MatMul", np.random.default_rng(4), 96, 16)
    weight[3, 3] = np.inf
    assert LearnedRounding().tune(layer("MatMul", weight), Observations()) == {}
