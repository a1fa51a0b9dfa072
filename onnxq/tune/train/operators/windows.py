"""How windows lie over spatial axes: padding, strides, dilations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F  # noqa: N812 - the name every torch program uses
from torch import Tensor

from onnxq.ir import Node, attribute_value


@dataclass(frozen=True)
class Windows:
    """The attributes that convolutions and pooling share, still without the number of axes.

    Attributes:
        kernel: Extent on each spatial axis; empty to take it from the weight.
        strides: Steps; empty for ones.
        dilations: Distances within the kernel; empty for ones.
        pads: Before each axis, then after each; empty for none.
        auto_pad: As ONNX's attribute.
        ceil: Whether a last window that is not full counts.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    auto_pad: str
    ceil: bool

    @classmethod
    def of(cls, node: Node) -> Windows:
        """Those of a node."""
        return cls(
            attribute_value(node, "kernel_shape") or (),
            attribute_value(node, "strides") or (),
            attribute_value(node, "dilations") or (),
            attribute_value(node, "pads") or (),
            attribute_value(node, "auto_pad") or "NOTSET",
            bool(attribute_value(node, "ceil_mode")),
        )

    def over(self, kernel: Sequence[int]) -> Windows:
        """The same with everything stated."""
        rank = len(kernel)
        ones = (1,) * rank
        return Windows(
            tuple(kernel),
            self.strides or ones,
            self.dilations or ones,
            self.pads or (0,) * (2 * rank),
            self.auto_pad,
            self.ceil,
        )

    @property
    def extents(self) -> list[int]:
        """From the first to the last element of the kernel on each axis."""
        return [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]

    def padding(self, sizes: Sequence[int]) -> list[tuple[int, int]]:
        """What lies before and after each axis of an input of these sizes."""
        rank = len(self.kernel)
        if self.auto_pad == "VALID":
            return [(0, 0)] * rank
        if self.auto_pad == "NOTSET":
            return list(zip(self.pads[:rank], self.pads[rank:], strict=True))
        found = []
        for size, stride, extent in zip(sizes, self.strides, self.extents, strict=True):
            total = max((-(-size // stride) - 1) * stride + extent - size, 0)
            less, more = total // 2, total - total // 2
            found.append((less, more) if self.auto_pad == "SAME_UPPER" else (more, less))
        return found

    def counts(self, sizes: Sequence[int]) -> list[int]:
        """How many windows lie along each axis."""
        found = []
        for size, stride, extent, (before, after) in zip(
            sizes, self.strides, self.extents, self.padding(sizes), strict=True
        ):
            room = size + before + after - extent
            count = (-(-room // stride) if self.ceil else room // stride) + 1
            # A window that begins behind the input and the padding before it is none.
            if self.ceil and (count - 1) * stride >= size + before:
                count -= 1
            found.append(count)
        return found


def padded(x: Tensor, padding: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    """A tensor with so much before and after each of its last axes; negative amounts cut off."""
    if not any(n for pair in padding for n in pair):
        return x
    return F.pad(x, [n for pair in reversed(padding) for n in pair], value=value)
