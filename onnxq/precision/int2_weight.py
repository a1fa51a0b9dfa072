"""Weights in 2 bits."""

from dataclasses import dataclass
from typing import ClassVar

from onnxq.precision.stored import StoredWeights


@dataclass(frozen=True)
class Int2Weight(StoredWeights):
    """Blocks of 64 whose scale has the least squared error."""

    name: ClassVar[str] = "int2-weight"
    description: ClassVar[str] = "weights in 2-bit integers, 64 to a scale of least squared error"
    format: ClassVar[str] = "int2"
    weight_bits: ClassVar[float] = 2
    tuners: ClassVar[tuple[str, ...]] = ("learned-rounding", "weighted-mse", "mse")

    block_size: int = 64
