"""Arrays that come from models and data: checks, and going through them in pieces."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.errors import InputError

PIECE = 1 << 15
"""Elements worked on at a time: as float32, with a few intermediate results beside them, they stay
in a processor's second-level cache."""

WIDE_PIECE = 1 << 17
"""The same where there are two intermediate results at most."""


_SIGN = np.uint32(1 << 31)

_SHORT = 256
"""Groups up to this length are reduced by comparing neighbours."""


def label(name: str) -> str:
    """What an error message calls a tensor."""
    return f"tensor {name!r}" if name else "a tensor"


def finite(x: npt.ArrayLike, dtype: type[np.float32] | type[np.float64], name: str) -> Any:
    """Array of real numbers in `dtype`, not copied if it has that already.

    Raises:
        InputError: No real numbers, or NaN or infinity among them after the conversion.
    """
    converted = as_numbers(x, dtype, name)
    if not all(np.isfinite(converted[index]).all() for index in pieces(converted.shape)):
        raise not_finite(dtype, name)
    return converted


def as_numbers(x: npt.ArrayLike, dtype: type[np.float32] | type[np.float64], name: str) -> Any:
    """Array in `dtype`, not copied if it has that already; what is beyond it becomes infinite.

    Raises:
        InputError: No real numbers.
    """
    array = np.asarray(x)
    # ml_dtypes (bfloat16 and the like) are of kind V to numpy, and convert.
    if array.dtype.kind not in "fiubV" or array.dtype.names is not None:
        raise InputError(f"{label(name)} has elements of type {array.dtype}, which are no numbers")
    with np.errstate(over="ignore"):
        return array.astype(dtype, copy=False)


def not_finite(dtype: type[np.float32] | type[np.float64], name: str) -> InputError:
    """What is raised where numbers have to be finite."""
    return InputError(
        f"{label(name)} holds NaN, infinity or a number beyond {np.dtype(dtype)} "
        "and cannot be quantized; repair the model or the data, or leave it in float"
    )


def pieces(shape: tuple[int, ...], size: int = PIECE) -> Iterator[tuple[slice, ...]]:
    """Indices that cut an array of this shape into neighbourhoods of at most `size` elements."""
    steps = []
    room = size
    for length in reversed(shape):
        steps.append(max(1, min(length, room)))
        room = room // length if 0 < length <= room else 1
    starts = [range(0, n, step) for n, step in zip(shape, reversed(steps), strict=True)]
    for corner in product(*starts):
        yield tuple(
            slice(start, start + step) for start, step in zip(corner, reversed(steps), strict=True)
        )


def widen(
    positive: npt.NDArray[np.int32],
    negative: npt.NDArray[np.uint32],
    values: npt.NDArray[np.float32],
    axes: tuple[int, ...],
) -> None:
    """Let the bit patterns of groups' largest and smallest numbers hold values too.

    As signed integers, float32 numbers above 0 lie in their own order above all others, and as
    unsigned ones numbers below 0 lie in the opposite order above all others. NaN and infinity lie
    farther out than finite numbers, so one of them among a group's numbers is one of its ends.
    Integers are compared twice as fast as floats, whose NaN numpy has to pass on.

    Args:
        positive: The largest numbers; zeros at first, so that ranges hold 0.
        negative: The smallest; below 2**31 where there is none below 0.
        values: Numbers of the groups.
        axes: Axes of the values on which those of one group lie.
    """
    for most, patterns in ((positive, values.view(np.int32)), (negative, values.view(np.uint32))):
        np.maximum(most, _largest(patterns, axes), out=most)


def ends_of(
    positive: npt.NDArray[np.int32], negative: npt.NDArray[np.uint32]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Smallest and largest numbers of what `widen` found; NaN or infinite where such are."""
    negative = np.where(negative < _SIGN, np.uint32(0), negative)
    return negative.view(np.float32), positive.view(np.float32)


def _largest(patterns: npt.NDArray[Any], axes: tuple[int, ...]) -> npt.NDArray[Any]:
    size = patterns.shape[axes[-1]]
    if axes != (patterns.ndim - 2,) or patterns.shape[-1] > 1 or size > _SHORT or size & (size - 1):
        return np.asarray(patterns.max(axis=axes, keepdims=True))
    # Reducing along short rows is slow; comparing neighbours until one is left is not.
    left = patterns.reshape(-1)
    while size > 1:
        left = np.maximum(left[0::2], left[1::2])
        size //= 2
    return left.reshape(*patterns.shape[:-2], 1, 1)


def row_extremes(
    rows: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Smallest and largest value of each row, for many short rows, each of shape (rows,)."""
    # Reducing along short rows is slow; across them, after transposing, it is not.
    across = np.ascontiguousarray(rows.T)
    return across.min(axis=0), across.max(axis=0)
