"""lift-clips: a Clip to a positive range becomes Relu where values do not reach the upper bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxq.errors import InputError
from onnxq.ir import Context, Graph, Node, remove_unused
from onnxq.ir.passes import Numerics
from onnxq.passes.channels.equivalent import Equivalent
from onnxq.passes.fusion.clip_bounds import clip_bounds


@dataclass(frozen=True)
class LiftClips(Equivalent):
    """Take the upper bound off a Clip whose lower bound is 0, which leaves a Relu.

    Factors on channels go through a Relu, and not through a Clip, whose bounds are the same for all
    channels. It changes what the model computes where a value is above the bound: that none are, or
    next to none, is for the caller to know. The number of a tensor, which the Clip gives, is the
    bound that is taken off.

    Not rewritten, but refused: tensors that no Clip from 0 to that bound gives.
    """

    name: ClassVar[str] = "lift-clips"
    numerics: ClassVar[Numerics] = "approximates"
    needs_types: ClassVar[bool] = True

    def run(self, graph: Graph, ctx: Context) -> int:
        """See `Pass`.

        Raises:
            InputError: a tensor comes from no such Clip.
        """
        found = {node.output.name: (node, bound) for node, bound in liftable(graph)}
        for tensor, number in self.numbers.items():
            node, bound = found.get(tensor, (None, 0.0))
            given = np.asarray(number, np.float32)
            if node is None or (given != np.float32(bound)).any():
                raise InputError(f"no Clip from 0 to {given.max():g} gives '{tensor}'")
            _lift(node)
            ctx.rewrote(f"'{tensor}': without its upper bound {bound:g}")
        return len(self.numbers)


def liftable(graph: Graph) -> list[tuple[Node, float]]:
    """The Clips of a graph and its bodies from 0 to a bound above it, with that bound."""
    found = []
    for node in graph.all_nodes():
        bounds = clip_bounds(node) if node.is_op("Clip") else None
        if bounds is not None and bounds[0] == 0 < bounds[1]:
            found.append((node, bounds[1]))
    return found


def _lift(clip: Node) -> None:
    graph, name, label = clip.graph, clip.output.name, clip.name
    relu = graph.add("Relu", [clip.input(0)], types=[clip.output.type])
    graph.replace_uses(clip.output, relu.output)
    remove_unused(graph, [clip])
    graph.rename(relu.output, name)
    graph.rename_node(relu, label)
