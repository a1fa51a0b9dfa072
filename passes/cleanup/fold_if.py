"""Replacing an If whose condition is known by the branch it takes."""

from __future__ import annotations

from dataclasses import dataclass

from onnxq.ir import Context, Graph, Node, Pass, Value
from onnxq.ir.copying import inline, inline_constant
from onnxq.ir.types import merge_types


@dataclass(frozen=True)
class FoldIf(Pass):
    """Put the branch that an If of constant condition takes in the place of the If.

    Rewritten: an If whose condition is a constant of one element, in subgraphs too. The branch's
    operators move into the graph around it, with their constants and their own subgraphs; names
    stay where they are free and are made unique elsewhere; graph outputs keep their names.

    Not rewritten: a condition that the caller may override, or that is only known to be constant
    after `fold-constants` has run.
    """

    name = "fold-if"
    default = True

    def run(self, graph: Graph, ctx: Context) -> int:
        """See `Pass.run`; counts the Ifs that are gone."""
        made = 0
        pending = list(reversed(graph.nodes()))
        while pending:
            node = pending.pop()
            branch = _taken_branch(node)
            if branch is not None:
                ctx.rewrote(f"{node.label}: its condition is constant")
                pending += reversed(_replace(node, branch))
                made += 1
                continue
            for subgraph in node.subgraphs():
                made += self.run(subgraph, ctx)
        return made


def _taken_branch(node: Node) -> Graph | None:
    if not node.is_op("If"):
        return None
    condition = node.input(0)
    if condition is None or not condition.is_constant or condition.numpy().size != 1:
        return None
    branch = node.get("then_branch" if condition.numpy().reshape(-1)[0] else "else_branch")
    return branch if isinstance(branch, Graph) else None


def _replace(node: Node, branch: Graph) -> list[Node]:
    """Move the branch's content out and give the nodes that now stand for the If."""
    graph = node.graph
    mapping: dict[Value, Value] = {}
    made = inline(branch.nodes(), graph, mapping)
    for old, inner in zip(node.outputs, branch.outputs, strict=True):
        if old is None:
            continue
        if inner not in mapping and inner.graph is branch:
            mapping[inner] = inline_constant(inner, graph)
        new = mapping.get(inner, inner)
        new.type = merge_types(new.type, old.type)
        graph.replace_uses(old, new)
    names = [(new, old.name) for old, new in mapping.items() if new is not old]
    nodes = list(zip(made, [n.name for n in branch.nodes()], strict=True))
    condition = node.input(0)
    graph.remove(node)
    if condition is not None and condition.graph is graph and not condition.is_used:
        graph.discard(condition)
    _restore_names(graph, names, nodes)
    return made


def _restore_names(
    graph: Graph, values: list[tuple[Value, str]], nodes: list[tuple[Node, str]]
) -> None:
    """Give back the names of the branch, as far as nothing else in the model has them."""
    for value, name in values:
        if not value.is_output and graph.fresh_name(name) == name:
            graph.rename(value, name)
    for node, name in nodes:
        if name:
            graph.rename_node(node, name)
