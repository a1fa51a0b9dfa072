"""Giving Reshapes a constant target where what they make is known."""

from __future__ import annotations

from dataclasses import dataclass

from onnxq.ir import Context, Graph, Node, Pass, Shape
from onnxq.passes.nodes import state, visit
from onnxq.passes.unused import remove_computation


@dataclass(frozen=True)
class FoldReshapeTargets(Pass):
    """Give a Reshape whose target is computed a constant one where its result's shape is known.

    Exporters compute targets from the batch size at run time, in several operators for each
    Reshape. These go where nothing else reads them, and other passes see what a Reshape does.

    Rewritten: a Reshape with a target that is not constant, from opset 5 on, if in its result's
    shape

    - every dimension that is not a known number is named, and named the same at the same place of
      the input: all of them are copied (0), which is how onnxruntime's fusions look for them;
    - or only one is not a known number: it is inferred (-1).

    Not rewritten:

    - A result of which a dimension is 0: in a target that means another thing.
    - One dimension copied and one inferred: with an empty batch that fails.
    - A result that is declared nowhere and cannot be inferred.

    A Reshape that would have failed at run time, since its target did not fit, may succeed.
    """

    name = "fold-reshape-targets"
    default = True
    needs_types = True

    def run(self, graph: Graph, ctx: Context) -> int:
        """See `Pass.run`; counts the Reshapes that got a constant target."""
        return visit(graph, ctx, {"Reshape"}, _fold)


def _fold(node: Node) -> str | None:
    target, data = node.input(1), node.input(0)
    if target is None or data is None or target.producer is None:
        return None
    found = _constant_target(data.shape, node.output.shape)
    if found is None:
        return None
    state(node, "shape", 1, found)
    if 0 in found:
        node.graph.set_attribute(node, "allowzero", None)
    remove_computation(target)
    return "its target is constant"


def _constant_target(read: Shape | None, made: Shape | None) -> list[int] | None:
    """A target that makes this shape of that one, None if a constant cannot say it."""
    if made is None or 0 in made:
        return None
    open_places = [at for at, dim in enumerate(made) if not isinstance(dim, int)]
    known = [dim if isinstance(dim, int) else 0 for dim in made]
    copied = [
        read is not None and at < len(read) and made[at] is not None and read[at] == made[at]
        for at in open_places
    ]
    if all(copied):
        return known
    if len(open_places) > 1:
        return None
    known[open_places[0]] = -1
    return known
