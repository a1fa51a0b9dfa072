"""Weights that a model file holds itself, past protobuf: read from the file, and written into it.

Protobuf would hold all of them in memory, several times while it writes, and for as long as the
graph lives where it has read them.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import onnx
from google.protobuf.message import DecodeError

from onnxq.ir.stored import Stored, data_file
from onnxq.ir.tensor import SPILL_MINIMUM, Tensor
from onnxq.ir.types import DataType
from onnxq.ir.withheld import Withheld

PROTOBUF_LIMIT = 2**31 - 1
"""Bytes one protobuf message may take; larger models keep their weights beside them."""

SMALLEST_FILE = 1 << 26
"""Bytes from which a file's weights are left in it."""

_INITIALIZER = (("graph", onnx.ModelProto), ("initializer", onnx.GraphProto))
_PATH = tuple(kind.DESCRIPTOR.fields_by_name[name].number for name, kind in _INITIALIZER)
"""Numbers of the fields that lead to an initializer."""

_TENSOR_FIELDS = onnx.TensorProto.DESCRIPTOR.fields_by_name
_RAW = _TENSOR_FIELDS["raw_data"].number
_PLAIN = {_TENSOR_FIELDS[name].number for name in ("dims", "data_type", "name", "raw_data")}
"""Fields of a tensor of which nothing is lost when its numbers lie elsewhere."""

_DATA_TYPES = {int(kind) for kind in DataType}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class _DamagedError(Exception):
    """The file is no message as one may expect; protobuf says better what is wrong."""


def withhold(path: Path) -> tuple[bytes, Withheld] | None:
    """The message in a model file without the numbers of its large initializers, and those.

    None where the file is small, holds no large initializer, cannot be read or seems damaged.
    """
    if not os.path.isfile(path) or not SMALLEST_FILE <= os.path.getsize(path) <= PROTOBUF_LIMIT:
        return None
    store = Withheld()
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        with mapped, memoryview(mapped) as view:
            message = b"".join(_without(view, 0, len(view), path, store, _PATH))
    except (OSError, _DamagedError, DecodeError):
        return None
    return (message, store) if len(store) else None


class Embedding(Withheld):
    """A `TensorStore` that keeps large constants out of a message, and writes the file with them.

    Args:
        tensors: Initializers of the main graph; other constants stay in the message.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        large = (tensor for tensor in tensors if tensor.nbytes >= SPILL_MINIMUM)
        # What was read as a message is written as it was.
        self._large = {id(tensor) for tensor in large if not tensor.is_message}

    def put(self, tensor: Tensor, name: str) -> onnx.TensorProto:
        """See `TensorStore.put`."""
        is_large = bool(name) and id(tensor) in self._large
        return super().put(tensor, name) if is_large else tensor.to_proto(name)

    def write(self, message: bytes, file: BinaryIO) -> None:
        """Write a serialized model with all its constants in it."""
        with memoryview(message) as view:
            pieces, _ = self._filled(view, 0, len(view), _PATH)
            for piece in pieces:
                if isinstance(piece, Tensor):
                    piece.copy_to(file)
                else:
                    file.write(piece)

    def _filled(
        self, view: memoryview, start: int, end: int, below: tuple[int, ...]
    ) -> tuple[list[bytes | memoryview | Tensor], int]:
        """What a message is made of when constants are back in it, and how many bytes that is."""
        pieces: list[bytes | memoryview | Tensor] = []
        length, copied = end - start, start
        for number, field, begin, stop in _fields(view, start, end):
            if number != below[0]:
                continue
            if len(below) > 1:
                inner, size = self._filled(view, begin, stop, below[1:])
            else:
                proto = onnx.TensorProto.FromString(bytes(view[begin:stop]))
                tensor = self.find(proto)
                if tensor is None:
                    continue
                plain = onnx.TensorProto(
                    dims=proto.dims, data_type=proto.data_type, name=proto.name
                )
                head = plain.SerializeToString() + _prefix(_RAW, tensor.nbytes)
                inner, size = [head, tensor], len(head) + tensor.nbytes
            prefix = _prefix(number, size)
            pieces += [view[copied:field], prefix, *inner]
            length += len(prefix) + size - (stop - field)
            copied = stop
        return [*pieces, view[copied:end]], length


def _without(
    view: memoryview, start: int, end: int, path: Path, store: Withheld, below: tuple[int, ...]
) -> Iterator[bytes]:
    """The bytes of a message whose fields ``below`` lead to tensors."""
    copied = start
    for number, field, begin, stop in _fields(view, start, end):
        if number != below[0] or stop - begin < SPILL_MINIMUM:
            continue
        if len(below) > 1:
            inner = b"".join(_without(view, begin, stop, path, store, below[1:]))
        else:
            inner = _named(view, begin, stop, path, store)
            if not inner:
                continue
        yield bytes(view[copied:field])
        yield _prefix(number, len(inner)) + inner
        copied = stop
    yield bytes(view[copied:end])


def _named(view: memoryview, start: int, end: int, path: Path, store: Withheld) -> bytes:
    """A tensor's message that only names its numbers; empty where they have to stay in it."""
    rest, raw = bytearray(), None
    for number, field, begin, stop in _fields(view, start, end):
        if number not in _PLAIN or (number == _RAW and raw is not None):
            return b""
        if number == _RAW:
            raw = begin, stop - begin
        else:
            rest += view[field:stop]
    if raw is None or raw[1] < SPILL_MINIMUM:
        return b""
    proto = onnx.TensorProto.FromString(bytes(rest))
    if proto.data_type not in _DATA_TYPES or any(d < 0 for d in proto.dims):
        return b""
    tensor = Tensor.from_stored(
        Stored(data_file(path), *raw), DataType(proto.data_type), tuple(proto.dims)
    )
    if tensor.dtype in (DataType.UNDEFINED, DataType.STRING) or tensor.nbytes != raw[1]:
        return b""
    named: bytes = store.put(tensor, proto.name).SerializeToString()
    return named


def _fields(view: memoryview, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Number of every field of a message, where the field begins, and where its bytes do and end.

    Raises:
        _DamagedError: the message is cut off, or holds what no ONNX file does.
    """
    at = start
    while at < end:
        field = at
        tag, at = _read_varint(view, at, end)
        kind, begin = tag & 7, at
        if kind == _VARINT:
            _, at = _read_varint(view, at, end)
        elif kind == _BYTES:
            length, begin = _read_varint(view, at, end)
            at = begin + length
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        else:
            raise _DamagedError
        if at > end:
            raise _DamagedError
        yield tag >> 3, field, begin, at


def _read_varint(view: memoryview, at: int, end: int) -> tuple[int, int]:
    number = 0
    for place in range(10):
        if at + place >= end:
            raise _DamagedError
        byte = view[at + place]
        number |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return number, at + place + 1
    raise _DamagedError


def _prefix(number: int, length: int) -> bytes:
    """What stands before the bytes of a field."""
    return _varint(number << 3 | _BYTES) + _varint(length)


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)
