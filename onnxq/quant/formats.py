"""Number formats that quantized values are stored in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
from onnx import TensorProto

from onnxq.errors import InputError


@dataclass(frozen=True)
class Format:
    """A number format of quantized values.

    Attributes:
        name: Name in plans, reports and options.
        onnx_dtype: Element type, a value of `onnx.TensorProto.DataType`.
        bits: Bits one value takes in a model file; integers may use fewer of them.
        signed: Whether there are values below zero.
        qmin: Smallest value; of float formats the smallest finite one.
        qmax: Largest value; of float formats the largest finite one.
        storage: numpy dtype of arrays in this format. Floats and those below 8 bits come from
            ml_dtypes, and take one byte a value in memory.
        opset: Lowest opset whose DequantizeLinear takes this format.
        is_float: Whether values are floating-point numbers, which have no zero-point.
    """

    name: str
    onnx_dtype: int
    bits: int
    signed: bool
    qmin: float
    qmax: float
    storage: np.dtype[Any]
    opset: int
    is_float: bool = False

    @property
    def levels(self) -> int:
        """How many integers there are; 0 in float formats."""
        return 0 if self.is_float else int(self.qmax - self.qmin) + 1

    def to_plain(self) -> str:
        """Its name, as which files hold it."""
        return self.name

    @classmethod
    def from_plain(cls, name: str) -> Format:
        """The format of a name.

        Raises:
            ValueError: there is none.
        """
        if name not in FORMATS:
            raise ValueError(f"is '{name}', which is no format; there are {', '.join(FORMATS)}")
        return FORMATS[name]


def _integer(name: str, onnx_dtype: int, bits: int, signed: bool, dtype: Any, opset: int) -> Format:
    qmin = -(1 << (bits - 1)) if signed else 0
    return Format(
        name=name,
        onnx_dtype=onnx_dtype,
        bits=bits,
        signed=signed,
        qmin=qmin,
        qmax=qmin + (1 << bits) - 1,
        storage=np.dtype(dtype),
        opset=opset,
    )


def _narrowed(held: Format, bits: int) -> Format:
    """Integers of fewer bits in a format that holds them."""
    unused = held.bits - bits
    name = held.name.replace(str(held.bits), str(bits))
    qmin, qmax = int(held.qmin) >> unused, int(held.qmax) >> unused
    return replace(held, name=name, qmin=qmin, qmax=qmax)


def _floating(name: str, onnx_dtype: int, dtype: Any, opset: int) -> Format:
    info: Any = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    return Format(
        name=name,
        onnx_dtype=onnx_dtype,
        bits=info.bits,
        signed=True,
        qmin=float(info.min),
        qmax=float(info.max),
        storage=np.dtype(dtype),
        opset=opset,
        is_float=True,
    )


INT2 = _integer("int2", TensorProto.INT2, 2, True, ml_dtypes.int2, 25)
UINT2 = _integer("uint2", TensorProto.UINT2, 2, False, ml_dtypes.uint2, 25)
INT4 = _integer("int4", TensorProto.INT4, 4, True, ml_dtypes.int4, 21)
UINT4 = _integer("uint4", TensorProto.UINT4, 4, False, ml_dtypes.uint4, 21)
INT8 = _integer("int8", TensorProto.INT8, 8, True, np.int8, 10)
UINT8 = _integer("uint8", TensorProto.UINT8, 8, False, np.uint8, 10)
INT16 = _integer("int16", TensorProto.INT16, 16, True, np.int16, 21)
UINT16 = _integer("uint16", TensorProto.UINT16, 16, False, np.uint16, 21)
INT32 = _integer("int32", TensorProto.INT32, 32, True, np.int32, 10)

FLOAT8E4M3FN = _floating(
    "float8e4m3fn", TensorProto.FLOAT8E4M3FN, ml_dtypes.float8_e4m3fn, opset=19
)
FLOAT8E4M3FNUZ = _floating(
    "float8e4m3fnuz", TensorProto.FLOAT8E4M3FNUZ, ml_dtypes.float8_e4m3fnuz, opset=19
)
FLOAT8E5M2 = _floating("float8e5m2", TensorProto.FLOAT8E5M2, ml_dtypes.float8_e5m2, opset=19)
FLOAT8E5M2FNUZ = _floating(
    "float8e5m2fnuz", TensorProto.FLOAT8E5M2FNUZ, ml_dtypes.float8_e5m2fnuz, opset=19
)
FLOAT4E2M1 = _floating("float4e2m1", TensorProto.FLOAT4E2M1, ml_dtypes.float4_e2m1fn, opset=23)

FORMATS: dict[str, Format] = {
    format.name: format
    for format in (
        INT2,
        UINT2,
        INT4,
        UINT4,
        INT8,
        UINT8,
        INT16,
        UINT16,
        INT32,
        FLOAT8E4M3FN,
        FLOAT8E4M3FNUZ,
        FLOAT8E5M2,
        FLOAT8E5M2FNUZ,
        FLOAT4E2M1,
    )
}

NARROW_FORMATS: dict[str, Format] = {
    narrow.name: narrow
    for bits, types in ((3, (INT4, UINT4)), *((n, (INT8, UINT8)) for n in (5, 6, 7)))
    for held in types
    for narrow in [_narrowed(held, bits)]
}
"""Integers of 3, 5, 6 and 7 bits, each held in the next wider type. They are for weights:
QuantizeLinear saturates where the type ends."""

_BY_ONNX_DTYPE = {format.onnx_dtype: format for format in FORMATS.values()}


def format_of(onnx_dtype: int) -> Format:
    """Format of an ONNX element type.

    Args:
        onnx_dtype: A value of `onnx.TensorProto.DataType`.

    Raises:
        InputError: Quantized values of this type are not supported.
    """
    try:
        return _BY_ONNX_DTYPE[onnx_dtype]
    except KeyError:
        known = TensorProto.DataType.values()
        name = TensorProto.DataType.Name(onnx_dtype) if onnx_dtype in known else str(onnx_dtype)
        raise InputError(
            f"element type {name} is not a format for quantized values; "
            f"use one of {', '.join(FORMATS)}"
        ) from None
