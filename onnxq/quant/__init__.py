"""Quantization arithmetic in numpy: number formats, schemes, granularity, qparams."""

from __future__ import annotations

from onnxq.quant.bias import (
    BIAS_LIMIT,
    bias_qparams,
    quantize_bias,
    weight_qparams_for_bias,
)
from onnxq.quant.formats import (
    FORMATS,
    INT2,
    INT4,
    INT8,
    INT16,
    INT32,
    UINT2,
    UINT4,
    UINT8,
    UINT16,
    Format,
    format_of,
)
from onnxq.quant.measure import MeasuredError, quantization_error
from onnxq.quant.qparams import (
    MIN_SCALE,
    QParams,
    dequantize,
    fake_quantize,
    qparams_from_range,
    quantize,
    weight_qparams,
)
from onnxq.quant.scheme import (
    ABSMAX,
    PER_TENSOR,
    ZERO_POINT,
    Granularity,
    Scheme,
    integer_range,
    per_block,
    per_channel,
)
from onnxq.quant.target import OperatorRule, Target, available_targets, load_target

__all__ = [
    "ABSMAX",
    "BIAS_LIMIT",
    "FORMATS",
    "INT2",
    "INT4",
    "INT8",
    "INT16",
    "INT32",
    "MIN_SCALE",
    "PER_TENSOR",
    "UINT2",
    "UINT4",
    "UINT8",
    "UINT16",
    "ZERO_POINT",
    "Format",
    "Granularity",
    "MeasuredError",
    "OperatorRule",
    "QParams",
    "Scheme",
    "Target",
    "available_targets",
    "bias_qparams",
    "dequantize",
    "fake_quantize",
    "format_of",
    "integer_range",
    "load_target",
    "per_block",
    "per_channel",
    "qparams_from_range",
    "quantization_error",
    "quantize",
    "quantize_bias",
    "weight_qparams",
    "weight_qparams_for_bias",
]
