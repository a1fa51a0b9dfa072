"""Helpers of the tests that quantize graphs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
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


def run_optimized(graph: Graph, feeds: Feeds) -> dict[str, np.ndarray]:
    """Outputs from onnxruntime with all of its optimizations."""
    return Session(to_proto(graph)).run(dict(feeds))


def run_reference(graph: Graph, feeds: Feeds) -> dict[str, np.ndarray]:
    """Outputs from onnx.reference, whose DequantizeLinear begins with opset 19."""
    proto = to_proto(raise_opset(graph, 21))
    names = [o.name for o in proto.graph.output]
    return dict(zip(names, ReferenceEvaluator(proto).run(names, dict(feeds)), strict=True))
