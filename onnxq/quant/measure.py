"""What quantizing a tensor loses."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxq.quant._arrays import finite
from onnxq.quant.qparams import QParams, fake_quantize


@dataclass(frozen=True)
class MeasuredError:
    """Error of quantized values against the originals.

    Attributes:
        mse: Mean of the squared error.
        sqnr_db: Signal to quantization noise ratio, `10 * log10(sum(x**2) / sum(error**2))` in dB;
            infinite without error.
    """

    mse: float
    sqnr_db: float


def quantization_error(x: npt.ArrayLike, qparams: QParams, *, name: str = "") -> MeasuredError:
    """Error that quantizing and dequantizing `x` makes, summed in float64.

    Raises:
        InputError: NaN or infinity in `x`, or a shape that does not fit the scale.
    """
    values = finite(x, np.float32, name).astype(np.float64)
    signal = float(np.square(values).sum())
    values -= fake_quantize(x, qparams, name=name)
    noise = float(np.square(values).sum())
    if noise == 0.0:
        return MeasuredError(mse=0.0, sqnr_db=math.inf)
    return MeasuredError(mse=noise / values.size, sqnr_db=10.0 * math.log10(signal / noise))
