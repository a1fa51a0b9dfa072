"""Fitting the user's arrays to a model's inputs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import ml_dtypes
import numpy as np

from onnxq.errors import InputError
from onnxq.runtime.specs import Array, TensorSpec, dtype_name, is_floating


def describe_inputs(inputs: Sequence[TensorSpec]) -> str:
    """Return the model's inputs for a message: `x float32 [N, 3], steps int64 []`."""
    return ", ".join(str(spec) for spec in inputs)


def check_names(
    names: Iterable[str], inputs: Sequence[TensorSpec], reserved: frozenset[str], where: str
) -> None:
    """Check that there is an array for every input and none besides.

    Raises:
        InputError: an input has no array, or an array is neither an input's nor reserved.
    """
    given = set(names)
    wanted = {spec.name for spec in inputs}
    if missing := sorted(wanted - given):
        have = ", ".join(sorted(given)) or "none"
        raise InputError(
            f"{where} has no array for the model's input {missing[0]!r}; its arrays are: {have}; "
            f"the model's inputs are: {describe_inputs(inputs)}"
        )
    if unknown := sorted(given - wanted - reserved):
        raise InputError(
            f"{where} has an array {unknown[0]!r} that is no input of the model; rename or remove "
            f"it; the model's inputs are: {describe_inputs(inputs)}"
        )


def check_shape(shape: tuple[int, ...], spec: TensorSpec, where: str) -> None:
    """Check the shape of one whole feed against an input's rank and fixed dimensions.

    Raises:
        InputError: the shape does not fit.
    """
    if spec.shape is None:
        return
    fits = len(shape) == len(spec.shape) and all(
        not isinstance(dim, int) or dim == size for dim, size in zip(spec.shape, shape, strict=True)
    )
    if not fits:
        raise InputError(
            f"{where} has shape {list(shape)}, which does not fit the model's input {spec}; "
            "give samples of that shape"
        )


def conform(array: Array, spec: TensorSpec, where: str, first_sample: int = 0) -> Array:
    """Return an array in an input's dtype, C-contiguous.

    Allowed are casts that keep every value (uint8 to float32, int32 to int64, and int64 to int32
    where the values fit), and between floating-point types also those that round.

    Args:
        array: values of any shape; its first axis is taken for samples in messages.
        spec: the model's input.
        where: file and array, for messages.
        first_sample: number of the first sample, for messages.

    Raises:
        InputError: the dtype cannot be cast so, or a value is NaN, infinite or out of range.
    """
    if spec.dtype is None:
        raise InputError(
            f"the model's input {spec.name!r} has type {spec.onnx_type}; only tensors can be fed"
        )
    if spec.dtype.kind == "O":
        return _strings(array, spec, where)
    with np.errstate(over="ignore", invalid="ignore"):
        if not _castable(array.dtype, spec.dtype):
            raise InputError(
                f"{where} is {dtype_name(array.dtype)}, which cannot stand for the model's input "
                f"{spec}; convert it first"
            )
        cast = array.astype(spec.dtype, order="C", copy=False)
        if not _survives(array, cast):
            raise InputError(
                f"{where} is {dtype_name(array.dtype)} with values that do not fit the model's "
                f"input {spec}; convert it first"
            )
    if is_floating(spec.dtype):
        _check_finite(array, cast, where, first_sample)
    return cast


def _castable(source: np.dtype[np.generic], target: np.dtype[np.generic]) -> bool:
    if source == target:
        return True
    if source.kind in "biu":
        return True
    return is_floating(source) and is_floating(target)


def _survives(array: Array, cast: Array) -> bool:
    """Tell whether integers and booleans kept their values in a cast."""
    source, target = array.dtype, cast.dtype
    if source == target or not array.size or source.kind not in "biu":
        return True
    if np.can_cast(source, target, "safe"):
        return True
    if is_floating(target):
        return bool(np.array_equal(cast.astype(source), array))
    low, high = int(array.min()), int(array.max())
    if target.kind == "b":
        return low >= 0 and high <= 1
    limits = ml_dtypes.iinfo(target)  # type: ignore[no-untyped-call]
    return low >= int(limits.min) and high <= int(limits.max)


def _check_finite(array: Array, cast: Array, where: str, first_sample: int) -> None:
    finite = np.isfinite(cast)
    if finite.all():
        return
    place = np.unravel_index(int(np.argmin(finite)), finite.shape)
    value = array[place]
    sample = f" in sample {first_sample + int(place[0])}" if place else ""
    if np.isfinite(value):
        raise InputError(
            f"{where} holds {value}{sample}, which is too large for {dtype_name(cast.dtype)}"
        )
    raise InputError(f"{where} holds {value}{sample}; remove or replace NaN and infinity")


def _strings(array: Array, spec: TensorSpec, where: str) -> Array:
    if array.dtype.kind == "O":
        fits = all(isinstance(element, str) for element in array.flat)
    else:
        fits = array.dtype.kind in "UT"
    if not fits:
        raise InputError(f"{where} holds no strings, as the model's input {spec} needs")
    return array.astype(object)
