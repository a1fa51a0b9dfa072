"""Writing residual Adds before LayerNormalization as Sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnxq.ir import Context, Graph, Node, Pass

@dataclass(frozen=True)
class ResidualAsSum(Pass):
    """x"""
    name: ClassVar[str] = "residual-as-sum"

    def run(self, graph: Graph, ctx: Context) -> int:
        made = 0
        for nested in list(graph.all_graphs()):
            for node in nested.nodes():
                if _is_residual(node):
                    sum_ = nested.add("Sum", node.inputs, name=node.name, types=[node.output.type])
                    name = node.output.name
                    nested.replace_uses(node.output, sum_.output)
                    nested.remove(node)
                    if nested.find(name) is None: nested.rename(sum_.output, name)
                    made += 1
        return made

def _is_residual(node: Node) -> bool:
    return node.is_op("Add") and any(use.node.is_op("LayerNormalization") and use.slot == 0 for use in node.output.uses) and not any(v is None or v.is_constant for v in node.inputs)
