"""Weights of two values."""

from dataclasses import dataclass
from typing import ClassVar

from onnxq.precision.stored import StoredWeights


@dataclass(frozen=True)
class Binary(StoredWeights):
    """Blocks of 64."""

    name: ClassVar[str] = "binary"
    description: ClassVar[str] = "weights of -1 and 1 in 2 bits, 64 to a scale"
    format: ClassVar[str] = "binary"
    weight_bits: ClassVar[float] = 2

    block_size: int = 64
