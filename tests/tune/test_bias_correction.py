"""Bias correction: after it, what layers give has the mean that it has in the float model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxq.errors import InputError
from onnxq.ir import DataType, Graph, ModelInfo, Node, TensorType, infer_types, raise_opset, save
from onnxq.job import open_job
from onnxq.options import Options
from onnxq.passes.tuned import tuned_weight
from onnxq.plan import Plan
from onnxq.planning import apply_plan
from onnxq.precision import parse_precision
from onnxq.prepare import observed, prepare
from onnxq.quant import dequantize
from onnxq.study import uniform_plan
from onnxq.targets import load_target
from onnxq.tune import Layer
from onnxq.tune.bias_correction import BiasCorrection
from tests.helpers import run

RNG = np.random.default_rng(2)
WIDTH = 32
LAYERS = ("one", "two", "apart", "head")


def network() -> Graph:
    """Convolutions, a grouped one among them, and a product; all inputs positive."""

    def weight(*shape: int) -> np.ndarray:
        return (RNG.standard_normal(shape) / np.prod(shape[1:]) ** 0.5).astype(np.float32)

    graph = Graph("network", model=ModelInfo(10, {"": 21}))
    value = graph.add_input("x", TensorType(DataType.FLOAT, ("N", 3, 9, 9)))
    for name, inner, group in (("one", 3, 1), ("two", WIDTH, 1), ("apart", WIDTH, WIDTH)):
        read = [value, graph.constant(weight(WIDTH, inner // group, 3, 3), f"{name}_w")]
        if name == "two":
            read.append(graph.constant(weight(WIDTH), "two_b"))
        options = {
            "group": group,
            "pads": [1, 1, 1, 1],
            "strides": [2, 2] if group == 1 else [1, 1],
        }
        made = graph.add("Conv", read, options, name=name, outputs=[f"{name}_y"]).output
        value = graph.add("Relu", [made]).output
    pooled = graph.add("Flatten", [graph.add("GlobalAveragePool", [value]).output]).output
    head = [pooled, graph.constant(weight(8, WIDTH).T.copy(), "head_w")]
    graph.add_output(graph.add("Gemm", head, name="head", outputs=["head_y"]).output)
    infer_types(graph)
    return graph


GRAPH = network()
DATA = {"x": np.abs(RNG.standard_normal((27, 3, 9, 9))).astype(np.float32)}


def _layer(node: Node, text: str) -> Layer:
    return Layer(node, parse_precision(text), load_target("cpu-x64"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bias") / "model.onnx"
    save(GRAPH, path)
    return path


def planned(model: Path, precision: str, methods: str) -> tuple[Plan, dict[str, np.ndarray], Graph]:
    options = Options(recipe=precision, methods=methods, target="generic", opset=21)
    with open_job(model, DATA, options) as job:
        prepared = observed(prepare(job))
        feeds = np.concatenate([batch.feeds["x"] for batch in job.samples.batches()])
        return uniform_plan(prepared, precision), {"x": feeds}, prepared.graph


def given(graph: Graph, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the layers give."""
    open_ = graph.copy()
    for name in LAYERS:
        open_.add_output(open_.values[f"{name}_y"])
    return run(open_, feeds)


def means(values: np.ndarray) -> np.ndarray:
    others = (0, 2, 3) if values.ndim == 4 else 0
    return np.asarray(values.astype(np.float64).mean(axis=others))


@pytest.mark.parametrize(
    ("precision", "methods", "left"),
    [("int2-weight", "mse,bias-correction", 1e-4), ("int8", "bias-correction", 0.3)],
)
def test_means_are_those_of_the_float_model(
    model: Path, precision: str, methods: str, left: float
) -> None:
    plan, feeds, floats = planned(model, precision, methods)
    assert {node.name: node.method for node in plan.nodes if node.method} == dict.fromkeys(
        LAYERS, methods
    )
    exact, ours = given(floats, feeds), given(apply_plan(model, plan), feeds)
    plain = planned(model, precision, methods.replace("bias-correction", "").strip(",") or "none")
    before = given(apply_plan(model, plain[0]), feeds)
    for name in LAYERS:
        wanted, found, uncorrected = (means(v[f"{name}_y"]) for v in (exact, ours, before))
        error, error_before = (np.square(v - wanted).mean() ** 0.5 for v in (found, uncorrected))
        assert error < left * error_before


def test_shift_of_a_convolution_is_that_of_its_weights(model: Path) -> None:
    plan, feeds, floats = planned(model, "int2-weight", "mse,bias-correction")
    node = next(n for n in floats.nodes() if n.name == "one")
    precision = parse_precision("int2-weight")
    ((weight, layout),) = precision.quantizing().weights(node)  # type: ignore[attr-defined]
    exact = weight.value.numpy().astype(np.float64)
    stored = layout.quantizer
    tensors = plan.tuned["one"]
    found = tuned_weight(
        tensors, "one", stored.format, layout.own_granularity, exact.shape, bounds=stored.bounds
    )
    whole = (slice(None),) * exact.ndim
    made = found.part(whole, weight.value.numpy(), "w")
    lost = exact - dequantize(made.values, made.qparams)
    padded = np.pad(feeds["x"].astype(np.float64), [(0, 0), (0, 0), (1, 1), (1, 1)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::2, ::2]
    wanted = np.einsum("ocij,nchwij->onhw", lost, windows).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(tensors["bias"], wanted, rtol=1e-4, atol=1e-6)


def test_a_plan_replays_to_the_byte(model: Path, tmp_path: Path) -> None:
    plan, _, _ = planned(model, "int8", "bias-correction")
    plan.save(tmp_path / "plan.toml")
    loaded = Plan.load(tmp_path / "plan.toml")
    assert planned(model, "int8", "bias-correction")[0].tuned_sha256 == plan.tuned_sha256
    one, other = (apply_plan(model, p) for p in (plan, loaded))
    assert (
        one.to_text()
        == other.to_text()
        != apply_plan(model, planned(model, "int8", "none")[0]).to_text()
    )


def test_what_it_is_not_for(model: Path) -> None:
    nodes = {node.name: node for node in raise_opset(GRAPH, 21).nodes()}
    relu = next(node for node in GRAPH.nodes() if node.is_op("Relu"))
    for node, text in ((relu, "int8"), (nodes["one"], "float16")):
        found = BiasCorrection().refusal(_layer(node, text))
        assert found == "it is for weights of layers in integers"
    graph = Graph.from_text(
        """<ir_version: 10, opset_import: ["": 21]>
        g (float[N, 4] x, float[2] b) => (float[N, 2] y) <float[4, 2] w = {1, 2, 3, 4, 5, 6, 7, 8}>
        { y = Gemm(x, w, b) }"""
    )
    found = BiasCorrection().refusal(_layer(graph.nodes()[0], "int8"))
    assert found == "it is for layers that add a constant to each channel"
    with pytest.raises(InputError, match="none of the methods bias-correction is for a node"):
        planned(model, "float16", "bias-correction")
