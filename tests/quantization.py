"""Helpers of the tests that quantize graphs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx.numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxq.data import read
from onnxq.ir import Context, Graph, infer_types, raise_opset, to_proto
from onnxq.observe import calibrate
from onnxq.passes.static.insert_qdq import InsertQdq
from onnxq.passes.static.placement import place
from onnxq.runtime import Session
from onnxq.targets import load_target
from tests.helpers import Feeds

Bounds = Mapping[str, tuple[float, float]]

LOW, HIGH, SCALE, ZERO = -2.0, 61.75, 0.25, 8
"""A range whose scale and zero-point in uint8 are exact; int8 absmax makes it 61.75 / 127."""


def same_bounds(graph: Graph, target: str = "cpu-x64") -> dict[str, tuple[float, float]]:
    """The exact range for every tensor that has to have one."""
    infer_types(graph)
    return {name: (LOW, HIGH) for name in place(graph, load_target(target)).observed()}


def observed_bounds(
    graph: Graph, feeds: Feeds, target: str = "cpu-x64"
) -> dict[str, tuple[float, float]]:
    """Ranges as one feed gives them."""
    infer_types(graph)
    names = place(graph, load_target(target)).observed()
    data = read([feeds], Session(to_proto(graph)).inputs)
    return {n: (r.min, r.max) for n, r in calibrate(graph, data, names).ranges.items()}


def quantized(
    before: Graph,
    bounds: Bounds | None = None,
    *,
    target: str = "cpu-x64",
    keep_float: tuple[str, ...] = (),
    activations: str = "",
    formats: Mapping[str, str] | None = None,
) -> Graph:
    """The quantized graph, which is valid by every check there is."""
    after = before.copy()
    infer_types(after)
    bounds = same_bounds(before.copy(), target) if bounds is None else bounds
    step = InsertQdq(
        bounds, target, keep_float, activations=activations, formats=dict(formats or {})
    )
    made = step.run(after, Context())
    after.check()
    onnx.checker.check_model(to_proto(after), full_check=True)
    count = len(after)
    assert step.run(after, Context()) == 0
    assert len(after) == count, "a second run adds nothing"
    integers = [v for v in after.initializers() if v.data and v.data.dtype.name == "INT8"]
    assert made or not integers
    return after


OVERFLOWS = load_target("auto").name == "cpu-x64-avx2"
"""Whether onnxruntime's kernels of uint8 by int8 add up products in 16 bits on this processor, so
that weights of more than 7 bits overflow."""

_WEIGHTS = {
    "DequantizeLinear": [(0, 1, 2)],
    "MatMulInteger": [(1, None, 3)],
    "DynamicQuantizeLSTM": [(1, 8, 9), (2, 10, 11)],
}
"""Input slots of weights, their scales and their zero-points."""


def runnable(graph: Graph) -> onnx.ModelProto:
    """The model in a form that onnxruntime computes exactly on this processor.

    Where it would overflow, weights and their zero-points move from int8 up to uint8: the products
    are the same numbers, and the kernels of uint8 by uint8 add them up in 32 bits.
    """
    model = to_proto(graph)
    if OVERFLOWS:
        _move_up(model.graph, {})
    return model


def _move_up(graph: onnx.GraphProto, outer: Mapping[str, np.ndarray]) -> None:
    known = {**outer, **{t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}}
    for node in graph.node:
        for attribute in node.attribute:
            for body in [attribute.g, *attribute.graphs]:
                _move_up(body, known)
        for weight, scale, zero_point in _WEIGHTS.get(node.op_type, ()):
            stored = known.get(node.input[weight], np.empty(0))
            if stored.dtype != np.int8:
                continue
            node.input.extend([""] * (zero_point + 1 - len(node.input)))
            shape = () if scale is None else known[node.input[scale]].shape
            zeros = known.get(node.input[zero_point], np.zeros(shape, np.int8))
            for slot, array in ((weight, stored), (zero_point, zeros)):
                node.input[slot] = f"{node.output[0]}_up_{slot}"
                moved = (array.astype(np.int16) + 128).astype(np.uint8)
                graph.initializer.append(onnx.numpy_helper.from_array(moved, node.input[slot]))


def run_optimized(graph: Graph, feeds: Feeds) -> dict[str, np.ndarray]:
    """Outputs from onnxruntime with all of its optimizations."""
    return Session(runnable(graph)).run(dict(feeds))


def run_integers(graph: Graph, feeds: Feeds) -> dict[str, np.ndarray]:
    """Outputs from onnxruntime with its own optimizations switched off."""
    return Session(runnable(graph), optimization="none").run(dict(feeds))


def run_reference(graph: Graph, feeds: Feeds) -> dict[str, np.ndarray]:
    """Outputs from onnx.reference, whose DequantizeLinear begins with opset 19."""
    proto = to_proto(raise_opset(graph, 21))
    names = [o.name for o in proto.graph.output]
    return dict(zip(names, ReferenceEvaluator(proto).run(names, dict(feeds)), strict=True))
