"""Weights in 3 bits."""

from dataclasses import dataclass
from typing import ClassVar

from onnxq.precision.stored import StoredWeights


@dataclass(frozen=True)
class Int3Weight(StoredWeights):
    """Blocks of 32; 3-bit values stored in 4 bits, for there is no such type in ONNX.

    Bits per byte that `models/text_lm.onnx` loses in blocks of 128: rounded to the nearest 0.087,
    and 0.152 in absmax with scales above 0.
    """

    name: ClassVar[str] = "int3-weight"
    description: ClassVar[str] = "weights in 3-bit integers stored in 4 bits, 32 to a scale"
    format: ClassVar[str] = "int3"
    weight_bits: ClassVar[float] = 4
    tuners: ClassVar[tuple[str, ...]] = ("learned-rounding", "weighted-mse")

    scheme: str = "signed-absmax"
