"""Weights in 4 bits."""

from dataclasses import dataclass
from typing import ClassVar

from onnxq.precision.stored import StoredWeights


@dataclass(frozen=True)
class Int4Weight(StoredWeights):
    """Blocks of 32 with a zero-point."""

    name: ClassVar[str] = "int4-weight"
    description: ClassVar[str] = "weights in 4-bit integers, 32 to a scale and a zero-point"
    format: ClassVar[str] = "uint4"
    weight_bits: ClassVar[float] = 4
    tuners: ClassVar[tuple[str, ...]] = ("gptq", "weighted-mse")

    scheme: str = "zero-point"
