"""Clippings of the float model that a candidate leaves to the pair behind them.

Where integers end where Relu or Clip does, quantization clips, and onnxruntime's quantizer takes
the operator out: what the float model calls clipped is the candidate's value before that.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from onnxq.ir import Graph, Node, Tensor, Value
from onnxq.ir.pattern import number
from onnxq.verify.pairs import behind, goes_into_pair, grid_of

_CLIP_SINCE = 11
"""The opset from which on the bounds of Clip are inputs."""


def with_clippings(candidate: Graph, reference: Graph, shared: Iterable[str]) -> Graph:
    """The same function with the clippings that its pairs do, so that equal names are equal values.

    Args:
        candidate: The model, in which every layer has a name; stays as it is.
        reference: The float model.
        shared: Names of values that both have.
    """
    graph = candidate.copy()
    for name in shared if graph.opset >= _CLIP_SINCE else ():
        value, bounds = graph.values.get(name), _bounds(reference.values.get(name))
        maker = None if value is None else value.producer
        if value is None or maker is None or bounds is None or maker.is_op("Relu", "Clip"):
            continue
        if not _clips(value, *bounds):
            continue
        graph.rename(value, graph.fresh_name(f"{name}_unclipped"))
        ends = [graph.constant(np.array(end, np.float32), f"{name}_end") for end in bounds]
        called, types = f"{name}_clip", [value.type]
        clip = graph.add("Clip", [value, *ends], outputs=[name], name=called, types=types)
        graph.replace_uses(value, clip.output, lambda use: goes_into_pair(use.node))
    return graph


def _bounds(value: Value | None) -> tuple[float, float] | None:
    """Where what makes a value clips, None if it does not."""
    maker = None if value is None else value.producer
    if maker is None or not maker.is_op("Relu", "Clip"):
        return None
    if maker.is_op("Relu"):
        return 0.0, np.inf
    low, high = _end(maker, 1, "min", -np.inf), _end(maker, 2, "max", np.inf)
    return None if low is None or high is None else (low, high)


def _end(clip: Node, slot: int, attribute: str, without: float) -> float | None:
    """Where a Clip ends, by an input or in old opsets an attribute; None if only a run tells."""
    value = clip.input(slot)
    return float(clip.get(attribute, without)) if value is None else _number(value)


def _number(value: Value) -> float | None:
    """The number that a constant holds, or a Constant node."""
    if value.producer is None or not value.producer.is_op("Constant"):
        return number(value)
    held = value.producer.get("value_float", value.producer.get("value"))
    return float(held.numpy()) if isinstance(held, Tensor) and held.size == 1 else held


def _clips(value: Value, low: float, high: float) -> bool:
    """Whether all that reads a value are pairs whose integers end within some bounds."""
    readers = [use.node for use in value.uses]
    if value.is_output or not readers or not all(map(goes_into_pair, readers)):
        return False
    grids = [grid_of(node, v.producer) for node in readers for v in behind(node) if v.producer]
    return all(grid is not None and grid.lies_within(low, high) for grid in grids)
