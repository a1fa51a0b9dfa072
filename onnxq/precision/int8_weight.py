"""Weights in 8 bits."""

from dataclasses import dataclass
from typing import ClassVar

from onnxq.precision.stored import StoredWeights


@dataclass(frozen=True)
class Int8Weight(StoredWeights):
    """One scale for each output channel."""

    name: ClassVar[str] = "int8-weight"
    description: ClassVar[str] = "weights in 8-bit integers, one scale per channel"
    format: ClassVar[str] = "int8"
    weight_bits: ClassVar[float] = 8

    block_size: int = 0
