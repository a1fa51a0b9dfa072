"""Reading ONNX models into the IR."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import networkx as nx
import onnx
import onnx.helper
from google.protobuf.message import DecodeError, Message

from onnxq.errors import InputError, InvariantError
from onnxq.ir.attribute import Attribute
from onnxq.ir.collector import collector_paused
from onnxq.ir.conformity import require_conformity
from onnxq.ir.embedded import PROTOBUF_LIMIT, withhold
from onnxq.ir.graph import Graph
from onnxq.ir.model_info import ModelInfo
from onnxq.ir.node import Node, Value
from onnxq.ir.saving import FIRST_OVERRIDABLE, PLAIN_FIELDS
from onnxq.ir.tensor import Tensor
from onnxq.ir.types import TensorType, ValueType, merge_types, type_from_proto
from onnxq.ir.withheld import Withheld

_ReadTensor = Callable[[onnx.TensorProto], Tensor]

_LARGEST_VERSION = 2**31 - 1
_MOST_NODES = 10_000_000
"""Of one function with all it calls; runtimes write functions out when they load a model."""


ModelLike = str | os.PathLike[str] | bytes | onnx.ModelProto
"""A model: the path of its file, the file's bytes, or what was parsed from them."""


def load(source: ModelLike) -> Graph:
    """Read a model from a path, serialized bytes or a ``ModelProto``.

    Everything the model holds is kept. Constant data is read when it is first asked for; that of
    a large file is never in memory as a whole.

    Raises:
        InputError: the file is missing or unreadable, is no ONNX model, is damaged, or its
            graph is not valid (a cycle, a name used twice, a value nothing produces).
    """
    if isinstance(source, onnx.ModelProto):
        return from_proto(source)
    if isinstance(source, bytes):
        return from_proto(parse(source, "the serialized model"))
    if not isinstance(source, str | os.PathLike):
        raise InputError(
            "a model is given as a path, its file's bytes or a ModelProto, not as "
            f"{type(source).__name__}"
        )
    path = Path(source)
    found = withhold(path)
    if found is not None:
        return from_proto(parse(found[0], f"'{path}'"), path, found[1])
    return from_proto(parse(read_bytes(path), f"'{path}'"), path)


def read_bytes(path: Path) -> bytes:
    """Read a model file.

    Raises:
        InputError: naming the path and what is wrong with it.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if stat.S_ISCHR(status.st_mode):
                raise InputError(f"the model '{path}' is a device; name an .onnx file")
            if status.st_size > PROTOBUF_LIMIT:
                raise InputError(
                    f"the model '{path}' is larger than the 2 GB that an ONNX file can be; larger "
                    "models keep their weights in files beside it"
                )
            return file.read()
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


def from_proto(
    proto: onnx.ModelProto, path: Path | None = None, withheld: Withheld | None = None
) -> Graph:
    """Read a ``ModelProto``; ``path`` is where it was, for external data and messages.

    ``withheld`` holds constants that the message only names.

    Raises:
        InputError: the graph is not valid.
    """
    info = ModelInfo(
        ir_version=proto.ir_version,
        opset_imports={
            ("" if entry.domain == "ai.onnx" else entry.domain): entry.version
            for entry in proto.opset_import
        },
        metadata={p.key: p.value for p in proto.metadata_props},
        functions=list(proto.functions),
        training_info=list(proto.training_info),
        configuration=list(proto.configuration),
        path=path,
        **{name: getattr(proto, name) for name in PLAIN_FIELDS},
    )
    folder = path.parent if path is not None else None

    def read(tensor: onnx.TensorProto) -> Tensor:
        kept = withheld.find(tensor) if withheld is not None else None
        return kept if kept is not None else Tensor.from_proto(tensor, folder)

    where = f"the model '{path}'" if path is not None else "the model"
    try:
        with collector_paused():
            _require_text(proto)
            _require_versions(proto)
            _require_finite(proto.functions)
            graph = _read_graph(proto.graph, _Scope(Graph(proto.graph.name, model=info)), read)
            if info.ir_version < FIRST_OVERRIDABLE:
                # Old files had to list initializers as inputs as well.
                for value in [v for v in graph.inputs if v.data is not None]:
                    graph.make_constant(value)
            graph.check()
            require_conformity(graph)
    except InvariantError as error:
        raise InputError(f"{where} is not valid: {_one_line(error)}; export it again") from error
    except InputError as error:
        raise InputError(f"{where} cannot be used: {_one_line(error)}") from error
    return graph


class _Scope:
    """What the names in one graph of the file stand for.

    A subgraph may use a name of an outer graph anew. In the IR a name is unique in all that a
    node can see, so the inner value gets a fresh one; the main graph's names never change.
    """

    def __init__(self, graph: Graph, outer: _Scope | None = None) -> None:
        self.graph = graph
        self.values: dict[str, Value] = {}
        self._outer = outer

    def inner(self, name: str) -> _Scope:
        """The scope of a subgraph."""
        return _Scope(Graph(name, outer=self.graph), self)

    def define(self, name: str, value_type: ValueType | None) -> Value:
        if not name:
            raise InvariantError(f"an input or constant of graph '{self.graph.name}' has no name")
        if name in self.values:
            raise InvariantError(f"two values of graph '{self.graph.name}' are called '{name}'")
        shadows = self.graph.find(name) is not None
        value = self.graph._define(self.graph.fresh_name(name) if shadows else name, value_type)
        self.values[name] = value
        return value

    def find(self, name: str) -> Value | None:
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.values:
                return scope.values[name]
            scope = scope._outer
        return None


def _read_graph(proto: onnx.GraphProto, scope: _Scope, read: _ReadTensor) -> Graph:
    graph = scope.graph
    graph.doc_string = proto.doc_string
    graph.metadata = {p.key: p.value for p in proto.metadata_props}
    for entry in proto.input:
        value = scope.define(entry.name, _type_of(entry))
        value.is_input = True
        graph._inputs.append(value)
        _describe(value, entry)
    for tensor in proto.initializer:
        _read_initializer(scope, tensor.name, read(tensor))
    for sparse in proto.sparse_initializer:
        _read_initializer(scope, sparse.values.name, Tensor.from_sparse(sparse))
    pairs = [(node, _declare_node(scope, node)) for node in proto.node]
    for entry in proto.value_info:
        declared = scope.values.get(entry.name)
        if declared is not None and not declared.is_input:
            declared.type = merge_types(_type_of(entry), declared.type)
            declared.declared = True
            _describe(declared, entry)
    for message, node in pairs:
        _read_node(scope, message, node, read)
    for entry in proto.output:
        graph.add_output(_read_output(scope, entry))
    for annotation in proto.quantization_annotation:
        annotated = scope.values.get(annotation.tensor_name)
        if annotated is not None:
            for p in annotation.quant_parameter_tensor_names:
                named = scope.find(p.value)
                annotated.annotation[p.key] = named.name if named is not None else p.value
    return graph


def _read_output(scope: _Scope, entry: onnx.ValueInfoProto) -> Value:
    output = scope.find(entry.name)
    if output is None:
        raise InvariantError(f"nothing makes the output '{entry.name}'")
    if output.graph is not scope.graph:
        raise InvariantError(
            f"subgraph '{scope.graph.name}' gives back '{output.name}', which is made outside it"
        )
    output.type = merge_types(_type_of(entry), output.type)
    if not output.is_input:
        _describe(output, entry)
    return output


def _one_line(error: Exception) -> str:
    """The message of an error; names in damaged files hold anything, line breaks as well."""
    return " ".join(str(error).split())


def _require_text(message: Message) -> None:
    """Refuse text that is not UTF-8, which protobuf hands out as bytes."""
    for field, value in _fields(message):
        if field.type == field.TYPE_STRING:
            texts = [value] if isinstance(value, str | bytes) else value
            if any(isinstance(text, bytes) for text in texts):
                raise InputError(
                    f"the {field.name} of a {message.DESCRIPTOR.name} in it is not UTF-8 text; "
                    "the model file is damaged, export it again"
                )
        elif field.type == field.TYPE_MESSAGE:
            for inner in [value] if isinstance(value, Message) else value:
                _require_text(inner)


def _require_versions(proto: onnx.ModelProto) -> None:
    """Refuse versions of operator sets that cannot be, which ONNX's own functions do not take."""
    for entry in (*proto.opset_import, *(e for f in proto.functions for e in f.opset_import)):
        least = 1 if entry.domain in ("", "ai.onnx") else 0
        if not least <= entry.version <= _LARGEST_VERSION:
            raise InputError(
                f"it imports version {entry.version} of the operator set '{entry.domain}', which "
                "cannot be; export the model again"
            )


def _require_finite(functions: Iterable[onnx.FunctionProto]) -> None:
    """Refuse functions that call themselves, directly or through others: they never end.

    And those that take as good as forever, as each calls the next one twice or more.
    """
    bodies = {(f.domain, f.name, f.overload): list(called(f.node)) for f in functions}
    calls: nx.DiGraph[tuple[str, str, str]] = nx.DiGraph()
    calls.add_nodes_from(bodies)
    calls.add_edges_from((f, g) for f, body in bodies.items() for g in body if g in bodies)
    sizes: dict[tuple[str, str, str], int] = {}
    try:
        for function in reversed(list(nx.topological_sort(calls))):
            sizes[function] = sum(sizes.get(g, 1) for g in bodies[function])
    except nx.NetworkXUnfeasible:
        (domain, name, _), _ = nx.find_cycle(calls)[0]
        raise InputError(
            f"its function '{domain}.{name}' calls itself; export the model again"
        ) from None
    for (domain, name, _), size in sizes.items():
        if size > _MOST_NODES:
            raise InputError(
                f"its function '{domain}.{name}' comes to {size} nodes with the functions it calls "
                f"written out, more than {_MOST_NODES}; export a smaller model"
            )


def called(nodes: Iterable[onnx.NodeProto]) -> Iterator[tuple[str, str, str]]:
    """Domain, name and overload of every operator and function, in subgraphs too."""
    for node in nodes:
        yield node.domain, node.op_type, node.overload
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from called(body.node)


def _fields(message: Message) -> Iterator[tuple[Any, Any]]:
    if not isinstance(message, onnx.TensorProto):
        yield from message.ListFields()
        return
    # Listing all fields of a tensor would copy its numbers.
    for name in ("name", "doc_string", "external_data", "metadata_props"):
        yield message.DESCRIPTOR.fields_by_name[name], getattr(message, name)


def _type_of(entry: onnx.ValueInfoProto) -> ValueType | None:
    try:
        return type_from_proto(entry.type)
    except ValueError as error:
        raise InputError(
            f"value '{entry.name}' has element type {entry.type.tensor_type.elem_type}, which ONNX "
            "does not define; the model file is damaged or needs a newer onnx package"
        ) from error


def _describe(value: Value, entry: onnx.ValueInfoProto) -> None:
    value.doc_string = entry.doc_string
    value.metadata = {p.key: p.value for p in entry.metadata_props}


def _read_initializer(scope: _Scope, name: str, tensor: Tensor) -> None:
    existing = scope.values.get(name)
    if existing is not None and existing.is_input and existing.data is None:
        existing.data = tensor
        return
    scope.define(name, TensorType(tensor.dtype, tensor.shape)).data = tensor


def _declare_node(scope: _Scope, proto: onnx.NodeProto) -> Node:
    """Make the node and its outputs first: files need not hold nodes in order."""
    node = Node(proto.op_type, proto.domain, proto.name)
    node.overload = proto.overload
    node.doc_string = proto.doc_string
    node.metadata = {p.key: p.value for p in proto.metadata_props}
    node.device_configurations = tuple(
        c.SerializeToString(deterministic=True) for c in proto.device_configurations
    )
    for name in proto.output:
        node._add_output(scope.define(name, None) if name else None)
    return node


def _read_node(scope: _Scope, proto: onnx.NodeProto, node: Node, read: _ReadTensor) -> None:
    for name in proto.input:
        value = scope.find(name) if name else None
        if name and value is None:
            raise InvariantError(f"node {node.label} reads '{name}', which nothing produces")
        node._inputs.append(value)
    node._set_attributes({a.name: _read_attribute(scope, a, read) for a in proto.attribute})
    scope.graph._attach(node)


def _read_attribute(scope: _Scope, proto: onnx.AttributeProto, read: _ReadTensor) -> Attribute:
    held = None if proto.ref_attr_name else onnx.helper.get_attribute_value(proto)
    if held is None and not proto.ref_attr_name:
        raise InvariantError(f"attribute '{proto.name}' has no type that ONNX knows")
    value = _held(scope, held, read)
    return Attribute(proto.type, value, proto.ref_attr_name, proto.doc_string)


def _held(scope: _Scope, held: object, read: _ReadTensor) -> object:
    if isinstance(held, list):
        return tuple(_held(scope, item, read) for item in held)
    if isinstance(held, onnx.TensorProto):
        return read(held)
    if isinstance(held, onnx.GraphProto):
        return _read_graph(held, scope.inner(held.name), read)
    return held
