"""Checks on arrays that come from models and data."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.errors import InputError


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
    if not np.isfinite(converted).all():
        raise InputError(
            f"{label(name)} holds NaN, infinity or a number beyond {np.dtype(dtype)} "
            "and cannot be quantized; repair the model or the data, or leave it in float"
        )
    return converted
