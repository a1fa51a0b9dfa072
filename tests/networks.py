"""Small networks for the tests of sensitivity and plans, and a search that measures nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from onnxq.cost import Costs, flops_costs
from onnxq.data import Dataset, read
from onnxq.ir import (
    Context,
    DataType,
    Graph,
    ModelInfo,
    TensorType,
    infer_types,
    load,
    raise_opset,
    to_proto,
)
from onnxq.observe import calibrate
from onnxq.passes.channels.groups import find_groups
from onnxq.passes.channels.scale_channels import ScaleChannels
from onnxq.passes.static.placement import place
from onnxq.plan.apply import apply_precisions
from onnxq.precision import Given, Scene, parse_precision
from onnxq.runtime import Backend, Session
from onnxq.search import Candidate, Search
from onnxq.targets import load_target

CHANNELS, PIXELS, CLASSES = 8, 6, 4
FACTOR = np.float32(1024)
"""So much larger is a planted channel: a power of two, so that the float model is the same."""


def chain(depth: int = 4, seed: int = 0, planted: int | None = None, channel: int = 0) -> Graph:
    """Convolutions with Relu in a row, a residual Add, pooling and a Gemm; batch open.

    ``planted`` scales one output channel of that convolution up and the weights that read it down,
    which changes nothing in float and takes 8-bit integers the digits of all other channels.
    """
    rng = np.random.default_rng(seed)
    weights = []
    for number in range(depth):
        inner = CHANNELS if number else 2
        scale = (2.0 / (inner * 9)) ** 0.5
        weights.append(rng.standard_normal((CHANNELS, inner, 3, 3)).astype(np.float32) * scale)
    weights = [np.asarray(w, np.float32) for w in weights]
    if planted is not None:
        weights[planted][channel] *= FACTOR
        weights[planted + 1][:, channel] /= FACTOR
    graph = Graph("chain", model=ModelInfo(8, {"": 17}))
    value = graph.add_input("x", TensorType(DataType.FLOAT, ("N", 2, PIXELS, PIXELS)))
    pads = {"pads": [1, 1, 1, 1]}
    first = None
    for number, weight in enumerate(weights):
        read_weight = graph.constant(weight, f"w{number}")
        value = graph.add("Conv", [value, read_weight], pads, name=f"conv{number}").output
        value = graph.add("Relu", [value], name=f"relu{number}").output
        first = value if number == depth - 2 and planted is None else first
    if first is not None:
        value = graph.add("Add", [value, first], name="residual").output
    value = graph.add("GlobalAveragePool", [value], name="pool").output
    value = graph.add("Flatten", [value], name="flat").output
    head = graph.constant(rng.standard_normal((CHANNELS, CLASSES)).astype(np.float32), "head_w")
    y = graph.add("Gemm", [value, head], name="head").output
    y.type = TensorType(DataType.FLOAT, ("N", CLASSES))
    graph.add_output(y)
    graph.rename(y, "y")
    infer_types(graph)
    return graph


def planted_channels(graph: Graph, factor: float, seed: int = 0) -> int:
    """Make a channel of each LayerNormalization louder, and the weights that read it softer.

    In float nothing changes. Gives the number of channels, one for each that products alone read.
    """
    rng = np.random.default_rng(seed)
    numbers = {}
    for name, group in find_groups(graph).folded.items():
        if group.producer is not None and group.producer.is_op("LayerNormalization"):
            numbers[name] = np.ones(group.size)
            numbers[name][rng.integers(group.size)] = 1 / factor
    return ScaleChannels(numbers).run(graph, Context())


def shared(seed: int = 0) -> Graph:
    """Two Gemms of one weight, one after the other."""
    graph = Graph("shared", model=ModelInfo(8, {"": 17}))
    x = graph.add_input("x", TensorType(DataType.FLOAT, ("N", 8)))
    rng = np.random.default_rng(seed)
    weight = graph.constant(rng.standard_normal((8, 8)).astype(np.float32), "w")
    value = graph.add("Gemm", [x, weight], name="one").output
    value = graph.add("Tanh", [value], name="tanh").output
    y = graph.add("Gemm", [value, weight], name="other").output
    y.type = TensorType(DataType.FLOAT, ("N", 8))
    graph.add_output(y)
    graph.rename(y, "y")
    infer_types(graph)
    return graph


def residual_products(depth: int = 4, width: int = 64, seed: int = 0) -> Graph:
    """Equal blocks of a MatMul with Relu around which the sum goes, and a MatMul; batch open.

    Weights of the first two blocks are small, so that few bits suffice for them.
    """
    rng = np.random.default_rng(seed)
    graph = Graph("residual", model=ModelInfo(8, {"": 17}))
    value = graph.add_input("x", TensorType(DataType.FLOAT, ("N", width)))
    for number in range(depth):
        scale = (0.1 if number < 2 else 1.0) / width**0.5
        weight = rng.standard_normal((width, width)).astype(np.float32) * np.float32(scale)
        read = graph.constant(weight, f"w{number}")
        inner = graph.add("MatMul", [value, read], name=f"product{number}").output
        inner = graph.add("Relu", [inner], name=f"relu{number}").output
        value = graph.add("Add", [value, inner], name=f"sum{number}").output
    head = graph.constant(rng.standard_normal((width, 8)).astype(np.float32), "head_w")
    y = graph.add("MatMul", [value, head], name="head").output
    y.type = TensorType(DataType.FLOAT, ("N", 8))
    graph.add_output(y)
    graph.rename(y, "y")
    infer_types(graph)
    return graph


def branches(seed: int = 0) -> Graph:
    """An If that chooses by ``wide`` between two convolutions with a Gemm behind; batch open."""
    rng = np.random.default_rng(seed)
    graph = Graph("branches", model=ModelInfo(8, {"": 17}))
    x = graph.add_input("x", TensorType(DataType.FLOAT, ("N", 2, PIXELS, PIXELS)))
    flag = graph.add_input("wide", TensorType(DataType.BOOL, ()))
    bodies = {}
    for name in ("then", "else"):
        body = Graph(name, outer=graph)
        value = x
        for number, inner in enumerate((2, 32)):
            weight = rng.standard_normal((32, inner, 3, 3)).astype(np.float32) / 16
            weights = body.constant(weight, f"{name}_w{number}")
            pads = {"pads": [1, 1, 1, 1]}
            value = body.add("Conv", [value, weights], pads, name=f"{name}_conv{number}").output
            value = body.add("Relu", [value], name=f"{name}_relu{number}").output
        value = body.add("GlobalAveragePool", [value], name=f"{name}_pool").output
        value = body.add("Flatten", [value], name=f"{name}_flat").output
        head = body.constant(rng.standard_normal((32, 64)).astype(np.float32), f"{name}_head")
        body.add_output(body.add("Gemm", [value, head], name=f"{name}_gemm").output)
        bodies[f"{name}_branch"] = body
    y = graph.add("If", [flag], bodies, name="choice").output
    y.type = TensorType(DataType.FLOAT, ("N", 64))
    graph.add_output(y)
    graph.rename(y, "y")
    infer_types(graph)
    return graph


def recurrent(op_type: str) -> tuple[Graph, dict[str, np.ndarray]]:
    """A recurrent node over five steps with its weights, and what to feed it."""
    rng = np.random.default_rng(0)
    graph = Graph(op_type, model=ModelInfo(8, {"": 17}))
    x = graph.add_input("x", TensorType(DataType.FLOAT, (5, "N", 8)))
    rows = {"LSTM": 4, "GRU": 3}[op_type] * 16
    weights = [rng.standard_normal((1, rows, n)).astype(np.float32) / 4 for n in (8, 16)]
    read = [x, *(graph.constant(w, f"w{n}") for n, w in enumerate(weights))]
    made = graph.add(op_type, read, {"hidden_size": 16}, name="cell", outputs=["y"])
    made.output.type = TensorType(DataType.FLOAT, (5, 1, "N", 16))
    graph.add_output(made.output)
    return graph, {"x": rng.standard_normal((5, 1, 8)).astype(np.float32)}


_INNER, _OUTER = 64, 8


def products() -> Graph:
    """A convolution, a Gemm and a MatMul, of which each has whole blocks."""
    rng = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> object:
        values = rng.standard_normal(shape) / np.sqrt(_INNER)
        return graph.constant(values.astype(np.float32), name)

    graph = Graph("network", model=ModelInfo(8, {"": 17}))
    x = graph.add_input("x", TensorType(DataType.FLOAT, ("N", _INNER, 3, 3)))
    c = graph.add("Conv", [x, weight("w0", _INNER, _INNER, 1, 1)], name="conv").output
    r = graph.add("Relu", [c], name="relu").output
    p = graph.add("GlobalAveragePool", [r], name="pool").output
    f = graph.add("Flatten", [p], name="flat").output
    g = graph.add("Gemm", [f, weight("w1", _INNER, _INNER)], name="gemm").output
    t = graph.add("Tanh", [g], name="tanh").output
    y = graph.add("MatMul", [t, weight("w2", _INNER, _OUTER)], name="matmul").output
    graph.add_output(y)
    graph.rename(y, "y")
    infer_types(graph)
    return graph


def inputs(graph: Graph, count: int = 24, seed: int = 1) -> dict[str, np.ndarray]:
    """Normally distributed samples for the one input."""
    shape = [d for d in graph.inputs[0].shape or () if isinstance(d, int)]
    rng = np.random.default_rng(seed)
    return {"x": rng.standard_normal((count, *shape)).astype(np.float32)}


def dataset(graph: Graph, feeds: dict[str, np.ndarray], batch_size: int | None = None) -> Dataset:
    return read(feeds, Session(to_proto(graph)).inputs, batch_size=batch_size)


def scene(graph: Graph, data: Dataset, target: str = "cpu-x64") -> Scene:
    """Placement and calibrated ranges of a graph."""
    where = load_target(target)
    placed = place(graph, where)
    ranges = calibrate(graph, data, placed.observed()).ranges
    bounds = {name: (r.min, r.max) for name, r in ranges.items()}
    for value, root in placed.roots.items():
        if root.name in bounds:
            bounds.setdefault(value.name, bounds[root.name])
    return Scene(placed, where, bounds)


def choices(scene: Scene, *precisions: str) -> dict[str, tuple[str, ...]]:
    """Which of some precisions the nodes of the main graph can have, by name."""
    graph = next(iter(scene.placed.nodes)).graph
    found = {
        node.name: tuple(
            p for p in precisions if parse_precision(p).refusal(node, scene.placed) is None
        )
        for node in graph.nodes()
    }
    return {name: own for name, own in found.items() if own}


@dataclass(frozen=True)
class Whole:
    """Graphs with all nodes in a precision that can have it."""

    made: Mapping[str, Graph]

    def __call__(self, precision: str) -> Graph:
        return self.made[precision]


def whole(graph: Graph, scene: Scene, choices: Mapping[str, Sequence[str]]) -> Whole:
    """Gives the graph with all nodes in a precision that can have it."""
    made = {}
    for precision in dict.fromkeys(p for own in choices.values() for p in own):
        made[precision] = raise_opset(graph, parse_precision(precision).needed_opset(scene.target))
        made[precision] = made[precision].copy()
        wanted = {name: precision for name, own in choices.items() if precision in own}
        apply_precisions(made[precision], wanted, Given(scene.target, scene.bounds))
    return Whole(made)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs are computed, and the smaller a candidate's file the faster it counts as."""

    def costs(graph, nodes, placed, variants, feeds, **options):  # type: ignore[no-untyped-def]
        found = flops_costs(nodes, placed, list(variants))
        return Costs("latency", options["model_sha256"], {}, found.nodes, {})

    def by_size(search: Search, candidates: Sequence[Candidate], seconds: float) -> None:
        for candidate in candidates:
            reference = search.job.path.stat().st_size
            candidate.speedup = reference / candidate.path.stat().st_size

    monkeypatch.setattr("onnxq.study.measure_costs", costs)
    monkeypatch.setattr(Search, "_time", by_size)
    monkeypatch.setattr(Backend, "time", staticmethod(quick_interleaved))


def quick_interleaved(sessions, feeds, **_):  # type: ignore[no-untyped-def]
    """Latencies that are all the same."""
    from onnxq.runtime.timing import Timing

    return [Timing(1.0, 1.0, 1.0, 1, 1.0) for _ in sessions]


def trained(path) -> Graph:  # type: ignore[no-untyped-def]
    graph = load(path)
    infer_types(graph)
    return graph
