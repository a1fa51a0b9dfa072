"""What the tests share that quantize weights: every model made is valid and runs everywhere."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from onnxq.ir import Context, Graph, Pass, Value, infer_types, to_proto
from tests.helpers import Feeds
from tests.quantization import run_integers

HEAD = '<ir_version: 10, opset_import: ["": 21]>'
NEWEST = '<ir_version: 13, opset_import: ["": 25]>'


def text(interface: str, constants: str, nodes: str, head: str = HEAD) -> Graph:
    """A graph of these parts in text form."""
    return Graph.from_text(f"{head} g {interface} <{constants}> {{ {nodes} }}")


def with_constants(
    interface: str, constants: Mapping[str, np.ndarray], nodes: str, head: str = HEAD
) -> Graph:
    """A graph that reads arrays under their names; ``interface`` lists them among its inputs."""
    types = {np.dtype(np.float32): "float", np.dtype(np.float64): "double"}
    declared = ", ".join(
        f"{types[a.dtype]}[{', '.join(map(str, a.shape))}] {name}" for name, a in constants.items()
    )
    inputs, arrow, outputs = interface.partition(" => ")
    graph = Graph.from_text(f"{head} g {inputs[:-1]}, {declared}){arrow}{outputs} {{ {nodes} }}")
    for name, array in constants.items():
        value = graph.values[name]
        graph.replace_uses(value, graph.constant(array, f"{name}_"))
        graph.remove_input(value)
        graph.rename(graph.values[f"{name}_"], name)
    return graph


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    """Normally distributed float32 numbers."""
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def quantized(step: Pass, before: Graph, made: int) -> Graph:
    """The rewritten graph, valid by every check there is; a second run finds nothing."""
    after = before.copy()
    infer_types(after)
    assert step.run(after, Context()) == made
    after.check()
    onnx.checker.check_model(to_proto(after), full_check=True)
    infer_types(after)
    notes, text_form = dict(after.model.metadata), after.to_text()
    assert step.run(after, Context()) == 0
    assert (after.model.metadata, after.to_text()) == (notes, text_form)
    unused = [v.name for g in after.all_graphs() for v in g.initializers() if not v.is_used]
    assert not unused, "everything stored is read"
    return after


def run_reference(graph: Graph, feeds: Feeds) -> dict[str, np.ndarray]:
    """Outputs from onnx.reference."""
    proto = to_proto(graph)
    names = [o.name for o in proto.graph.output]
    return dict(zip(names, ReferenceEvaluator(proto).run(names, dict(feeds)), strict=True))


def assert_runtimes_agree(graph: Graph, feeds: Feeds, tolerance: float) -> dict[str, np.ndarray]:
    """onnxruntime and onnx.reference give the same, within a share of the largest magnitude.

    Gives onnxruntime's outputs.
    """
    found = run_integers(graph, feeds)
    for name, wanted in run_reference(graph, feeds).items():
        assert np.abs(found[name] - wanted).max() <= tolerance * np.abs(wanted).max(), name
    return found


def sqnr(wanted: np.ndarray, found: np.ndarray) -> float:
    """Signal to quantization noise ratio in dB."""
    noise = np.square(wanted.astype(np.float64) - found).sum()
    signal = np.square(wanted.astype(np.float64)).sum()
    return float(10 * np.log10(signal / noise)) if noise else math.inf


def stored_bytes(graph: Graph) -> int:
    """Bytes of all constants in a file."""
    return sum(v.data.nbytes for g in graph.all_graphs() for v in g.initializers() if v.data)


def dequantizers(graph: Graph) -> dict[str, Value]:
    """The output of each DequantizeLinear, by the name of the integers."""
    nodes = [n for g in graph.all_graphs() for n in g.nodes() if n.is_op("DequantizeLinear")]
    return {n.inputs[0].name: n.output for n in nodes if n.inputs[0] is not None}
