"""Formats of weights by name: integers and floats, ternary and binary, and blocks of GGUF types."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from onnxq.passes.weights.stored_weights import Quantizer, Rounding
from onnxq.quant import ABSMAX, SIGNED_ABSMAX, ZERO_POINT, Granularity, Scheme
from onnxq.quant.formats import FORMATS, INT2, INT8, NARROW_FORMATS, UINT4, Format
from onnxq.quant.grouped import GROUP, GROUPED_TYPES, grouped_quantize, grouped_to_onnx
from onnxq.quant.low_bit import binary, ternary
from onnxq.quant.qparams import QuantizedTensor
from onnxq.quant.search import ScaleSearch

SCHEMES: Mapping[str, Scheme] = {
    "absmax": ABSMAX,
    "signed-absmax": SIGNED_ABSMAX,
    "zero-point": ZERO_POINT,
}


@dataclass(frozen=True)
class LowBit:
    """To {-1, 0, 1} or {-1, 1} times a scale, as `ternary` or `binary` make them, in 2 bits."""

    make: Callable[..., QuantizedTensor]
    format: Format = INT2
    bounds: tuple[float, float] = (-1, 1)

    def __call__(self, weight: np.ndarray, granularity: Granularity, name: str) -> QuantizedTensor:
        """See `Quantizer`."""
        return self.make(weight, granularity, format=self.format, name=name)


@dataclass(frozen=True)
class Grouped:
    """To the values that a GGUF type gives blocks of 32."""

    type: str
    format: Format

    @property
    def bounds(self) -> tuple[float, float]:
        """See `Quantizer`."""
        return self.format.qmin, self.format.qmax

    def takes(self, shape: tuple[int, ...], granularity: Granularity) -> bool:
        """Whether whole blocks hold a weight."""
        axis = granularity.axis
        return axis is not None and granularity.block_size == GROUP and shape[axis] % GROUP == 0

    def __call__(self, weight: np.ndarray, granularity: Granularity, name: str) -> QuantizedTensor:
        """See `Quantizer`; the blocks lie on the granularity's axis."""
        axis = granularity.axis
        assert axis is not None
        rows = np.ascontiguousarray(np.moveaxis(weight, axis, -1))
        made = grouped_to_onnx(grouped_quantize(rows, GROUPED_TYPES[self.type], name=name))
        scale, zero_point = (
            np.ascontiguousarray(np.moveaxis(array, -1, axis))
            for array in (made.qparams.scale, made.qparams.zero_point)
        )
        qparams = replace(made.qparams, scale=scale, zero_point=zero_point, axis=axis)
        return QuantizedTensor(np.moveaxis(made.values, -1, axis), qparams)


_MAKERS: dict[str, Callable[[Scheme, ScaleSearch], Quantizer]] = {
    **{
        name: partial(Rounding, format)
        for name, format in (FORMATS | NARROW_FORMATS).items()
        if format.bits < 32
    },
    "ternary": lambda scheme, search: LowBit(ternary),
    "binary": lambda scheme, search: LowBit(binary),
    "q4_0": lambda scheme, search: Grouped("Q4_0", UINT4),
    "q8_0": lambda scheme, search: Grouped("Q8_0", INT8),
}

WEIGHT_FORMATS: tuple[str, ...] = tuple(_MAKERS)
"""Names that `weight_quantizer` knows."""


def weight_quantizer(name: str, scheme: Scheme, search: ScaleSearch) -> Quantizer:
    """What quantizes weights to a format; scheme and search are for ONNX's own formats.

    onnxruntime has no CPU kernel for ``float4e2m1``.

    Ternary and binary have one scale with the least squared error, and GGUF's types (``q4_0``,
    ``q8_0``) find theirs as the `gguf` package does.
    """
    return _MAKERS[name](scheme, search)
