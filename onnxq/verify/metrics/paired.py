"""The drop of a metric between two models, on the same samples."""

from __future__ import annotations

import numpy as np

from onnxq.errors import InputError
from onnxq.verify.metrics.intervals import (
    bootstrap_interval,
    paired_interval,
    resampled_interval,
)
from onnxq.verify.metrics.mean import MeanMetric
from onnxq.verify.metrics.metric import Floats, Metric
from onnxq.verify.metrics.resampled import ResampledMetric
from onnxq.verify.metrics.user import UserMetric
from onnxq.verify.result import MetricFacts


def paired_drop(float_metric: Metric, candidate_metric: Metric, *, seed: int = 0) -> MetricFacts:
    """Return both models' metric and the drop between them, on the same samples.

    The interval is over pairs of scores of one sample: `paired_interval` where each sample is right
    or wrong, otherwise the percentile bootstrap's over samples.

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
    confidence = None
    if isinstance(float_metric, MeanMetric) and isinstance(candidate_metric, MeanMetric):
        (ours, weights), (theirs, _) = float_metric.scores(), candidate_metric.scores()
        if float_metric.right_or_wrong():
            confidence = paired_interval(ours, theirs)
        else:
            lost = sign * _difference(ours, theirs)
            low, high = bootstrap_interval(lost, weights, seed=seed)
            mean = float(ours.sum() / weights.sum())
            confidence = float_metric.change(mean, low), float_metric.change(mean, high)
    elif isinstance(float_metric, ResampledMetric) and isinstance(
        candidate_metric, ResampledMetric
    ):
        of, other = float_metric.resampled, candidate_metric.resampled
        confidence = resampled_interval(
            lambda times: sign * (of(times) - other(times)), float_metric.samples(), seed=seed
        )
    elif isinstance(float_metric, UserMetric) and isinstance(candidate_metric, UserMetric):
        one, two = float_metric.scores(), candidate_metric.scores()
        if one is not None and two is not None:
            lost = sign * _difference(one, two)
            confidence = bootstrap_interval(lost, np.ones(len(lost)), seed=seed)
    drop = sign * float(_difference(np.float64(reference.value), np.float64(candidate.value)))
    return MetricFacts(
        reference.name, reference.value, candidate.value, drop, reference.samples, confidence
    )


def _difference(reference: Floats | np.float64, candidate: Floats | np.float64) -> Floats:
    """Zero where both are equal, also where both are infinite."""
    with np.errstate(invalid="ignore"):
        return np.where(reference == candidate, 0.0, reference - candidate)
