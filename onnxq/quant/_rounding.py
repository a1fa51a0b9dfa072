"""Rounding to a format's values, and converting to and from its storage, fast.

ml_dtypes converts between float32 and formats of 8 and 4 bits one number at a time, a hundred
times slower than numpy's own loops; here it is done with those, with the same results.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt

from onnxq.quant.formats import Format

_EXPONENT = np.uint32(0x7F800000)
_MAGNITUDE = np.uint32(0x7FFFFFFF)
_MANTISSA_BITS = 23
_BIAS = 127


def round_to(values: npt.NDArray[Any], format: Format) -> None:
    """Round finite values to the format's nearest, ties to even, in place.

    Values beyond the format's range are rounded as if it went on; limit them before or after.

    Args:
        values: float32, or float64 for integer formats.
        format: The format.
    """
    if not format.is_float:
        np.rint(values, out=values)
        return
    info = _layout(format)
    # The power of two in each number, as a float32 with that exponent and no mantissa.
    step = (values.view(np.uint32) & _EXPONENT).view(np.float32)
    np.maximum(step, np.float32(2.0) ** info.lowest_exponent, out=step)
    step *= np.float32(2.0) ** -info.mantissa_bits
    np.divide(values, step, out=values)
    np.rint(values, out=values)
    values *= step


def to_storage(values: npt.NDArray[Any], format: Format) -> npt.NDArray[Any]:
    """Values of a format, already rounded and within its range, in its storage dtype."""
    out: npt.NDArray[Any] = np.empty(values.shape, format.storage)
    store(values, format, out)
    return out


def store(values: npt.NDArray[Any], format: Format, out: npt.NDArray[Any]) -> None:
    """Write what `to_storage` gives into an array in the format's storage dtype."""
    if format.is_float:
        codes = _float_codes(values.astype(np.float32, copy=False), format)
        np.copyto(out.view(np.uint8), codes.view(np.uint8))
    elif format.bits < 8:
        # ml_dtypes holds the lowest bits of a number, with zeros above them.
        np.copyto(out.view(np.int8), values, casting="unsafe")
        np.bitwise_and(out.view(np.uint8), (1 << format.bits) - 1, out=out.view(np.uint8))
    else:
        np.copyto(out, values, casting="unsafe")


def from_storage(values: npt.NDArray[Any], format: Format) -> npt.NDArray[np.float32]:
    """Values in the format's storage dtype as float32."""
    if format.is_float:
        return np.asarray(np.take(_float_values(format), values.view(np.uint8)))
    if format.bits < 8:
        values = values.astype(np.int8)
    return values.astype(np.float32)


def _float_codes(values: npt.NDArray[np.float32], format: Format) -> npt.NDArray[Any]:
    info = _layout(format)
    shape = values.shape
    values = values.reshape(-1)  # without axes, numpy would warn that unsigned numbers wrap around
    magnitude = values.view(np.uint32) & _MAGNITUDE
    # The field of the exponent is 1 for the smallest normal number.
    offset = (_BIAS + info.lowest_exponent - 1) << info.mantissa_bits
    normal = (magnitude >> np.uint32(_MANTISSA_BITS - info.mantissa_bits)) - np.uint32(offset)
    absolute = magnitude.view(np.float32)
    subnormal = absolute * np.float32(2.0) ** (info.mantissa_bits - info.lowest_exponent)
    small = absolute < np.float32(2.0) ** info.lowest_exponent
    with np.errstate(invalid="ignore"):
        codes = np.where(small, subnormal.astype(np.uint32), normal).astype(np.uint8)
    negative = np.signbit(values)
    if np.array(-0.0, np.float32).astype(format.storage).view(np.uint8) == 0:
        negative &= codes != 0  # without a negative zero, its code is NaN
    codes |= negative.astype(np.uint8) << np.uint8(format.bits - 1)
    return codes.view(format.storage).reshape(shape)


class _Layout(NamedTuple):
    """Bits of the mantissa, and exponent of the smallest normal number."""

    mantissa_bits: int
    lowest_exponent: int


@cache
def _layout(format: Format) -> _Layout:
    info: Any = ml_dtypes.finfo(format.storage)  # type: ignore[no-untyped-call]
    return _Layout(int(info.nmant), int(info.minexp))


@cache
def _float_values(format: Format) -> npt.NDArray[np.float32]:
    codes = np.arange(256, dtype=np.uint8)
    return codes.view(format.storage).astype(np.float32)
