"""Which output a metric reads, and what it holds the output against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from onnxq.errors import InputError
from onnxq.runtime.specs import Array, is_floating
from onnxq.verify.metrics.metric import Floats


def first_fitting(
    outputs: Mapping[str, Any], fits: Callable[[Array], bool], metric: str, wanted: str, name: str
) -> str:
    """The name of the first floating-point output that fits a metric.

    Args:
        outputs: The model's outputs.
        fits: Whether an output's numbers are what the metric reads.
        metric: The metric's name.
        wanted: What it reads, in words.
        name: The only output that may be taken; any where empty.

    Raises:
        InputError: there is none.
    """
    for key, value in outputs.items():
        is_meant = name in ("", key)
        if is_meant and isinstance(value, np.ndarray) and is_floating(value.dtype) and fits(value):
            return key
    have = ", ".join(f"{key} {list(np.shape(value))}" for key, value in outputs.items())
    called = f" '{name}'" if name else ""
    raise InputError(
        f"metric {metric} needs a floating-point output{called} {wanted}; the model's outputs are: "
        f"{have}; name another {'output' if name else 'metric'} with --metric"
    )


def float_outputs(reference: Mapping[str, Any] | None, metric: str) -> Mapping[str, Any]:
    """The float model's outputs, where they stand in for labels.

    Raises:
        InputError: they are not there either.
    """
    if reference is None:
        raise InputError(f"metric {metric} needs labels; the data has no array 'labels'")
    return reference


def numbers_and_wanted(
    outputs: Mapping[str, Any],
    labels: Array | None,
    reference: Mapping[str, Any] | None,
    metric: str,
    name: str,
) -> tuple[Floats, Floats]:
    """An output's numbers and what they should be, [N, numbers of a sample] each.

    They should be the labels, which have the output's shape, or without any the float model's.

    Raises:
        InputError: there is no such output, or the models' outputs differ in shape.
    """
    if labels is not None:
        shape = labels.shape
        key = first_fitting(
            outputs, lambda v: v.shape == shape, metric, f"of the labels' shape {list(shape)}", name
        )
        wanted = labels
    else:
        wanted_outputs = float_outputs(reference, metric)
        key = first_fitting(wanted_outputs, lambda v: v.ndim > 0, metric, "of any shape", name)
        wanted = wanted_outputs[key]
    found = np.asarray(outputs[key])
    if found.shape != wanted.shape:
        raise InputError(
            f"metric {metric}: output '{key}' is {list(found.shape)} of one model and "
            f"{list(wanted.shape)} of the other; name another output with --metric"
        )
    rows = len(found)
    return (
        found.reshape(rows, -1).astype(np.float64),
        np.asarray(wanted).reshape(rows, -1).astype(np.float64),
    )


def squared_errors(found: Floats, wanted: Floats) -> Floats:
    """The square of each difference: 0 of equal infinities, infinite where a side is NaN."""
    with np.errstate(invalid="ignore", over="ignore"):
        squared = np.where(found == wanted, 0.0, found - wanted) ** 2
    return np.where(np.isnan(squared), np.inf, squared)
