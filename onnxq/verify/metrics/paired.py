"""The drop of a metric between two models, on the same samples."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from onnxq.errors import InputError
from onnxq.verify.metrics.intervals import (
    bootstrap_interval,
    paired_interval,
    ratio,
    resampled_interval,
    shares_interval,
)
from onnxq.verify.metrics.mean import MeanMetric
from onnxq.verify.metrics.metric import Floats, Interval, Metric
from onnxq.verify.metrics.pooled import PooledMetric
from onnxq.verify.metrics.resampled import UnpooledMetric
from onnxq.verify.metrics.user import UserMetric
from onnxq.verify.result import MetricFacts


def paired_drop(float_metric: Metric, candidate_metric: Metric, *, seed: int = 0) -> MetricFacts:
    """Return both models' metric and the drop between them, on the same samples.

    The interval is over pairs of scores of one sample: `paired_interval` where each sample is right
    or wrong, `shares_interval` of other shares, `resampled_interval` of what is no ratio of sums,
    and the percentile bootstrap's of the rest. The drop is NaN, which keeps no promise, where both
    models are infinitely good or bad and samples do not tell them apart.

    Args:
        float_metric: the metric with the float model's outputs added.
        candidate_metric: the metric with the candidate's outputs added, in the same order.
        seed: seed of the bootstrap.

    Raises:
        InputError: the metrics have no samples or not the same ones.
    """
    reference, candidate = float_metric.result(), candidate_metric.result()
    if reference.name != candidate.name or reference.samples != candidate.samples:
        raise InputError(
            f"metrics cannot be paired: {reference.name} over {reference.samples} samples and "
            f"{candidate.name} over {candidate.samples}"
        )
    sign = 1 if reference.higher_is_better else -1
    drop = sign * (reference.value - candidate.value)
    confidence = None
    if isinstance(float_metric, PooledMetric) and isinstance(candidate_metric, PooledMetric):
        # One rule for both: options are the same.
        of = float_metric.of
        numbers = float_metric.numbers(), candidate_metric.numbers()
        confidence = shares_interval(lambda sums: sign * of(sums), *numbers, seed=seed)
    elif isinstance(float_metric, UnpooledMetric) and isinstance(candidate_metric, UnpooledMetric):
        confidence = _unpooled_interval(float_metric, candidate_metric, drop, seed)
    elif isinstance(float_metric, MeanMetric) and isinstance(candidate_metric, MeanMetric):
        (ours, weights), (theirs, _) = float_metric.scores(), candidate_metric.scores()
        if float_metric.right_or_wrong():
            counted = weights > 0
            confidence = paired_interval(ours[counted], theirs[counted])
        elif float_metric.is_share:
            pair = (np.stack([scores, weights], axis=1) for scores in (ours, theirs))
            confidence = shares_interval(lambda s: sign * ratio(s), *pair, seed=seed)
        else:
            lost, mean = _lost(ours, theirs, sign), float(ours.sum() / weights.sum())
            if math.isnan(drop):
                drop = float_metric.change(mean, _mean(lost, weights))
            low, high = bootstrap_interval(lost, weights, seed=seed)
            confidence = float_metric.change(mean, low), float_metric.change(mean, high)
    elif isinstance(float_metric, UserMetric) and isinstance(candidate_metric, UserMetric):
        one, two = float_metric.scores(), candidate_metric.scores()
        if one is not None and two is not None:
            lost, weights = _lost(one, two, sign), np.ones(len(one))
            if math.isnan(drop):
                drop = _mean(lost, weights)
            confidence = bootstrap_interval(lost, weights, seed=seed)
    if any(map(math.isnan, (drop, *(confidence or ())))):
        confidence = None
    return MetricFacts(
        reference.name, reference.value, candidate.value, drop, reference.samples, confidence
    )


def _unpooled_interval(
    ours: UnpooledMetric, theirs: UnpooledMetric, drop: float, seed: int
) -> Interval:
    neither = ours.with_nothing_found()
    one = _joined(ours, theirs, ours, neither)
    other = _joined(theirs, ours, neither, ours)
    low, high = resampled_interval(
        lambda times: one.resampled(times) - other.resampled(times),
        ours.differs(theirs),
        drop,
        seed=seed,
    )
    return min(low, drop), max(high, drop)


def _joined(*parts: UnpooledMetric) -> UnpooledMetric:
    """The metric of the samples of several, one behind the other."""
    whole = replace(parts[0])
    for part in parts:
        whole.merge(part)
    return whole


def _lost(ours: Floats, theirs: Floats, sign: int) -> Floats:
    """What each sample loses; NaN where both are infinitely bad, which hides all else in them."""
    with np.errstate(invalid="ignore"):
        both_perfect = (ours == theirs) & (ours == sign * np.inf)
        return np.where(both_perfect, 0.0, sign * (ours - theirs))


def _mean(scores: Floats, weights: Floats) -> float:
    with np.errstate(invalid="ignore"):
        return float(scores.sum() / weights.sum())
