"""shift-biases: numbers added to what layers give, channel by channel, through their biases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from onnxq.ir import Context, Graph, Node, Pass
from onnxq.passes.notes import node_name


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


@dataclass(frozen=True)
class ShiftBiases(Pass):
    """Add numbers to the biases of layers; one without gets a bias.

    They make up for what quantization shifts on average, see the method `bias-correction`.

    Not rewritten: layers that can have no bias, see `bias_of`.

    Attributes:
        shifts: What is to be added to each output channel, by the name of the node.
    """

    name = "shift-biases"
    numerics = "approximates"

    shifts: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    def run(self, graph: Graph, ctx: Context) -> int:
        """Gives the number of biases that were changed."""
        count = 0
        for node in list(graph.all_nodes()):
            shift = self.shifts.get(node_name(node))
            found = None if shift is None else bias_of(node)
            if shift is None or found is None:
                continue
            old = found.node.input(found.slot)
            numbers = shift.astype(np.float64) / found.factor
            name = f"{node.output.name}_bias"
            if old is not None:
                is_alike = old.numpy().size == numbers.size
                numbers = old.numpy() + (
                    numbers.reshape(old.numpy().shape) if is_alike else numbers
                )
                name = old.name
            found.node.graph.set_constant(found.node, found.slot, numbers.astype(np.float32), name)
            ctx.rewrote(f"bias of '{node_name(node)}'")
            count += 1
        return count
