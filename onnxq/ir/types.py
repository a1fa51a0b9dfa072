"""Element types, shapes and the types of values."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx

Dim: TypeAlias = int | str | None
"""One dimension: a size, a symbol's name, or unknown."""

Shape: TypeAlias = tuple[Dim, ...]
"""Dimensions of a tensor of known rank."""


class DataType(enum.IntEnum):
    """Element type of a tensor, numbered as in ONNX's ``TensorProto.DataType``."""

    UNDEFINED = 0
    FLOAT = 1
    UINT8 = 2
    INT8 = 3
    UINT16 = 4
    INT16 = 5
    INT32 = 6
    INT64 = 7
    STRING = 8
    BOOL = 9
    FLOAT16 = 10
    DOUBLE = 11
    UINT32 = 12
    UINT64 = 13
    COMPLEX64 = 14
    COMPLEX128 = 15
    BFLOAT16 = 16
    FLOAT8E4M3FN = 17
    FLOAT8E4M3FNUZ = 18
    FLOAT8E5M2 = 19
    FLOAT8E5M2FNUZ = 20
    UINT4 = 21
    INT4 = 22
    FLOAT4E2M1 = 23
    FLOAT8E8M0 = 24
    UINT2 = 25
    INT2 = 26
    FLOAT6E2M3 = 27
    FLOAT6E3M2 = 28

    @property
    def numpy(self) -> np.dtype[np.generic]:
        """The numpy (or ml_dtypes) type that holds one element."""
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(int(self)))

    @property
    def label(self) -> str:
        """The name people know it by: ``float32``, ``int8``, ``bfloat16``."""
        return {"FLOAT": "float32", "DOUBLE": "float64"}.get(self.name, self.name.lower())

    @property
    def bits(self) -> int:
        """Bits one element takes in an ONNX file (0 for strings and undefined)."""
        return _BITS.get(self, 0) or (
            0 if self in (DataType.UNDEFINED, DataType.STRING) else self.numpy.itemsize * 8
        )

    @property
    def is_float(self) -> bool:
        """Whether this is a floating-point type of any width."""
        return "FLOAT" in self.name or self is DataType.DOUBLE

    @classmethod
    def of(cls, dtype: np.dtype[np.generic]) -> DataType:
        """The ONNX element type of a numpy dtype.

        Raises:
            ValueError: numpy's type has no counterpart in ONNX.
        """
        if dtype.kind in "OUST":
            return cls.STRING
        return cls(onnx.helper.np_dtype_to_tensor_dtype(dtype))


_BITS = {
    **dict.fromkeys((DataType.UINT2, DataType.INT2), 2),
    **dict.fromkeys((DataType.UINT4, DataType.INT4, DataType.FLOAT4E2M1), 4),
    **dict.fromkeys((DataType.FLOAT6E2M3, DataType.FLOAT6E3M2), 6),
}


@dataclass(frozen=True)
class TensorType:
    """Type of a tensor value; ``shape`` is None while even the rank is unknown."""

    dtype: DataType
    shape: Shape | None = None

    def __str__(self) -> str:
        """Readable form: ``float32[N, 3, ?]``."""
        name = self.dtype.name.lower()
        if self.shape is None:
            return f"{name}[...]"
        return f"{name}[{', '.join('?' if d is None else str(d) for d in self.shape)}]"


@dataclass(frozen=True)
class OpaqueType:
    """Type that is no dense tensor (sequence, optional, map, sparse), kept as it was read."""

    serialized: bytes

    def __str__(self) -> str:
        """Readable form: ``sequence``, ``optional``, ``map`` or ``sparse_tensor``."""
        kind = self.proto().WhichOneof("value") or "unknown"
        return str(kind).removesuffix("_type")

    def proto(self) -> onnx.TypeProto:
        """The ONNX form of this type."""
        proto = onnx.TypeProto()
        proto.ParseFromString(self.serialized)
        return proto


ValueType: TypeAlias = TensorType | OpaqueType


def type_from_proto(proto: onnx.TypeProto) -> ValueType | None:
    """Read an ONNX type; None when the proto states none.

    Raises:
        ValueError: the element type is none that ONNX defines.
    """
    kind = proto.WhichOneof("value")
    if kind is None:
        return None
    if kind != "tensor_type" or proto.denotation or _has_denotation(proto):
        return OpaqueType(proto.SerializeToString(deterministic=True))
    tensor = proto.tensor_type
    shape: Shape | None = None
    if tensor.HasField("shape"):
        shape = tuple(_dim(d) for d in tensor.shape.dim)
    return TensorType(DataType(tensor.elem_type), shape)


def type_to_proto(value_type: ValueType) -> onnx.TypeProto:
    """Write a type in ONNX form."""
    if isinstance(value_type, OpaqueType):
        return value_type.proto()
    proto = onnx.TypeProto()
    proto.tensor_type.elem_type = int(value_type.dtype)
    if value_type.shape is not None:
        proto.tensor_type.shape.SetInParent()
        for dim in value_type.shape:
            entry = proto.tensor_type.shape.dim.add()
            if isinstance(dim, str):
                entry.dim_param = dim
            elif dim is not None:
                entry.dim_value = dim
    return proto


def static_size(shape: Shape | None) -> int | None:
    """Number of elements, or None unless every dimension is a known size."""
    if shape is None or any(not isinstance(d, int) for d in shape):
        return None
    return math.prod(d for d in shape if isinstance(d, int))


def merge_types(known: ValueType | None, found: ValueType | None) -> ValueType | None:
    """Fill what ``known`` leaves open from ``found``; what is known is never overridden."""
    if known is None or found is None:
        return known or found
    if isinstance(known, OpaqueType) or isinstance(found, OpaqueType):
        return known
    if known.dtype is not found.dtype or found.shape is None:
        return known
    if known.shape is None:
        return TensorType(known.dtype, found.shape)
    if len(known.shape) != len(found.shape):
        return known
    return TensorType(known.dtype, tuple(map(_merge_dims, known.shape, found.shape)))


def _merge_dims(known: Dim, found: Dim) -> Dim:
    if isinstance(known, int):
        return known
    if isinstance(found, int):
        return found
    return known if known is not None else found


def _dim(proto: onnx.TensorShapeProto.Dimension) -> Dim:
    kind = proto.WhichOneof("value")
    if kind == "dim_value":
        # Exporters write -1 for a size that is not known.
        return int(proto.dim_value) if proto.dim_value >= 0 else None
    if kind == "dim_param" and proto.dim_param:
        return str(proto.dim_param)
    return None


def _has_denotation(proto: onnx.TypeProto) -> bool:
    return any(d.denotation for d in proto.tensor_type.shape.dim)
