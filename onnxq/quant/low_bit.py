"""Weights of two and three values: binary {-1, +1} and ternary {-1, 0, +1}, times a scale.

Both minimise `sum((w - a t)**2)` over the scale `a` > 0 and the values `t` of a tensor, channel or
block, as a binary or ternary weight network defines it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnxq.errors import InputError
from onnxq.quant._arrays import PIECE, finite, label
from onnxq.quant._groups import Batch, Grouping
from onnxq.quant._ranges import MIN_SCALE
from onnxq.quant._rounding import to_storage
from onnxq.quant.formats import INT2, Format
from onnxq.quant.qparams import QParams, QuantizedTensor, quantize
from onnxq.quant.scheme import Granularity

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]


def ternary(
    weight: npt.ArrayLike,
    granularity: Granularity,
    *,
    format: Format = INT2,
    name: str = "",
) -> QuantizedTensor:
    """Weight as -1, 0 and +1 times a scale.

    The best scale for a set of weights that are not 0 is the mean of their magnitudes, and the
    best set of each size holds the largest magnitudes, so that the threshold `d` of the least
    squared error is the one with the largest `sum(|w| > d: |w|)**2 / count(|w| > d)` (Li and Liu,
    "Ternary Weight Networks", 2016, equations 4 and 5). It is sought over all magnitudes, in order.
    Every weight then lies nearest to its own value, so that `quantize` gives the same values.

    Groups of only zeros take the smallest scale of the others. Scales are at least MIN_SCALE.

    Args:
        weight: Values, of any float type and shape, also empty.
        granularity: Which values share a scale; a negative axis is counted from the end.
        format: Integers to store the values in: 2 bits, or more where the opset is below 25.
            Unsigned ones have zero-point 1.
        name: The tensor's name, for error messages.

    Returns:
        The values, and qparams with limits at -1 and +1 from the zero-point.

    Raises:
        InputError: NaN or infinity in the weight, no such axis, or a float format.
    """
    values, grouping = _prepared(weight, granularity, format, name)
    scale: Float64Array = np.zeros(grouping.scale_shape)
    views = grouping.aligned_scales(scale)
    for batch in grouping.batches(values):
        into = views[batch.part][batch.index]
        into[...] = _optimal_scale(batch).reshape(into.shape)
    qparams = _qparams(scale, format, grouping)
    return QuantizedTensor(quantize(values, qparams, name=name), qparams)


def binary(
    weight: npt.ArrayLike,
    granularity: Granularity,
    *,
    format: Format = INT2,
    name: str = "",
) -> QuantizedTensor:
    """Weight as -1 and +1 times a scale.

    The least squared error has the signs of the weights, and the mean of their magnitudes as scale
    (Rastegari et al., "XNOR-Net", 2016, equations 3 to 6, binary weight networks). A weight of 0
    becomes +1: nothing here stands for 0, so that groups of only zeros become MIN_SCALE, which is
    about 1e-38.

    Arguments, result and what is raised are those of `ternary`.
    """
    values, grouping = _prepared(weight, granularity, format, name)
    scale = np.maximum(_mean_magnitude(values, grouping), MIN_SCALE)
    qparams = _qparams(scale, format, grouping)
    zero_point = np.float32(_zero_point(format))
    result = np.empty(values.shape, format.storage)
    for (part,), (out,) in zip(grouping.pieces(values), grouping.pieces(result), strict=True):
        out[...] = to_storage(np.where(part < 0, zero_point - 1, zero_point + 1), format)
    return QuantizedTensor(result, qparams)


def _prepared(
    weight: npt.ArrayLike, granularity: Granularity, format: Format, name: str
) -> tuple[Float32Array, Grouping]:
    if format.is_float:
        raise InputError(f"{label(name)} cannot be stored as {format.name}; take an integer format")
    values: Float32Array = finite(weight, np.float32, name)
    return values, Grouping.of(values.shape, granularity, name)


def _zero_point(format: Format) -> int:
    return 0 if format.signed else 1


def _qparams(scale: Float64Array, format: Format, grouping: Grouping) -> QParams:
    zeros = scale == 0
    scale = np.where(zeros, 1.0 if zeros.all() else scale[~zeros].min(initial=np.inf), scale)
    zero_point = _zero_point(format)
    return QParams(
        format=format,
        scale=np.maximum(scale, MIN_SCALE).astype(np.float32),
        zero_point=to_storage(np.full(scale.shape, zero_point), format),
        axis=grouping.axis,
        block_size=grouping.block_size,
        limits=(zero_point - 1, zero_point + 1),
    )


def _mean_magnitude(values: Float32Array, grouping: Grouping) -> Float64Array:
    total, count = np.zeros(grouping.scale_shape), np.zeros(grouping.scale_shape)
    for part, sums, counts in grouping.pieces(values, total, count):
        magnitude = np.abs(part)
        sums += magnitude.sum(axis=grouping.value_axes, keepdims=True, dtype=np.float64)
        counts += part.size // sums.size
    return np.asarray(total / np.maximum(count, 1))


def _optimal_scale(batch: Batch) -> Float64Array:
    """Mean of the largest magnitudes, so many that `sum**2 / count` is largest."""
    axis = batch.axis
    descending = -np.sort(-np.abs(batch.values), axis=axis)
    length = descending.shape[axis]
    step = max(1, PIECE // max(descending.size // length, 1))
    groups = descending.shape[1 - axis]
    carried, gain, scale = np.zeros(groups), np.full(groups, -1.0), np.zeros(groups)
    for start in range(0, length, step):
        part = descending[(slice(None),) * axis + (slice(start, start + step),)]
        sums = np.cumsum(part, axis=axis, dtype=np.float64) + np.expand_dims(carried, axis)
        counts = np.arange(start + 1, start + 1 + part.shape[axis], dtype=np.float64)
        counts = np.expand_dims(counts, 1 - axis)
        gains = sums * (sums / counts)
        most = np.expand_dims(gains.argmax(axis=axis), axis)
        here = np.take_along_axis(gains, most, axis).squeeze(axis)
        means = np.take_along_axis(sums / counts, most, axis).squeeze(axis)
        scale = np.where(here > gain, means, scale)
        gain = np.maximum(here, gain)
        carried = np.take(sums, -1, axis=axis)
    return scale
