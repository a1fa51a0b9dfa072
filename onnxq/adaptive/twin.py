"""The float model with the tensors given out that variants quantize."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from onnxq.adaptive.bundle import Bundle
from onnxq.adaptive.deployment import Reference
from onnxq.adaptive.quantized import quantizers
from onnxq.ir import DataType, Graph, Value, infer_types, load
from onnxq.ir.lifting import lift, liftable
from onnxq.runtime.files import ModelFiles
from onnxq.runtime.specs import Array

_YIELDING = {"session.intra_op.allow_spinning": "0"}
"""Threads that have nothing to do leave the processor to those that answer."""


class Twin:
    """Runs the float model of a bundle beside what answers.

    It has one thread, as it is in nobody's way then.

    Args:
        bundle: The bundle.

    Raises:
        InputError: the float model is missing, was changed, or cannot be loaded.
    """

    def __init__(self, bundle: Bundle) -> None:
        graph = load(bundle.model(len(bundle.variants) - 1))
        self._outputs = [value.name for value in graph.outputs]
        self._fed = {value.name for value in graph.inputs if value.data is None}
        self._tensors = bundle.facts.tensors
        made = [name for name in self._tensors if name not in self._fed]
        lift(graph, made)
        for value in map(graph.values.__getitem__, made):
            if not value.is_output:
                graph.add_output(value)
        self._made = [*dict.fromkeys((*self._outputs, *made))]
        with ModelFiles.temporary() as files:
            self._session = files.session(graph, config=_YIELDING)

    def run(self, feeds: Mapping[str, Array]) -> Reference:
        """What the float model says of a request.

        Raises:
            InputError: onnxruntime refuses the feeds or fails while running.
        """
        found = self._session.run(feeds, self._made)
        outputs = tuple(found[name] for name in self._outputs)
        given = {**feeds, **found}
        return Reference(outputs, {name: np.asarray(given[name]) for name in self._tensors})


@dataclass(frozen=True)
class Watched:
    """What can be watched of the tensors that some models quantize.

    Attributes:
        tensors: Those that the float model computes, too, in its order.
        unmatched: Why others are not watched, by name.
    """

    tensors: tuple[str, ...]
    unmatched: Mapping[str, str]


def watched(float_graph: Graph, variants: Iterable[Graph]) -> Watched:
    """The tensors that any of some variants quantizes, as far as the float model has them."""
    infer_types(float_graph)
    wanted: dict[str, None] = {}
    for graph in variants:
        # Where something else was quantized of a tensor, that is what qparams are chosen by.
        roots = (own.root for own in quantizers(graph).values())
        wanted |= dict.fromkeys([*quantized(graph), *roots])
    known = liftable(float_graph)
    unmatched = {}
    for name in wanted:
        if name not in known:
            unmatched[name] = "the float model computes no value of this name"
        elif known[name].dtype not in (None, DataType.FLOAT):
            unmatched[name] = "it is no float32 in the float model"
    values = [v for scope in float_graph.all_graphs() for v in scope.inputs]
    values += [v for node in float_graph.all_nodes() for v in node.outputs if v is not None]
    tensors = tuple(v.name for v in values if v.name in wanted and v.name not in unmatched)
    return Watched(tensors, unmatched)


def quantized(graph: Graph) -> dict[str, tuple[float, float] | None]:
    """Smallest and largest number that a model can hold of every tensor that it quantizes.

    By name; None where that is found out anew for every request.
    """
    found: dict[str, tuple[float, float] | None] = {}
    for node in graph.all_nodes():
        source = node.input(0)
        if source is None or source.is_constant:
            continue
        if node.is_op("DynamicQuantizeLinear") or node.is_op(
            "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", domain="com.microsoft"
        ):
            found.setdefault(source.name, None)
        elif node.is_op("QuantizeLinear"):
            ends = _ends(node.input(1), node.input(2))
            if ends is not None or source.name not in found:
                found[source.name] = ends
    return found


def _ends(scale: Value | None, zero_point: Value | None) -> tuple[float, float] | None:
    if scale is None or not scale.is_constant or scale.numpy().size != 1:
        return None
    stored = np.zeros(1, np.uint8)
    if zero_point is not None:
        if not zero_point.is_constant or zero_point.numpy().dtype.kind not in "iu":
            return None
        stored = zero_point.numpy()
    info, step = np.iinfo(stored.dtype), float(scale.numpy().reshape(()))
    zero = int(stored.reshape(()))
    return (info.min - zero) * step, (info.max - zero) * step
