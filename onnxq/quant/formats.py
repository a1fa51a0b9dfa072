"""Number formats that quantized values are stored in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
from onnx import TensorProto
from onnx.helper import tensor_dtype_to_np_dtype


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

    @property
    def is_narrow(self) -> bool:
        """Whether the type that holds it has more integers than it has."""
        return not self.is_float and self.levels < 1 << self.bits

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


def _format(name: str, opset: int) -> Format:
    """The format of an ONNX element type, which says all but the opset."""
    onnx_dtype = TensorProto.DataType.Value(name.upper())
    storage = np.dtype(tensor_dtype_to_np_dtype(onnx_dtype))
    is_float = name.startswith("float")
    info: Any = (ml_dtypes.finfo if is_float else ml_dtypes.iinfo)(storage)
    low, high = (float if is_float else int)(info.min), (float if is_float else int)(info.max)
    return Format(name, onnx_dtype, info.bits, low < 0, low, high, storage, opset, is_float)


def _narrowed(held: Format, bits: int) -> Format:
    """Integers of fewer bits in a format that holds them."""
    unused = held.bits - bits
    name = held.name.replace(str(held.bits), str(bits))
    qmin, qmax = int(held.qmin) >> unused, int(held.qmax) >> unused
    return replace(held, name=name, qmin=qmin, qmax=qmax)


INT2 = _format("int2", 25)
UINT2 = _format("uint2", 25)
INT4 = _format("int4", 21)
UINT4 = _format("uint4", 21)
INT8 = _format("int8", 10)
UINT8 = _format("uint8", 10)
INT16 = _format("int16", 21)
UINT16 = _format("uint16", 21)
INT32 = _format("int32", 10)
FLOAT8E4M3FN = _format("float8e4m3fn", 19)
FLOAT8E4M3FNUZ = _format("float8e4m3fnuz", 19)
FLOAT8E5M2 = _format("float8e5m2", 19)
FLOAT8E5M2FNUZ = _format("float8e5m2fnuz", 19)
FLOAT4E2M1 = _format("float4e2m1", 23)

FORMATS: dict[str, Format] = {
    format.name: format
    for format in (
        *(INT2, UINT2, INT4, UINT4, INT8, UINT8, INT16, UINT16, INT32),
        *(FLOAT8E4M3FN, FLOAT8E4M3FNUZ, FLOAT8E5M2, FLOAT8E5M2FNUZ, FLOAT4E2M1),
    )
}

BYTE_FORMATS: dict[str, Format] = {
    narrow.name: narrow
    for held in (INT8, UINT8)
    for narrow in [_narrowed(held, bits) for bits in range(1 + held.signed, 8)]
}
"""Integers of fewer than 8 bits, each held in a byte, as kernels for 8 bits read them.
QuantizeLinear saturates where the type ends, so that activations are clipped behind it."""

NARROW_FORMATS: dict[str, Format] = {
    narrow.name: narrow
    for narrow in (
        *(_narrowed(held, 3) for held in (INT4, UINT4)),
        *(BYTE_FORMATS[f"{sign}{bits}"] for bits in (5, 6, 7) for sign in ("int", "uint")),
    )
}
"""Integers of 3, 5, 6 and 7 bits, each held in the next wider type, as weights are stored."""
