"""How a range becomes scale and zero-point, and which values share them."""

from __future__ import annotations

from dataclasses import dataclass

from onnxq.errors import InputError
from onnxq.plain import entry
from onnxq.quant.formats import Format


@dataclass(frozen=True)
class Scheme:
    """How a range of real numbers is laid over a format.

    Absmax (`symmetric`) puts zero in the middle of the format: at 0 in a signed format, at half of
    the range in an unsigned one (128 in uint8). Zero-point lays the range over the whole format and
    puts zero where it falls; float formats have none.

    Attributes:
        symmetric: Absmax if true, zero-point if not.
        narrow_range: Leave out the format's smallest value, so that absmax is even-handed
            (-127 to 127 in int8). Otherwise absmax uses it for ranges that are longer below zero.
        power_of_two: Round scales up to powers of two.
        reduced_range: Use half of an 8-bit format (7 bits): x86 processors without VNNI add pairs
            of products in 16 bits, which full ranges overflow.
        signed_scale: Make the scale of an absmax range that reaches further above zero than below
            negative, so that the format's smallest value, which has no counterpart, is always that
            of the largest magnitude: -2 in int2, where else only 1 would be left for it. For
            weights.
    """

    symmetric: bool
    narrow_range: bool = False
    power_of_two: bool = False
    reduced_range: bool = False
    signed_scale: bool = entry(sparse=True, default=False)


ABSMAX = Scheme(symmetric=True)
SIGNED_ABSMAX = Scheme(symmetric=True, signed_scale=True)
ZERO_POINT = Scheme(symmetric=False)


@dataclass(frozen=True)
class Granularity:
    """Which values of a tensor share a scale and zero-point.

    Attributes:
        axis: None per tensor; otherwise the axis along which there are several scales, counted from
            the end if negative.
        block_size: None per tensor and per channel; per block the number of neighbours on `axis`
            that share a scale. The last block is shorter where the size does not divide the axis.

    Raises:
        InputError: A block size without an axis, or below 1.
    """

    axis: int | None = None
    block_size: int | None = None

    def __post_init__(self) -> None:
        if self.block_size is not None and self.axis is None:
            raise InputError("a block size needs an axis; name the axis that is cut into blocks")
        if self.block_size is not None and self.block_size < 1:
            raise InputError(f"block size {self.block_size} is not possible; give 1 or more")

    @property
    def opset(self) -> int:
        """Lowest opset whose QuantizeLinear and DequantizeLinear have this granularity."""
        if self.block_size is not None:
            return 21
        return 10 if self.axis is None else 13

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the scales of a tensor of a shape."""
        if self.axis is None:
            return ()
        length = shape[self.axis]
        if self.block_size is None:
            return (length,)
        axis = self.axis % len(shape)
        return (*shape[:axis], -(-length // self.block_size), *shape[axis + 1 :])


PER_TENSOR = Granularity()


def per_channel(axis: int) -> Granularity:
    """One scale for each index on `axis`."""
    return Granularity(axis)


def per_block(axis: int, size: int) -> Granularity:
    """One scale for each `size` neighbours on `axis`, at every place of the other axes.

    Raises:
        InputError: The size is below 1.
    """
    return Granularity(axis, size)


def value_range(format: Format, scheme: Scheme) -> tuple[float, float]:
    """Smallest and largest value of the format that a range is laid over.

    Narrow range changes nothing in float formats: they reach as far below zero as above.

    Raises:
        InputError: The scheme's options do not suit the format.
    """
    low, high = format.qmin, format.qmax
    if not scheme.symmetric and (format.is_float or format.bits == 32):
        raise InputError(f"{format.name} has no zero-point; use the absmax scheme")
    if scheme.reduced_range:
        if format.levels != 256:
            raise InputError(
                f"reduced_range is for 8-bit integers, not {format.name}; drop the option"
            )
        low, high = low // 2, high // 2
    if scheme.narrow_range and not format.is_float:
        low += 1
    return low, high
