"""Intervals that hold what was measured in 95 of 100 cases."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from onnxq.verify.metrics.metric import Floats, Interval

RESAMPLES = 2000
"""Bootstrap resamples of every interval."""

_Z95 = NormalDist().inv_cdf(0.975)
_DRAWS_AT_ONCE = 1 << 22


def bootstrap_interval(scores: Floats, weights: Floats, *, seed: int = 0) -> Interval:
    """Return the 95 % percentile bootstrap interval of sum(scores) / sum(weights).

    Samples are drawn with replacement, `RESAMPLES` times; draws without any weight are left out.
    With infinite scores both limits are infinite.
    """
    if not np.isfinite(scores).all():
        low, high = float(scores.min()), float(scores.max())
        return (low if math.isinf(low) else high), (high if math.isinf(high) else low)
    values = []
    for draws in _draws(len(scores), seed):
        totals = weights[draws].sum(axis=1)
        values.append(scores[draws].sum(axis=1)[totals > 0] / totals[totals > 0])
    low, high = np.percentile(np.concatenate(values), [2.5, 97.5])
    return float(low), float(high)


def resampled_interval(
    statistic: Callable[[Floats], Floats], count: int, *, seed: int = 0
) -> Interval:
    """Return the 95 % percentile bootstrap interval of what is no mean over samples.

    Args:
        statistic: By how often each sample is drawn, [R, N] -> [R]; NaN leaves a draw out.
        count: Samples.
        seed: Seed of the draws.
    """
    values = []
    for draws in _draws(count, seed):
        cells = draws + count * np.arange(len(draws))[:, np.newaxis]
        times = np.bincount(cells.ravel(), minlength=len(draws) * count).reshape(-1, count)
        values.append(statistic(times.astype(np.float64)))
    low, high = np.nanpercentile(np.concatenate(values), [2.5, 97.5])
    return float(low), float(high)


def _draws(count: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """Samples drawn with replacement, `RESAMPLES` times, some times at once."""
    generator = np.random.default_rng(seed)
    at_once = max(1, _DRAWS_AT_ONCE // count)
    for start in range(0, RESAMPLES, at_once):
        yield generator.integers(0, count, (min(at_once, RESAMPLES - start), count))


def paired_interval(reference: Floats, candidate: Floats) -> Interval:
    """Return Bonett and Price's adjusted Wald interval for paired proportions.

    With n samples, b that only the reference has right and c that only the candidate has,
    p = (b + 1) / (n + 2), q = (c + 1) / (n + 2),
    p - q +- z sqrt((p + q - (p - q)^2) / (n + 2)), which keeps a width where no sample differs
    (D. G. Bonett, R. M. Price: Adjusted Wald confidence interval for a difference of binomial
    proportions based on paired data, J. Educational and Behavioral Statistics 37(4), 2012).
    """
    count = len(reference) + 2
    p = (float((reference > candidate).sum()) + 1) / count
    q = (float((candidate > reference).sum()) + 1) / count
    half = _Z95 * math.sqrt((p + q - (p - q) ** 2) / count)
    return max(-1.0, p - q - half), min(1.0, p - q + half)


def proportion_interval(hits: float, count: int) -> Interval:
    """Return Wilson's score interval of a proportion, which keeps a width at 0 and at 1.

    E. B. Wilson: Probable inference, the law of succession, and statistical inference, J. American
    Statistical Association 22, 1927.
    """
    share, z2 = hits / count, _Z95**2 / count
    middle = share + z2 / 2
    half = math.sqrt(z2 * share * (1 - share) + z2**2 / 4)
    return max(0.0, (middle - half) / (1 + z2)), min(1.0, (middle + half) / (1 + z2))
