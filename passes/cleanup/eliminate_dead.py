"""Removing what no output depends on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnxq.ir import Context, Graph, Pass


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

    name: ClassVar[str] = "eliminate-dead"
    default: ClassVar[bool] = True
    after: ClassVar[tuple[str, ...]] = ("eliminate-common-subexpressions",)

    def run(self, graph: Graph, ctx: Context) -> int:
        """See `Pass.run`; counts the operators and initializers removed."""
        made = 0
        for node in reversed(graph.nodes()):
            made_values = [v for v in node.outputs if v is not None]
            if made_values and not any(v.uses or v.is_output for v in made_values):
                graph.remove(node)
                ctx.rewrote(f"{node.label}: nobody reads it")
                made += 1
                continue
            for subgraph in node.subgraphs():
                made += self.run(subgraph, ctx)
        return made + _discard_constants(graph, ctx)


def _discard_constants(graph: Graph, ctx: Context) -> int:
    if graph.model.training_info:
        return 0
    annotated = {name for v in graph.values.values() for name in v.annotation.values()}
    unused = [
        v
        for v in graph.initializers()
        if v.is_constant and not v.uses and not v.is_output and v.name not in annotated
    ]
    for value in unused:
        graph.discard(value)
        ctx.rewrote(f"initializer '{value.name}': nobody reads it")
    return len(unused)
