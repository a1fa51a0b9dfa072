"""What was promised about the drop of the metric, and how certain it is, in words."""

from __future__ import annotations

import math
from collections.abc import Iterable

from onnxq.report import words
from onnxq.verify.gates import Gate
from onnxq.verify.result import AGREEMENT, GateFacts, MetricFacts, Report


def certainty(report: Report) -> tuple[str, ...]:
    """A sentence for each promise on the drop or agreement that held, but not with certainty.

    The half-width of a confidence interval falls with the square root of the number of samples n,
    so the interval would end at the promised drop after ``n * ((high - drop) / (promised -
    drop))^2`` samples, if the drop stayed the same.
    """
    metric = report.metric
    if metric is None or metric.confidence is None:
        return ()
    high = metric.confidence[1]
    bounds = allowed_drops(metric, (gate for gate in report.gates if gate.passed))
    return tuple(_sentence(metric, high, bound) for bound in bounds if bound < high < math.inf)


def allowed_drops(metric: MetricFacts, gates: Iterable[GateFacts]) -> list[float]:
    """The largest drop of the metric that each gate on it allows, if it is any."""
    parsed = [Gate.parse(gate.expr) for gate in gates]
    drops, agreements = ("drop", "metric.drop"), (AGREEMENT, "agreement.value")
    found = [g.bound for g in parsed if g.quantity in drops and g.comparison in ("<", "<=")]
    if metric.name == AGREEMENT:
        found += [
            1 - g.bound for g in parsed if g.quantity in agreements and g.comparison in (">", ">=")
        ]
    return [bound for bound in found if math.isfinite(bound)]


def _sentence(metric: MetricFacts, high: float, bound: float) -> str:
    if metric.name == AGREEMENT:
        reached, promised = (words.metric_value(metric, 1 - drop) for drop in (high, bound))
        sentence = f"The agreement is certain only down to {reached} (95 %)"
    else:
        reached, promised = (words.metric_drop(metric, drop) for drop in (high, bound))
        sentence = f"The drop is certain only up to {reached} (95 %)"
    reach = (high - metric.drop) / (bound - metric.drop) if metric.drop < bound else math.inf
    needed = metric.samples * reach * reach
    if math.isinf(needed):
        return f"{sentence}; no number of samples would prove {promised} if it stays as measured."
    return f"{sentence}; about {_rounded_up(needed):,} held-out samples would prove {promised}."


def _rounded_up(needed: float) -> int:
    """Two significant digits: it is an estimate."""
    unit = 10 ** max(0, math.floor(math.log10(needed)) - 1)
    return int(math.ceil(needed / unit) * unit)
