"""Dividing the channels of activations, and multiplying the weights that read them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxq.errors import InputError
from onnxq.ir import Context, Graph, Node
from onnxq.passes.channels.equivalent import Equivalent
from onnxq.passes.channels.groups import ChannelGroup, find_groups, producer_constants
from onnxq.passes.channels.labels import NO_CHANNEL, Labels, on_axis
from onnxq.passes.fusion.weighted import along_inputs, are_finite, rounded, scaled_weight

Factors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ScaleChannels(Equivalent):
    """Divide channels of activations by factors, which the weights that read them take up.

    ``X`` becomes ``X / s`` with a factor on each channel, and the rows of the weights that multiply
    it ``s W``, so that the model computes the same. What changes is how well either fits into
    integers. The numbers of a tensor are positive factors, one for each channel.

    Rewritten, as the groups of `onnxq.passes.channels.groups` say:

    - The producer takes up ``1 / s``: the scale and bias of LayerNormalization, RMSNormalization,
      BatchNormalization or InstanceNormalization, the vector of a Mul or Div, or the output
      channels of a MatMul, Gemm, Conv or ConvTranspose with constant weight and bias.
    - Constants that are added on the way are divided, too.
    - Where nothing takes it up, a Mul is put in front of the products; others still read X.

    Not rewritten, but refused with the reason:

    - Channels of tensors between producer and products that are outputs, or that a residual Add or
      anything else reads that factors do not go through.
    - Weights that are computed, or above 64 KiB and read by others, too.
    - Factors that are not positive, or take a constant out of the range of its type.
    """

    name = "scale-channels"
    numerics = "reassociates"
    needs_types = True

    def run(self, graph: Graph, ctx: Context) -> int:
        """See `Pass`.

        Raises:
            InputError: a tensor is in no group, or its factors do not fit.
        """
        groups = find_groups(graph) if self.numbers else None
        chosen = []
        for tensor, factors in self.numbers.items():
            assert groups is not None
            group = groups.get(tensor)
            if group is None:
                reason = groups.refused.get(tensor)
                why = (
                    "no product with a constant weight reads it" if reason is None else reason.text
                )
                raise InputError(f"the channels of '{tensor}' cannot be scaled: {why}")
            numbers = np.asarray(factors, np.float32)
            if numbers.shape != (group.size,) or not ((numbers > 0) & (numbers < np.inf)).all():
                raise InputError(
                    f"the channels of '{tensor}' need {group.size} finite factors above 0; those "
                    f"given, of shape {numbers.shape}, are others"
                )
            if (numbers[~group.free] != 1).any():
                at = int(np.flatnonzero((numbers != 1) & ~group.free)[0])
                raise InputError(
                    f"channel {at} of '{tensor}' cannot be scaled, because something else reads "
                    "it; its factor has to be 1"
                )
            chosen.append((group, numbers))
        for group, numbers in chosen:
            _scale(group, numbers)
            ctx.rewrote(f"'{group.tensor.name}': scaled, for {', '.join(group.nodes)}")
        for value in dict.fromkeys(v for group, _ in chosen for v in group.changed):
            value.graph.rename(value, value.graph.fresh_name(f"{value.name}_scaled"))
        return len(chosen)


def _scale(group: ChannelGroup, factors: Factors) -> None:
    producer = group.producer
    if producer is None:
        _insert(group, factors)
    elif constants := producer_constants(producer):
        for slot, change in constants.items():
            read = producer.input(slot)
            if read is not None:
                _change(producer, slot, change, factors.reshape(read.numpy().shape))
    else:
        weight = producer.input(1)
        assert weight is not None
        changed = scaled_weight(producer, weight.numpy(), 1 / factors.astype(np.float64))
        producer.graph.set_constant(producer, 1, changed)
        if producer.input(2) is not None:
            _change(producer, 2, np.divide, factors)
    for addend in group.addends:
        _change(addend.node, addend.slot, np.divide, _by_channel(factors, addend.channels))
    for consumer in group.consumers:
        node, weight = consumer.node, consumer.node.input(1)
        assert weight is not None
        own = _by_channel(factors, consumer.channels)
        _change(node, 1, np.multiply, _along_rows(node, own, weight.numpy().shape))


def _insert(group: ChannelGroup, factors: Factors) -> None:
    value, graph = group.tensor, group.tensor.graph
    behind = -group.axis if group.axis < 0 else (value.rank or 0) - group.axis
    inverse = on_axis(1 / factors, 0, behind)
    made = graph.add(
        "Mul",
        [value, graph.constant(inverse, f"{value.name}_scale")],
        outputs=[graph.fresh_name(f"{value.name}_scaled")],
        name=f"{value.name}_scaled",
        types=[value.type],
    )
    for consumer in group.consumers:
        consumer.node.set_input(0, made.output)


def _change(
    node: Node,
    slot: int,
    change: Callable[[np.ndarray, np.ndarray], np.ndarray],
    factors: np.ndarray,
) -> None:
    """Multiply or divide a constant that a node reads."""
    read = node.input(slot)
    assert read is not None
    numbers = read.numpy()
    exact = np.result_type(numbers.dtype, np.float32)
    with np.errstate(over="ignore"):
        made = rounded(change(numbers.astype(exact, copy=False), factors), numbers.dtype)
    if not are_finite([made]):
        raise InputError(
            f"with its factors, '{read.name}' would leave the range of its type; give smaller ones"
        )
    node.graph.set_constant(node, slot, np.ascontiguousarray(made))


def _by_channel(factors: Factors, channels: Labels) -> Factors:
    return np.where(channels == NO_CHANNEL, np.float32(1), factors[channels])


def _along_rows(node: Node, factors: Factors, shape: tuple[int, ...]) -> np.ndarray:
    """Factors in a shape that broadcasts to a product's weight, by its input channels."""
    if node.is_op("MatMul", "Gemm"):
        return factors if node.get("transB", 0) else factors[:, None]
    return along_inputs(node, factors, shape)
