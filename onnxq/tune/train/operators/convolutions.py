"""Convolutions and their transposes."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F  # noqa: N812 - the name every torch program uses
from torch import Tensor

from onnxq.ir import Node, attribute_value
from onnxq.tune.train.operators.registry import Run, UnsupportedError, operator
from onnxq.tune.train.operators.windows import Windows, padded

_CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def convolution(node: Node) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """The convolution that a node's attributes describe, of input, weight and bias.

    Raises:
        UnsupportedError: torch has none of so many spatial axes.
    """
    stated, group = Windows.of(node), attribute_value(node, "group") or 1
    _require_axes(node, stated)

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        windows = stated.over(weight.shape[2:])
        padding = windows.padding(x.shape[2:])
        convolve = _CONVOLVE[weight.ndim - 2]
        if all(before == after for before, after in padding):
            around = [before for before, _ in padding]
            return convolve(x, weight, bias, windows.strides, around, windows.dilations, group)
        x = padded(x, padding)
        return convolve(x, weight, bias, windows.strides, 0, windows.dilations, group)

    return run


def _require_axes(node: Node, windows: Windows) -> None:
    weight = node.input(1)
    rank = weight.rank if weight is not None else None
    spatial = len(windows.kernel) if rank is None else rank - 2
    if (rank is not None or windows.kernel) and spatial not in _CONVOLVE:
        raise UnsupportedError(f"has {spatial} spatial axes and torch convolves 1 to 3")


@operator("Conv")
def _conv(node: Node) -> Run:
    return convolution(node)


@operator("ConvTranspose")
def _conv_transpose(node: Node) -> Run:
    stated, group = Windows.of(node), attribute_value(node, "group") or 1
    _require_axes(node, stated)
    further = attribute_value(node, "output_padding")
    wanted = attribute_value(node, "output_shape")

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        windows = stated.over(weight.shape[2:])
        rank = len(windows.kernel)
        more = list(further or [0] * rank)
        full = _TRANSPOSED[rank](
            x, weight, None, windows.strides, groups=group, dilation=windows.dilations
        )
        whole = [size + extra for size, extra in zip(full.shape[2:], more, strict=True)]
        if wanted:
            cut = _halves(
                [a - b for a, b in zip(whole, wanted[-rank:], strict=True)], windows.auto_pad
            )
        elif windows.auto_pad.startswith("SAME"):
            sizes = [n * s for n, s in zip(x.shape[2:], windows.strides, strict=True)]
            cut = _halves([a - b for a, b in zip(whole, sizes, strict=True)], windows.auto_pad)
        else:
            cut = windows.padding(x.shape[2:])
        # Cut where nothing was added yet, so that what lies beyond is the bias alone.
        ends = [(-a, extra - b) for (a, b), extra in zip(cut, more, strict=True)]
        y = padded(full, ends)
        return y if bias is None else y + bias.reshape(-1, *[1] * rank)

    return run


def _halves(totals: list[int], auto_pad: str) -> list[tuple[int, int]]:
    if auto_pad == "SAME_UPPER":
        return [(t // 2, t - t // 2) for t in totals]
    return [(t - t // 2, t // 2) for t in totals]
