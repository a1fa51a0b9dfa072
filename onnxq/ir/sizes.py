"""How much memory a graph's values take, by their shapes for given inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from onnxq.ir.copying import reads
from onnxq.ir.graph import Graph
from onnxq.ir.infer import infer_types
from onnxq.ir.types import DataType, TensorType


def value_bytes(graph: Graph, shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Bytes of every computed value, by name, where the inputs have some shapes.

    A value whose shape cannot be inferred counts as large as the largest one that is known.
    """
    shaped = graph.copy()
    for value in shaped.inputs:
        if isinstance(value.type, TensorType) and value.name in shapes:
            value.type = TensorType(value.type.dtype, tuple(shapes[value.name]))
    for node in shaped.nodes():
        for made in node.outputs:
            # What is stated for an open batch would stay as it is.
            if made is not None and isinstance(made.type, TensorType):
                made.type = TensorType(made.type.dtype)
    infer_types(shaped)
    names = [v.name for node in shaped.nodes() for v in node.outputs if v is not None]
    found = {name: _bytes(shaped, name) for name in names}
    largest = max((size for size in found.values() if size is not None), default=0)
    return {name: largest if size is None else size for name, size in found.items()}


def live_bytes(graph: Graph, sizes: Mapping[str, int]) -> int:
    """Most bytes that are alive at a time where each value goes once its last reader has run."""
    order = graph.nodes()
    last = {value: place for place, node in enumerate(order) for value in reads(node)}
    going: dict[int, int] = {}
    alive = most = 0
    for place, node in enumerate(order):
        for value in node.outputs:
            if value is not None:
                size = sizes.get(value.name, 0)
                alive += size
                if not value.is_output:
                    end = last.get(value, place)
                    going[end] = going.get(end, 0) + size
        most = max(most, alive)
        alive -= going.pop(place, 0)
    return most


def _bytes(graph: Graph, name: str) -> int | None:
    value = graph.values[name]
    shape = value.shape
    if shape is None or not all(isinstance(dim, int) for dim in shape):
        return None
    bits = 64 if value.dtype is None or value.dtype is DataType.STRING else value.dtype.bits
    return prod(int(dim or 0) for dim in shape) * bits // 8
