"""Constant data: read lazily, never copied until somebody asks for the numbers."""

from __future__ import annotations

import contextlib
import hashlib
import math
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, ClassVar

import numpy as np
import onnx
import onnx.numpy_helper
from onnx.external_data_helper import uses_external_data

from onnxq.errors import InputError
from onnxq.ir.packing import PACKED_BITS, pack, unpack
from onnxq.ir.stored import PIECE, External, Stored, data_file, spill
from onnxq.ir.tensor_checks import check_length, check_sparse
from onnxq.ir.types import DataType

SPILL_MINIMUM = 1 << 20
"""Bytes from which computed constants count as large."""

MEMORY_FOR_LARGE = 1 << 27
"""Bytes of large computed constants that stay in memory; more of them go to a temporary file."""


class Tensor:
    """Constant data of one tensor: dtype, shape and, on demand, the numbers.

    Made from an array, from a ``TensorProto`` (kept as it is until the numbers are asked
    for) or from a ``SparseTensorProto``. A tensor never changes; a rewrite makes a new one.
    Arrays for which memory is short (`MEMORY_FOR_LARGE`) are written to a temporary file and
    mapped, which goes away with the tensor.
    """

    __slots__ = (
        "_array", "_digest", "_packed", "_proto", "_share", "_sparse", "_stored", "dtype", "shape"
    )  # fmt: skip

    _array: np.ndarray | None
    _packed: np.ndarray | None
    _proto: onnx.TensorProto | None
    _sparse: onnx.SparseTensorProto | None
    _stored: Stored | None
    _digest: bytes | None
    _share: _Share | None

    def __init__(self, array: np.ndarray) -> None:
        self._set(DataType.of(array.dtype), array.shape)
        self._array = array
        if not _repeats(array):
            self._keep(array)

    def _set(self, dtype: DataType, shape: tuple[int, ...]) -> None:
        self.dtype = dtype
        self.shape = shape
        self._array = self._packed = self._proto = self._sparse = self._stored = None
        self._digest = self._share = None

    @classmethod
    def from_packed(cls, packed: np.ndarray, dtype: DataType, shape: tuple[int, ...]) -> Tensor:
        """Take the bytes of elements of 2 or 4 bits, as a model file holds them.

        They stay as they are, and `numpy` unpacks a large tensor anew each time.

        Raises:
            ValueError: the bytes are too few or too many, or elements do not share bytes.
        """
        tensor = cls.__new__(cls)
        tensor._set(dtype, shape)
        if dtype.bits not in PACKED_BITS or packed.nbytes != tensor.nbytes:
            raise ValueError(f"{packed.nbytes} bytes are no packed {dtype.name} of shape {shape}")
        tensor._packed = np.ascontiguousarray(packed).reshape(-1).view(np.uint8)
        tensor._keep(tensor._packed)
        return tensor

    @classmethod
    def from_proto(cls, proto: onnx.TensorProto, folder: Path | None = None) -> Tensor:
        """Wrap a ``TensorProto``; ``folder`` is where its external data lies, if it has any.

        Raises:
            InputError: the element type or a dimension is none that ONNX knows, the data is
                too short for the shape, or external data lies outside ``folder``.
        """
        tensor = cls.__new__(cls)
        tensor._set(_data_type(proto), tuple(int(d) for d in proto.dims))
        tensor._proto = proto
        if any(d < 0 for d in tensor.shape):
            raise InputError(
                f"tensor '{proto.name}' has a negative dimension in its shape "
                f"{list(tensor.shape)}; the model file is damaged, export it again"
            )
        if uses_external_data(proto):
            tensor._stored = _external(proto, folder)
            tensor._proto = None
        else:
            check_length(proto, tensor.dtype)
        return tensor

    @classmethod
    def from_stored(cls, stored: Stored, dtype: DataType, shape: tuple[int, ...]) -> Tensor:
        """Take what lies in a range of a file."""
        tensor = cls.__new__(cls)
        tensor._set(dtype, shape)
        tensor._stored = stored
        return tensor

    @classmethod
    def from_sparse(cls, proto: onnx.SparseTensorProto) -> Tensor:
        """Wrap a ``SparseTensorProto``; its numbers are read as a dense array.

        Raises:
            InputError: the element type is none that ONNX knows, the parts do not fit each other,
                or the dense tensor would be huge beside what is held.
        """
        tensor = cls.__new__(cls)
        tensor._set(_data_type(proto.values), tuple(int(d) for d in proto.dims))
        tensor._sparse = proto
        check_sparse(proto, tensor.dtype)
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
    def is_message(self) -> bool:
        """Whether it is kept as a message, which may say more than the numbers."""
        return self._proto is not None or self._sparse is not None

    @property
    def is_external(self) -> bool:
        """Whether the numbers lie in a file beside the model."""
        return isinstance(self._stored, External)

    def numpy(self) -> np.ndarray:
        """The numbers as an array that must not be written to.

        Sub-byte and 8-bit float types come as their ml_dtypes; external data comes as a
        memory map that reads from the file only what is touched.
        """
        if self._array is not None:
            return self._array
        if self._stored is not None:
            return _mapped(self._stored, self.dtype, self.shape)
        if self._packed is not None:
            array = _unpacked(self._packed, self.dtype, self.shape)
            if array.nbytes >= SPILL_MINIMUM:
                return array
        elif self._sparse is not None:
            array = _densify(self._sparse, self.shape)
        else:
            assert self._proto is not None
            array = _decode(self._proto)
        if array.flags.writeable:
            array.flags.writeable = False
        self._array = array
        return array

    def to_proto(self, name: str) -> onnx.TensorProto:
        """The ONNX form under a name, external data read in."""
        proto = onnx.TensorProto()
        if self._proto is not None:
            proto.CopyFrom(self._proto)
        elif self._stored is not None or self._packed is not None:
            proto.dims.extend(self.shape)
            proto.data_type = int(self.dtype)
            proto.raw_data = b"".join(self.pieces())
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

    def pieces(self, size: int = PIECE) -> Iterator[bytes | memoryview]:
        """The bytes as a model file holds them, at most ``size`` at a time; not for strings.

        Data in files is read as it goes and never whole.
        """
        if self._stored is not None:
            yield from self._stored.pieces(size)
            return
        if self._packed is not None:
            array = self._packed
        elif self.dtype.bits in PACKED_BITS:
            codes = np.ascontiguousarray(self.numpy()).reshape(-1).view(np.uint8)
            step = size * 8 // self.dtype.bits
            for at in range(0, codes.size, step):
                yield pack(codes[at : at + step], self.dtype.bits).data
            return
        elif self.dtype.bits < 8:
            raw = onnx.numpy_helper.from_array(self.numpy()).raw_data
            array = np.frombuffer(raw, dtype=np.uint8)
        else:
            array = self.numpy()
        for part in _contiguous_parts(array, size):
            flat = part.reshape(-1).view(np.uint8)
            for at in range(0, flat.size, size):
                yield flat[at : at + size].data

    def copy_to(self, file: BinaryIO) -> None:
        """Write the bytes as a model file holds them; not for strings."""
        if self._stored is not None:
            self._stored.copy_to(file)
            return
        for piece in self.pieces():
            file.write(piece)

    def digest(self, limit: int | None = None) -> bytes:
        """Fingerprint of dtype, shape and every bit of the numbers (so -0.0 is not 0.0).

        With ``limit`` only of the first numbers, those in about as many bytes.
        """
        if self._digest is not None and limit is None:
            return self._digest
        body = hashlib.sha256(f"{int(self.dtype)}{self.shape}".encode())
        if self.dtype is DataType.STRING:
            for item in self.numpy().reshape(-1)[:limit]:
                text = item if isinstance(item, bytes) else str(item).encode()
                body.update(len(text).to_bytes(8, "little"))
                body.update(text)
        elif limit is None:
            for piece in self.pieces():
                body.update(piece)
        else:
            body.update(next(self.pieces(limit), b""))
        if limit is None:
            self._digest = body.digest()
        return body.digest()

    def _keep(self, array: np.ndarray) -> None:
        """Hold the numbers in memory, or in a temporary file when those in memory are too many."""
        if array.nbytes >= SPILL_MINIMUM:
            if _Share.held + array.nbytes > MEMORY_FOR_LARGE:
                # On a full disk they stay in memory.
                with contextlib.suppress(OSError):
                    self._stored = spill(self.pieces(), self.nbytes)
                    self._array = self._packed = None
                    return
            self._share = _Share(array.nbytes)
        if self._array is not None and _is_mapped(array):
            # A map holds a descriptor open, and a process may have few.
            self._array = np.array(array)

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


class _Share:
    """What one tensor holds of the memory for large constants, as long as it lives."""

    __slots__ = ("_bytes",)

    held: ClassVar[int] = 0

    def __init__(self, count: int) -> None:
        self._bytes = count
        type(self).held += count

    def __del__(self) -> None:
        type(self).held -= self._bytes


def _repeats(array: np.ndarray) -> bool:
    """Whether elements share their memory, or take more of it than their bytes say."""
    if array.dtype.hasobject or array.dtype.kind in "USOT":
        return True
    steps = zip(array.strides, array.shape, strict=True)
    return any(step == 0 and size > 1 for step, size in steps)


def _is_mapped(array: np.ndarray) -> bool:
    base: object = array
    while isinstance(base, np.ndarray | memoryview):
        base = base.base if isinstance(base, np.ndarray) else base.obj
    return isinstance(base, mmap.mmap)


def _contiguous_parts(array: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """An array in parts that lie in one piece, copied where they do not, about ``size`` bytes."""
    if array.flags.c_contiguous or array.nbytes <= size:
        yield np.ascontiguousarray(array)
        return
    rows = max(1, size // array[0].nbytes)
    for at in range(0, len(array), rows):
        yield from _contiguous_parts(array[at] if rows == 1 else array[at : at + rows], size)


def _external(proto: onnx.TensorProto, folder: Path | None) -> External:
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
    file = data_file(path)
    if offset < 0 or length < needed or offset + needed > file.size:
        raise InputError(
            f"tensor '{proto.name}' needs {needed} bytes at offset {offset} of '{location}', "
            f"which holds {file.size}; the data file is damaged or belongs to another model"
        )
    return External(file, offset, needed)


def _mapped(stored: Stored, dtype: DataType, shape: tuple[int, ...]) -> np.ndarray:
    if dtype.bits >= 8:
        array = stored.map().view(dtype.numpy).reshape(shape)
        # Where a model file holds numbers itself they may begin anywhere.
        return array if array.flags.aligned else _read_only(array.copy())
    if dtype.bits in PACKED_BITS:
        return _unpacked(np.frombuffer(b"".join(stored.pieces()), np.uint8), dtype, shape)
    inline = onnx.TensorProto(data_type=int(dtype), dims=shape)
    inline.raw_data = b"".join(stored.pieces())
    return _read_only(onnx.numpy_helper.to_array(inline))


def _read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def _unpacked(packed: np.ndarray, dtype: DataType, shape: tuple[int, ...]) -> np.ndarray:
    return _read_only(unpack(packed, dtype.bits, math.prod(shape)).view(dtype.numpy).reshape(shape))


def _densify(proto: onnx.SparseTensorProto, shape: tuple[int, ...]) -> np.ndarray:
    values = onnx.numpy_helper.to_array(proto.values)
    indices = onnx.numpy_helper.to_array(proto.indices)
    dense = np.zeros(shape, dtype=values.dtype)
    if indices.ndim == 1:
        dense.reshape(-1)[indices] = values
    else:
        dense[tuple(indices.T)] = values
    return dense
