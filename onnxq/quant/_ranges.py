"""The arithmetic between a range of real numbers and scale and zero-point."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnxq.quant.formats import Format
from onnxq.quant.scheme import Scheme, value_range

Float64Array = npt.NDArray[np.float64]

MIN_SCALE = float(np.finfo(np.float32).tiny)
"""Smallest scale, 2**-126. Below lie the subnormal numbers, which processors may flush to zero."""

FLOAT32_MAX = float(np.finfo(np.float32).max)


def scale_from_range(
    lows: Float64Array, highs: Float64Array, format: Format, scheme: Scheme
) -> tuple[npt.NDArray[np.float32], Float64Array]:
    """Scale and zero-point as `qparams_from_range` describes them.

    Args:
        lows: Lower ends, of any shape, finite in float32.
        highs: Upper ends, not below the lower ones.
        format: Format of the quantized values.
        scheme: Absmax or zero-point, with options.

    Returns:
        The two, in the shape of the ends.

    Raises:
        InputError: Scheme and format do not suit each other.
    """
    lows, highs = np.minimum(lows, 0.0), np.maximum(highs, 0.0)
    qlow, qhigh = value_range(format, scheme)
    middle = symmetric_middle(format, scheme)
    # float64: high - low overflows float32 for ranges that float32 itself can hold.
    exact: Float64Array
    turned = _turned(lows, highs, format, scheme)
    if turned is not None:
        exact = np.maximum(highs, -lows) / (middle - qlow)
    elif scheme.symmetric:
        exact = np.maximum(highs / (qhigh - middle), -lows / (middle - qlow))
    else:
        exact = (highs - lows) / (qhigh - qlow)
    exact = np.where(exact == 0.0, 1.0, np.maximum(exact, MIN_SCALE))
    if scheme.power_of_two:
        exact = power_of_two_at_least(exact)
    zero_point: Float64Array
    if scheme.symmetric:
        zero_point = np.full(exact.shape, middle, dtype=np.float64)
    else:
        stored = np.minimum(exact, FLOAT32_MAX).astype(np.float32)
        zero_point = np.asarray(np.clip(np.rint(qlow - lows / stored), qlow, qhigh))
    reach = np.maximum(format.qmax - zero_point, zero_point - format.qmin)
    largest = _at_most(FLOAT32_MAX / reach)
    if scheme.power_of_two:
        largest = _power_of_two_at_most(largest)
    scale = np.asarray(np.minimum(exact, largest)).astype(np.float32)
    return (scale if turned is None else np.where(turned, -scale, scale)), zero_point


def symmetric_middle(format: Format, scheme: Scheme) -> float:
    """Where absmax puts zero."""
    qlow, qhigh = value_range(format, scheme)
    return 0.0 if format.is_float else (qlow + qhigh + 1) // 2


def _turned(
    lows: npt.NDArray[np.floating], highs: npt.NDArray[np.floating], format: Format, scheme: Scheme
) -> npt.NDArray[np.bool_] | None:
    """Where a scale with a sign is negative; None where no scale has one."""
    qlow, qhigh = value_range(format, scheme)
    middle = symmetric_middle(format, scheme)
    is_signed = scheme.symmetric and scheme.signed_scale and middle - qlow > qhigh - middle
    return np.asarray(highs > -lows) if is_signed else None


def absmax_scale(
    lows: npt.NDArray[np.float32], highs: npt.NDArray[np.float32], format: Format, scheme: Scheme
) -> npt.NDArray[np.float32] | None:
    """The scale that `scale_from_range` gives of plain absmax, in float32 only.

    A quotient of float32 numbers rounded to float64 and then to float32 is the one rounded to
    float32 at once, because float64 has more than twice the bits and two (Figueroa, "When is
    double rounding innocuous?", 1995). Subnormal ones, for which this does not hold, are below
    MIN_SCALE either way.

    Args:
        lows: Lower ends, finite and at most 0.
        highs: Upper ends, finite and at least 0.
        format: Format of the quantized values.
        scheme: Any; other than for absmax without powers of two, None is returned, and for int32.

    Returns:
        The scale, or None also where one would be so large that dequantized values overflow.

    Raises:
        InputError: Scheme and format do not suit each other.
    """
    qlow, qhigh = value_range(format, scheme)
    if not scheme.symmetric or scheme.power_of_two or format.bits == 32:
        return None
    middle = symmetric_middle(format, scheme)
    turned = _turned(lows, highs, format, scheme)
    above = qhigh - middle if turned is None else middle - qlow
    scale = np.asarray(highs / np.float32(above))
    scale = np.asarray(np.maximum(scale, lows / np.float32(qlow - middle), out=scale))
    reach = max(format.qmax - middle, middle - format.qmin)
    if scale.max(initial=0) > FLOAT32_MAX / reach / 2:
        return None
    np.maximum(scale, np.float32(MIN_SCALE), out=scale)
    scale[(lows == 0) & (highs == 0)] = 1
    if turned is not None:
        np.negative(scale, out=scale, where=turned)
    return scale


def power_of_two_at_least(x: Float64Array) -> Float64Array:
    """Smallest powers of two that are not below `x`."""
    mantissa, exponent = np.frexp(x)
    return np.asarray(np.ldexp(1.0, np.where(mantissa == 0.5, exponent - 1, exponent)))


def _power_of_two_at_most(x: Float64Array) -> Float64Array:
    _, exponent = np.frexp(x)
    return np.asarray(np.ldexp(1.0, exponent - 1))


def _at_most(x: Float64Array) -> Float64Array:
    """Largest float32 numbers that are not above `x`."""
    rounded = x.astype(np.float32)
    below = np.nextafter(rounded, np.float32(0.0))
    return np.where(rounded > x, below, rounded).astype(np.float64)
