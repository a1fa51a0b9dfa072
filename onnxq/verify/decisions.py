"""What in a model's outputs is a decision, by the graph and by what was seen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.ir import Graph, Node, Value
from onnxq.runtime.specs import Array, is_floating
from onnxq.verify.result import NEIGHBOUR

Choices = npt.NDArray[np.int64]

UNDECIDED = -1
"""The choice where there is a NaN: it equals no other."""

_TOLERANCE = 1e-3
_FEWEST_DIMENSIONS = 8
"""Shorter rows of length 1 are directions or rotations rather than embeddings."""

_CARRIES_ON = (
    *("Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Dropout"),
    "DequantizeLinear",
)
_PRODUCTS = ("Gemm", "MatMul")


@dataclass(frozen=True)
class Decision:
    """A decision that an output stands for.

    Attributes:
        output: The output's name.
        kind: ``classes``: the largest score along an axis; ``threshold``: whether a number is at
            least 0.5; ``neighbour``: which other sample's row points in the most similar direction.
        axis: The axis of the classes.
        why: How that was found, in words.
    """

    output: str
    kind: str
    axis: int
    why: str

    def choices(self, value: Array) -> Choices:
        """What is decided at each position; not for neighbours, which are chosen at the end."""
        unknown = np.isnan(value)
        if self.kind == "threshold":
            return np.where(unknown, UNDECIDED, value >= 0.5)
        return np.where(unknown.any(self.axis), UNDECIDED, value.argmax(self.axis))


def find_decisions(
    graph: Graph, outputs: Mapping[str, Any], *, is_asked: bool = False
) -> tuple[Decision, ...]:
    """The decisions that a model's outputs stand for; none where they are mere numbers.

    An output's kind follows from its last operator and from the values of one batch. In this
    order, and only outputs of the first kind that there is count:

    1. Probabilities: rows that sum to 1, along the last axis or the second.
    2. Scores of classes: a product (Gemm, MatMul, or a convolution to one position) gives them, and
       nothing follows.
    3. Numbers that Sigmoid gives: at least 0.5 or not.
    4. Embeddings [N, D]: rows of length 1.

    Args:
        graph: The float model.
        outputs: Its outputs for one batch.
        is_asked: Whether the metric takes the first output with classes for decisions.
    """
    found = list(_floats(graph, outputs))
    for look in (_probabilities, _scores, _thresholds, _embeddings):
        some = [d for value, array in found if (d := look(value, array)) is not None]
        if some:
            return tuple(some)
    for value, array in found if is_asked else ():
        if array.ndim > 1 and array.shape[-1] > 1:
            why = f"scores of {array.shape[-1]:,} classes, as the metric takes them"
            return (Decision(value.name, "classes", -1, why),)
    return ()


def _floats(graph: Graph, outputs: Mapping[str, Any]) -> Iterator[tuple[Value, Array]]:
    """The outputs that hold finite floats with an axis behind that of the samples."""
    for value in graph.outputs:
        array = outputs.get(value.name)
        if (
            isinstance(array, np.ndarray)
            and is_floating(array.dtype)
            and array.ndim > 1
            and array.size
            and np.isfinite(array).all()
        ):
            yield value, array


def _probabilities(value: Value, array: Array) -> Decision | None:
    last = _last(value)
    if last is not None and last.is_op("LogSoftmax"):
        array = np.exp(array)
    for axis in dict.fromkeys((array.ndim - 1, 1)):
        size = array.shape[axis]
        if size > 1 and array.min() >= 0 and _near(array.sum(axis, dtype=np.float64), 1):
            return Decision(value.name, "classes", axis, f"{size:,} probabilities that sum to 1")
    return None


def _scores(value: Value, array: Array) -> Decision | None:
    last = _last(value)
    if last is None:
        return None
    product = last
    if last.is_op("Add") and any(v is not None and v.is_constant for v in last.inputs):
        made = (v.producer for v in last.inputs if v is not None and not v.is_constant)
        product = next(made, None) or last
    is_point = array.ndim > 2 and set(array.shape[2:]) == {1}
    axis = 1 if is_point else array.ndim - 1
    if array.shape[axis] > 1 and (
        product.is_op(*_PRODUCTS) or (is_point and product.is_op("Conv"))
    ):
        why = f"scores of {array.shape[axis]:,} classes, straight from {product.op_type}"
        return Decision(value.name, "classes", axis, why)
    return None


def _thresholds(value: Value, array: Array) -> Decision | None:
    last = _last(value)
    if last is None or not last.is_op("Sigmoid", "HardSigmoid"):
        return None
    return Decision(value.name, "threshold", -1, f"numbers that {last.op_type} gives")


def _embeddings(value: Value, array: Array) -> Decision | None:
    if array.ndim != 2 or array.shape[1] < _FEWEST_DIMENSIONS:
        return None
    if not _near(np.linalg.norm(array.astype(np.float64), axis=1), 1):
        return None
    return Decision(value.name, NEIGHBOUR, 1, f"rows of {array.shape[1]:,} numbers of length 1")


def _last(value: Value) -> Node | None:
    """The last operator that computes a value, behind what only moves or scales it."""
    node = value.producer
    while node is not None:
        if node.is_op("If"):
            branch = next(node.subgraphs())
            source: Value | None = branch.outputs[node.outputs.index(value)]
        elif node.is_op(*_CARRIES_ON):
            source = node.input(0)
        elif node.is_op("Mul", "Div") and _is_scaled(node):
            source = next(v for v in node.inputs if v is not None and not v.is_constant)
        else:
            return node
        if source is None:
            return None
        value, node = source, source.producer
    return None


def _is_scaled(node: Node) -> bool:
    """Whether it multiplies with, or divides by, one constant number."""
    constant = [v for v in node.inputs if v is not None and v.is_constant]
    is_divided = node.is_op("Mul") or node.input(1) in constant
    return len(constant) == 1 and constant[0].rank == 0 and is_divided


def _near(array: Array, wanted: float) -> bool:
    return bool((np.abs(array - wanted) < _TOLERANCE).all())
