"""Static integers with activations of 16 bits."""

from dataclasses import dataclass
from typing import ClassVar

from onnxq.precision.static import Static


@dataclass(frozen=True)
class Int16Act(Static):
    """Activations in 16 bits, weights in 8."""

    name: ClassVar[str] = "int16-act"
    description: ClassVar[str] = (
        "activations in 16-bit and weights in 8-bit integers, ranges from calibration"
    )
    activation_bits: ClassVar[int] = 16
    relative_time: ClassVar[float] = 0.5
    transformations: ClassVar[tuple[str, ...]] = ("equalization",)
