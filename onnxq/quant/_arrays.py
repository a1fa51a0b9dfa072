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


def label(name: str) -> str:
    """What an error message calls a tensor."""
    return f"tensor {name!r}" if name else "a tensor"


def finite(x: npt.ArrayLike, dtype: type[np.float32] | type[np.float64], name: str) -> Any:
    """Array of real numbers in `dtype`, not copied if it has that already.

    Raises:
        InputError: No real numbers, or NaN or infinity among them after the conversion.
    """
    array = np.asarray(x)
    # ml_dtypes (bfloat16 and the like) are of kind V to numpy, and convert.
    if array.dtype.kind not in "fiubV" or array.dtype.names is not None:
        raise InputError(f"{label(name)} has elements of type {array.dtype}, which are no numbers")
    with np.errstate(over="ignore"):
        converted = array.astype(dtype, copy=False)
    if not all(np.isfinite(converted[index]).all() for index in pieces(converted.shape)):
        raise InputError(
            f"{label(name)} holds NaN, infinity or a number beyond {np.dtype(dtype)} "
            "and cannot be quantized; repair the model or the data, or leave it in float"
        )
    return converted


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


def row_extremes(
    rows: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Smallest and largest value of each row, for many short rows, each of shape (rows,)."""
    # Reducing along short rows is slow; across them, after transposing, it is not.
    across = np.ascontiguousarray(rows.T)
    return across.min(axis=0), across.max(axis=0)
