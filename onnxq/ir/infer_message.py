"""The messages about which ONNX's shape inference is asked."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence

import onnx

from onnxq.ir.copying import reads
from onnxq.ir.graph import Graph
from onnxq.ir.node import Node, Value
from onnxq.ir.saving import FIRST_OVERRIDABLE, to_proto, write_initializer, write_node
from onnxq.ir.shape_values import Elements, constant_ints, elements_of
from onnxq.ir.tensor import Tensor
from onnxq.ir.types import type_to_proto
from onnxq.ir.withheld import Withheld


def whole_message(graph: Graph) -> onnx.ModelProto:
    """A model, with large constants as types only."""
    message = to_proto(graph, Withheld())
    _write_types(graph, message.graph)
    return message


def part_message(
    graph: Graph, nodes: Sequence[Node], known: Mapping[Value, Elements]
) -> onnx.ModelProto:
    """A model of some nodes of a graph, with what is known of all that they read and make.

    ``known`` are elements of shape computations; where all of a vector's are known it appears as
    if it were constant.
    """
    message = to_proto(Graph(graph.name, model=graph.model))
    # Below that, ONNX takes no notice of initializers that are no inputs.
    message.ir_version = max(message.ir_version, FIRST_OVERRIDABLE)
    proto, store = message.graph, Withheld()
    made = dict.fromkeys(v for node in nodes for v in node.outputs if v is not None)
    read = dict.fromkeys(v for node in nodes for v in reads(node) if v not in made)
    for node in nodes:
        write_node(node, proto.node.add(), store)
    for value in read:
        if value.data is not None:
            write_initializer(value, proto, store)
        elif (numbers := _numbers(value, known)) is not None:
            proto.initializer.append(numbers.to_proto(value.name))
        if value.type is not None and not value.is_constant:
            proto.input.add(name=value.name).type.CopyFrom(type_to_proto(value.type))
    for value in made:
        if value.type is not None:
            proto.value_info.add(name=value.name).type.CopyFrom(type_to_proto(value.type))
    return message


def complete(nodes: Sequence[Node], proto: onnx.GraphProto) -> None:
    """Add to the message of some nodes what ONNX needs to know in the graphs held by them."""
    for inner, message in nested(nodes, proto):
        _write_types(inner, message)
        _write_captured(inner, message)


def nested(
    nodes: Sequence[Node], proto: onnx.GraphProto
) -> Iterator[tuple[Graph, onnx.GraphProto]]:
    """Each graph held by some nodes, or by nodes in it, with the message made of it."""
    for node, message in zip(nodes, proto.node, strict=True):
        if not any(True for _ in node.subgraphs()):
            continue
        for name, attribute in zip(node.attributes, message.attribute, strict=True):
            messages = [attribute.g] if attribute.HasField("g") else attribute.graphs
            for subgraph, inner in zip(node.attributes[name].graphs(), messages, strict=False):
                yield subgraph, inner
                yield from nested(subgraph.nodes(), inner)


def _numbers(value: Value, known: Mapping[Value, Elements]) -> Tensor | None:
    elements = elements_of(value, known)
    if elements is None or value.dtype is None:
        return None
    if not all(isinstance(element, int) for element in elements.flat):
        return None
    return Tensor(elements.astype(value.dtype.numpy))


def _write_types(graph: Graph, proto: onnx.GraphProto) -> None:
    """Add what earlier rounds and passes found, which a file does not state.

    Symbols that ONNX made up then are taken: without them it would use their names again, for
    other dimensions.
    """
    message_of = functools.cache(type_to_proto)
    for name, value in graph.values.items():
        known = value.type
        if known is None or value.producer is None or value.declared or value.is_output:
            continue
        proto.value_info.add(name=name).type.CopyFrom(message_of(known))


def _write_captured(graph: Graph, proto: onnx.GraphProto) -> None:
    """Repeat in a subgraph the numbers of outer scopes that say how large its tensors are.

    ONNX's inference does not look for them there.
    """
    captured = dict.fromkeys(
        value
        for node in graph.nodes()
        for value in node.inputs
        if value is not None and value.graph is not graph
    )
    for value in captured:
        if value.data is not None and constant_ints(value) is not None:
            proto.initializer.append(value.data.to_proto(value.name))
