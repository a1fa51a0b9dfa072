"""What a pass, a precision or a tuner may need to know of a tensor's values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Need:
    """Something to be known of one tensor.

    Attributes:
        tensor: The tensor's name.
    """

    tensor: str

    def covers(self, other: Need) -> bool:
        """Whether what answers this need answers the other one, too."""
        return self == other


@dataclass(frozen=True)
class RangeOf(Need):
    """Smallest and largest value, and how often values fell where if ``histogram``."""

    histogram: bool = False

    def covers(self, other: Need) -> bool:
        """Whether it is the same tensor's, and there is a histogram if that is needed."""
        return (
            isinstance(other, RangeOf)
            and self.tensor == other.tensor
            and self.histogram >= other.histogram
        )


@dataclass(frozen=True)
class MovingRangeOf(Need):
    """Moving average of the batches' ends, in which a new batch weighs ``momentum``."""

    momentum: float


@dataclass(frozen=True)
class ChannelsOf(Need):
    """Magnitudes and means of each index on ``axis``."""

    axis: int


@dataclass(frozen=True)
class Windows:
    """What a convolution multiplies its weights with; fields are named as Conv's attributes.

    An `auto_pad` is for the caller to resolve.

    Attributes:
        kernel_shape: The kernel's extent on each spatial axis.
        strides: Steps on each; ones if empty.
        pads: Zeros before each axis, then after each; none if empty.
        dilations: Distances between the kernel's elements; ones if empty.
        group: Number of groups that the channels fall into.
    """

    kernel_shape: tuple[int, ...]
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    group: int = 1


@dataclass(frozen=True)
class GramOf(Need):
    """The Gram matrix XᵀX.

    The rows of X lie along the tensor's last axis, with all other axes run together; with
    ``windows`` they are what a convolution's kernel covers, in the order of its weights
    (``weight.reshape(outputs, -1)``), and every group has a matrix of its own.
    """

    windows: Windows | None = None


@dataclass(frozen=True)
class Comparison(Need):
    """What only a run of both the float model and the quantized one can answer.

    `onnxq.observe.observe`, which runs one, leaves it unanswered.
    """


@dataclass(frozen=True)
class CrossGramOf(Comparison):
    """X̂ᵀX of what the quantized model has in place of X, as in `GramOf`, and of the float model's.

    The node that reads them need not be quantized yet.
    """

    windows: Windows | None = None


@dataclass(frozen=True)
class DifferenceOf(Comparison):
    """As `ChannelsOf`, of what the float model gives less what the quantized one gives.

    The node that gives it has to be quantized.
    """

    axis: int


@dataclass(frozen=True)
class _Counted(Need):
    count: int

    def covers(self, other: Need) -> bool:
        """Whether it is the same, and at least as many: more begin with those that fewer are."""
        return (
            isinstance(other, type(self))
            and self.tensor == other.tensor
            and self.count >= other.count
        )


@dataclass(frozen=True)
class RowsOf(_Counted):
    """A sample, drawn by seed, of ``count`` rows along the last axis."""


@dataclass(frozen=True)
class SamplesOf(_Counted):
    """The whole values of the first ``count`` samples, as a block of layers is fed with."""
