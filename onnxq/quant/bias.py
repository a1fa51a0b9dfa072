"""Biases as int32 with the scale of the products they are added to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from onnxq.errors import InputError
from onnxq.quant._arrays import finite, label
from onnxq.quant._ranges import MIN_SCALE
from onnxq.quant.formats import INT32
from onnxq.quant.qparams import Float32Array, Float64Array, QParams

BIAS_LIMIT = 1 << 30
"""Largest magnitude of a quantized bias: half of int32, so that the sum of products that the bias
is added to has the other half (33,000 products of uint8 and int8)."""


def bias_qparams(
    input_scale: npt.ArrayLike, weight_scale: npt.ArrayLike, *, name: str = ""
) -> QParams:
    """Scale `input_scale * weight_scale`, multiplied in float32, and zero-point 0.

    Args:
        input_scale: Scale of the operator's input, shape ().
        weight_scale: Scale of its weight: shape () per tensor, (channels,) per channel.
        name: The bias's name, for error messages.

    Raises:
        InputError: The product overflows or is subnormal; see `weight_qparams_for_bias`.
    """
    with np.errstate(over="ignore", under="ignore"):
        scale = np.asarray(
            np.asarray(input_scale, np.float32) * np.asarray(weight_scale, np.float32)
        )
    if not (np.isfinite(scale) & (scale >= np.float32(MIN_SCALE))).all():
        raise InputError(
            f"{label(name)} cannot be an int32 bias: the product of the input's and the weight's "
            "scale leaves float32; leave the operator in float"
        )
    axis = None if scale.ndim == 0 else 0
    return QParams(INT32, scale, np.zeros(scale.shape, np.int32), axis)


def quantize_bias(
    bias: npt.ArrayLike, input_scale: npt.ArrayLike, weight_scale: npt.ArrayLike, *, name: str = ""
) -> npt.NDArray[np.int32]:
    """Bias as int32 with the scale of `bias_qparams`, divided in float64, rounded half to even.

    Args:
        bias: Values, shape (channels,), of any float type; taken as float32.
        input_scale: Scale of the operator's input, shape ().
        weight_scale: Scale of its weight: shape () per tensor, (channels,) per channel.
        name: The bias's name, for error messages.

    Raises:
        InputError: NaN or infinity, or a value beyond BIAS_LIMIT; weights quantized with
            `weight_qparams_for_bias` avoid the latter.
    """
    values: Float64Array = finite(bias, np.float32, name).astype(np.float64)
    scale = bias_qparams(input_scale, weight_scale, name=name).scale
    _check_channels(values, scale, name)
    q = np.rint(values / scale.astype(np.float64))
    if np.abs(q).max(initial=0.0) > BIAS_LIMIT:
        raise InputError(
            f"{label(name)} does not fit an int32 bias with scale {float(scale.min()):.4g}; "
            "raise the weight's scale or leave the operator in float"
        )
    return q.astype(np.int32)


def weight_qparams_for_bias(
    weight: QParams, input_scale: npt.ArrayLike, bias: npt.ArrayLike, *, name: str = ""
) -> QParams:
    """Qparams of the weight, its scale raised where the bias would not fit int32.

    This happens to channels with tiny weights, which BatchNormalization leaves behind when folded
    into a dead channel: the bias is all that matters there, and the weights may be rounded more
    coarsely. Scales are raised by powers of two, no further than the bias needs. The product of
    the scales is kept from being subnormal in the same way.

    Args:
        weight: Qparams of the weight, per tensor or per channel.
        input_scale: Scale of the operator's input, shape ().
        bias: Values, shape (channels,), of any float type; taken as float32.
        name: The bias's name, for error messages.

    Returns:
        `weight` itself if the bias fits, else new qparams with which to quantize the weight.

    Raises:
        InputError: NaN or infinity in the bias, weights per block, or no scale is large enough.
    """
    if weight.block_size is not None:
        raise InputError(
            f"{label(name)} cannot be an int32 bias: its operator's weight is quantized per block"
        )
    values: Float64Array = finite(bias, np.float32, name).astype(np.float64)
    _check_channels(values, weight.scale, name)
    needed = np.maximum(np.abs(values) / BIAS_LIMIT, MIN_SCALE)
    if weight.axis is None:
        needed = needed.max(initial=MIN_SCALE)
    product = np.asarray(input_scale, np.float64) * weight.scale.astype(np.float64)
    # A float32 bias within BIAS_LIMIT of this product is so of the product rounded to float32 too.
    _, exponent = np.frexp(needed / product)
    if (exponent <= 0).all():
        return weight
    with np.errstate(over="ignore"):
        scale: Float32Array = np.asarray(np.ldexp(weight.scale, np.maximum(exponent, 0)))
    if not np.isfinite(scale).all():
        raise InputError(
            f"{label(name)} is too large for an int32 bias with input scale "
            f"{float(np.asarray(input_scale)):.4g}; leave the operator in float"
        )
    return replace(weight, scale=scale)


def _check_channels(bias: Float64Array, scale: Float32Array, name: str) -> None:
    if scale.ndim and bias.shape != scale.shape:
        raise InputError(
            f"{label(name)} has shape {bias.shape}, but there are scales of shape {scale.shape}"
        )
