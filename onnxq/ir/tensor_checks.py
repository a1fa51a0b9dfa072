"""Whether the messages that hold tensors hold what their shapes say."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnx.numpy_helper

from onnxq.errors import InputError
from onnxq.ir.types import DataType

_SPARSE_BYTES = 1 << 28
_SPARSE_FACTOR = 1 << 12
"""A sparse tensor larger than both limits as a dense one is damage or an attack."""


def check_length(proto: onnx.TensorProto, dtype: DataType) -> None:
    """Refuse embedded data that is not exactly what the shape needs.

    Raises:
        InputError: naming the tensor and both lengths.
    """
    size = math.prod(proto.dims)
    if dtype is DataType.STRING:
        held, needed = len(proto.string_data), size
    elif proto.HasField("raw_data"):
        needed = (size * dtype.bits + 7) // 8
        held = _raw_length(proto, needed)
    else:
        held = len(getattr(proto, onnx.helper.tensor_dtype_to_field(int(dtype))))
        needed = _entries(dtype, size)
    if held != needed:
        raise InputError(
            f"tensor '{proto.name}' holds {held} of the {needed} bytes or items that its shape "
            f"{list(proto.dims)} needs; the model file is damaged, export it again"
        )


def check_sparse(proto: onnx.SparseTensorProto, dtype: DataType) -> None:
    """Refuse parts that do not fit each other, and shapes out of all proportion.

    Raises:
        InputError: naming the tensor.
    """
    name, shape = proto.values.name, list(proto.dims)
    check_length(proto.values, dtype)
    if not _fits(proto):
        raise InputError(
            f"the values and indices of sparse tensor '{name}' do not fit its shape {shape}; the "
            "model file is damaged, export it again"
        )
    count = math.prod(proto.values.dims)
    needed = math.prod(shape) * dtype.bits // 8
    if needed > max(_SPARSE_BYTES, _SPARSE_FACTOR * count * dtype.bits // 8):
        raise InputError(
            f"sparse tensor '{name}' would take {needed} bytes as the dense tensor that runtimes "
            f"make of it, for the {count} values it holds; give it a smaller shape"
        )


def _fits(proto: onnx.SparseTensorProto) -> bool:
    shape, counted, placed = list(proto.dims), list(proto.values.dims), list(proto.indices.dims)
    if min(shape, default=0) < 0 or len(counted) != 1 or min(placed, default=0) < 0:
        return False
    if proto.indices.data_type != DataType.INT64 or placed not in (counted, [*counted, len(shape)]):
        return False
    check_length(proto.indices, DataType.INT64)
    indices = onnx.numpy_helper.to_array(proto.indices)
    limits = np.array(shape) if indices.ndim == 2 else math.prod(shape)
    return bool((indices >= 0).all() and (indices < limits).all())


def _raw_length(proto: onnx.TensorProto, expected: int) -> int:
    """Bytes of ``raw_data``, which is fetched, and so copied, only where it is not as expected."""
    rest = onnx.TensorProto(
        dims=proto.dims, data_type=proto.data_type, name=proto.name, doc_string=proto.doc_string
    )
    rest.metadata_props.extend(proto.metadata_props)
    rest.raw_data = b""
    # A field takes its tag, its length as a varint of 7 bits a byte, and its bytes.
    length_bytes = max(1, -(-expected.bit_length() // 7))
    if proto.ByteSize() == rest.ByteSize() - 1 + length_bytes + expected:
        return expected
    return len(proto.raw_data)


def _entries(dtype: DataType, size: int) -> int:
    """Entries of the typed field that hold a tensor which is not stored as raw bytes."""
    if dtype in (DataType.COMPLEX64, DataType.COMPLEX128):
        return 2 * size
    return (size * dtype.bits + 7) // 8 if dtype.bits in (2, 4) else size
