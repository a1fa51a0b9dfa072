"""Static integers of 8 bits."""

from dataclasses import dataclass
from typing import ClassVar

from onnxq.precision.static import Static


@dataclass(frozen=True)
class Int8(Static):
    """Activations and weights in 8 bits."""

    name: ClassVar[str] = "int8"
    description: ClassVar[str] = (
        "activations and weights in 8-bit integers, ranges from calibration"
    )
    activation_bits: ClassVar[int] = 8
    transformations: ClassVar[tuple[str, ...]] = ("smooth-quant", "equalization")
    relative_time: ClassVar[float] = 0.25
