"""The tensors that quantization changes most, and where their values lie."""

from __future__ import annotations

import math

import numpy as np

from onnxq.ir import DataType, Graph, Value
from onnxq.ir.lifting import nested_values
from onnxq.observe import Statistics, calibrate
from onnxq.observe.squared_error import SquaredError
from onnxq.passes.notes import node_name
from onnxq.prepare import Prepared
from onnxq.verify.compare import LAYER_SAMPLES
from onnxq.verify.result import TensorFacts

_MOST, _BARS = 8, 60

_ENDS = {
    DataType.INT8: (-128.0, 127.0),
    DataType.UINT8: (0.0, 255.0),
    DataType.INT16: (-32768.0, 32767.0),
    DataType.UINT16: (0.0, 65535.0),
}
"""Formats of activations that are looked at, and their ends."""


def worst_tensors(prepared: Prepared, candidate: Graph) -> tuple[TensorFacts, ...]:
    """Of the tensors that a candidate quantizes statically, those with the least SQNR of their own.

    Each is looked at by itself: what is lost where its values are rounded to the scale that the
    candidate has, and clipped. Where observing has left no histograms, a few samples are fed; none
    are once a time budget is over.

    Args:
        prepared: The float model that was quantized.
        candidate: What came of it.

    Raises:
        InputError: onnxruntime cannot run the model on the data.
    """
    known = nested_values(prepared.graph)
    scales = {name: own for name, own in _scales(candidate).items() if name in known}
    seen = prepared.ranges.statistics if prepared.ranges is not None else {}
    if any(name not in seen or seen[name].histogram is None for name in scales):
        job = prepared.job
        if job.time.is_over():
            return ()
        few = job.samples.take(LAYER_SAMPLES)
        limit = job.options.memory_limit
        seen = calibrate(
            prepared.graph, few, [*scales], histograms=True, memory_limit=limit
        ).statistics
    found = [
        facts
        for name, own in scales.items()
        if name in seen and (facts := _facts(known[name], seen[name], *own)) is not None
    ]
    return tuple(sorted(found, key=lambda facts: (facts.sqnr_db, facts.tensor))[:_MOST])


def _scales(candidate: Graph) -> dict[str, tuple[float, float, float]]:
    """Scale, lowest and highest number of every float tensor quantized as a whole."""
    found = {}
    for node in candidate.all_nodes():
        values = [node.input(slot) for slot in range(3)]
        if not node.is_op("QuantizeLinear") or any(v is None or v.data is None for v in values[1:]):
            continue
        value, scale, zero_point = values
        assert value is not None and scale is not None and zero_point is not None
        if scale.numpy().size == 1 and zero_point.dtype in _ENDS and value.data is None:
            step, zero = (float(v.numpy().reshape(-1)[0]) for v in (scale, zero_point))
            low, high = ((end - zero) * step for end in _ENDS[zero_point.dtype])
            found[value.name] = step, low, high
    return found


def _facts(
    value: Value, seen: Statistics, scale: float, low: float, high: float
) -> TensorFacts | None:
    """What is known of a tensor; nothing of one that is constant or has values without a size."""
    histogram = seen.histogram
    if histogram is None or not seen.is_finite or seen.min >= seen.max:
        return None
    error = SquaredError(histogram, seen.min, seen.max)
    middles = (histogram.lower + histogram.upper) / 2
    signal = float((np.square(middles) * histogram.counts).sum())
    noise = error.rounding(scale, low, high) + error.clipping(low, high)
    is_outside = (middles < low - scale / 2) | (middles > high + scale / 2)
    return TensorFacts(
        value.name,
        "" if value.producer is None else node_name(value.producer),
        low,
        high,
        seen.min,
        seen.max,
        histogram.shares(np.linspace(seen.min, seen.max, _BARS + 1)),
        10 * math.log10(signal / noise) if noise > 0 < signal else math.inf,
        float(histogram.counts[is_outside].sum() / histogram.total),
    )
