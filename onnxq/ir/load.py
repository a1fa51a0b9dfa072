"""Reading ONNX models into the IR."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from onnxq.errors import InputError, InvariantError
from onnxq.ir.attribute import Attribute
from onnxq.ir.graph import Graph, ModelInfo, Node, Value
from onnxq.ir.save import FIRST_OVERRIDABLE
from onnxq.ir.tensor import Tensor
from onnxq.ir.types import TensorType, merge_types, type_from_proto

_Kind = onnx.AttributeProto


def load(source: str | os.PathLike[str] | bytes | onnx.ModelProto) -> Graph:
    """Read a model from a path, serialized bytes or a ``ModelProto``.

    Everything the model holds is kept. Constant data is read when it is first asked for.

    Raises:
        InputError: the file is missing or unreadable, is no ONNX model, is damaged, or its
            graph is not valid (a cycle, a name used twice, a value nothing produces).
    """
    if isinstance(source, onnx.ModelProto):
        return from_proto(source)
    if isinstance(source, bytes):
        return from_proto(parse(source, "the serialized model"))
    path = Path(source)
    return from_proto(parse(read_bytes(path), f"'{path}'"), path)


def read_bytes(path: Path) -> bytes:
    """Read a model file.

    Raises:
        InputError: naming the path and what is wrong with it.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        reason = {
            errno.ENOENT: "does not exist; check the path",
            errno.EISDIR: "is a folder; name the .onnx file in it",
            errno.EACCES: "may not be read; check its permissions",
        }.get(error.errno or 0, f"cannot be read: {error.strerror}")
        raise InputError(f"the model '{path}' {reason}") from error


def parse(data: bytes, what: str) -> onnx.ModelProto:
    """Parse serialized bytes; ``what`` names them in messages.

    Raises:
        InputError: the bytes are no ONNX model or only a part of one.
    """
    proto = onnx.ModelProto()
    if not data:
        raise InputError(f"{what} is empty; it should be an ONNX model")
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise InputError(
            f"{what} is not an ONNX model or is cut off; export or download it again"
        ) from error
    if not proto.HasField("graph") or not proto.opset_import:
        missing = "graph" if not proto.HasField("graph") else "operator set version"
        raise InputError(
            f"{what} is not a complete ONNX model: it has no {missing}; export or download it again"
        )
    return proto


def from_proto(proto: onnx.ModelProto, path: Path | None = None) -> Graph:
    """Read a ``ModelProto``; ``path`` is where it was, for external data and messages.

    Raises:
        InputError: the graph is not valid.
    """
    info = ModelInfo(
        ir_version=proto.ir_version,
        opset_imports={
            ("" if entry.domain == "ai.onnx" else entry.domain): entry.version
            for entry in proto.opset_import
        },
        producer_name=proto.producer_name,
        producer_version=proto.producer_version,
        domain=proto.domain,
        model_version=proto.model_version,
        doc_string=proto.doc_string,
        metadata={p.key: p.value for p in proto.metadata_props},
        functions=list(proto.functions),
        training_info=list(proto.training_info),
        configuration=list(proto.configuration),
        path=path,
    )
    folder = path.parent if path is not None else None
    where = f"the model '{path}'" if path is not None else "the model"
    try:
        graph = _read_graph(proto.graph, Graph(proto.graph.name, model=info), folder)
        if info.ir_version < FIRST_OVERRIDABLE:
            _make_constant(graph)
        graph.check()
    except InvariantError as error:
        raise InputError(f"{where} is not valid: {error}; export it again") from error
    except InputError as error:
        raise InputError(f"{where} cannot be used: {error}") from error
    return graph


def _read_graph(proto: onnx.GraphProto, graph: Graph, folder: Path | None) -> Graph:
    graph.doc_string = proto.doc_string
    graph.metadata = {p.key: p.value for p in proto.metadata_props}
    for entry in proto.input:
        value = graph.add_input(entry.name, type_from_proto(entry.type))
        _describe(value, entry)
    for tensor in proto.initializer:
        _read_initializer(graph, tensor.name, Tensor.from_proto(tensor, folder))
    for sparse in proto.sparse_initializer:
        _read_initializer(graph, sparse.values.name, Tensor.from_sparse(sparse))
    pairs = [(node, _declare_node(graph, node)) for node in proto.node]
    for entry in proto.value_info:
        declared = graph.values.get(entry.name)
        if declared is not None and not declared.is_input:
            declared.type = merge_types(type_from_proto(entry.type), declared.type)
            declared.declared = True
            _describe(declared, entry)
    for message, node in pairs:
        _read_node(graph, message, node, folder)
    for entry in proto.output:
        output = graph.find(entry.name)
        if output is None:
            raise InvariantError(f"nothing makes the output '{entry.name}'")
        if output.graph is not graph:
            raise InvariantError(
                f"subgraph '{graph.name}' gives back '{output.name}', which is made outside it"
            )
        output.type = merge_types(type_from_proto(entry.type), output.type)
        if not output.is_input:
            _describe(output, entry)
        graph.add_output(output)
    for annotation in proto.quantization_annotation:
        annotated = graph.values.get(annotation.tensor_name)
        if annotated is not None:
            annotated.annotation = {p.key: p.value for p in annotation.quant_parameter_tensor_names}
    return graph


def _make_constant(graph: Graph) -> None:
    """Take initializers out of the inputs, where old files had to list them as well."""
    graph._inputs = [v for v in graph._inputs if v.data is None]
    for value in graph.initializers():
        value.is_input = False


def _describe(value: Value, entry: onnx.ValueInfoProto) -> None:
    value.doc_string = entry.doc_string
    value.metadata = {p.key: p.value for p in entry.metadata_props}


def _read_initializer(graph: Graph, name: str, tensor: Tensor) -> None:
    existing = graph.values.get(name)
    if existing is not None and existing.is_input and existing.data is None:
        existing.data = tensor
        return
    value = graph._define(name, TensorType(tensor.dtype, tensor.shape))
    value.data = tensor


def _declare_node(graph: Graph, proto: onnx.NodeProto) -> Node:
    """Make the node and its outputs first: files need not hold nodes in order."""
    node = Node(proto.op_type, proto.domain, proto.name)
    node.overload = proto.overload
    node.doc_string = proto.doc_string
    node.metadata = {p.key: p.value for p in proto.metadata_props}
    node.device_configurations = tuple(
        c.SerializeToString(deterministic=True) for c in proto.device_configurations
    )
    for slot, name in enumerate(proto.output):
        if not name:
            node._outputs.append(None)
            continue
        value = graph._define(name, None)
        value.producer, value._slot = node, slot
        node._outputs.append(value)
    return node


def _read_node(graph: Graph, proto: onnx.NodeProto, node: Node, folder: Path | None) -> None:
    for name in proto.input:
        value = graph.find(name) if name else None
        if name and value is None:
            raise InvariantError(f"node {node.label} reads '{name}', which nothing produces")
        node._inputs.append(value)
    for attribute in proto.attribute:
        node._attributes[attribute.name] = _read_attribute(graph, attribute, folder)
    graph._attach(node)


def _read_attribute(graph: Graph, proto: onnx.AttributeProto, folder: Path | None) -> Attribute:
    value = _read_attribute_value(graph, proto, folder)
    return Attribute(proto.type, value, proto.ref_attr_name, proto.doc_string)


def _read_attribute_value(graph: Graph, proto: onnx.AttributeProto, folder: Path | None) -> object:
    kind = proto.type
    if proto.ref_attr_name:
        return None
    if kind == _Kind.TENSOR:
        return Tensor.from_proto(proto.t, folder)
    if kind == _Kind.TENSORS:
        return tuple(Tensor.from_proto(t, folder) for t in proto.tensors)
    if kind == _Kind.GRAPH:
        return _read_graph(proto.g, Graph(proto.g.name, outer=graph), folder)
    if kind == _Kind.GRAPHS:
        return tuple(_read_graph(g, Graph(g.name, outer=graph), folder) for g in proto.graphs)
    if kind in (_Kind.INTS, _Kind.FLOATS, _Kind.STRINGS, _Kind.TYPE_PROTOS, _Kind.SPARSE_TENSORS):
        return tuple(getattr(proto, _FIELDS[kind]))
    if kind in _FIELDS:
        return getattr(proto, _FIELDS[kind])
    raise InvariantError(f"attribute '{proto.name}' has no type that ONNX knows")


_FIELDS = {
    _Kind.INT: "i",
    _Kind.FLOAT: "f",
    _Kind.STRING: "s",
    _Kind.INTS: "ints",
    _Kind.FLOATS: "floats",
    _Kind.STRINGS: "strings",
    _Kind.TYPE_PROTO: "tp",
    _Kind.TYPE_PROTOS: "type_protos",
    _Kind.SPARSE_TENSOR: "sparse_tensor",
    _Kind.SPARSE_TENSORS: "sparse_tensors",
}
