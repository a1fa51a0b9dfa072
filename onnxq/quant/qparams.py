"""Scale and zero-point: finding them, and quantizing with them.

Everything follows `q = saturate(round_half_even(x / scale) + zero_point)` and
`x = (q - zero_point) * scale` as ONNX defines QuantizeLinear and DequantizeLinear, in float32, so
that stored integers are those the operator would give.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.errors import InputError
from onnxq.quant._arrays import finite, label
from onnxq.quant.formats import Format
from onnxq.quant.scheme import Granularity, Scheme, integer_range

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]

MIN_SCALE = float(np.finfo(np.float32).tiny)
"""Smallest scale, 2**-126. Below lie the subnormal numbers, which processors may flush to zero."""

_FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True, eq=False)
class QParams:
    """Scale and zero-point of a quantized tensor.

    Attributes:
        format: Format of the quantized values.
        scale: float32, at least MIN_SCALE and finite. Shape () per tensor, (channels,) per channel;
            per block that of the tensor with its length on `axis` divided by `block_size`,
            rounded up.
        zero_point: Integer that stands for 0, in the format's storage dtype and the scale's shape.
        axis: Axis of the channels or blocks, None per tensor.
        block_size: Values on `axis` that share a scale, None per tensor and per channel.

    Raises:
        InputError: A scale is zero, negative, subnormal, NaN or infinite, or dtypes, shapes and
            axis do not go together.
    """

    format: Format
    scale: Float32Array
    zero_point: npt.NDArray[Any]
    axis: int | None = None
    block_size: int | None = None

    def __post_init__(self) -> None:
        # numpy turns arrays without axes into scalars on many occasions, which onnxruntime refuses.
        object.__setattr__(self, "scale", np.asarray(self.scale))
        object.__setattr__(self, "zero_point", np.asarray(self.zero_point))
        if self.scale.dtype != np.float32 or self.zero_point.dtype != self.format.storage:
            raise InputError(
                f"scale is {self.scale.dtype} and zero-point {self.zero_point.dtype}; "
                f"they have to be float32 and {self.format.storage} for format {self.format.name}"
            )
        if self.scale.shape != self.zero_point.shape:
            raise InputError(
                f"scale has shape {self.scale.shape} and zero-point {self.zero_point.shape}; "
                "give both one shape"
            )
        if not (np.isfinite(self.scale) & (self.scale >= np.float32(MIN_SCALE))).all():
            raise InputError(
                "a scale is zero, negative, subnormal, NaN or infinite; "
                f"scales are finite and at least {MIN_SCALE:.4g}"
            )
        rank = self.scale.ndim
        if self.axis is None:
            fits = rank == 0 and self.block_size is None
        elif self.block_size is None:
            fits = rank == 1
        else:
            fits = -rank <= self.axis < rank
        if not fits:
            raise InputError(
                f"a scale of shape {self.scale.shape} does not go with axis {self.axis} "
                f"and block size {self.block_size}"
            )

    def __eq__(self, other: object) -> bool:
        """Whether format, granularity, and every scale and zero-point are equal."""
        if not isinstance(other, QParams):
            return NotImplemented
        return (
            self.format == other.format
            and self.granularity == other.granularity
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero_point, other.zero_point)
        )

    def __hash__(self) -> int:
        return hash((self.format.name, self.granularity, self.scale.tobytes()))

    @property
    def granularity(self) -> Granularity:
        """Which values share a scale."""
        return Granularity(self.axis, self.block_size)

    @property
    def opset(self) -> int:
        """Lowest opset that has DequantizeLinear with this format and granularity."""
        return max(self.format.opset, self.granularity.opset)


def qparams_from_range(
    low: npt.ArrayLike,
    high: npt.ArrayLike,
    format: Format,
    scheme: Scheme,
    *,
    axis: int | None = None,
    block_size: int | None = None,
    name: str = "",
) -> QParams:
    """Scale and zero-point for given ranges, one for each channel or block.

    Ranges are widened to hold 0, which is then represented exactly. The scale is the smallest one,
    rounded to float32, that clips nothing of the range, within these bounds:

    - A range of only 0 gets scale 1.
    - Scales are at least MIN_SCALE, so that ranges narrower than about 1e-36 lose precision.
    - Scales are small enough for every integer of the format to dequantize to a finite number:
      a range near the largest float32 may be clipped by a step (in 2 bits or with power-of-two
      scales, by more).

    Args:
        low: Lower ends: () per tensor, (channels,) per channel, the tensor's rank per block.
        high: Upper ends, in the same shape.
        format: Format of the quantized values.
        scheme: Absmax or zero-point, with options.
        axis: Axis of the channels or blocks, None per tensor.
        block_size: Values on `axis` that share a scale, None per tensor and per channel.
        name: The tensor's name, for error messages.

    Raises:
        InputError: An end is NaN, infinite or above the other, or scheme and format do not suit
            each other.
    """
    lows = finite(low, np.float64, name)
    highs = finite(high, np.float64, name)
    if lows.shape != highs.shape:
        raise InputError(
            f"{label(name)} has lower ends of shape {lows.shape} and upper ends of shape "
            f"{highs.shape}; give both one shape"
        )
    if (lows > highs).any() or max(-lows.min(initial=0), highs.max(initial=0)) > _FLOAT32_MAX:
        raise InputError(
            f"{label(name)} has a range whose lower end is above the upper, or beyond float32"
        )
    lows, highs = np.minimum(lows, 0.0), np.maximum(highs, 0.0)
    qlow, qhigh = integer_range(format, scheme)
    middle = (qlow + qhigh + 1) // 2
    # float64: high - low overflows float32 for ranges that float32 itself can hold.
    exact: Float64Array
    if scheme.symmetric:
        exact = np.maximum(highs / (qhigh - middle), -lows / (middle - qlow))
    else:
        exact = (highs - lows) / (qhigh - qlow)
    exact = np.where(exact == 0.0, 1.0, np.maximum(exact, MIN_SCALE))
    if scheme.power_of_two:
        exact = _power_of_two_at_least(exact)
    if scheme.symmetric:
        zero_point = np.full(exact.shape, middle, dtype=np.int64)
    else:
        stored = np.minimum(exact, _FLOAT32_MAX).astype(np.float32)
        zero_point = np.clip(np.rint(qlow - lows / stored), qlow, qhigh).astype(np.int64)
    reach = np.maximum(format.qmax - zero_point, zero_point - format.qmin)
    largest = _at_most(_FLOAT32_MAX / reach)
    if scheme.power_of_two:
        largest = _power_of_two_at_most(largest)
    return QParams(
        format=format,
        scale=np.asarray(np.minimum(exact, largest)).astype(np.float32),
        zero_point=_to_storage(zero_point, format),
        axis=axis,
        block_size=block_size,
    )


def weight_qparams(
    weight: npt.ArrayLike,
    format: Format,
    scheme: Scheme,
    granularity: Granularity,
    *,
    name: str = "",
) -> QParams:
    """Scale and zero-point for a tensor's own smallest and largest values.

    A channel or block of only zeros takes the smallest scale of the others, because the scale of a
    bias follows that of the weight: a dead channel's output is its bias, and with scale 1 the bias
    would be rounded far more coarsely than that of the channels beside it.

    Args:
        weight: Values, of any float type and shape, also empty.
        format: Format of the quantized values.
        scheme: Absmax or zero-point, with options.
        granularity: Which values share a scale; a negative axis is counted from the end.
        name: The tensor's name, for error messages.

    Raises:
        InputError: NaN or infinity in the weight, no such axis, or scheme and format do not suit
            each other.
    """
    values: Float32Array = finite(weight, np.float32, name)
    axis = _axis_within(granularity, values.ndim, name)
    low, high = _extremes(values, axis, granularity.block_size)
    qparams = qparams_from_range(
        low, high, format, scheme, axis=axis, block_size=granularity.block_size, name=name
    )
    zeros = (low == 0) & (high == 0)
    if not zeros.any() or zeros.all():
        return qparams
    scale = np.where(zeros, qparams.scale[~zeros].min(), qparams.scale)
    return QParams(format, scale, qparams.zero_point, axis, granularity.block_size)


def quantize(x: npt.ArrayLike, qparams: QParams, *, name: str = "") -> npt.NDArray[Any]:
    """Quantized values, equal to those of ONNX QuantizeLinear with the same scale and zero-point.

    Quotients beyond 32 bits saturate, as in onnxruntime; `onnx.reference` lets them wrap around.
    int32, which QuantizeLinear does not give, is computed in float64.

    Args:
        x: Values, of any float type; taken as float32.
        qparams: Scale and zero-point that fit the shape of `x`.
        name: The tensor's name, for error messages.

    Returns:
        Array of the shape of `x`, in the format's storage dtype.

    Raises:
        InputError: NaN or infinity in `x`, or a shape that does not fit the scale.
    """
    values = finite(x, np.float32, name)
    format = qparams.format
    values, scale, zero_point = _aligned(values, qparams, name)
    work = np.float64 if format.bits == 32 else np.float32
    with np.errstate(over="ignore", under="ignore"):
        q = np.asarray(np.divide(values, scale, dtype=work))
    np.rint(q, out=q)
    q += zero_point.astype(work)
    np.clip(q, format.qmin, format.qmax, out=q)
    return _to_storage(q, format).reshape(np.shape(x))


def dequantize(q: npt.NDArray[Any], qparams: QParams, *, name: str = "") -> Float32Array:
    """Real values of quantized ones, equal to those of ONNX DequantizeLinear.

    Args:
        q: Quantized values in the format's storage dtype.
        qparams: Scale and zero-point that fit the shape of `q`.
        name: The tensor's name, for error messages.

    Returns:
        float32 array of the shape of `q`.

    Raises:
        InputError: A dtype that is not the format's, or a shape that does not fit the scale.
    """
    if q.dtype != qparams.format.storage:
        raise InputError(f"{label(name)} holds {q.dtype}, but its format is {qparams.format.name}")
    values, scale, zero_point = _aligned(q, qparams, name)
    x = np.asarray(values.astype(np.float32) - zero_point.astype(np.float32))
    with np.errstate(under="ignore"):
        x *= scale
    return x.reshape(q.shape)


def fake_quantize(x: npt.ArrayLike, qparams: QParams, *, name: str = "") -> Float32Array:
    """Values after a QuantizeLinear/DequantizeLinear pair, as float32.

    Raises:
        InputError: NaN or infinity in `x`, or a shape that does not fit the scale.
    """
    return dequantize(quantize(x, qparams, name=name), qparams, name=name)


def _to_storage(values: npt.NDArray[Any], format: Format) -> npt.NDArray[Any]:
    # ml_dtypes' sub-byte types are reached through int8: converting floats directly is slower.
    if format.bits < 8:
        values = values.astype(np.int8)
    return values.astype(format.storage)


def _power_of_two_at_least(x: Float64Array) -> Float64Array:
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


def _axis_within(granularity: Granularity, rank: int, name: str) -> int | None:
    if granularity.axis is None:
        return None
    if not -rank <= granularity.axis < rank:
        raise InputError(f"{label(name)} has {rank} axes, and none is axis {granularity.axis}")
    return granularity.axis % rank


def _extremes(
    values: Float32Array, axis: int | None, block_size: int | None
) -> tuple[Float32Array, Float32Array]:
    """Smallest and largest values of each group, widened to hold 0."""
    zero = np.float32(0.0)
    if axis is None or block_size is None:
        others = None if axis is None else tuple(a for a in range(values.ndim) if a != axis)
        return (
            np.asarray(np.min(values, axis=others, initial=zero)),
            np.asarray(np.max(values, axis=others, initial=zero)),
        )
    whole = values.shape[axis] // block_size
    head, tail = np.split(values, [whole * block_size], axis=axis)
    blocked = head.reshape((*head.shape[:axis], whole, block_size, *head.shape[axis + 1 :]))
    low = np.min(blocked, axis=axis + 1, initial=zero)
    high = np.max(blocked, axis=axis + 1, initial=zero)
    if tail.shape[axis]:
        last_low = np.min(tail, axis=axis, keepdims=True, initial=zero)
        last_high = np.max(tail, axis=axis, keepdims=True, initial=zero)
        low = np.concatenate([low, last_low], axis=axis)
        high = np.concatenate([high, last_high], axis=axis)
    return low, high


def _aligned(
    values: npt.NDArray[Any], qparams: QParams, name: str
) -> tuple[npt.NDArray[Any], Float32Array, npt.NDArray[Any]]:
    """Values, scale and zero-point in shapes that broadcast against each other."""
    scale, zero_point, size = qparams.scale, qparams.zero_point, qparams.block_size
    axis = _axis_within(qparams.granularity, values.ndim, name)
    if axis is None:
        return values, scale, zero_point
    length = values.shape[axis]
    if size is None:
        wanted: tuple[int, ...] = (length,)
    else:
        wanted = (*values.shape[:axis], -(-length // size), *values.shape[axis + 1 :])
    if scale.shape != wanted:
        raise InputError(
            f"{label(name)} has shape {values.shape}, which needs a scale of shape {wanted}, "
            f"but the scale has shape {scale.shape}"
        )
    if size is None:
        shape = tuple(length if a == axis else 1 for a in range(values.ndim))
        return values, scale.reshape(shape), zero_point.reshape(shape)
    if length % size == 0:
        blocked = (*values.shape[:axis], length // size, size, *values.shape[axis + 1 :])
        return (
            values.reshape(blocked),
            np.expand_dims(scale, axis + 1),
            np.expand_dims(zero_point, axis + 1),
        )
    block_of = np.arange(length) // size
    return values, np.take(scale, block_of, axis=axis), np.take(zero_point, block_of, axis=axis)
