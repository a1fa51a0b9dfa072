"""AWQ against its equations, and by what it is for: rows of weights that large activations meet."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.data import read
from onnxq.ir import Context, Graph, infer_types, raise_opset, to_proto
from onnxq.observe import observe
from onnxq.passes.channels.scale_channels import ScaleChannels
from onnxq.precision import parse_precision
from onnxq.runtime import Session
from onnxq.targets import load_target
from onnxq.tune import Change, Subject
from onnxq.tune.awq import Awq
from tests.helpers import assert_equivalent, run
from tests.tune.test_smooth_quant import PLANTED, SIZE, samples
from tests.tune.test_smooth_quant import network as old_network

PRECISION = "int4-weight{block_size=16}"


def network(middle: str = "") -> Graph:
    """In an opset that has blocks."""
    graph = raise_opset(old_network(middle), 21)
    infer_types(graph)
    return graph


def subject(graph: Graph, text: str = PRECISION) -> Subject:
    names = [node.name for node in graph.nodes()]
    return Subject(graph, load_target("cpu-x64"), {n: [parse_precision(text)] for n in names})


def changes(graph: Graph, text: str = PRECISION) -> list[Change]:
    given = subject(graph, text)
    data = read(samples(), Session(to_proto(graph)).inputs)
    return [*Awq().transform(given, observe(graph, data, Awq().needs(given), threads=1))]


def rounded(weight: np.ndarray) -> np.ndarray:
    """Four bits with a zero-point in one block of inputs, in float64."""
    low, high = np.minimum(weight.min(axis=0), 0), np.maximum(weight.max(axis=0), 0)
    scale = (high - low) / 15
    zero = np.clip(np.rint(-low / scale), 0, 15)
    return (np.clip(np.rint(weight / scale) + zero, 0, 15) - zero) * scale


def activations(graph: Graph) -> np.ndarray:
    fed = {"x": np.concatenate([s["x"] for s in samples()])}
    probe = graph.copy()
    probe.add_output(probe.values["normal"])
    return run(probe, fed)["normal"].reshape(-1, SIZE).astype(np.float64)


@pytest.mark.parametrize("text", [PRECISION, "int3-weight{block_size=16}", "int2-weight"])
def test_what_products_give_has_less_error(text: str) -> None:
    graph = network()
    (change,) = changes(graph, text)
    assert (change.kind, change.tensor) == ("scale-channels", "normal")
    assert change.gain_db > 1
    assert change.numbers.argmax() == PLANTED
    after = graph.copy()
    ScaleChannels({change.tensor: change.numbers}).run(after, Context())
    assert_equivalent(graph, after, exact=False, seeds=(0, 1))
    (again,) = changes(graph, text)
    np.testing.assert_array_equal(again.numbers, change.numbers)


def test_factors_are_those_of_the_equations() -> None:
    graph = network()
    (change,) = changes(graph)
    x = activations(graph)
    magnitude = np.abs(x).mean(axis=0)
    weights = [graph.values[name].numpy().astype(np.float64) for name in ("y_w", "z_w")]

    def error(factors: np.ndarray) -> float:
        scaled = [(w, rounded(w * factors[:, None]) / factors[:, None]) for w in weights]
        return sum(np.square(x @ (q - w)).sum() / np.square(x @ w).sum() for w, q in scaled)

    tried = {a / 20: magnitude ** (a / 20) for a in range(20)}
    tried = {a: s / np.sqrt(s.max() * s.min()) for a, s in tried.items()}
    strength = np.log(change.numbers[PLANTED] / change.numbers[0]) / np.log(
        magnitude[PLANTED] / magnitude[0]
    )
    assert strength == pytest.approx(round(20 * strength) / 20, abs=1e-3)
    np.testing.assert_allclose(change.numbers, tried[round(20 * strength) / 20], rtol=1e-4)
    # It is fitted to half of the rows.
    assert error(change.numbers.astype(np.float64)) < 1.2 * min(map(error, tried.values()))
    assert error(change.numbers.astype(np.float64)) < error(tried[0.0]) / 2


@pytest.mark.parametrize("text", ["int8", "int8-dynamic", "int8-weight", "float16"])
def test_it_is_for_weights_in_few_bits(text: str) -> None:
    assert Awq().refusal(subject(network(), text)) == (
        "no product by weights in few bits reads channels that can be scaled"
    )
    assert not Awq().refusal(subject(network()))


def test_nothing_takes_the_factors_up_behind_a_gelu() -> None:
    assert Awq().refusal(subject(network("Gelu")))
