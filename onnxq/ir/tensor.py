"""Constant data: read lazily, never copied until somebody asks for the numbers."""

from __future__ import annotations

import hashlib
import math
import mmap
import os
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
from onnx.external_data_helper import uses_external_data

from onnxq.errors import InputError
from onnxq.ir.types import DataType


class Tensor:
    """Constant data of one tensor: dtype, shape and, on demand, the numbers.

    Made from an array, from a ``TensorProto`` (kept as it is until the numbers are asked
    for) or from a ``SparseTensorProto``. A tensor never changes; a rewrite makes a new one.
    """

    __slots__ = ("_array", "_digest", "_folder", "_proto", "_sparse", "dtype", "shape")

    def __init__(self, array: np.ndarray) -> None:
        self._array: np.ndarray | None = array
        self._proto: onnx.TensorProto | None = None
        self._sparse: onnx.SparseTensorProto | None = None
        self._folder: Path | None = None
        self._digest: bytes | None = None
        self.dtype = DataType.of(array.dtype)
        self.shape: tuple[int, ...] = array.shape

    @classmethod
    def from_proto(cls, proto: onnx.TensorProto, folder: Path | None = None) -> Tensor:
        """Wrap a ``TensorProto``; ``folder`` is where its external data lies, if it has any.

        Raises:
            InputError: the element type or a dimension is none that ONNX knows, the data is
                too short for the shape, or external data lies outside ``folder``.
        """
        tensor = cls.__new__(cls)
        tensor._array = tensor._sparse = tensor._digest = None
        tensor._proto = proto
        tensor._folder = folder
        tensor.dtype = _data_type(proto)
        tensor.shape = tuple(int(d) for d in proto.dims)
        if any(d < 0 for d in tensor.shape):
            raise InputError(
                f"tensor '{proto.name}' has a negative dimension in its shape "
                f"{list(tensor.shape)}; the model file is damaged, export it again"
            )
        if uses_external_data(proto):
            _external_location(proto, folder)
        else:
            _check_length(proto, tensor)
        return tensor

    @classmethod
    def from_sparse(cls, proto: onnx.SparseTensorProto) -> Tensor:
        """Wrap a ``SparseTensorProto``; its numbers are read as a dense array."""
        tensor = cls.__new__(cls)
        tensor._array = tensor._proto = tensor._folder = tensor._digest = None
        tensor._sparse = proto
        tensor.dtype = _data_type(proto.values)
        tensor.shape = tuple(int(d) for d in proto.dims)
        return tensor

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes the elements take in an ONNX file (strings: their characters)."""
        if self.dtype is DataType.STRING:
            return sum(len(str(s)) for s in self.numpy().reshape(-1))
        return (self.size * self.dtype.bits + 7) // 8

    @property
    def is_sparse(self) -> bool:
        """Whether the model file held it as a sparse initializer."""
        return self._sparse is not None

    @property
    def is_external(self) -> bool:
        """Whether the numbers lie in a file beside the model."""
        return self._proto is not None and uses_external_data(self._proto)

    def numpy(self) -> np.ndarray:
        """The numbers as an array that must not be written to.

        Sub-byte and 8-bit float types come as their ml_dtypes; external data comes as a
        memory map that reads from the file only what is touched.
        """
        if self._array is not None:
            return self._array
        if self._sparse is not None:
            array = _densify(self._sparse, self.shape)
        else:
            assert self._proto is not None
            if self.is_external:
                return _map_external(self._proto, self.dtype, self.shape, self._folder)
            array = _decode(self._proto)
        if array.flags.writeable:
            array.flags.writeable = False
        self._array = array
        return array

    def to_proto(self, name: str) -> onnx.TensorProto:
        """The ONNX form under a name, external data read in."""
        if self._proto is not None and not self.is_external:
            proto = onnx.TensorProto()
            proto.CopyFrom(self._proto)
        else:
            proto = onnx.numpy_helper.from_array(np.asarray(self.numpy()))
        if name:
            proto.name = name
        else:
            proto.ClearField("name")
        return proto

    def to_sparse_proto(self, name: str) -> onnx.SparseTensorProto:
        """The sparse form under a name; only for a tensor that was read as sparse."""
        assert self._sparse is not None
        proto = onnx.SparseTensorProto()
        proto.CopyFrom(self._sparse)
        proto.values.name = name
        return proto

    def digest(self) -> bytes:
        """Fingerprint of dtype, shape and every bit of the numbers (so -0.0 is not 0.0)."""
        if self._digest is None:
            array = self.numpy()
            body = hashlib.sha256(f"{int(self.dtype)}{self.shape}".encode())
            if array.dtype == object or array.dtype.kind in "USO":
                for item in array.reshape(-1):
                    text = item if isinstance(item, bytes) else str(item).encode()
                    body.update(len(text).to_bytes(8, "little"))
                    body.update(text)
            else:
                body.update(np.ascontiguousarray(array).view(np.uint8).data)
            self._digest = body.digest()
        return self._digest

    def __repr__(self) -> str:
        return f"Tensor({self.dtype.name.lower()}{list(self.shape)})"


def _decode(proto: onnx.TensorProto) -> np.ndarray:
    try:
        return onnx.numpy_helper.to_array(proto)
    except (ValueError, TypeError) as error:
        raise InputError(
            f"tensor '{proto.name}' cannot be read ({error}); the model file is damaged, "
            "export it again"
        ) from error


def _data_type(proto: onnx.TensorProto) -> DataType:
    try:
        dtype = DataType(proto.data_type)
    except ValueError:
        dtype = DataType.UNDEFINED
    if dtype is DataType.UNDEFINED:
        raise InputError(
            f"tensor '{proto.name}' has element type {proto.data_type}, which ONNX does not "
            "define; the model file is damaged or needs a newer onnx package"
        )
    return dtype


def _check_length(proto: onnx.TensorProto, tensor: Tensor) -> None:
    if tensor.dtype is DataType.STRING:
        held, needed = len(proto.string_data), tensor.size
    elif proto.HasField("raw_data"):
        # Only the serialized size is read here: fetching raw_data would copy every weight.
        held, needed = proto.ByteSize(), tensor.nbytes
    else:
        return
    if held < needed:
        raise InputError(
            f"tensor '{proto.name}' holds {held} of the {needed} bytes or items its shape "
            f"{list(tensor.shape)} needs; the model file is damaged, export it again"
        )


def _external_location(proto: onnx.TensorProto, folder: Path | None) -> tuple[Path, int, int]:
    entries = {e.key: e.value for e in proto.external_data}
    location = entries.get("location", "")
    if folder is None:
        raise InputError(
            f"tensor '{proto.name}' keeps its data in the file '{location}', but the model "
            "was not read from a folder; pass the model's path instead of the loaded model"
        )
    base = folder.resolve()
    # A NUL, which no file name holds, would end the call instead of failing it.
    path = Path(os.path.realpath(base / location.replace("\0", "?")))
    if not location or Path(location).is_absolute() or not path.is_relative_to(base):
        raise InputError(
            f"tensor '{proto.name}' keeps its data in '{location}', outside the model's "
            "folder; move the data file beside the model and correct its location"
        )
    if not os.path.isfile(path):
        raise InputError(
            f"tensor '{proto.name}' keeps its data in '{location}', which is not there; "
            "put the file beside the model"
        )
    tensor_dtype = _data_type(proto)
    needed = (math.prod(proto.dims) * tensor_dtype.bits + 7) // 8
    try:
        offset = int(entries.get("offset", "0"))
        length = int(entries.get("length", str(needed)))
    except ValueError:
        offset, length = -1, -1
    held = path.stat().st_size
    if offset < 0 or length < needed or offset + needed > held:
        raise InputError(
            f"tensor '{proto.name}' needs {needed} bytes at offset {offset} of '{location}', "
            f"which holds {held}; the data file is damaged or belongs to another model"
        )
    return path, offset, needed


def _map_external(
    proto: onnx.TensorProto, dtype: DataType, shape: tuple[int, ...], folder: Path | None
) -> np.ndarray:
    path, offset, length = _external_location(proto, folder)
    if length == 0:
        return np.zeros(shape, dtype=dtype.numpy)
    start = offset - offset % mmap.ALLOCATIONGRANULARITY
    with path.open("rb") as file:
        mapped = mmap.mmap(
            file.fileno(), length + offset - start, access=mmap.ACCESS_READ, offset=start
        )
    if dtype.bits >= 8:
        flat = np.frombuffer(
            mapped, dtype=dtype.numpy, count=math.prod(shape), offset=offset - start
        )
        return flat.reshape(shape)
    inline = onnx.TensorProto(data_type=int(dtype), dims=shape)
    inline.raw_data = mapped[offset - start : offset - start + length]
    array = onnx.numpy_helper.to_array(inline)
    array.flags.writeable = False
    return array


def _densify(proto: onnx.SparseTensorProto, shape: tuple[int, ...]) -> np.ndarray:
    values = onnx.numpy_helper.to_array(proto.values)
    indices = onnx.numpy_helper.to_array(proto.indices)
    dense = np.zeros(shape, dtype=values.dtype)
    if indices.ndim == 1:
        dense.reshape(-1)[indices] = values
    else:
        dense[tuple(indices.T)] = values
    return dense
