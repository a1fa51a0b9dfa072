"""Text form of graphs: readable print, and ONNX text syntax in."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx.parser
import onnx.printer

from onnxq.errors import InputError
from onnxq.ir.attribute import Attribute
from onnxq.ir.graph import Graph
from onnxq.ir.loading import from_proto
from onnxq.ir.node import Node
from onnxq.ir.saving import to_proto
from onnxq.ir.tensor import Tensor

_SHOWN_NUMBERS = 8
_SHOWN_CHARACTERS = 200


def from_text(text: str) -> Graph:
    """Read a model in ONNX text syntax; see `Graph.from_text`."""
    try:
        proto = onnx.parser.parse_model(text)
    except onnx.parser.ParseError as error:
        reason = " ".join(str(error.args[0] if error.args else error).split())
        raise InputError(f"the text is not in ONNX text syntax: {reason}") from error
    return from_proto(proto)


def to_onnx_text(graph: Graph) -> str:
    """The whole model in ONNX text syntax, every number included; see `Graph.to_text`."""
    text: str = onnx.printer.to_text(to_proto(graph))
    return text


def to_text(graph: Graph) -> str:
    """Readable form: interface, constants, one line a node, subgraphs indented."""
    return "\n".join(_lines(graph, ""))


def _lines(graph: Graph, indent: str) -> Iterator[str]:
    inputs = ", ".join(map(repr, graph.inputs))
    outputs = ", ".join(map(repr, graph.outputs))
    yield f"{indent}{graph.name or 'graph'} ({inputs}) => ({outputs}) {{"
    inner = indent + "    "
    for value in graph.initializers():
        assert value.data is not None
        yield f"{inner}%{value.name}: {value.type} = {_numbers(value.data)}"
    for node in graph.nodes():
        yield from _node_lines(node, inner)
    yield f"{indent}}}"


def _node_lines(node: Node, indent: str) -> Iterator[str]:
    made = ", ".join("_" if v is None else repr(v) for v in node.outputs)
    read = ", ".join("_" if v is None else f"%{v.name}" for v in node.inputs)
    operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    plain = [
        f"{name}={_shown(attribute)}"
        for name, attribute in node.attributes.items()
        if not attribute.graphs()
    ]
    options = f"<{', '.join(plain)}>" if plain else ""
    label = f"  # {node.name}" if node.name else ""
    yield f"{indent}{made} = {operator}{options}({read}){label}"
    for name, attribute in node.attributes.items():
        for subgraph in attribute.graphs():
            yield f"{indent}  {name}:"
            yield from _lines(subgraph, indent + "    ")


def _shown(attribute: Attribute) -> str:
    if attribute.reference:
        return f"@{attribute.reference}"
    value = attribute.plain()
    text = f"{value!r} {_numbers(value)}" if isinstance(value, Tensor) else repr(value)
    return " ".join(text.split())[:_SHOWN_CHARACTERS]


def _numbers(tensor: Tensor) -> str:
    if tensor.size > _SHOWN_NUMBERS:
        return f"... {tensor.nbytes:,} bytes"
    return np.array2string(np.asarray(tensor.numpy()), separator=", ").replace("\n", "")
