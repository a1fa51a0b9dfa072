"""shift-biases: numbers added to what layers give, channel by channel, through their biases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from onnxq.ir import Context, Graph, Pass
from onnxq.passes.notes import node_name
from onnxq.passes.weights.layer_biases import bias_of, shift_bias


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
            shift_bias(node, found, shift)
            ctx.rewrote(f"bias of '{node_name(node)}'")
            count += 1
        return count
