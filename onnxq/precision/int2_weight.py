"""Weights in 2 bits."""

from dataclasses import dataclass
from typing import ClassVar

from onnxq.precision.stored import StoredWeights


@dataclass(frozen=True)
class Int2Weight(StoredWeights):
    """Blocks of 64.

    Bits per byte that `models/text_lm.onnx` loses in blocks of 32: rounded to the nearest 0.43, and
    1.66 in absmax with scales above 0; with ``learned-rounding`` 0.085 and 0.105.
    """

    name: ClassVar[str] = "int2-weight"
    description: ClassVar[str] = "weights in 2-bit integers, 64 to a scale"
    format: ClassVar[str] = "int2"
    weight_bits: ClassVar[float] = 2
    tuners: ClassVar[tuple[str, ...]] = ("learned-rounding", "weighted-mse", "mse")

    block_size: int = 64
    scheme: str = "signed-absmax"
