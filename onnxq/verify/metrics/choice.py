"""Which metric is taken."""

from __future__ import annotations

from collections.abc import Sequence

from onnxq.data.functions import is_function_name, load_function
from onnxq.errors import InputError
from onnxq.registry import from_form
from onnxq.runtime import TensorSpec
from onnxq.runtime.specs import is_floating
from onnxq.verify.metrics.metric import Metric, available_metrics, metric_kind
from onnxq.verify.metrics.user import UserMetric
from onnxq.verify.result import AGREEMENT

LABEL_FREE = (AGREEMENT, "sqnr")
"""Names that stand for comparing with the float model alone."""


def choose_metric(
    name: str | None,
    has_labels: bool,
    labels_ndim: int | None,
    outputs: Sequence[TensorSpec] = (),
) -> Metric | None:
    """Return a fresh metric, or None where outputs are to be compared without labels.

    Args:
        name: One of `available_metrics`, with options as ``name{option=value}``, of `LABEL_FREE`,
            or `module:function`; None chooses by the labels: accuracy for labels [N], bits for
            labels [N, T], per byte where the model has 256 classes and per token elsewhere.
        has_labels: whether the data has labels.
        labels_ndim: number of dimensions of a batch's labels.
        outputs: The model's outputs.

    Raises:
        InputError: the name is unknown, the metric needs labels that are not there, or no metric
            fits labels of that many dimensions.
    """
    if name in LABEL_FREE or (name is None and not has_labels):
        return None
    if not isinstance(name, str | None):
        raise InputError(
            f"a metric is given by its name, as 'accuracy' or 'module:function', not as {name!r}"
        )
    known = available_metrics()
    if name is None:
        rank = labels_ndim or 0
        fitting = [kind for kind in known.values() if kind.suits(rank, _classes(outputs, rank))]
        if not fitting:
            raise InputError(
                f"no metric fits labels of {labels_ndim} dimensions by itself; name one with "
                "--metric"
            )
        return fitting[0]()
    if is_function_name(name):
        return UserMetric(name, load_function(name))
    kind = metric_kind(name)
    if kind is None:
        raise InputError(
            f"there is no metric {name!r}; there are {', '.join((*known, *LABEL_FREE))} and "
            "module:function"
        )
    if not has_labels and kind.needs_labels:
        raise InputError(f"metric {name} needs labels; the data has no array 'labels'")
    metric: Metric = from_form(name, known, "metric")
    return metric


def _classes(outputs: Sequence[TensorSpec], labels_ndim: int) -> int | None:
    """Classes of the first output that has an axis of them behind those of the labels."""
    for spec in outputs:
        if spec.dtype is not None and is_floating(spec.dtype) and spec.shape is not None:
            last = spec.shape[-1] if len(spec.shape) == labels_ndim + 1 else None
            if isinstance(last, int) and last > 1:
                return last
    return None
