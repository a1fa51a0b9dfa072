"""Where layers have their biases, and adding numbers to them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from onnxq.ir import Node


class Bias(NamedTuple):
    """Where the bias of a layer is: a slot of a node, which multiplies it with a factor."""

    node: Node
    slot: int
    factor: float = 1.0


def bias_of(node: Node) -> Bias | None:
    """The bias of a layer, or where it can have one; None where it cannot.

    It is constant, one number for each output channel or one for all. That of a MatMul is what an
    Add adds to it that alone reads it.
    """
    if node.is_op("Conv", "ConvTranspose"):
        bias = node.input(2)
        return Bias(node, 2) if bias is None or bias.is_constant else None
    if node.is_op("Gemm"):
        bias, beta = node.input(2), float(node.get("beta", 1.0))
        is_row = bias is None or (bias.is_constant and _is_row(bias.numpy()))
        return Bias(node, 2, 1.0 if bias is None else beta) if is_row and beta else None
    if not node.is_op("MatMul") or node.output.is_output or len(node.output.uses) != 1:
        return None
    (use,) = node.output.uses
    addend = use.node.input(1 - use.slot) if use.node.is_op("Add") else None
    width = node.output.shape[-1] if node.output.shape else None
    if addend is None or not addend.is_constant or not _is_row(addend.numpy()):
        return None
    return Bias(use.node, 1 - use.slot) if addend.numpy().size == width else None


def _is_row(numbers: np.ndarray) -> bool:
    """Whether numbers, but for axes of length 1, lie along the last axis."""
    return numbers.size == 1 or numbers.shape[-1] == numbers.size


def shift_bias(node: Node, bias: Bias, shift: np.ndarray) -> None:
    """Add numbers to what a layer gives, one for each output channel, through its bias."""
    old = bias.node.input(bias.slot)
    numbers = shift.astype(np.float64) / bias.factor
    name = f"{node.output.name}_bias"
    if old is not None:
        is_alike = old.numpy().size == numbers.size
        numbers = old.numpy() + (numbers.reshape(old.numpy().shape) if is_alike else numbers)
        name = old.name
    bias.node.graph.set_constant(bias.node, bias.slot, numbers.astype(np.float32), name)
