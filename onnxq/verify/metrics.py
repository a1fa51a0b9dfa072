"""Metrics of a model's outputs against labels, and the drop between two models."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.data.functions import failure, is_function_name, load_function
from onnxq.errors import InputError
from onnxq.runtime.specs import Array, is_floating
from onnxq.verify.result import MetricFacts

Floats = npt.NDArray[np.float64]
Interval = tuple[float, float]

RESAMPLES = 2000
"""Bootstrap resamples of every interval."""

_Z95 = NormalDist().inv_cdf(0.975)
_DRAWS_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class MetricResult:
    """A metric's value over `samples` samples."""

    name: str
    value: float
    samples: int
    higher_is_better: bool


class Metric(ABC):
    """Collects a model's outputs batch by batch; one instance serves one model.

    Attributes:
        name: What reports call the metric.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def add(self, outputs: Mapping[str, Any], labels: Array | None, valid: int) -> None:
        """Add one batch, of which the first `valid` samples count.

        Raises:
            InputError: outputs and labels do not fit the metric.
        """

    @abstractmethod
    def result(self) -> MetricResult:
        """Return the metric over all batches added.

        Raises:
            InputError: no batch was added, or the user's metric fails.
        """


class ScoredMetric(Metric):
    """A metric that is sum of scores / sum of weights over the samples.

    Subclasses give one score and one weight per sample; that is what intervals and paired
    differences are computed from.
    """

    higher_is_better = True

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._scores: list[Floats] = []
        self._weights: list[Floats] = []

    def add(self, outputs: Mapping[str, Any], labels: Array | None, valid: int) -> None:
        """Add one batch, of which the first `valid` samples count.

        Args:
            outputs: the model's outputs; the scored one is the first of floating-point type
                whose shape is that of `labels` and one axis of classes behind it.
            labels: integers, one class per position; negative ones are not counted.
            valid: number of real samples.

        Raises:
            InputError: there are no integer labels, no such output, or a label is no class.
        """
        labels = _integer_labels(labels, self.name)
        logits = _logits(outputs, labels, self.name)[:valid]
        labels = labels[:valid]
        counted = labels >= 0
        if labels.size and int(labels.max()) >= logits.shape[-1]:
            raise InputError(
                f"metric {self.name}: label {int(labels.max())} is beyond the model's "
                f"{logits.shape[-1]} classes"
            )
        scores = self._score(logits.astype(np.float64), np.where(counted, labels, 0))
        axes = tuple(range(1, labels.ndim))
        self._scores.append(np.where(counted, scores, 0.0).sum(axis=axes))
        self._weights.append(counted.sum(axis=axes).astype(np.float64))

    def scores(self) -> tuple[Floats, Floats]:
        """Return each sample's score and weight, [N] and [N].

        Raises:
            InputError: nothing was counted.
        """
        if not self._scores or not sum(float(weights.sum()) for weights in self._weights):
            raise InputError(f"metric {self.name}: there are no labels to count")
        return np.concatenate(self._scores), np.concatenate(self._weights)

    def result(self) -> MetricResult:
        """Return sum of scores / sum of weights.

        Raises:
            InputError: nothing was counted.
        """
        scores, weights = self.scores()
        value = float(scores.sum() / weights.sum())
        return MetricResult(self.name, value, len(scores), self.higher_is_better)

    def right_or_wrong(self) -> bool:
        """Tell whether each sample is either right (1) or wrong (0), as for a proportion."""
        return False

    @abstractmethod
    def _score(self, logits: Floats, labels: Array) -> Floats:
        """Return the score of each position, in the shape of the labels."""


class TopK(ScoredMetric):
    """Share of positions whose label is among the `k` largest outputs.

    Of equal outputs the one with the lower index counts as larger, as in `numpy.argmax`.
    Positions with a NaN among the outputs are wrong.
    """

    def __init__(self, k: int, name: str) -> None:
        super().__init__(name)
        self._k = k

    def right_or_wrong(self) -> bool:
        """Tell whether each sample has one position, which is right (1) or wrong (0)."""
        return all(bool((weights == 1).all()) for weights in self._weights)

    def _score(self, logits: Floats, labels: Array) -> Floats:
        target = np.take_along_axis(logits, labels[..., np.newaxis], axis=-1)
        before = np.arange(logits.shape[-1]) < labels[..., np.newaxis]
        rank = ((logits > target) | ((logits == target) & before)).sum(axis=-1)
        valid = ~np.isnan(logits).any(axis=-1)
        return np.where(valid & (rank < self._k), 1.0, 0.0)


class BitsPerByte(ScoredMetric):
    """Mean cross-entropy in bits: -log2 softmax(logits)[label], over all positions.

    Labels are the next bytes [N, T], the output holds logits [N, T, vocabulary]; for a model over
    tokens other than bytes the unit is bits per token. Computed in float64. A position whose
    logits are NaN or all infinite costs infinitely many bits.
    """

    higher_is_better = False

    def __init__(self) -> None:
        super().__init__("bits-per-byte")

    def _score(self, logits: Floats, labels: Array) -> Floats:
        with np.errstate(invalid="ignore"):
            shifted = logits - logits.max(axis=-1, keepdims=True)
            total = np.exp(shifted).sum(axis=-1)
        target = np.take_along_axis(shifted, labels[..., np.newaxis], axis=-1)[..., 0]
        bits = np.asarray((np.log(total) - target) / math.log(2.0))
        bits[np.isnan(bits)] = np.inf
        return bits


class UserMetric(Metric):
    """A function of the user's, called once with the outputs of all samples and their labels.

    The function gets a dict of arrays by output name and the labels (None without any), batches
    joined along the first axis, and returns a number. Larger counts as better unless the function
    has an attribute `higher_is_better` that is false.
    """

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        super().__init__(name)
        self._function = function
        self._outputs: dict[str, list[Array]] = {}
        self._labels: list[Array] = []
        self._samples = 0

    def add(self, outputs: Mapping[str, Any], labels: Array | None, valid: int) -> None:
        """Keep one batch's outputs and labels; `valid` is the number of real samples."""
        for name, value in outputs.items():
            self._outputs.setdefault(name, []).append(np.atleast_1d(np.asarray(value))[:valid])
        if labels is not None:
            self._labels.append(labels[:valid])
        self._samples += valid

    def result(self) -> MetricResult:
        """Call the function and return its value.

        Raises:
            InputError: no batch was added, batches cannot be joined, or the function fails or
                returns no number.
        """
        if not self._samples:
            raise InputError(f"metric {self.name}: there are no samples")
        try:
            outputs = {name: np.concatenate(parts) for name, parts in self._outputs.items()}
            labels = np.concatenate(self._labels) if self._labels else None
        except ValueError as error:
            raise InputError(
                f"metric {self.name}: the outputs of the batches differ in shape and cannot be "
                "joined"
            ) from error
        try:
            value = float(self._function(outputs, labels))
        except Exception as error:
            raise InputError(f"metric {self.name}: {failure(error, 'calling it')}") from error
        higher = bool(getattr(self._function, "higher_is_better", True))
        return MetricResult(self.name, value, self._samples, higher)


def choose_metric(name: str | None, has_labels: bool, labels_ndim: int | None) -> Metric | None:
    """Return a fresh metric, or None where outputs are to be compared by SQNR.

    Args:
        name: `accuracy`, `top-5`, `bits-per-byte`, `sqnr`, or `module:function`; None chooses
            accuracy for labels [N], bits-per-byte for labels [N, T], and SQNR without labels.
        has_labels: whether the data has labels.
        labels_ndim: number of dimensions of a batch's labels.

    Raises:
        InputError: the name is unknown, the metric needs labels that are not there, or no metric
            fits labels of that many dimensions.
    """
    if name is None:
        if not has_labels:
            return None
        name = {1: "accuracy", 2: "bits-per-byte"}.get(labels_ndim or 0)
        if name is None:
            raise InputError(
                f"no metric fits labels of {labels_ndim} dimensions by itself; name one with "
                "--metric"
            )
    if name == "sqnr":
        return None
    if is_function_name(name):
        return UserMetric(name, load_function(name))
    if name not in _METRICS:
        raise InputError(
            f"there is no metric {name!r}; there are {', '.join(_METRICS)}, sqnr and "
            "module:function"
        )
    if not has_labels:
        raise InputError(f"metric {name} needs labels; the data has no array 'labels'")
    return _METRICS[name]()


_METRICS: dict[str, Callable[[], Metric]] = {
    "accuracy": lambda: TopK(1, "accuracy"),
    "top-5": lambda: TopK(5, "top-5"),
    "bits-per-byte": BitsPerByte,
}


def paired_drop(float_metric: Metric, candidate_metric: Metric, *, seed: int = 0) -> MetricFacts:
    """Return both models' metric and the drop between them, on the same samples.

    The interval is over pairs of scores of one sample. Where each sample is right or wrong it is
    Bonett and Price's adjusted Wald interval for paired proportions: with n samples, b that only
    the float model has right and c that only the candidate has,
    p = (b + 1) / (n + 2), q = (c + 1) / (n + 2),
    p - q +- z sqrt((p + q - (p - q)^2) / (n + 2)), which keeps a width where no sample differs
    (D. G. Bonett, R. M. Price: Adjusted Wald confidence interval for a difference of binomial
    proportions based on paired data, J. Educational and Behavioral Statistics 37(4), 2012).
    Otherwise it is the percentile bootstrap's over samples.

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
    if isinstance(float_metric, ScoredMetric) and isinstance(candidate_metric, ScoredMetric):
        (ours, weights), (theirs, _) = float_metric.scores(), candidate_metric.scores()
        if float_metric.right_or_wrong():
            confidence = _paired_interval(ours, theirs)
        else:
            lost = sign * _difference(ours, theirs)
            confidence = bootstrap_interval(lost, weights, seed=seed)
    drop = sign * float(_difference(np.float64(reference.value), np.float64(candidate.value)))
    return MetricFacts(
        reference.name, reference.value, candidate.value, drop, reference.samples, confidence
    )


def bootstrap_interval(scores: Floats, weights: Floats, *, seed: int = 0) -> Interval:
    """Return the 95 % percentile bootstrap interval of sum(scores) / sum(weights).

    Samples are drawn with replacement, `RESAMPLES` times; draws without any weight are left out.
    With infinite scores both limits are infinite.
    """
    if not np.isfinite(scores).all():
        low, high = float(scores.min()), float(scores.max())
        return (low if math.isinf(low) else high), (high if math.isinf(high) else low)
    generator = np.random.default_rng(seed)
    count = len(scores)
    at_once = max(1, _DRAWS_AT_ONCE // count)
    values = []
    for start in range(0, RESAMPLES, at_once):
        draws = generator.integers(0, count, (min(at_once, RESAMPLES - start), count))
        totals = weights[draws].sum(axis=1)
        values.append(scores[draws].sum(axis=1)[totals > 0] / totals[totals > 0])
    low, high = np.percentile(np.concatenate(values), [2.5, 97.5])
    return float(low), float(high)


def _paired_interval(reference: Floats, candidate: Floats) -> Interval:
    count = len(reference) + 2
    p = (float((reference > candidate).sum()) + 1) / count
    q = (float((candidate > reference).sum()) + 1) / count
    half = _Z95 * math.sqrt((p + q - (p - q) ** 2) / count)
    return max(-1.0, p - q - half), min(1.0, p - q + half)


def _difference(reference: Floats | np.float64, candidate: Floats | np.float64) -> Floats:
    """Zero where both are equal, also where both are infinite."""
    with np.errstate(invalid="ignore"):
        return np.where(reference == candidate, 0.0, reference - candidate)


def _integer_labels(labels: Array | None, metric: str) -> Array:
    if labels is None:
        raise InputError(f"metric {metric} needs labels; the data has no array 'labels'")
    if labels.dtype.kind not in "iu":
        raise InputError(f"metric {metric} needs integer labels, not {labels.dtype}")
    return labels.astype(np.int64)


def _logits(outputs: Mapping[str, Any], labels: Array, metric: str) -> Array:
    """Return the output that scores the labels' positions."""
    for value in outputs.values():
        if (
            isinstance(value, np.ndarray)
            and is_floating(value.dtype)
            and value.shape[:-1] == labels.shape
            and value.shape[-1] > 1
        ):
            return value
    wanted = ", ".join([*(str(size) for size in labels.shape), "classes"])
    have = ", ".join(f"{name} {list(np.shape(value))}" for name, value in outputs.items())
    raise InputError(
        f"metric {metric} needs a floating-point output [{wanted}] for labels "
        f"{list(labels.shape)}; the model's outputs are: {have}; name another metric with --metric"
    )
