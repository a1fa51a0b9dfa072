"""GGUF's Q4_0."""

from dataclasses import dataclass
from typing import ClassVar

from onnxq.precision.stored import StoredWeights


@dataclass(frozen=True)
class Q40(StoredWeights):
    """Blocks of 32 in 4 bits, as GGUF files have them."""

    name: ClassVar[str] = "q4_0"
    description: ClassVar[str] = "weights as GGUF's Q4_0 stores them: 4-bit integers, 32 to a scale"
    format: ClassVar[str] = "q4_0"
    weight_bits: ClassVar[float] = 4
