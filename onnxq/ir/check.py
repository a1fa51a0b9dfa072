"""The invariants of a graph."""

from __future__ import annotations

from onnxq.errors import InvariantError
from onnxq.ir.graph import Graph
from onnxq.ir.node import Node, Use, Value


def check(graph: Graph) -> None:
    """Verify a graph and its subgraphs; see `Graph.check`.

    Every value a node reads is defined in a scope it can see, before the node; values know
    their producer, slot and uses, and no name of a value around them; outputs are counted; no
    cycle.

    Raises:
        InvariantError: naming the node or value at fault.
    """
    _check(graph, frozenset())


def _check(graph: Graph, visible: frozenset[Graph]) -> None:
    scopes = visible | {graph}
    for name, value in graph.values.items():
        _check_value(graph, name, value)
    for name in (n for scope in visible for n in graph.values.keys() & scope.values.keys()):
        raise InvariantError(f"'{name}' of graph '{graph.name}' is the name of a value around it")
    counts: dict[Value, int] = {}
    for value in graph.outputs:
        if value.graph not in scopes:
            raise InvariantError(f"output '{value.name}' of graph '{graph.name}' is out of scope")
        counts[value] = counts.get(value, 0) + 1
    for value in graph.values.values():
        if value._output_count != counts.get(value, 0):
            raise InvariantError(f"value '{value.name}' miscounts the graph outputs it is")
    for node in graph.nodes():
        _check_node(graph, node, scopes)
        for subgraph in node.subgraphs():
            if subgraph.owner is not node or subgraph.outer is not graph:
                raise InvariantError(
                    f"the subgraph '{subgraph.name}' does not know its owner, node {node.label}"
                )
            _check(subgraph, scopes)
    _check_uses(graph)


def _check_value(graph: Graph, name: str, value: Value) -> None:
    if value.name != name or value.graph is not graph:
        raise InvariantError(f"value '{value.name}' is filed under '{name}'")
    if value.producer is not None:
        node = value.producer
        if node not in graph:
            raise InvariantError(f"value '{name}' is made by {node.label}, which was removed")
        if value.slot >= len(node.outputs) or node.outputs[value.slot] is not value:
            raise InvariantError(f"value '{name}' is not an output of its producer {node.label}")
        if value.is_input or value.data is not None:
            raise InvariantError(f"value '{name}' is made by {node.label} and also fed or constant")
    elif not value.is_input and value.data is None:
        raise InvariantError(f"value '{name}' is made by no node, is no input and has no data")


def _check_node(graph: Graph, node: Node, scopes: frozenset[Graph]) -> None:
    if not node.in_graph or node.graph is not graph:
        raise InvariantError(f"node {node.label} does not know its graph '{graph.name}'")
    for slot, value in enumerate(node.inputs):
        if value is None:
            continue
        if value.graph not in scopes or value.graph.values.get(value.name) is not value:
            raise InvariantError(f"node {node.label} reads '{value.name}', which is out of scope")
        if Use(node, slot) not in value._uses:
            raise InvariantError(f"value '{value.name}' does not know its reader {node.label}")
    for value in node.outputs:
        if value is not None and value.producer is not node:
            raise InvariantError(f"output '{value.name}' does not know its producer {node.label}")


def _check_uses(graph: Graph) -> None:
    for value in graph.values.values():
        for use in value._uses:
            inside = graph.holder(use.node) is not None
            if not inside or use.node.input(use.slot) is not value:
                raise InvariantError(
                    f"value '{value.name}' counts a use that node {use.node.label} does not make"
                )
