"""Static integers of few bits: weights down to two values, activations down to one bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from onnxq.errors import InputError
from onnxq.passes.static.insert_qdq import CLIP_OPSET
from onnxq.passes.weights.stored_weights import Quantizer, Rounding
from onnxq.passes.weights.weight_formats import LowBit
from onnxq.precision.int8 import Int8
from onnxq.precision.parts import Part, StaticActivations, StaticWeights
from onnxq.precision.static import FEW_BITS, Static
from onnxq.quant import Format
from onnxq.quant.formats import INT2, INT4
from onnxq.quant.low_bit import binary, ternary
from onnxq.targets import Target

_BITS: Mapping[str, int] = {f"int{bits}": bits for bits in range(2, 9)}
_VALUES = {"ternary": ternary, "binary": binary}


@dataclass(frozen=True)
class StaticBits(Static):
    """Weights and activations in so many bits, computed by the kernels for 8 bits.

    Attributes:
        weight: ``int8`` to ``int2``, ``ternary`` or ``binary``. Up to 4 bits they are stored in 4
            or 2, see `onnxq.passes.weights.narrow_weights`.
        activation: Bits of activations, 1 to 8.
        outer: The precision of the first and the last layer and of what is no product, such as
            sums and pools; empty for the same.
    """

    name: ClassVar[str] = "static-bits"
    description: ClassVar[str] = (
        "integers of few bits in kernels for 8: weights, and activations too"
    )
    weight_bits: ClassVar[float] = 4
    activation_bits: ClassVar[int] = 8
    tuners: ClassVar[tuple[str, ...]] = FEW_BITS
    relative_time: ClassVar[float] = Int8.relative_time
    spares_bytes: ClassVar[bool] = True

    weight: str = "int4"
    activation: int = 8
    outer: str = Int8.name

    def __post_init__(self) -> None:
        if self.weight not in (*_BITS, *_VALUES):
            raise InputError(
                f"precision static-bits has no weights '{self.weight}'; there are "
                f"{', '.join((*_BITS, *_VALUES))}"
            )
        if not 1 <= self.activation <= 8:
            raise InputError(
                f"precision static-bits has no activations of {self.activation} bits; give 1 to 8"
            )

    @property
    def described(self) -> str:
        """See `Precision`: kernels compute on bytes."""
        return Int8.name

    def needed_opset(self, target: Target) -> int:
        """See `Precision`."""
        bits = _BITS.get(self.weight, 2)
        held = INT2.opset if bits == 2 else INT4.opset if bits <= 4 else 0
        clip = CLIP_OPSET if self.activation < 8 else 0
        return max(super().needed_opset(target), held, clip)

    def activation_format(self, target: Target) -> Format:
        """See `Static`."""
        return target.activation_format_of(self.activation)

    def quantizer(self, target: Target) -> Quantizer:
        """See `Static`."""
        if self.weight in _VALUES:
            zero = 0 if target.weight_format.signed else 1
            return LowBit(_VALUES[self.weight], target.weight_format, (zero - 1, zero + 1))
        return Rounding(target.weight_format_of(_BITS[self.weight]), target.weight_scheme)

    @property
    def stored_bits(self) -> float:
        """See `Precision`."""
        bits = _BITS.get(self.weight, 2)
        return 2 if bits == 2 else 4 if bits <= 4 else 8

    @property
    def stores_narrow(self) -> bool:
        """See `Static`."""
        return _BITS.get(self.weight, 2) <= 4

    def parts(self) -> Sequence[Part]:
        """See `Precision`."""
        return (StaticWeights(self.weight, self.quantizer), StaticActivations(self.activation))
