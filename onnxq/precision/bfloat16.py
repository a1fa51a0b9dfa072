"""Bfloat16."""

from dataclasses import dataclass
from typing import ClassVar

from onnxq.precision.halves import Halves


@dataclass(frozen=True)
class BFloat16(Halves):
    """Bfloat16, whose range is that of float32."""

    name: ClassVar[str] = "bfloat16"
    description: ClassVar[str] = "16-bit floats with the range of float32"
