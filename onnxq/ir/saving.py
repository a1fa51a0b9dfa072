"""Writing the IR as ONNX models."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

import onnx
from google.protobuf.message import Message

from onnxq.errors import InputError
from onnxq.ir.attribute import Attribute
from onnxq.ir.embedded import PROTOBUF_LIMIT, Embedding
from onnxq.ir.graph import Graph
from onnxq.ir.node import Node, Value
from onnxq.ir.stored import keep_readable
from onnxq.ir.tensor import Tensor
from onnxq.ir.types import DataType, TensorType, type_to_proto
from onnxq.ir.withheld import elsewhere

EXTERNAL_MINIMUM = 1024
"""Bytes from which a tensor goes into the external data file."""

FIRST_OVERRIDABLE = 4
"""IR version from which an initializer that is an input too may be fed.

Before, every initializer had to be listed among the inputs, and none could be overridden.
"""

PLAIN_FIELDS = ("producer_name", "producer_version", "domain", "model_version", "doc_string")
"""What a model file says of itself, under the names that `ModelInfo` has for it."""

_ALIGNMENT = 4096

_SMALL = 1 << 26
"""Bytes of constants up to which a whole message is made to see how large it is."""


def save(
    graph: Graph,
    path: str | os.PathLike[str],
    *,
    external_data: bool = False,
    shared: SharedData | None = None,
) -> None:
    """Write a model file, complete or not at all.

    The file gets its name only when it is whole. Models too large for one protobuf message,
    and any model with ``external_data``, keep large tensors in ``<name>.data`` beside it, or in a
    ``shared`` file in the same folder. The same graph gives the same bytes every time.

    Raises:
        InputError: the folder does not exist or the file cannot be written.
    """
    target = Path(path)
    if shared is not None:
        with replacing(target) as file:
            file.write(to_proto(graph, shared).SerializeToString(deterministic=True))
        return
    external = external_data or constant_bytes(graph) > PROTOBUF_LIMIT - (1 << 26)
    if not external:
        embedding = Embedding(v.data for v in graph.initializers() if v.data is not None)
        message = to_proto(graph, embedding).SerializeToString(deterministic=True)
        with replacing(target) as file:
            embedding.write(message, file)
            keep_readable(target)
        return
    data_path = target.with_name(target.name + ".data")
    with replacing(target) as file, replacing(data_path) as data_file:
        store = _ExternalStore(data_file, data_path.name)
        proto = to_proto(graph, store)
        file.write(proto.SerializeToString(deterministic=True))
        keep_readable(target)
        keep_readable(data_path)


def to_proto(graph: Graph, store: TensorStore | None = None) -> onnx.ModelProto:
    """The model as a ``ModelProto``."""
    info = graph.model
    proto = onnx.ModelProto()
    proto.ir_version = info.ir_version
    for domain, version in info.opset_imports.items():
        proto.opset_import.add(domain=domain, version=version)
    for name in PLAIN_FIELDS:
        if getattr(info, name):
            setattr(proto, name, getattr(info, name))
    _write_props(proto.metadata_props, info.metadata)
    proto.functions.extend(info.functions)
    proto.training_info.extend(info.training_info)
    proto.configuration.extend(info.configuration)
    _write_graph(graph, proto.graph, store)
    return proto


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that takes its name only when everything went well.

    Raises:
        InputError: the folder is missing, the path is no ordinary file, or it cannot be written.
    """
    _refuse_what_is_no_file(path)
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise InputError(_cannot_write(path, error)) from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(path)
    except OSError as error:
        raise InputError(_cannot_write(path, error)) from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            Path(temporary).unlink()


def check_writable(path: Path) -> None:
    """Find out before long work whether a file could be written.

    Raises:
        InputError: the folder is missing, the path is no ordinary file, or writing is not allowed.
    """
    _refuse_what_is_no_file(path)
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise InputError(_cannot_write(path, error)) from error


def _refuse_what_is_no_file(path: Path) -> None:
    """Devices and pipes would be replaced, not written to: root could lose /dev/null that way."""
    if os.path.isdir(path):
        raise InputError(f"cannot write '{path}': it is a folder; name a file")
    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError(f"cannot write '{path}': it is a device or a pipe; name a file")


def _cannot_write(path: Path, error: OSError) -> str:
    if os.path.isfile(path.parent):
        return f"cannot write '{path}': '{path.parent}' is a file; name a folder"
    if not path.parent.is_dir():
        return f"cannot write '{path}': the folder '{path.parent}' does not exist; create it"
    return f"cannot write '{path}': {error.strerror or error}; choose another place"


class TensorStore(Protocol):
    """Where large tensors go instead of into the model message."""

    def put(self, tensor: Tensor, name: str) -> onnx.TensorProto:
        """Take a tensor over; gives the message that says where it is."""


class _ExternalStore:
    """Appends tensors to one data file and describes where they lie."""

    def __init__(self, file: BinaryIO, location: str) -> None:
        self._file = file
        self._location = location

    def put(self, tensor: Tensor, name: str) -> onnx.TensorProto:
        start = -(-self._file.tell() // _ALIGNMENT) * _ALIGNMENT
        self._file.seek(start)
        tensor.copy_to(self._file)
        length = self._file.tell() - start
        return elsewhere(tensor, name, location=self._location, offset=start, length=length)


class SharedData:
    """A data file for several models in its folder, in which equal tensors are once.

    A `TensorStore` for `save`. What is there stays as it is while more is added.

    Args:
        path: The data file; there must be none yet.
        base: Another one in the same folder: what is in it is not put into this one.
    """

    def __init__(self, path: Path, base: SharedData | None = None) -> None:
        self.path = path
        self._base = base
        self._places: dict[bytes, onnx.TensorProto] = {}

    def put(self, tensor: Tensor, name: str) -> onnx.TensorProto:
        """See `TensorStore.put`."""
        found = self._find(tensor.digest())
        if found is None:
            with self.path.open("r+b" if self.path.exists() else "wb") as file:
                file.seek(0, os.SEEK_END)
                found = _ExternalStore(file, self.path.name).put(tensor, name)
            self._places[tensor.digest()] = found
        proto = onnx.TensorProto()
        proto.CopyFrom(found)
        proto.name = name
        return proto

    def add(self, graph: Graph) -> None:
        """Put all large constants of a graph in."""
        to_proto(graph, self)

    def _find(self, digest: bytes) -> onnx.TensorProto | None:
        inherited = None if self._base is None else self._base._find(digest)
        return inherited or self._places.get(digest)


class _Digests:
    """A `TensorStore` that only says which tensors they are."""

    def put(self, tensor: Tensor, name: str) -> onnx.TensorProto:
        return elsewhere(tensor, name, digest=tensor.digest().hex())


def fingerprint(graph: Graph) -> str:
    """What tells a model from every other one, its weights included."""
    message = to_proto(graph, _Digests()).SerializeToString(deterministic=True)
    return hashlib.sha256(message).hexdigest()


def saved_bytes(graph: Graph) -> int:
    """About as many bytes as a model takes on disk; of a small one, that is one file, exactly."""
    constants = constant_bytes(graph)
    if constants < _SMALL:
        return to_proto(graph).ByteSize()
    return constants + to_proto(graph, _Digests()).ByteSize()


def constant_bytes(graph: Graph) -> int:
    """Bytes of all constants of a model, those of subgraphs included."""
    total = 0
    for nested in graph.all_graphs():
        total += sum(v.data.nbytes for v in nested.initializers() if v.data is not None)
        for node in nested.nodes():
            for attribute in node.attributes.values():
                held = attribute.value if isinstance(attribute.value, tuple) else [attribute.value]
                total += sum(t.nbytes for t in held if isinstance(t, Tensor))
    return total


def _write_graph(graph: Graph, proto: onnx.GraphProto, store: TensorStore | None) -> None:
    # An empty name is written too: ONNX's checker demands that the field is there.
    proto.name = graph.name
    if graph.doc_string:
        proto.doc_string = graph.doc_string
    _write_props(proto.metadata_props, graph.metadata)
    for value in graph.inputs:
        _write_value_info(value, proto.input.add())
    if graph.outer is None and graph.model.ir_version < FIRST_OVERRIDABLE:
        for value in graph.initializers():
            if not value.is_input:
                _write_value_info(value, proto.input.add())
    for value in graph.outputs:
        _write_value_info(value, proto.output.add())
    for node in graph.nodes():
        write_node(node, proto.node.add(), store)
    # As a file is read, whatever order rewrites made them in: a second run gives the same bytes.
    given = [v for v in graph.values.values() if v.producer is None and not v.is_input]
    made = [v for node in graph.nodes() for v in node.outputs if v is not None]
    for value in (*graph.inputs, *given, *made):
        if value.data is not None:
            write_initializer(value, proto, store)
        if value.declared and not value.is_input and not value.is_output:
            _write_value_info(value, proto.value_info.add())
        if value.annotation:
            entry = proto.quantization_annotation.add(tensor_name=value.name)
            _write_props(entry.quant_parameter_tensor_names, value.annotation)


def write_initializer(
    value: Value, proto: onnx.GraphProto, store: TensorStore | None = None
) -> None:
    """Add the data of a value to the initializers of a ``GraphProto``."""
    tensor = value.data
    assert tensor is not None
    if tensor.is_sparse:
        proto.sparse_initializer.append(tensor.to_sparse_proto(value.name))
    else:
        proto.initializer.append(_tensor_message(tensor, value.name, store))


def _tensor_message(tensor: Tensor, name: str, store: TensorStore | None) -> onnx.TensorProto:
    if (
        store is None
        or tensor.is_sparse
        or tensor.dtype is DataType.STRING
        or tensor.nbytes < EXTERNAL_MINIMUM
    ):
        return tensor.to_proto(name)
    return store.put(tensor, name)


def _write_value_info(value: Value, proto: onnx.ValueInfoProto) -> None:
    proto.name = value.name
    if value.type is not None and value.type != TensorType(DataType.UNDEFINED):
        proto.type.CopyFrom(type_to_proto(value.type))
    if value.doc_string:
        proto.doc_string = value.doc_string
    _write_props(proto.metadata_props, value.metadata)


def write_node(node: Node, proto: onnx.NodeProto, store: TensorStore | None = None) -> None:
    """Fill in a ``NodeProto``."""
    proto.op_type = node.op_type
    for name in ("domain", "name", "overload", "doc_string"):
        if getattr(node, name):
            setattr(proto, name, getattr(node, name))
    proto.input.extend("" if v is None else v.name for v in node.inputs)
    proto.output.extend("" if v is None else v.name for v in node.outputs)
    for name, attribute in node.attributes.items():
        _write_attribute(name, attribute, proto.attribute.add(), store)
    _write_props(proto.metadata_props, node.metadata)
    for serialized in node.device_configurations:
        proto.device_configurations.add().ParseFromString(serialized)


def _write_attribute(
    name: str,
    attribute: Attribute,
    proto: onnx.AttributeProto,
    store: TensorStore | None,
) -> None:
    proto.name = name
    proto.type = attribute.kind  # type: ignore[assignment]
    if attribute.doc_string:
        proto.doc_string = attribute.doc_string
    if attribute.reference:
        proto.ref_attr_name = attribute.reference
        return
    if isinstance(attribute.value, Graph):
        # In place: bodies may be large.
        _write_graph(attribute.value, proto.g, store)
        return
    kind = onnx.AttributeProto.AttributeType.Name(attribute.kind)
    field = _FIELDS.get(kind, kind.lower())
    if isinstance(attribute.value, tuple | list):
        getattr(proto, field).extend(_held(item, store) for item in attribute.value)
        return
    held = _held(attribute.value, store)
    if isinstance(held, Message):
        getattr(proto, field).CopyFrom(held)
    else:
        setattr(proto, field, held)


def _held(item: object, store: TensorStore | None) -> object:
    if isinstance(item, Tensor):
        return _tensor_message(item, "", store)
    if not isinstance(item, Graph):
        return item
    proto = onnx.GraphProto()
    _write_graph(item, proto, store)
    return proto


def _write_props(target: object, props: dict[str, str]) -> None:
    for key, text in props.items():
        target.add(key=key, value=text)  # type: ignore[attr-defined]


_FIELDS = {
    "INT": "i",
    "FLOAT": "f",
    "STRING": "s",
    "TENSOR": "t",
    "TYPE_PROTO": "tp",
}
"""Fields of the kinds of attributes that have another name."""
