"""Copies of graphs, whole or in part; constant data is shared, never copied."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from copy import copy as shallow_copy
from dataclasses import fields, replace
from typing import Any

import networkx as nx

from onnxq.errors import InvariantError
from onnxq.ir.attribute import Attribute
from onnxq.ir.collector import collector_paused
from onnxq.ir.graph import Graph
from onnxq.ir.model_info import ModelInfo
from onnxq.ir.node import Node, Value


def copy(graph: Graph) -> Graph:
    """See `Graph.copy`."""
    if graph.outer is not None:
        raise InvariantError(f"subgraph '{graph.name}' can only be copied with its owner")
    with collector_paused():
        return _clone(graph, Graph(graph.name, model=_copy_info(graph.model)), {})


def extract(graph: Graph, inputs: list[Value], outputs: list[Value]) -> Graph:
    """See `Graph.extract`."""
    wanted, needed = _between(graph, inputs, outputs)
    result = Graph(graph.name, model=replace(_copy_info(graph.model), training_info=[]))
    mapping: dict[Value, Value] = {}
    starts = list(dict.fromkeys(inputs))
    starts += [v for v in graph.inputs if v in needed and v not in mapping and v not in starts]
    for value in starts:
        made = result.add_input(value.name, value.type)
        mapping[value] = made
        if value.is_input:
            made.data = value.data
    for value in graph.initializers():
        if value in needed and value not in mapping:
            mapping[value] = _clone_value(value, result)
    _clone_nodes([n for n in graph.nodes() if n in wanted], result, mapping)
    for value in outputs:
        result.add_output(mapping[value])
    return result


def extract_nodes(nodes: list[Node], outputs: list[Value], inputs: Collection[Value] = ()) -> Graph:
    """A new model graph of some nodes of one graph in topological order.

    The nodes read only constants (of any scope) and each other; ``outputs`` are values they make.
    Those constants that are among ``inputs`` are to be fed; else the graph has no inputs.
    """
    info = _copy_info(nodes[0].graph.model)
    held = [n for node in nodes for g in node.subgraphs() for n in g.all_nodes()]
    domains = {"", *(node.domain for node in (*nodes, *held))}
    info.opset_imports = {d: v for d, v in info.opset_imports.items() if d in domains}
    result = Graph("constants", model=replace(info, functions=[], training_info=[]))
    mapping: dict[Value, Value] = {}
    for node in nodes:
        for value in reads(node):
            if not value.is_constant or value in mapping:
                continue
            fed = value in inputs
            mapping[value] = (
                result.add_input(value.name, value.type) if fed else _clone_value(value, result)
            )
    _clone_nodes(nodes, result, mapping)
    for value in outputs:
        result.add_output(mapping[value])
    return result


def inline(nodes: Iterable[Node], target: Graph, mapping: dict[Value, Value]) -> list[Node]:
    """Copy nodes of a subgraph of ``target`` into ``target``, under names new to the whole model.

    Args:
        nodes: nodes of one subgraph, in topological order.
        target: the graph around the subgraph, or one further out.
        mapping: what stands for values of the subgraph in ``target``. Constants that the nodes
            read and values that they make are added; what has no entry stands for itself.

    Returns:
        The copies, in order.
    """
    made = []
    for node in nodes:
        for value in reads(node):
            if value not in mapping:
                own = value.is_constant and value.graph is node.graph
                mapping[value] = inline_constant(value, target) if own else value
        copied = target.add(
            node.op_type,
            [None if v is None else mapping[v] for v in node.inputs],
            {n: _clone_attribute(a, target, mapping) for n, a in node.attributes.items()},
            domain=node.domain,
            outputs=[None if v is None else target.fresh_name(v.name) for v in node.outputs],
            name=node.name,
            types=[None if v is None else v.type for v in node.outputs],
        )
        _describe_node(node, copied)
        for old, new in zip(node.outputs, copied.outputs, strict=True):
            if old is not None and new is not None:
                mapping[old] = new
                _describe(old, new)
        made.append(copied)
    return made


def inline_constant(value: Value, target: Graph) -> Value:
    """Copy a constant of a subgraph into a graph around it, under a name new to the model."""
    assert value.data is not None
    made = target.constant(value.data, value.name)
    _describe(value, made)
    return made


def assign(graph: Graph, source: Graph) -> None:
    """Make a main graph hold what another one holds, model information included."""
    graph._dissolve()
    graph._inputs.clear()
    graph.name = source.name
    graph.model = _copy_info(source.model)
    _clone(source, graph, {})


def reads(node: Node) -> list[Value]:
    """What a node reads, the outer values that its subgraphs capture included."""
    found = [v for v in node.inputs if v is not None]
    for subgraph in node.subgraphs():
        inner = set(subgraph.all_graphs())
        for nested in subgraph.all_nodes():
            found += [v for v in nested.inputs if v is not None and v.graph not in inner]
        found += [v for v in subgraph.outputs if v.graph not in inner]
    return found


def _between(
    graph: Graph, inputs: list[Value], outputs: list[Value]
) -> tuple[set[Node], set[Value]]:
    """The nodes needed to compute ``outputs`` from ``inputs``, and every value they touch."""
    known = set(inputs)

    def is_unknown(_reader: Node, _maker: Node, use: Any) -> bool:
        return use.node.input(use.slot) not in known

    makers = nx.subgraph_view(graph.networkx.reverse(copy=False), filter_edge=is_unknown)
    ends = [v.producer for v in outputs if v not in known and v.producer in graph]
    nodes = {node for layer in nx.bfs_layers(makers, ends) for node in layer}
    values = {*outputs, *(v for node in nodes for v in reads(node))}
    for value in values:
        graph._require_member(value)
    return nodes, values


def _clone(source: Graph, target: Graph, mapping: dict[Value, Value]) -> Graph:
    target.doc_string = source.doc_string
    target.metadata = dict(source.metadata)
    for value in source.inputs:
        made = _clone_value(value, target)
        made.is_input = True
        target._inputs.append(made)
        mapping[value] = made
    for value in source.initializers():
        if value not in mapping:
            mapping[value] = _clone_value(value, target)
    _clone_nodes(list(source.nodes()), target, mapping)
    target.set_outputs([mapping[v] for v in source.outputs])
    return target


def _clone_nodes(nodes: list[Node], target: Graph, mapping: dict[Value, Value]) -> None:
    for node in nodes:
        made = Node(node.op_type, node.domain, node.name)
        _describe_node(node, made)
        for value in node.outputs:
            output = None if value is None else _clone_value(value, target)
            made._add_output(output)
            if value is not None and output is not None:
                mapping[value] = output
        made._inputs = [None if v is None else mapping[v] for v in node.inputs]
        made._set_attributes(
            {n: _clone_attribute(a, target, mapping) for n, a in node.attributes.items()}
        )
        target._attach(made)


def _clone_attribute(
    attribute: Attribute, target: Graph, mapping: Mapping[Value, Value]
) -> Attribute:
    graphs = attribute.graphs()
    if not graphs:
        return attribute
    copies = tuple(_clone(g, Graph(g.name, outer=target), dict(mapping)) for g in graphs)
    value = copies if isinstance(attribute.value, tuple) else copies[0]
    return Attribute(attribute.kind, value, attribute.reference, attribute.doc_string)


def _clone_value(value: Value, target: Graph) -> Value:
    made = target._define(value.name, value.type)
    made.data = value.data
    _describe(value, made)
    return made


def _describe_node(source: Node, target: Node) -> None:
    target.overload, target.doc_string = source.overload, source.doc_string
    target.metadata = dict(source.metadata)
    target.device_configurations = source.device_configurations


def _describe(source: Value, target: Value) -> None:
    target.declared = source.declared
    target.doc_string = source.doc_string
    target.metadata = dict(source.metadata)
    target.annotation = dict(source.annotation)


def _copy_info(info: ModelInfo) -> ModelInfo:
    return replace(info, **{f.name: shallow_copy(getattr(info, f.name)) for f in fields(info)})
