"""What in a model's outputs is a decision, by the graph and by what was seen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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

_RAREST = 1e-6
"""Probability that what is given as 0, as by integers, is taken to have."""

_AT_ONCE = 1 << 18
"""Numbers whose logarithms are in memory at a time."""

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
        are_probabilities: Whether the numbers are probabilities; scores or their logarithms if not.
    """

    output: str
    kind: str
    axis: int
    why: str
    are_probabilities: bool = False

    def choices(self, value: Array) -> Choices:
        """What is decided at each position; not for neighbours, which are chosen at the end."""
        unknown = np.isnan(value)
        if self.kind == "threshold":
            return np.where(unknown, UNDECIDED, value >= 0.5)
        return np.where(unknown.any(self.axis), UNDECIDED, value.argmax(self.axis))

    def divergence(self, ours: Array, theirs: Array) -> float:
        """Kullback-Leibler divergence of their choices' distribution from ours, in nats.

        Summed over all positions; not for neighbours. Infinite where there is a NaN.
        """
        total = 0.0
        for p, q in zip(self._parts(ours), self._parts(theirs), strict=True):
            total += float((np.exp(p) * (p - q)).sum(dtype=np.float64))
        return max(total, 0.0) if np.isfinite(total) else np.inf

    def entropy(self, value: Array) -> float:
        """Entropy of the choices' distribution at a position, in nats and in the mean.

        Not for neighbours. Infinite where there is a NaN.
        """
        total, rows = 0.0, 0
        for p in self._parts(value):
            total -= float((np.exp(p) * p).sum(dtype=np.float64))
            rows += len(p)
        return max(total / max(rows, 1), 0.0) if np.isfinite(total) else np.inf

    def _parts(self, value: Array) -> Iterator[npt.NDArray[np.float32]]:
        """Logarithms of the probabilities of all choices, a position a row, some rows at a time."""
        size = 1 if self.kind == "threshold" else value.shape[self.axis]
        moved = value if self.kind == "threshold" else np.moveaxis(value, self.axis, -1)
        flat, rows = moved.reshape(-1, size), max(1, _AT_ONCE // size)
        yield from (self._logarithms(flat[at : at + rows]) for at in range(0, len(flat), rows))

    def _logarithms(self, rows: Array) -> npt.NDArray[np.float32]:
        """Logarithms of the probabilities of all choices, a position a row."""
        rows = rows.astype(np.float32)
        if self.kind == "threshold":
            rows = np.concatenate([rows, 1 - rows], axis=1)
        if self.kind == "threshold" or self.are_probabilities:
            rows = np.log(np.maximum(rows, _RAREST))
        rows = rows - rows.max(axis=1, keepdims=True)
        return np.asarray(rows - np.log(np.exp(rows).sum(axis=1, keepdims=True)))


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
    lasts = _lasts(value)
    are_logarithms = bool(lasts) and all(last.is_op("LogSoftmax") for last in lasts)
    if are_logarithms:
        array = np.exp(array)
    for axis in dict.fromkeys((array.ndim - 1, 1)):
        size = array.shape[axis]
        if size > 1 and array.min() >= 0 and _near(array.sum(axis, dtype=np.float64), 1):
            why = f"{size:,} probabilities that sum to 1"
            return Decision(value.name, "classes", axis, why, not are_logarithms)
    return None


def _scores(value: Value, array: Array) -> Decision | None:
    is_point = array.ndim > 2 and set(array.shape[2:]) == {1}
    axis = 1 if is_point else array.ndim - 1
    able = (*_PRODUCTS, "Conv") if is_point else _PRODUCTS
    products = [_without_bias(last) for last in _lasts(value)]
    if array.shape[axis] == 1 or not products or not all(p.is_op(*able) for p in products):
        return None
    why = f"scores of {array.shape[axis]:,} classes, straight from {_types(products)}"
    return Decision(value.name, "classes", axis, why)


def _thresholds(value: Value, array: Array) -> Decision | None:
    lasts = _lasts(value)
    if not lasts or not all(last.is_op("Sigmoid", "HardSigmoid") for last in lasts):
        return None
    return Decision(value.name, "threshold", -1, f"numbers that {_types(lasts)} gives")


def _embeddings(value: Value, array: Array) -> Decision | None:
    if array.ndim != 2 or array.shape[1] < _FEWEST_DIMENSIONS:
        return None
    if not _near(np.linalg.norm(array.astype(np.float64), axis=1), 1):
        return None
    return Decision(value.name, NEIGHBOUR, 1, f"rows of {array.shape[1]:,} numbers of length 1")


def _lasts(value: Value) -> list[Node]:
    """The last operator that computes a value, behind what only moves or scales it.

    One for each branch of an If: which of them ran is not known. None where a branch, or the model,
    computes nothing.
    """
    node = value.producer
    while node is not None:
        if node.is_op("If"):
            place = node.outputs.index(value)
            ends = [_lasts(branch.outputs[place]) for branch in node.subgraphs()]
            return [last for lasts in ends for last in lasts] if all(ends) else []
        if node.is_op(*_CARRIES_ON):
            source = node.input(0)
        elif node.is_op("Mul", "Div") and _is_scaled(node):
            source = next(v for v in node.inputs if v is not None and not v.is_constant)
        else:
            return [node]
        if source is None:
            return []
        value, node = source, source.producer
    return []


def _without_bias(node: Node) -> Node:
    """What makes the sum of a constant and something else, or the node itself."""
    read = [v for v in node.inputs if v is not None]
    if node.is_op("Add") and any(v.is_constant for v in read):
        return next((v.producer for v in read if not v.is_constant), None) or node
    return node


def _types(nodes: Sequence[Node]) -> str:
    return " or ".join(dict.fromkeys(node.op_type for node in nodes))


def _is_scaled(node: Node) -> bool:
    """Whether it multiplies with, or divides by, one constant number."""
    constant = [v for v in node.inputs if v is not None and v.is_constant]
    is_divided = node.is_op("Mul") or node.input(1) in constant
    return len(constant) == 1 and constant[0].rank == 0 and is_divided


def _near(array: Array, wanted: float) -> bool:
    return bool((np.abs(array - wanted) < _TOLERANCE).all())
