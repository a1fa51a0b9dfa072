"""GGUF's Q8_0."""

from dataclasses import dataclass
from typing import ClassVar

from onnxq.precision.stored import StoredWeights


@dataclass(frozen=True)
class Q80(StoredWeights):
    """Blocks of 32 in 8 bits, as GGUF files have them."""

    name: ClassVar[str] = "q8_0"
    description: ClassVar[str] = "weights as GGUF's Q8_0 stores them: 8-bit integers, 32 to a scale"
    format: ClassVar[str] = "q8_0"
    weight_bits: ClassVar[float] = 8
