"""What a model has to keep before it is written."""

from __future__ import annotations

from onnxq.errors import InputError
from onnxq.options import Options
from onnxq.verify import Gate
from onnxq.verify.result import MetricFacts

DEFAULT_MIN_SPEEDUP = 1.0
"""Without a promise of the user's, a model must at least not be slower than the float one."""

DEFAULT_MAX_DROP = 0.01
"""Without a promise of the user's: largest drop of a metric that is a fraction."""

DEFAULT_MAX_RISE = 0.02
"""Without a promise of the user's: largest rise of bits-per-byte, as a share of float's."""

DEFAULT_MIN_SQNR = 15.0
"""Without a promise and without labels: smallest SQNR of an output in dB."""


def promise(metric: MetricFacts | None, options: Options, *, is_timed: bool = True) -> list[Gate]:
    """The gates that `optimize` holds a candidate to, the defaults filled in.

    ``is_timed`` tells whether latency can be measured; without it there is no default speedup.

    Raises:
        InputError: a drop is promised, but there is no metric to measure it by.
    """
    max_drop, min_sqnr = options.max_drop, options.min_sqnr
    min_speedup, size = options.min_speedup, options.max_size_ratio
    gates = []
    if metric is not None:
        if max_drop is None:
            is_fraction = metric.name != "bits-per-byte"
            max_drop = DEFAULT_MAX_DROP if is_fraction else DEFAULT_MAX_RISE * metric.float
        gates.append(Gate("drop", "<=", max_drop))
    elif max_drop is not None:
        raise InputError(
            "a largest drop needs a metric, and the data has no array 'labels'; add labels, or "
            "promise --min-sqnr instead"
        )
    elif min_sqnr is None:
        min_sqnr = DEFAULT_MIN_SQNR
    if min_sqnr is not None:
        gates.append(Gate("sqnr", ">=", min_sqnr))
    if min_speedup is None and is_timed:
        min_speedup = DEFAULT_MIN_SPEEDUP
    if min_speedup is not None:
        gates.append(Gate("speedup", ">=", min_speedup))
    if size is not None:
        if size <= 0:
            raise InputError(f"a size ratio of {size:g} is not possible; give more than 0")
        gates.append(Gate("size_ratio", ">=", 1 / size))
    return gates
