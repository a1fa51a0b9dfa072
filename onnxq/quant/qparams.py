"""Scale and zero-point: finding them, and quantizing with them.

Everything follows `q = saturate(round_half_even(x / scale) + zero_point)` and
`x = (q - zero_point) * scale` as ONNX defines QuantizeLinear and DequantizeLinear, in float32, so
that stored integers are those the operator would give.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.errors import InputError
from onnxq.quant._arrays import (
    PIECE,
    WIDE_PIECE,
    as_numbers,
    ends_of,
    finite,
    label,
    not_finite,
    pieces,
    widen,
)
from onnxq.quant._groups import Grouping
from onnxq.quant._least_squares import Problem
from onnxq.quant._ranges import (
    FLOAT32_MAX,
    MIN_SCALE,
    absmax_scale,
    scale_from_range,
    symmetric_middle,
)
from onnxq.quant._rounding import from_storage, round_to, store, to_storage
from onnxq.quant.formats import Format
from onnxq.quant.scheme import Granularity, Scheme, value_range
from onnxq.quant.search import PLAIN, ScaleSearch

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class QParams:
    """Scale and zero-point of a quantized tensor.

    Attributes:
        format: Format of the quantized values.
        scale: float32, of a magnitude of at least MIN_SCALE and finite; negative in none but
            weights. Shape () per tensor, (channels,) per channel;
            per block that of the tensor with its length on `axis` divided by `block_size`,
            rounded up.
        zero_point: Value of the format that stands for 0, in the format's storage dtype and the
            scale's shape; 0 in float formats.
        axis: Axis of the channels or blocks, None per tensor.
        block_size: Values on `axis` that share a scale, None per tensor and per channel.
        limits: Smallest and largest value that `quantize` gives, None for the format's own. They
            are for weights: QuantizeLinear has no such thing.

    Raises:
        InputError: A scale is zero, subnormal, NaN or infinite, or dtypes, shapes,
            axis and limits do not go together.
    """

    format: Format
    scale: Float32Array
    zero_point: npt.NDArray[Any]
    axis: int | None = None
    block_size: int | None = None
    limits: tuple[float, float] | None = None

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
        if not (np.isfinite(self.scale) & (np.abs(self.scale) >= np.float32(MIN_SCALE))).all():
            raise InputError(
                "a scale is zero, subnormal, NaN or infinite; "
                f"scales are finite, of a magnitude of at least {MIN_SCALE:.4g}"
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
        if self.format.is_float and self.zero_point.astype(np.float32).any():
            raise InputError(f"{self.format.name} has no zero-point; give 0")
        low, high = self.bounds
        if not self.format.qmin <= low < high <= self.format.qmax:
            raise InputError(f"limits {low} to {high} are none within format {self.format.name}")

    def __eq__(self, other: object) -> bool:
        """Whether format, granularity, bounds, and every scale and zero-point are equal."""
        if not isinstance(other, QParams):
            return NotImplemented
        return (
            self.format == other.format
            and self.granularity == other.granularity
            and self.bounds == other.bounds
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
    def bounds(self) -> tuple[float, float]:
        """Smallest and largest value that `quantize` gives."""
        return self.limits or (self.format.qmin, self.format.qmax)

    @property
    def opset(self) -> int:
        """Lowest opset that has DequantizeLinear with this format and granularity."""
        return max(self.format.opset, self.granularity.opset)


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """Quantized values with the qparams that give them their meaning.

    Attributes:
        values: In the format's storage dtype, within the qparams' bounds.
        qparams: Scale and zero-point that fit the values' shape.
    """

    values: npt.NDArray[Any]
    qparams: QParams

    def dequantize(self) -> Float32Array:
        """Real values, equal to those of ONNX DequantizeLinear."""
        return dequantize(self.values, self.qparams)


def qparams_from_range(
    low: npt.ArrayLike,
    high: npt.ArrayLike,
    format: Format,
    scheme: Scheme,
    *,
    axis: int | None = None,
    name: str = "",
) -> QParams:
    """Scale and zero-point for given ranges, one for each channel.

    Ranges are widened to hold 0, which is then represented exactly. The scale is the smallest one,
    rounded to float32, that clips nothing of the range, within these bounds:

    - A range of only 0 gets scale 1.
    - Scales are at least MIN_SCALE, so that ranges narrower than about 1e-36 lose precision.
    - Scales are small enough for every value of the format to dequantize to a finite number:
      a range near the largest float32 may be clipped by a step (in 2 bits or with power-of-two
      scales, by more).

    Args:
        low: Lower ends: () per tensor, (channels,) per channel.
        high: Upper ends, in the same shape.
        format: Format of the quantized values.
        scheme: Absmax or zero-point, with options.
        axis: Axis of the channels, None per tensor.
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
    if (lows > highs).any() or max(-lows.min(initial=0), highs.max(initial=0)) > FLOAT32_MAX:
        raise InputError(
            f"{label(name)} has a range whose lower end is above the upper, or beyond float32"
        )
    scale, zero_point = scale_from_range(lows, highs, format, scheme)
    return QParams(format, scale, to_storage(zero_point, format), axis)


def weight_qparams(
    weight: npt.ArrayLike,
    format: Format,
    scheme: Scheme,
    granularity: Granularity,
    *,
    search: ScaleSearch = PLAIN,
    importance: Float32Array | None = None,
    name: str = "",
) -> QParams:
    """Scale and zero-point for a tensor's own smallest and largest values.

    A channel or block of only zeros takes the smallest scale of the others, because the scale of a
    bias follows that of the weight: a dead channel's output is its bias, and with scale 1 the bias
    would be rounded far more coarsely than that of the channels beside it.

    Beside the weight itself, and its copy as float32 if it is of another type, memory is needed
    for the result and for a group, or sixteen channels where they do not lie together.

    Args:
        weight: Values, of any float type and shape, also empty.
        format: Format of the quantized values.
        scheme: Absmax or zero-point, with options.
        granularity: Which values share a scale; a negative axis is counted from the end.
        search: How a better scale than that of the whole range is found.
        importance: How much the squared error of each value counts in the search; of any shape that
            broadcasts to the weight's. None for all alike.
        name: The tensor's name, for error messages.

    Returns:
        Qparams; with limits where the search may clip values to the narrow or reduced range that
        the scheme asks for.

    Raises:
        InputError: NaN or infinity in the weight, no such axis, or scheme and format do not suit
            each other.
    """
    return _weight_qparams(weight, format, scheme, granularity, search, importance, name)[0]


def quantize_weight(
    weight: npt.ArrayLike,
    format: Format,
    scheme: Scheme,
    granularity: Granularity,
    *,
    search: ScaleSearch = PLAIN,
    name: str = "",
) -> QuantizedTensor:
    """What `quantize` gives of a weight with its `weight_qparams`, in fewer passes over it.

    Raises:
        InputError: As `weight_qparams` does.
    """
    qparams, values, grouping, ends = _weight_qparams(
        weight, format, scheme, granularity, search, None, name
    )
    within = search == PLAIN and _stay_within(*ends, qparams)
    return QuantizedTensor(_quantized(values, qparams, grouping, clips=not within), qparams)


def _weight_qparams(
    weight: npt.ArrayLike,
    format: Format,
    scheme: Scheme,
    granularity: Granularity,
    search: ScaleSearch,
    importance: Float32Array | None,
    name: str,
) -> tuple[QParams, Float32Array, Grouping, tuple[Float32Array, Float32Array]]:
    """Beside the qparams the weight's values, their grouping and the smallest and largest ones."""
    values: Float32Array = as_numbers(weight, np.float32, name)
    grouping = Grouping.of(values.shape, granularity, name)
    low, high = _extremes(values, grouping, name)
    plain = _plain(low, high, format, scheme, grouping)
    zeros = (low == 0) & (high == 0)
    if zeros.any() and not zeros.all():
        plain = replace(
            plain, scale=np.where(zeros, np.abs(plain.scale[~zeros]).min(), plain.scale)
        )
    if search != PLAIN:
        plain = _searched(values, grouping, plain, scheme, search, importance)
    return plain, values, grouping, (low, high)


def _stay_within(low: Float32Array, high: Float32Array, qparams: QParams) -> bool:
    """Whether no value between these ends needs to be clipped; rounding keeps their order."""
    zero_point = _zero_points(qparams, np.float32)
    ends = [np.rint(end / qparams.scale) + zero_point for end in (low, high)]
    lowest, highest = np.minimum(*ends), np.maximum(*ends)
    bounds = qparams.bounds
    return bool(lowest.min(initial=0) >= bounds[0] and highest.max(initial=0) <= bounds[1])


def _plain(
    low: Float32Array, high: Float32Array, format: Format, scheme: Scheme, grouping: Grouping
) -> QParams:
    scale = absmax_scale(low, high, format, scheme)
    if scale is not None:
        middle = to_storage(np.full(1, symmetric_middle(format, scheme), np.float32), format)
        codes = middle.view(f"u{middle.itemsize}")
        zero_point = np.full(low.shape, codes[0], codes.dtype).view(format.storage)
        return QParams(format, scale, zero_point, grouping.axis, grouping.block_size)
    scale = np.empty(low.shape, np.float32)
    zero_point = np.empty(low.shape, format.storage)
    # In pieces: the arithmetic in float64 takes about as much memory as a block of 32 values.
    for cut in pieces(low.shape, PIECE // 2):
        lows, highs = (np.asarray(end[cut], np.float64) for end in (low, high))
        scale[cut], stands_for_zero = scale_from_range(lows, highs, format, scheme)
        zero_point[cut] = to_storage(stands_for_zero, format)
    return QParams(format, scale, zero_point, grouping.axis, grouping.block_size)


def _searched(
    values: Float32Array,
    grouping: Grouping,
    plain: QParams,
    scheme: Scheme,
    search: ScaleSearch,
    importance: Float32Array | None,
) -> QParams:
    low, high = value_range(plain.format, scheme)
    scale = plain.scale.astype(np.float32)
    zero_point = plain.zero_point.astype(np.float32)
    scales, zero_points = grouping.aligned_scales(scale), grouping.aligned_scales(zero_point)
    weights: Iterable[Float32Array | None] = repeat(None)
    if importance is not None:
        alike = np.broadcast_to(importance, values.shape)
        weights = (batch.values for batch in grouping.batches(alike))
    for batch, weight in zip(grouping.batches(values), weights, strict=False):
        into_scale = scales[batch.part][batch.index]
        into_zero_point = zero_points[batch.part][batch.index]
        shape = into_scale.shape
        problem = Problem(
            values=batch.values,
            axis=batch.axis,
            scale=into_scale.reshape(-1),
            zero_point=into_zero_point.reshape(-1),
            format=plain.format,
            low=low,
            high=high,
            scheme=scheme,
            importance=weight,
        )
        found = search.find(problem)
        into_scale[...] = found.scale.reshape(shape)
        into_zero_point[...] = found.zero_point.reshape(shape)
    return QParams(
        format=plain.format,
        scale=scale,
        zero_point=to_storage(zero_point, plain.format),
        axis=plain.axis,
        block_size=plain.block_size,
        limits=None if (low, high) == plain.bounds else (low, high),
    )


def quantize(x: npt.ArrayLike, qparams: QParams, *, name: str = "") -> npt.NDArray[Any]:
    """Quantized values, equal to those of ONNX QuantizeLinear with the same scale and zero-point.

    Quotients beyond 32 bits saturate, as in onnxruntime; `onnx.reference` lets them wrap around.
    Float formats saturate too (the operator's default). int32, which QuantizeLinear does not
    give, is computed in float64.

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
    return _quantized(values, qparams, _fitting(values, qparams, name))


def _quantized(
    values: Float32Array, qparams: QParams, grouping: Grouping, *, clips: bool = True
) -> npt.NDArray[Any]:
    """See `quantize`; without ``clips``, none of the values lies beyond the bounds."""
    format = qparams.format
    work: type[np.floating[Any]] = np.float64 if format.bits == 32 else np.float32
    low, high = qparams.bounds
    result: npt.NDArray[Any] = np.empty(values.shape, format.storage)
    zero_point = _zero_points(qparams, work)
    shifted = bool(zero_point.any())
    buffer = np.empty(min(WIDE_PIECE, values.size), work)
    inputs = grouping.pieces(values, qparams.scale, zero_point, size=WIDE_PIECE)
    outputs = grouping.pieces(result, size=WIDE_PIECE)
    with np.errstate(over="ignore", under="ignore"):
        for (part, scale, zero), (out,) in zip(inputs, outputs, strict=True):
            q = buffer[: part.size].reshape(part.shape)
            np.divide(part, scale, out=q, dtype=work)
            if format.is_float:
                if format.bits == 4:
                    q += zero  # QuantizeLinear does so in this float format only: -0 becomes 0
                np.clip(q, low, high, out=q)
                round_to(q, format)
            else:
                round_to(q, format)
                if shifted:
                    q += zero
                if clips:
                    np.clip(q, low, high, out=q)
            store(q, format, out)
    return result


def _zero_points(qparams: QParams, dtype: type[np.floating[Any]]) -> npt.NDArray[Any]:
    codes = qparams.zero_point.view(f"u{qparams.zero_point.itemsize}")
    # ml_dtypes converts its numbers one by one, and they are zero mostly.
    return qparams.zero_point.astype(dtype) if codes.any() else np.zeros(codes.shape, dtype)


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
    format = qparams.format
    if q.dtype != format.storage:
        raise InputError(f"{label(name)} holds {q.dtype}, but its format is {format.name}")
    grouping = _fitting(q, qparams, name)
    result: Float32Array = np.empty(q.shape, np.float32)
    zero_point = qparams.zero_point.astype(np.float32)
    inputs = grouping.pieces(q, qparams.scale, zero_point)
    for (part, scale, zero), (out,) in zip(inputs, grouping.pieces(result), strict=True):
        x = from_storage(part, format)
        if not format.is_float:
            x -= zero
        with np.errstate(under="ignore"):
            np.multiply(x, scale, out=out)
    return result


def fake_quantize(x: npt.ArrayLike, qparams: QParams, *, name: str = "") -> Float32Array:
    """Values after a QuantizeLinear/DequantizeLinear pair, as float32.

    Raises:
        InputError: NaN or infinity in `x`, or a shape that does not fit the scale.
    """
    return dequantize(quantize(x, qparams, name=name), qparams, name=name)


def _extremes(
    values: Float32Array, grouping: Grouping, name: str
) -> tuple[Float32Array, Float32Array]:
    """Smallest and largest values of each group, widened to hold 0.

    Raises:
        InputError: NaN or infinity among the values.
    """
    positive = np.zeros(grouping.scale_shape, np.int32)
    negative = np.zeros(grouping.scale_shape, np.uint32)
    parts = grouping.pieces(values, positive, negative, size=WIDE_PIECE)
    for part, most, least in parts:
        widen(most, least, part, grouping.value_axes)
    low, high = ends_of(positive, negative)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise not_finite(np.float32, name)
    return low, high


def _fitting(values: npt.NDArray[Any], qparams: QParams, name: str) -> Grouping:
    """How the qparams group these values.

    Raises:
        InputError: The scale is for another shape.
    """
    grouping = Grouping.of(values.shape, qparams.granularity, name)
    if qparams.scale.shape != grouping.scale_shape:
        raise InputError(
            f"{label(name)} has shape {values.shape}, which needs a scale of shape "
            f"{grouping.scale_shape}, but the scale has shape {qparams.scale.shape}"
        )
    return grouping
