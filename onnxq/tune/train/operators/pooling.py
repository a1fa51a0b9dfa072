"""Pooling over windows and over whole spatial extents."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch program uses
from torch import Tensor

from onnxq.ir import Node, attribute_value
from onnxq.tune.train.operators.registry import Run, UnsupportedError, functions, operator
from onnxq.tune.train.operators.windows import Windows, padded

_MAX: dict[int, Callable[..., Any]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def _globally(reduce: Callable[[Tensor, tuple[int, ...]], Tensor]) -> Run:
    return lambda x: reduce(x, tuple(range(2, x.ndim)))


functions(
    {
        "GlobalAveragePool": _globally(lambda x, axes: torch.mean(x, axes, True)),
        "GlobalMaxPool": _globally(lambda x, axes: torch.amax(x, axes, True)),
    }
)


@operator("GlobalLpPool")
def _global_norm(node: Node) -> Run:
    order = attribute_value(node, "p")
    return _globally(lambda x, axes: torch.linalg.vector_norm(x, order, axes, True))


def _windows(node: Node) -> Windows:
    stated = Windows.of(node)
    if len(stated.kernel) not in _MAX:
        raise UnsupportedError(f"has {len(stated.kernel)} spatial axes and torch pools 1 to 3")
    return stated.over(stated.kernel)


def _covered(windows: Windows, x: Tensor) -> list[tuple[int, int]]:
    """Padding with which exactly the windows that count lie over an input."""
    sizes, found = x.shape[2:], []
    for size, count, stride, extent, (before, _) in zip(
        sizes,
        windows.counts(sizes),
        windows.strides,
        windows.extents,
        windows.padding(sizes),
        strict=True,
    ):
        found.append((before, (count - 1) * stride + extent - size - before))
    return found


@operator("MaxPool")
def _max_pool(node: Node) -> Run:
    windows = _windows(node)
    places_too = len(node.outputs) > 1
    column_first = bool(attribute_value(node, "storage_order"))

    def run(x: Tensor) -> Any:
        padding = _covered(windows, x)
        floats = x if x.is_floating_point() else x.float()
        y = _MAX[len(windows.kernel)](
            padded(floats, padding, -math.inf),
            windows.kernel,
            windows.strides,
            0,
            windows.dilations,
            return_indices=places_too,
        )
        if not places_too:
            return y.to(x.dtype)
        return y[0].to(x.dtype), _flat_places(y[1], x, padding, column_first)

    return run


def _flat_places(
    places: Tensor, x: Tensor, padding: list[tuple[int, int]], column_first: bool
) -> Tensor:
    """Places within padded channels as places within the whole tensor."""
    sizes = x.shape[2:]
    padded_sizes = [n + a + b for n, (a, b) in zip(sizes, padding, strict=True)]
    coordinates = []
    for size, (before, _) in zip(reversed(padded_sizes), reversed(padding), strict=True):
        coordinates.append(places % size - before)
        places = places // size
    order = list(zip(reversed(coordinates), sizes, strict=True))
    flat = torch.zeros_like(places)
    for coordinate, size in reversed(order) if column_first else order:
        flat = flat * size + coordinate
    channels = torch.arange(x.shape[0] * x.shape[1], device=x.device) * math.prod(sizes)
    return flat + channels.reshape(*x.shape[:2], *[1] * len(sizes))


def _window_sums(x: Tensor, windows: Windows) -> Tensor:
    """Sums of what windows cover, without padding."""
    rank = len(windows.kernel)
    channels = x.reshape(-1, 1, *x.shape[2:])
    ones = torch.ones(1, 1, *windows.kernel, dtype=x.dtype, device=x.device)
    sums = _CONVOLVE[rank](channels, ones, None, windows.strides, 0, windows.dilations)
    return sums.reshape(*x.shape[:2], *sums.shape[2:])


@operator("AveragePool")
def _average_pool(node: Node) -> Run:
    windows = _windows(node)
    counts_padding = bool(attribute_value(node, "count_include_pad"))

    def run(x: Tensor) -> Tensor:
        padding = _covered(windows, x)
        sums = _window_sums(padded(x, padding), windows)
        if not any(n for pair in padding for n in pair):
            return sums / math.prod(windows.kernel)
        ones = torch.ones(1, 1, *x.shape[2:], dtype=x.dtype, device=x.device)
        if counts_padding:
            stated = windows.padding(x.shape[2:])
            ones = padded(ones, stated, 1.0)
            padding = [
                (0, have - want) for (_, have), (_, want) in zip(padding, stated, strict=True)
            ]
        return sums / _window_sums(padded(ones, padding), windows)

    return run


@operator("LpPool")
def _norm_pool(node: Node) -> Run:
    windows, order = _windows(node), attribute_value(node, "p")

    def run(x: Tensor) -> Tensor:
        powers = padded(x, _covered(windows, x)).abs() ** order
        return _window_sums(powers, windows) ** (1 / order)

    return run


@operator("MaxUnpool", host=(2,))
def _max_unpool(node: Node) -> Run:
    windows = _windows(node)

    def run(x: Tensor, places: Tensor, shape: Tensor | None = None) -> Tensor:
        # Places are those in the input of the MaxPool, whatever is asked for.
        sizes = [
            (n - 1) * s - a - b + e
            for n, s, e, (a, b) in zip(
                x.shape[2:],
                windows.strides,
                windows.extents,
                windows.padding(x.shape[2:]),
                strict=True,
            )
        ]
        flat = torch.zeros(math.prod((*x.shape[:2], *sizes)), dtype=x.dtype, device=x.device)
        y = flat.scatter(0, places.reshape(-1), x.reshape(-1)).reshape(*x.shape[:2], *sizes)
        if shape is None:
            return y
        wanted = shape.tolist()[2:]
        return padded(y, [(0, a - b) for a, b in zip(wanted, sizes, strict=True)])

    return run
