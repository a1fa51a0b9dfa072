"""shift-channels: what a Relu never goes below moves from one layer's bias into the next ones'."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from onnxq.errors import InputError
from onnxq.ir import Context, Graph, Node, Value
from onnxq.ir.passes import Numerics
from onnxq.passes.channels.equivalent import Equivalent
from onnxq.passes.channels.groups import input_axis
from onnxq.passes.nodes import made_by
from onnxq.passes.weights.layer_biases import Bias, bias_of, shift_bias

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ShiftChannels(Equivalent):
    """Take ``c`` off the channels of what a Relu gives, and add ``W c`` to what reads it.

    ``W Relu(x) + b`` becomes ``W Relu(x - c) + (b + W c)``: the same where x is nowhere below c,
    which is for the caller to know, and c not negative. Both are constants in the layers' biases.
    The numbers of a tensor, which the Relu gives, are c, one for each channel.

    Rewritten: a Relu behind a Conv, ConvTranspose or Gemm, or a MatMul with a vector added to it,
    that only Convs without padding, Gemms, and MatMuls with a vector behind them read.

    Not rewritten, but refused: other tensors. Zeros that pad a convolution's input would have to
    become -c, another number for each channel, which Pad has not.
    """

    name: ClassVar[str] = "shift-channels"
    numerics: ClassVar[Numerics] = "approximates"
    needs_types: ClassVar[bool] = True

    def run(self, graph: Graph, ctx: Context) -> int:
        """See `Pass`.

        Raises:
            InputError: a tensor's channels cannot be shifted, or not by these numbers.
        """
        found = {shiftable.tensor.name: shiftable for shiftable in shiftables(graph)}
        for tensor, numbers in self.numbers.items():
            own = found.get(tensor)
            if own is None:
                raise InputError(
                    f"the channels of '{tensor}' cannot be shifted: it is no Relu between layers "
                    "with constant biases and without padding"
                )
            shift = np.asarray(numbers, np.float64)
            if shift.shape != (own.size,) or not ((shift >= 0) & (shift < np.inf)).all():
                raise InputError(
                    f"the channels of '{tensor}' need {own.size} finite numbers, none below 0"
                )
            _shift(own, shift)
            ctx.rewrote(f"'{tensor}': shifted")
        return len(self.numbers)


@dataclass(frozen=True, eq=False)
class Shiftable:
    """A Relu whose channels may be shifted.

    Attributes:
        tensor: What it gives.
        read: What it reads.
        axis: Axis of the channels.
        size: Their number.
        producer: The layer in front of it.
        consumers: The layers that read it.
    """

    tensor: Value
    read: Value
    axis: int
    size: int
    producer: Node
    consumers: tuple[Node, ...]


def shiftables(graph: Graph) -> list[Shiftable]:
    """What can be shifted in a graph and its bodies."""
    return [
        found for node in graph.all_nodes() if node.is_op("Relu") and (found := _shiftable(node))
    ]


def _shiftable(relu: Node) -> Shiftable | None:
    read, tensor = relu.input(0), relu.output
    consumers = tuple(use.node for use in tensor.uses)
    if read is None or len(read.uses) > 1 or read.is_output or tensor.is_output or not consumers:
        return None
    producer = _layer(read)
    if producer is None or not all(
        use.slot == 0 and use.node.graph is relu.graph and _takes(use.node) for use in tensor.uses
    ):
        return None
    axis = 1 if producer.is_op("Conv", "ConvTranspose") else -1
    size = (tensor.shape or (None,))[axis if tensor.rank else 0]
    is_alike = {input_axis(node) % (tensor.rank or 1) for node in consumers} == {
        axis % (tensor.rank or 1)
    }
    if not is_alike or not isinstance(size, int):
        return None
    return Shiftable(tensor, read, axis, size, producer, consumers)


def _layer(value: Value) -> Node | None:
    """The layer that makes a value, with its bias."""
    node = value.producer
    if node is not None and node.is_op("Add"):
        made = [made_by(v, "MatMul") for v in node.inputs]
        node = next((n for n in made if n is not None), None)
    is_layer = node is not None and node.graph is value.graph and node.outputs
    bias = bias_of(node) if node is not None and is_layer else None
    if node is None or bias is None or bias.node.output is not value:
        return None
    return node


def _takes(node: Node) -> bool:
    """Whether a shift of what a layer reads goes into its bias."""
    weight = node.input(1)
    if not node.is_op("Conv", "Gemm", "MatMul") or weight is None or not weight.is_constant:
        return False
    if any(node.get("pads", ())) or node.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return False
    is_matrix = node.is_op("Conv") or (weight.rank == 2 and not node.get("transA", 0))
    return is_matrix and bias_of(node) is not None


def _shift(own: Shiftable, shift: _Floats) -> None:
    _add(own.producer, -shift)
    for node in own.consumers:
        _add(node, _through(node, shift))
    for value in (own.read, own.tensor):
        value.graph.rename(value, value.graph.fresh_name(f"{value.name}_shifted"))


def _add(node: Node, numbers: _Floats) -> None:
    bias: Bias | None = bias_of(node)
    assert bias is not None
    shift_bias(node, bias, numbers)


def _through(node: Node, shift: _Floats) -> _Floats:
    """What a layer makes of numbers for its input channels."""
    weight = node.inputs[1]
    assert weight is not None
    numbers = weight.numpy().astype(np.float64)
    if not node.is_op("Conv"):
        rows = numbers.T if node.get("transB", 0) else numbers
        return np.asarray(node.get("alpha", 1.0) * (shift @ rows))
    groups = node.get("group", 1)
    summed = numbers.sum(axis=tuple(range(2, numbers.ndim))).reshape(groups, -1, numbers.shape[1])
    return np.asarray((summed @ shift.reshape(groups, -1, 1)).reshape(-1))
