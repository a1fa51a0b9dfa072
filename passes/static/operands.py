"""What a node reads, by the rule that quantizes it: activations, a weight by channel, a bias."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from onnxq.ir import Node, Value, attribute_value
from onnxq.passes.nodes import made_by
from onnxq.quant import Granularity
from onnxq.targets import OperatorRule, Target

_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def activation_slots(node: Node, rule: OperatorRule) -> Sequence[int]:
    """Input slots of a node at which it reads activations."""
    if rule.role == "residual":
        return (_residual_slot(node),)
    if not rule.activations:
        return range(len(node.inputs))
    if reads_weight(node, rule) or rule.weight is None:
        return rule.activations
    return (*rule.activations, rule.weight)


def reads_weight(node: Node, rule: OperatorRule) -> bool:
    """Whether a computing node multiplies with a constant, not with a second activation."""
    weight = operand(node, rule.weight)
    return weight is not None and weight.is_constant


def channel_axis(node: Node, rule: OperatorRule) -> int | None:
    """Axis of a computing node's weight on which its output channels lie.

    None where no axis holds just these: a grouped ConvTranspose has only one group's on its
    axis, and runtimes take scales by column only for a MatMul with one matrix. None, too, where
    the target's rule wants one scale.
    """
    if not rule.per_channel:
        return None
    if node.is_op("ConvTranspose") and attribute_value(node, "group") != 1:
        return None
    if node.is_op("MatMul") and weight_of(node, rule).numpy().ndim > 2:
        return None
    return _output_axis(node, rule)


def weight_granularity(node: Node, rule: OperatorRule, target: Target) -> Granularity:
    """Which numbers of a computing node's weight share a scale on a target."""
    return target.weight_granularity(channel_axis(node, rule))


def channel_bias(node: Node, rule: OperatorRule) -> np.ndarray | None:
    """A computing node's constant bias as one number per output channel.

    None if the node has no bias, or one that does not come to a number per channel.
    """
    bias = operand(node, rule.bias)
    if bias is None or not bias.is_constant:
        return None
    channels = weight_of(node, rule).numpy().shape[_output_axis(node, rule)]
    if node.is_op("ConvTranspose"):
        channels *= attribute_value(node, "group")
    numbers = bias.numpy()
    if numbers.size == 1:
        return np.repeat(numbers.reshape(-1), channels)
    if numbers.size == channels == numbers.shape[-1]:
        return numbers.reshape(-1)
    return None


def _output_axis(node: Node, rule: OperatorRule) -> int:
    if rule.channel_axis == "operator":
        return 0 if attribute_value(node, "transB") else 1
    return rule.channel_axis % weight_of(node, rule).numpy().ndim


def _residual_slot(node: Node) -> int:
    """Which input of an addition is the other one beside that of the product it fuses into."""
    return int(not product_slots(node) or product_slots(node)[0] == 0)


def product_slots(node: Node) -> list[int]:
    """Inputs of an addition that are the results of products, and read nowhere else."""
    return [
        slot
        for slot, value in enumerate(node.inputs)
        if value is not None and made_by(value, *_PRODUCTS) and len(value.uses) == 1
    ]


def activations(node: Node, rule: OperatorRule) -> Iterator[Value]:
    """The activations that a node reads, without constants."""
    for slot in activation_slots(node, rule):
        value = node.input(slot)
        if value is not None and not value.is_constant:
            yield value


def weight_of(node: Node, rule: OperatorRule) -> Value:
    """The weight of a node that `reads_weight`."""
    weight = operand(node, rule.weight)
    assert weight is not None
    return weight


def operand(node: Node, slot: int | None) -> Value | None:
    """What a node reads at a slot that its rule names; None where there is neither."""
    return None if slot is None else node.input(slot)
