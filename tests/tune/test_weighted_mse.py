"""Scales of the least error in what products give, against the products themselves."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.ir import Context, DataType, Graph, ModelInfo, Node, TensorType, infer_types, to_proto
from onnxq.needs import ChannelsOf
from onnxq.observe import ChannelStatistics, Observations
from onnxq.precision import Given, parse_precision
from onnxq.runtime import Session
from onnxq.targets import load_target
from onnxq.tune import Layer
from onnxq.tune.weighted_mse import WeightedMse

INPUTS, OUTPUTS = 128, 24
TARGET = load_target("cpu-x64")
RNG = np.random.default_rng(3)
WEIGHT = RNG.standard_t(4, (INPUTS, OUTPUTS)).astype(np.float32)
X = RNG.standard_normal((512, INPUTS)).astype(np.float32)
X[:, ::19] *= 30
"""Few channels of large values, as language models have them."""


def _graph(form: str) -> tuple[Graph, Node]:
    graph = Graph("g", model=ModelInfo(13, {"": 25}))
    if form == "transA":
        x = graph.add_input("x", TensorType(DataType.FLOAT, (INPUTS, "N")))
    else:
        x = graph.add_input("x", TensorType(DataType.FLOAT, ("N", INPUTS)))
    turned = form in ("transB", "Transpose")
    weight = graph.constant(np.ascontiguousarray(WEIGHT.T) if turned else WEIGHT, "w")
    if form == "Transpose":
        weight = graph.add("Transpose", [weight], {"perm": [1, 0]}).output
    kind = "Gemm" if form.startswith("trans") else "MatMul"
    attributes = {form: 1, "alpha": 0.5} if kind == "Gemm" else {}
    node = graph.add(kind, [x, weight], attributes, name="product")
    node.output.type = TensorType(DataType.FLOAT, ("N", OUTPUTS))
    graph.add_output(node.output)
    graph.rename(node.output, "y")
    infer_types(graph)
    return graph, node


def _layer(form: str) -> Layer:
    return Layer(_graph(form)[1], parse_precision("int4-weight"), TARGET)


def _seen(form: str, x: np.ndarray = X) -> Observations:
    axis, values = (0, x.T) if form == "transA" else (-1, x)
    return Observations(len(x), {ChannelsOf("x", axis): ChannelStatistics.of(values, axis)})


def _error(form: str, text: str, observations: Observations | None) -> float:
    """Mean squared error of a product; not tuned without observations."""
    graph, node = _graph(form)
    precision = parse_precision(text)
    feed = {"x": X.T if form == "transA" else X}
    wanted = Session(to_proto(graph), optimization="none").run(feed)["y"]
    tuned = {}
    layer = Layer(node, precision, TARGET)
    if observations is not None:
        assert not WeightedMse().refusal(layer)
        tuned = {"product": WeightedMse().tune(layer, observations)}
    for step in precision.passes(graph, {"product": precision}, Given(TARGET, tuned=tuned)):
        assert step.run(graph, Context()) == 1
    # As the operators are defined, without what onnxruntime fuses.
    return float(
        np.square(Session(to_proto(graph), optimization="none").run(feed)["y"] - wanted).mean()
    )


@pytest.mark.parametrize("form", ["", "Transpose", "transB", "transA"])
@pytest.mark.parametrize(
    "text", ["int4-weight", "int4-weight{block_size=0}", "int3-weight", "int2-weight"]
)
def test_products_err_less_than_with_plain_scales(form: str, text: str) -> None:
    assert _error(form, text, _seen(form)) < 0.6 * _error(form, text, None)


def test_every_form_of_a_product_is_tuned_alike() -> None:
    plain = WeightedMse().tune(_layer(""), _seen(""))
    turned = WeightedMse().tune(_layer("Transpose"), _seen("Transpose"))
    for name in ("scale", "zero_point"):
        assert np.array_equal(turned[name], plain[name].T)
    with_alpha = WeightedMse().tune(_layer("transB"), _seen("transB"))
    np.testing.assert_allclose(with_alpha["scale"], plain["scale"].T / 2, rtol=1e-6)


@pytest.mark.parametrize("seen", ["nothing", "zeros", "infinity"])
def test_without_usable_statistics_scales_are_plain(seen: str) -> None:
    x = np.full_like(X, {"nothing": 0, "zeros": 0, "infinity": np.inf}[seen])
    observations = Observations() if seen == "nothing" else _seen("", x)
    assert _error("", "int4-weight", observations) == _error("", "int4-weight", None)


def test_what_it_is_not_for() -> None:
    node = _graph("")[1]
    for text, reason in (
        ("int8", "it is for weights in few bits of products"),
        ("q4_0", "it is for weights that are rounded to few bits"),
        ("ternary", "it is for weights that are rounded to few bits"),
    ):
        assert WeightedMse().refusal(Layer(node, parse_precision(text), TARGET)) == reason
    node.graph.add("MatMul", [node.graph.values["x"], node.input(1)])
    found = WeightedMse().refusal(Layer(node, parse_precision("int4-weight"), TARGET))
    assert found == "its weight is read by several products"
