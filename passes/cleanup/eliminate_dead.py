"""Removing what no output depends on."""

from __future__ import annotations

from dataclasses import dataclass

from onnxq.ir import Context, Graph, Pass
from onnxq.passes.unused import remove_dead


@dataclass(frozen=True)
class EliminateDead(Pass):
    """Remove operators and constants that no graph output depends on.

    Rewritten: operators none of whose outputs is read, in subgraphs too, random ones included,
    with everything that only they needed; initializers that nobody reads.

    Not rewritten: graph inputs, overridable initializers among them, because callers feed them;
    operators that make no outputs at all, since such a one can only be there for what it does
    besides; unused outputs of an operator that has used ones; initializers that a quantization
    annotation names, and all initializers of a model with training information, which refers to
    them by name.
    """

    name = "eliminate-dead"
    default = True
    after = ("eliminate-common-subexpressions",)

    def run(self, graph: Graph, ctx: Context) -> int:
        """See `Pass.run`; counts the operators and initializers removed."""
        return remove_dead(graph, ctx)
