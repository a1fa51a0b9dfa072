"""Rotating the residual stream of networks with RMS normalization."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.errors import InputError
from onnxq.ir import Context, DataType, Graph, Node, Use, Value, remove_unused
from onnxq.passes.channels.equivalent import Equivalent
from onnxq.passes.fusion.fusing import kept_axes
from onnxq.passes.nodes import added

_Matrix = npt.NDArray[np.float64]

_MOST_EXPLICIT = 4
"""Products with the rotation itself that a stream may need, beside those folded into weights."""


def rotation(signs: npt.NDArray[Any]) -> _Matrix:
    """An orthogonal matrix that spreads every channel over all of them, float64, (size, size).

    Of a size ``m 2^k`` with an odd m it is the Kronecker product of the Hadamard matrix of order
    ``2^k`` and the discrete cosine transform of order m, both orthogonal, its rows times random
    signs (a randomized Hadamard transform; QuIP#, Tseng et al., 2024, section 3).

    Args:
        signs: 1 or -1 for each channel.
    """
    size = len(signs)
    odd = size // (size & -size)
    steps = np.arange(odd)
    spread = np.cos(np.pi / odd * np.outer(steps, steps + 0.5)) * np.sqrt(2 / odd)
    spread[0] = np.sqrt(1 / odd)
    for _ in range((size & -size).bit_length() - 1):
        spread = np.kron(np.array([[1, 1], [1, -1]]) / np.sqrt(2), spread)
    return np.asarray(signs[:, None] * spread, np.float64)


@dataclass(frozen=True)
class RotateResidual(Equivalent):
    """Multiply the residual stream by an orthogonal matrix that evens out its channels.

    QuaRot (Ashkboos et al., 2024, section 4, stage 1a): a root-mean-square normalization without
    its gain gives xR / rms(xR) = (x / rms(x)) R, so R goes into the weights of all products that
    write to the stream (W R), and its transpose with the gain into those that read the normalized
    stream (Rᵀ diag(g) W). Channels that are far larger than others are no more then. Weights are
    computed in float64 and rounded once to float32. The numbers of a stream, by the name of one of
    its tensors, are the signs of `rotation`.

    Rewritten, in float32: the tensors that Adds connect with the input of a normalization, which is
    RMSNormalization or its parts (mean or sum of squares, products and quotients with one number
    for each row). Where something else reads or writes them, as the rows of a table that the last
    product shares, one product with R or its transpose does it.

    Not rewritten, but refused: streams that would need more than four such products, of fewer than
    two normalizations, of unknown width, and those behind a layer normalization, which takes off
    the mean and does not commute with rotations.
    """

    name = "rotate-residual"
    numerics = "reassociates"
    needs_types = True

    def run(self, graph: Graph, ctx: Context) -> int:
        """See `Pass`.

        Raises:
            InputError: a tensor is in no stream, or its signs do not fit.
        """
        streams = find_streams(graph) if self.numbers else []
        for tensor, signs in self.numbers.items():
            stream = next((s for s in streams if tensor in map(_name, s.values)), None)
            if stream is None:
                raise InputError(
                    f"the channels of '{tensor}' cannot be rotated: it is in no residual stream "
                    "between root-mean-square normalizations"
                )
            if signs.shape != (stream.size,) or not (np.abs(signs) == 1).all():
                raise InputError(
                    f"the channels of '{tensor}' need {stream.size} numbers that are 1 or -1"
                )
            _rotate(stream, rotation(signs))
            ctx.rewrote(f"'{tensor}': {len(stream.values)} tensors rotated")
        return len(self.numbers)


def _name(value: Value) -> str:
    return value.name


@dataclass
class Stream:
    """Tensors that one rotation is for, all of as many channels.

    Attributes:
        size: Channels.
        values: The tensors, in the order in which they were found.
        writers: Products that make one of them, each with a constant weight of its own.
        biases: Adds of a constant vector to what a product makes.
        readers: Products that read one, each with a constant weight of its own.
        gains: Products with a constant vector whose readers are all such products: those readers.
        makers: Values that something else makes.
        others: Uses by something else; of what something else makes, too, they read it as it is.
        outputs: Values that the graph gives to the outside, but those that something else makes.
        normalizations: How many there are.
    """

    size: int
    values: dict[Value, None] = field(default_factory=dict)
    writers: list[Node] = field(default_factory=list)
    biases: list[tuple[Node, int]] = field(default_factory=list)
    readers: list[Node] = field(default_factory=list)
    gains: dict[Node, list[Node]] = field(default_factory=dict)
    makers: list[Value] = field(default_factory=list)
    others: list[Use] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    normalizations: int = 0

    @property
    def tensor(self) -> str:
        """Name of the first one."""
        return next(iter(self.values)).name

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The products whose weights change."""
        behind = [node for readers in self.gains.values() for node in readers]
        return tuple(dict.fromkeys([*self.writers, *self.readers, *behind]))

    @property
    def explicit(self) -> int:
        """Products with the rotation itself."""
        return len(self.makers) + len(self.restored())

    def restored(self) -> dict[Value, list[Use]]:
        """Values that something else needs as they were, with its uses."""
        found: dict[Value, list[Use]] = {value: [] for value in self.outputs}
        for use in self.others:
            value = use.node.input(use.slot)
            assert value is not None
            if value not in self.makers:
                found.setdefault(value, []).append(use)
        return found


def find_streams(graph: Graph) -> list[Stream]:
    """The residual streams of a graph with known types that can be rotated."""
    found: list[Stream] = []
    taken: set[Value] = set()
    for node in graph.nodes():
        start = _normalized(node)
        if start is None or start in taken or not isinstance(size := _size(start), int):
            continue
        stream = _collected(start, size)
        taken |= set(stream.values)
        if stream.normalizations > 1 and stream.explicit <= _MOST_EXPLICIT:
            found.append(stream)
    return found


def _size(value: Value) -> int | None:
    size = value.shape[-1] if value.shape else None
    is_float = value.dtype is DataType.FLOAT
    return size if is_float and isinstance(size, int) and size > 1 else None


def _normalized(node: Node) -> Value | None:
    """What a root-mean-square normalization reads, from the node that squares it, or as a whole."""
    if node.is_op("RMSNormalization"):
        return node.input(0) if node.get("axis", -1) == -1 else None
    return node.input(0) if _squares(node) else None


def _squares(node: Node) -> bool:
    """Whether all that is made of a tensor is the mean, or sum, of its squares by rows."""
    x, other = node.input(0), node.input(1)
    if x is None or other is None or node.outputs[:1] == (None,):
        return False
    is_square = node.is_op("Mul") and other is x
    if node.is_op("Pow") and other.is_constant:
        is_square = other.numpy().size == 1 and float(other.numpy().reshape(-1)[0]) == 2
    return (
        is_square
        and node.output.is_used
        and not node.output.is_output
        and all(
            use.node.is_op("ReduceMean", "ReduceSum") and kept_axes(use.node) == [-1]
            for use in node.output.uses
        )
    )


def _collected(start: Value, size: int) -> Stream:
    stream, waiting = Stream(size), [start]
    while waiting:
        value = waiting.pop()
        if value in stream.values:
            continue
        stream.values[value] = None
        waiting += _before(stream, value)
        if value.is_output and value not in stream.makers:
            stream.outputs.append(value)
        for use in value.uses:
            waiting += _behind(stream, value, use)
    return stream


def _before(stream: Stream, value: Value) -> list[Value]:
    """The tensors of the stream that a value is made of."""
    node = value.producer
    if node is not None and node.graph is value.graph:
        if node.is_op("Add") and (parts := _both(node, stream.size)):
            return parts
        if (rows := _rows_factor(node)) is not None and _size(rows) == stream.size:
            return [rows]
        if _has_own_weight(node):
            stream.writers.append(node)
            return []
        if (slot := _bias_slot(node, stream.size)) is not None:
            stream.biases.append((node, slot))
            return [part for part in node.inputs if part is not None and not part.is_constant]
    stream.makers.append(value)
    return []


def _behind(stream: Stream, value: Value, use: Use) -> list[Value]:
    """The tensors of the stream that a reader of a value makes."""
    node = use.node
    if node.graph is value.graph:
        if node.is_op("Add") and _both(node, stream.size):
            return [node.output]
        if _bias_slot(node, stream.size) is not None:
            return [node.output]
        if _rows_factor(node) is value:
            return [node.output]
        if _squares(node):
            stream.normalizations += use.slot == 0
            return []
        if use.slot == 0 and _has_own_weight(node):
            stream.readers.append(node)
            return []
        gained = _gained(node, value, stream.size)
        if gained is not None:
            stream.normalizations += node.is_op("RMSNormalization")
            stream.gains[node] = gained
            return []
    stream.others.append(use)
    return []


def _both(node: Node, size: int) -> list[Value]:
    """The two summands of a sum of two tensors of the same shape, none constant."""
    parts = [v for v in node.inputs if v is not None and not v.is_constant]
    shapes = {v.shape for v in (*parts, *node.outputs) if v is not None}
    fits = len(parts) == 2 and len(shapes) == 1 and all(_size(v) == size for v in parts)
    return parts if fits and node.output.graph is node.graph else []


def _rows_factor(node: Node) -> Value | None:
    """What a Mul or Div multiplies with one number for each row; None for other operators."""
    if not node.is_op("Mul", "Div"):
        return None
    for x, factor in (node.inputs, node.inputs[::-1] if node.is_op("Mul") else (None, None)):
        if x is None or factor is None or x is factor or x.is_constant or not x.rank:
            continue
        shape = factor.shape
        if shape is not None and len(shape) <= x.rank and (not shape or shape[-1] == 1):
            return x if node.output.shape == x.shape and _size(x) else None
    return None


def _bias_slot(node: Node, size: int) -> int | None:
    """Where a sum has a constant vector for the channels."""
    for slot, value in enumerate(node.inputs) if node.is_op("Add") else ():
        x = node.input(1 - slot)
        is_vector = value is not None and value.is_constant and _is_vector(value, size)
        if is_vector and x is not None and _size(x) == size and x.shape == node.output.shape:
            return slot
    return None


def _is_vector(value: Value, size: int) -> bool:
    shape = () if value.data is None else value.data.shape
    return value.dtype is DataType.FLOAT and shape[-1:] == (size,) and math.prod(shape) == size


def _has_own_weight(node: Node) -> bool:
    """Whether it is a product with a constant matrix that nothing else reads."""
    weight = node.input(1) if node.is_op("MatMul") else None
    return (
        weight is not None
        and weight.is_constant
        and weight.dtype is DataType.FLOAT
        and weight.rank == 2
        and len(weight.uses) == 1
        and weight.graph is node.graph
    )


def _gained(node: Node, value: Value, size: int) -> list[Node] | None:
    """The products that alone read what a gain makes of a value; None if others do."""
    gain = next((v for v in node.inputs if v is not None and v is not value), None)
    is_gain = node.is_op("Mul") or (node.is_op("RMSNormalization") and node.input(0) is value)
    if not is_gain or gain is None or not gain.is_constant or not _is_vector(gain, size):
        return None
    if node.is_op("RMSNormalization") and node.get("axis", -1) != -1:
        return None
    readers = [use.node for use in node.output.uses if use.slot == 0]
    if node.output.is_output or len(readers) < len(node.output.uses) or not readers:
        return None
    return readers if all(_has_own_weight(n) and n.graph is node.graph for n in readers) else None


def _rotate(stream: Stream, matrix: _Matrix) -> None:
    graph = next(iter(stream.values)).graph
    for node in stream.writers:
        _set(node, 1, _numbers(node, 1) @ matrix)
    for node, slot in stream.biases:
        _set(node, slot, _numbers(node, slot) @ matrix)
    for node in stream.readers:
        _set(node, 1, matrix.T @ _numbers(node, 1))
    restored = stream.restored()
    for node, readers in stream.gains.items():
        _fold_gain(node, readers, matrix)
    # Nothing that is named as in the float model may hold other numbers.
    names = {value: value.name for value in stream.values if value not in stream.makers}
    for value, name in names.items():
        graph.rename(value, graph.fresh_name(f"{name}_rotated"))
    if stream.makers:
        forth = graph.constant(matrix.astype(np.float32), "rotation")
        for value in stream.makers:
            rotated = _product(graph, value, forth, f"{value.name}_rotated")
            for use in value.uses:
                if use not in stream.others and use.node is not rotated.producer:
                    use.node.set_input(use.slot, rotated)
    if restored:
        back = graph.constant(np.ascontiguousarray(matrix.T).astype(np.float32), "rotation_back")
        for value, uses in restored.items():
            plain = _product(graph, value, back, names[value])
            for use in uses:
                use.node.set_input(use.slot, plain)
            if value.is_output:
                graph.set_outputs([plain if v is value else v for v in graph.outputs])


def _fold_gain(node: Node, readers: list[Node], matrix: _Matrix) -> None:
    graph = node.graph
    slot = next(i for i, v in enumerate(node.inputs) if v is not None and v.is_constant)
    gain = _numbers(node, slot).reshape(-1)
    for reader in readers:
        _set(reader, 1, matrix.T @ (gain[:, None] * _numbers(reader, 1)))
    if node.is_op("RMSNormalization"):
        _set(node, slot, np.ones_like(gain))
        graph.rename(node.output, graph.fresh_name(f"{node.output.name}_rotated"))
        return
    source = node.input(1 - slot)
    assert source is not None
    graph.replace_uses(node.output, source)
    remove_unused(graph, [node])


def _product(graph: Graph, value: Value, matrix: Value, name: str) -> Value:
    return added(graph, "MatMul", [value, matrix], name, DataType.FLOAT, value.shape)


def _numbers(node: Node, slot: int) -> _Matrix:
    value = node.input(slot)
    assert value is not None
    return value.numpy().astype(np.float64)


def _set(node: Node, slot: int, numbers: _Matrix) -> None:
    node.graph.set_constant(node, slot, numbers.astype(np.float32))
