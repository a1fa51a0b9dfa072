"""What a model has to keep before it is written."""

from __future__ import annotations

import math

from onnxq.errors import InputError
from onnxq.options import Options
from onnxq.verify import Gate, Report
from onnxq.verify.metrics import Metric, metric_kind
from onnxq.verify.result import AGREEMENT, NEIGHBOUR, MetricFacts

DEFAULT_MIN_SPEEDUP = 1.0
"""Without a promise of the user's, a model must at least not be slower than the float one."""

DEFAULT_MIN_AGREEMENT = 0.95
"""Without a promise and without labels: smallest share of decisions that equal the float model's.
Most that rounding turns are close calls, of which the float model gets many wrong, too."""

DEFAULT_MIN_NEIGHBOURS = 0.7
"""The same of nearest neighbours: among many embeddings several are nearly as near."""

DEFAULT_MIN_SQNR = 15.0
"""Without a promise and labels: smallest SQNR in dB, if any output is more than a choice of
classes."""


def check_promise(options: Options) -> None:
    """Refuse promises that no model could keep, and such as every model keeps.

    Raises:
        InputError: naming the number.
    """
    size, speedup, agreement = options.max_size_ratio, options.min_speedup, options.min_agreement
    promised = {
        "largest drop": options.max_drop,
        "smallest agreement": agreement,
        "smallest SQNR": options.min_sqnr,
        "smallest speedup": speedup,
        "size ratio": size,
    }
    for what, number in promised.items():
        if number is not None and not math.isfinite(number):
            raise InputError(f"a {what} of {number:g} is not possible; give a finite number")
    if size is not None and size <= 0:
        raise InputError(f"a size ratio of {size:g} is not possible; give more than 0")
    if speedup is not None and speedup < 0:
        raise InputError(f"a smallest speedup of {speedup:g} is not possible; give 0 or more")
    if agreement is not None and not 0 <= agreement <= 1:
        raise InputError(
            f"a smallest agreement of {agreement:g} is not possible; give a share from 0 to 1, as "
            "0.95"
        )


def promise(report: Report, options: Options, *, is_timed: bool = True) -> list[Gate]:
    """The gates that `optimize` holds a candidate to, the defaults filled in.

    Without labels, and without any promise of accuracy, agreement is promised, and SQNR where
    there are outputs beside those that decide, or embeddings, which are compared as numbers, too.

    Args:
        report: What was found out: the metric and the decisions there are.
        options: What the user promises.
        is_timed: Whether latency can be measured; without it there is no default speedup.

    Raises:
        InputError: something is promised that cannot be measured.
    """
    metric, agreement = report.metric, report.agreement
    max_drop, min_agreement, min_sqnr = options.max_drop, options.min_agreement, options.min_sqnr
    min_speedup, size = options.min_speedup, options.max_size_ratio
    is_labelled = metric is not None and metric.name != AGREEMENT
    if metric is None and max_drop is not None:
        raise InputError(
            "a largest drop needs a metric, but the data has no array 'labels' and the outputs "
            "hold no decisions; add labels, or promise --min-sqnr instead"
        )
    if agreement is None and min_agreement is not None:
        raise InputError(
            "a smallest agreement needs decisions, and none are recognised in the model's outputs; "
            "say --metric agreement if one of them has scores of classes, or promise --min-sqnr "
            "instead"
        )
    if is_labelled:
        assert metric is not None
        max_drop = _allowed_drop(metric) if max_drop is None else max_drop
    elif max_drop is None and min_agreement is None and min_sqnr is None:
        kinds = {} if agreement is None else {d.output: d.kind for d in agreement.decisions}
        are_near = NEIGHBOUR in kinds.values()
        if kinds:
            min_agreement = DEFAULT_MIN_NEIGHBOURS if are_near else DEFAULT_MIN_AGREEMENT
        if are_near or any(output.name not in kinds for output in report.outputs):
            min_sqnr = DEFAULT_MIN_SQNR
    if min_speedup is None and is_timed:
        min_speedup = DEFAULT_MIN_SPEEDUP
    bounds = (
        ("drop", "<=", max_drop),
        (AGREEMENT, ">=", min_agreement),
        ("sqnr", ">=", min_sqnr),
        ("speedup", ">=", min_speedup),
        ("size_ratio", ">=", None if size is None else 1 / size),
    )
    return [Gate(name, sign, bound) for name, sign, bound in bounds if bound is not None]


def _allowed_drop(metric: MetricFacts) -> float:
    return (metric_kind(metric.name) or Metric).allowed_drop(metric.float)
