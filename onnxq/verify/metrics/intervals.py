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

_LEAST_DIFFERING = 6
"""Samples that must differ before a difference can be more than chance.

Where d differ, exchanging the models at random in each of them gives as large a difference, to one
side or the other, in at least 2 of 2^d cases: over 5 % up to d = 5.
"""

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
    generator, count = np.random.default_rng(seed), len(scores)
    values = []
    for size in _sizes(count):
        draws = generator.integers(0, count, (size, count))
        totals = weights[draws].sum(axis=1)
        values.append(scores[draws].sum(axis=1)[totals > 0] / totals[totals > 0])
    low, high = np.percentile(np.concatenate(values), [2.5, 97.5])
    return float(low), float(high)


def resampled_interval(
    statistic: Callable[[Floats], Floats],
    differ: npt.NDArray[np.bool_],
    measured: float,
    *,
    seed: int = 0,
) -> Interval:
    """Return the 95 % bootstrap interval of a difference that is no mean over samples.

    Two samples more are drawn from than there are, as in `shares_interval`. How much a sample does
    that differs is known of few samples only, so they differ as one of those that do, or by all
    that one model finds in some sample and the other does not, which is drawn as often as one
    sample more that differs would be.

    Each end is the outer one of two: the percentile's, and that of `_accelerated` with a quantile
    of Student's distribution. Of the d + 2 samples that make the variance d tell how large it is,
    which by Satterthwaite's formula leaves (d + 2)^2 / d degrees of freedom. Bias and
    skewness are estimated from the same samples: corrected for them alone, a few that err to one
    side by chance would be a proof. Where fewer than `_LEAST_DIFFERING` differ, 0 is held, too.

    Args:
        statistic: By how often each sample is drawn in four forms, one behind the other: as it is,
            with the models exchanged, where only the reference finds anything, where only the
            candidate does; [R, 4 N] -> [R]. NaN leaves a draw out.
        differ: Which of the N samples differ between the models.
        measured: The difference over the N samples.
        seed: Seed of the draws.
    """
    # Here, as scipy takes long to load.
    from scipy.special import stdtrit

    count, which = len(differ), np.flatnonzero(differ)
    columns = np.r_[np.arange(count), which, 2 * count, count + which, 3 * count]
    generator, values = np.random.default_rng(seed), []
    drawn_in_all, together = np.zeros(count), np.zeros(count)
    for draws in _draws_with_two(count, len(columns) - count, 4 * count, seed):
        drawn = columns[draws]
        whole = drawn >= 2 * count
        drawn[whole] += generator.integers(0, count, int(whole.sum()))
        times = _times(drawn, 4 * count)
        found = statistic(times)
        known = ~np.isnan(found)
        values.append(found[known])
        drawn_in_all += times[known, :count].sum(axis=0)
        together += (found[known] - measured) @ times[known, :count]
    all_ = np.concatenate(values)
    pulls = together - (all_.mean() - measured) * drawn_in_all
    freedom = (len(which) + 2) ** 2 / len(which) if len(which) else math.inf
    ends = [
        *_accelerated(all_, measured, pulls, float(stdtrit(freedom, 0.975))),
        *np.percentile(all_, [2.5, 97.5]),
    ]
    if len(which) < _LEAST_DIFFERING:
        ends.append(0.0)
    return float(min(ends)), float(max(ends))


def _accelerated(values: Floats, measured: float, pulls: Floats, quantile: float) -> Interval:
    """Percentiles of draws, corrected for how far their middle is off and for their skewness.

    B. Efron: Better bootstrap confidence intervals, J. American Statistical Association 82, 1987.
    ``pulls`` is up to a factor what a sample does to the value: how that varies with how often the
    sample was drawn. Leaving out one at a time would not tell, of values that go in steps.
    """
    normal, least = NormalDist(), 0.5 / len(values)
    below = ((values < measured).mean() + (values <= measured).mean()) / 2
    off = normal.inv_cdf(min(max(float(below), least), 1 - least))
    power = float(np.square(pulls).sum())
    skew = float((pulls**3).sum()) / (6 * power**1.5) if power else 0.0
    ends = (off - quantile, off + quantile)
    shares = [normal.cdf(off + end / max(1 - skew * end, least)) for end in ends]
    low, high = np.quantile(values, shares)
    return float(low), float(high)


def shares_interval(
    of: Callable[[Floats], Floats], reference: Floats, candidate: Floats, *, seed: int = 0
) -> Interval:
    """Return the 95 % bootstrap interval of of(sum of reference) - of(sum of candidate).

    Two samples more are drawn from than there are, which differ as those do that differ, one in
    the reference's favour and one in the candidate's; where none differs, one model has all of it
    and the other one nothing. That is the adjustment of `paired_interval`: the percentile bootstrap
    alone takes what no sample, or one, showed for impossible.

    Args:
        of: The share by sums, [R, K] -> [R]; NaN leaves a draw out.
        reference: Numbers of each sample, [N, K]: what counts, and behind it out of how much.
        candidate: Likewise, of the same samples.
        seed: Seed of the draws.
    """
    counted = (reference + candidate).any(axis=1)
    reference, candidate = reference[counted], candidate[counted]
    differ = (reference != candidate).any(axis=1)
    ours, theirs = reference[differ], candidate[differ]
    if not differ.any():
        _, all_ = np.split(reference, 2, axis=1)
        ours, theirs = np.hstack([all_, all_]), np.hstack([0 * all_, all_])
    sides = [(reference, candidate), (ours, theirs), (theirs, ours)]
    pairs = np.concatenate([np.hstack(both) for both in sides])
    count, width = len(reference), reference.shape[1]
    values = []
    for draws in _draws_with_two(count, len(pairs) - count, len(pairs), seed):
        sums = _times(draws, len(pairs)) @ pairs
        values.append(of(sums[:, :width]) - of(sums[:, width:]))
    # Of very few samples the two that were added can outweigh what was measured.
    measured = of(reference.sum(axis=0)[np.newaxis]) - of(candidate.sum(axis=0)[np.newaxis])
    low, high = np.nanpercentile(np.concatenate(values), [2.5, 97.5])
    return float(min(low, measured[0])), float(max(high, measured[0]))


def ratio(sums: Floats) -> Floats:
    """What counts out of how much, [R, 2] -> [R]; NaN out of nothing."""
    what, of = sums.T
    return np.asarray(np.where(of > 0, what / np.where(of > 0, of, 1.0), np.nan))


def _draws_with_two(
    count: int, more: int, cells: int, seed: int
) -> Iterator[npt.NDArray[np.int64]]:
    """Draws from so many samples and two more, which are any of those that are numbered behind.

    Of so many as a caller may hold at once who makes so many ``cells`` of each.
    """
    generator = np.random.default_rng(seed)
    for size in _sizes(cells):
        draws = generator.integers(0, count + 2, (size, count + 2))
        added = draws >= count
        draws[added] = generator.integers(count, count + more, int(added.sum()))
        yield draws


def _times(draws: npt.NDArray[np.int64], count: int) -> Floats:
    """How often each of so many is drawn, [R, N]."""
    cells = draws + count * np.arange(len(draws))[:, np.newaxis]
    times = np.bincount(cells.ravel(), minlength=len(draws) * count)
    return times.reshape(-1, count).astype(np.float64)


def _sizes(cells: int) -> Iterator[int]:
    """How many of `RESAMPLES` draws are made at once where each takes so many cells."""
    at_once = max(1, _DRAWS_AT_ONCE // cells)
    return (min(at_once, RESAMPLES - start) for start in range(0, RESAMPLES, at_once))


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
