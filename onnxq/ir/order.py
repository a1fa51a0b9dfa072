"""The order of a graph's operators, and the graph as networkx sees it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import networkx as nx

from onnxq.errors import InvariantError
from onnxq.ir.node import Node

if TYPE_CHECKING:
    from onnxq.ir.graph import Graph


def in_order(graph: Graph, added: Iterable[Node]) -> Iterator[Node]:
    """See `Graph.nodes`; ``added`` are its operators in the order they were added.

    It is a depth-first post-order: networkx's would need its view after every change, and its
    topological sorts are stable or linear.
    """
    done: set[Node] = set()
    open_nodes: set[Node] = set()
    for start in added:
        if start in done:
            continue
        stack = [(start, _before(graph, start))]
        open_nodes.add(start)
        while stack:
            node, remaining = stack[-1]
            for before in remaining:
                if before in open_nodes:
                    raise InvariantError(
                        f"graph '{graph.name}' has a cycle through node {before.label}"
                    )
                if before not in done:
                    stack.append((before, _before(graph, before)))
                    open_nodes.add(before)
                    break
            else:
                stack.pop()
                open_nodes.discard(node)
                done.add(node)
                yield node


def _before(graph: Graph, node: Node) -> Iterator[Node]:
    """The operators of a graph whose outputs a node or its subgraphs read."""
    for reader in (node, *(n for subgraph in node._subgraphs for n in subgraph.all_nodes())):
        for value in reader._inputs:
            if value is not None and value.producer is not None and value._graph is graph:
                yield value.producer


def view(graph: Graph, added: Iterable[Node]) -> nx.MultiDiGraph[Node]:
    """See `Graph.networkx`; ``added`` are its operators in the order they were added."""
    found: nx.MultiDiGraph[Node] = nx.MultiDiGraph()
    found.add_nodes_from(added)
    for value in graph.values.values():
        for use in value._uses:
            reader = graph.holder(use.node)
            if value.producer is not None and reader is not None:
                found.add_edge(value.producer, reader, key=use)
    return found
