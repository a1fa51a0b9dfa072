"""Removing what nothing reads."""

from __future__ import annotations

from onnxq.ir import Context, Graph, Value, remove_unused


def remove_computation(value: Value) -> None:
    """Remove what makes a value that nothing reads, and in turn what only that read."""
    pending = [value]
    while pending:
        last = pending.pop()
        node, graph = last.producer, last.graph
        if last.is_used or last.is_input or graph.values.get(last.name) is not last:
            continue
        if node is None:
            graph.discard(last)
        elif not any(v is not None and v.is_used for v in node.outputs):
            pending += [v for v in node.inputs if v is not None]
            remove_unused(node.graph, [node])


def remove_dead(graph: Graph, ctx: Context) -> int:
    """Remove what no output of a graph depends on, in its subgraphs too; gives how much that was.

    Operators that make no outputs stay, and so do initializers that a quantization annotation or
    training information may name.
    """
    made = 0
    for node in reversed(graph.nodes()):
        made_values = [v for v in node.outputs if v is not None]
        if made_values and not any(v.is_used for v in made_values):
            graph.remove(node)
            ctx.rewrote(f"{node.label}: nobody reads it")
            made += 1
            continue
        for subgraph in node.subgraphs():
            made += remove_dead(subgraph, ctx)
    return made + _discard_constants(graph, ctx)


def _discard_constants(graph: Graph, ctx: Context) -> int:
    if graph.model.training_info:
        return 0
    annotated = {name for v in graph.values.values() for name in v.annotation.values()}
    unused = [
        v
        for v in graph.initializers()
        if v.is_constant and not v.is_used and v.name not in annotated
    ]
    for value in unused:
        graph.discard(value)
        ctx.rewrote(f"initializer '{value.name}': nobody reads it")
    return len(unused)
