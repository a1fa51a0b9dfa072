"""The first and the last layers of a model, which few bits harm most."""

from __future__ import annotations

from onnxq.ir import Graph, Node
from onnxq.ir.copying import reads
from onnxq.passes.static.placement import Placement


def outermost(graph: Graph, placed: Placement) -> set[Node]:
    """The operators with weights before which, or behind which, there is no other such operator."""
    nodes = graph.nodes()
    rules = {node: placed.nodes.get(node) for node in nodes}
    computing = {node for node, rule in rules.items() if rule and rule.role == "compute"}
    reached, reaching = set[Node](), set[Node]()
    for node in nodes:
        makers = {v.producer for v in reads(node)}
        if makers & (computing | reached):
            reached.add(node)
    for node in reversed(nodes):
        readers = {use.node for v in node.outputs if v is not None for use in v.uses}
        if readers & (computing | reaching):
            reaching.add(node)
    return {node for node in computing if node not in reached or node not in reaching}
