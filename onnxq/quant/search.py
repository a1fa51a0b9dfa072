"""Searching better scales for weights than those that clip nothing.

A search is given some groups of values, each with the scale and zero-point of its whole range, and
finds a scale, and where the scheme has one a zero-point, that lose less. Nothing is random, and
groups do not depend on each other.

Errors are squared differences between values and what they dequantize to. For values `x` of a
group, a scale `s` and `y` = q - zero_point, the quantized values rounded with `s`, the best scale
for these `y` is that of linear least squares, `s' = sum(w x y) / sum(w y y)` with weights `w`. In
terms of the differences `d = x - s y` that is `s' = s + sum(w d y) / sum(w y y)`, and the error
falls to `sum(w d d) - sum(w d y)**2 / sum(w y y)`, which loses no digits to cancellation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from onnxq.errors import InputError
from onnxq.quant._least_squares import Best, Problem, Solution, TrialGroups
from onnxq.quant._ranges import power_of_two_at_least, scale_from_range
from onnxq.quant.half_quadratic import HQQ

Float32Array = npt.NDArray[np.float32]


_FLOAT_TRIALS = 4
"""How many times as many scales are tried in float formats, all of whose binades err alike."""


class ScaleSearch(Protocol):
    """A way to find scales for weights.

    Implementations are frozen dataclasses, whose fields are their options.
    """

    @property
    def name(self) -> str:
        """Name in options, plans and reports."""
        ...

    def find(self, problem: Problem) -> Solution:
        """Scales and zero-points for all groups."""
        ...


@dataclass(frozen=True)
class Plain:
    """The scale of the whole range: nothing is clipped."""

    name: ClassVar[str] = "plain"

    def find(self, problem: Problem) -> Solution:
        """The scales given."""
        return Solution(problem.scale, problem.zero_point)


@dataclass(frozen=True)
class Percentile:
    """Clip each group where a percentage of its values is kept.

    In absmax of the magnitudes, in zero-point of the values, at either end. Percentiles are values
    of the group: the smallest one that at least the percentage does not exceed (`inverted_cdf` in
    numpy). A group in which nothing but zeros would remain keeps its whole range.

    Attributes:
        percentage: Above 50, at most 100.

    Raises:
        InputError: The percentage is none of those.
    """

    percentage: float = 99.9
    name: ClassVar[str] = "percentile"

    def __post_init__(self) -> None:
        if not 50 < self.percentage <= 100:
            raise InputError(f"percentile {self.percentage} is none above 50 and up to 100")

    def find(self, problem: Problem) -> Solution:
        """Scales of the ranges between the percentiles."""
        values, axis = problem.values, problem.axis
        if problem.scheme.symmetric:
            limit = self._upper(np.abs(values), axis)
            low = np.maximum(values.min(axis=axis), -limit)
            high = np.minimum(values.max(axis=axis), limit)
        else:
            low, high = -self._upper(-values, axis), self._upper(values, axis)
        scale, zero_point = scale_from_range(
            low.astype(np.float64), high.astype(np.float64), problem.format, problem.scheme
        )
        nothing = (low >= 0) & (high <= 0)
        return Solution(
            np.where(nothing, problem.scale, scale),
            np.where(nothing, problem.zero_point, zero_point.astype(np.float32)),
        )

    def _upper(self, values: Float32Array, axis: int) -> Float32Array:
        length = values.shape[axis]
        # 99.9 % of 1000 is 999.0000000000001 in binary, which is not to become 1000.
        rank = math.ceil(self.percentage * length / 100 - 1e-9) - 1
        return np.asarray(np.take(np.partition(values, rank, axis=axis), rank, axis=axis))


@dataclass(frozen=True)
class MeanSquaredError:
    """The scale, and in zero-point schemes the zero-point, with the least squared error.

    Scales are tried at even ratios between the smallest one that can be the best and the one at
    which the largest value falls two steps short of the format's end, or in float formats twice
    the plain scale; each is refined by least squares. The smallest: a scale `s` clips the largest
    value by `max|x| - s reach`, where `reach` is the largest `|y|`, and that alone must not exceed
    the error of the plain scale; and as `y` grows with `|x|`, least squares gives no scale below
    `mean|x| / reach`.

    Zero-points are tried at distances that halve from a quarter of the format's range to 1. The
    result is never worse than the plain scale. Powers of two are tried without refinement.

    Against a fine grid over all scales and zero-points the error is at most 1 % above the least,
    except with zero-points of 8 bits and more in blocks of fewer than 64 values: the error jumps
    between neighbouring zero-points there, and a better one may be missed.

    Attributes:
        trials: Scales tried for a group at first; half as many again around the best of them.

    Raises:
        InputError: Less than 2 trials.
    """

    trials: int = 24
    name: ClassVar[str] = "mse"

    def __post_init__(self) -> None:
        if self.trials < 2:
            raise InputError(f"{self.trials} trials are too few for the search mse; give 2 or more")

    def find(self, problem: Problem) -> Solution:
        """Scales, and zero-points if the scheme has them, with the least squared error."""
        groups = TrialGroups(problem)
        best = groups.plain()
        if problem.scheme.symmetric:
            self._try_scales(problem, groups, best, best.zero_point, self.trials)
        else:
            self._try_zero_points(problem, groups, best)
        return groups.solution(best)

    def _try_zero_points(self, problem: Problem, groups: TrialGroups, best: Best) -> None:
        few = max(self.trials // 3, 4)
        self._try_scales(problem, groups, best, best.zero_point, few)
        distance = problem.format.levels // 4
        while distance:
            for shift in (distance, -distance):
                shifted = np.clip(best.zero_point + np.float32(shift), problem.low, problem.high)
                self._try_scales(problem, groups, best, shifted.astype(np.float32), few)
            distance //= 2
        self._try_scales(problem, groups, best, best.zero_point, self.trials)

    def _try_scales(
        self,
        problem: Problem,
        groups: TrialGroups,
        best: Best,
        zero_point: Float32Array,
        trials: int,
    ) -> None:
        lowest, plain, highest = groups.span(zero_point, best.error)
        if problem.scheme.power_of_two:
            scale = power_of_two_at_least(plain)
            while (scale >= lowest).any():
                groups.consider(scale, zero_point, best)
                scale = scale / 2
            return
        if problem.format.is_float:
            trials *= _FLOAT_TRIALS
        step = (highest / lowest) ** (1 / (trials - 1))
        scale, middle = lowest, lowest
        least = np.full(lowest.shape, np.inf)
        for _ in range(trials):
            error = groups.consider(scale, zero_point, best)
            middle = np.where(error < least, scale, middle)
            least = np.minimum(error, least)
            scale = scale * step
        near = np.linspace(-1, 1, trials // 2 + 2)[1:-1]
        for exponent in near:
            groups.consider(middle * step**exponent, zero_point, best)
        for _ in range(2):
            groups.consider(best.scale.astype(np.float64), best.zero_point, best)


@dataclass(frozen=True)
class FewRanges:
    """A low squared error in a tenth of the time that `MeanSquaredError` takes.

    The whole range and 0.9, 0.8 and 0.7 of it are tried, each refined by least squares; then twice
    the best scale again with its own and both neighbouring zero-points.
    """

    name: ClassVar[str] = "few-ranges"

    def find(self, problem: Problem) -> Solution:
        """Scales and zero-points with the least error of those tried."""
        groups = TrialGroups(problem)
        best = groups.plain()
        for share in (1.0, 0.9, 0.8, 0.7):
            scale, zero_point = scale_from_range(
                groups.low * share, groups.high * share, problem.format, problem.scheme
            )
            groups.consider(scale.astype(np.float64), zero_point.astype(np.float32), best)
        shifts = (0,) if problem.scheme.symmetric else (0, 1, -1)
        for _ in range(2):
            known, origin = best.scale.astype(np.float64), best.zero_point
            for shift in shifts:
                shifted = np.clip(origin + np.float32(shift), problem.low, problem.high)
                groups.consider(known, shifted.astype(np.float32), best)
        return groups.solution(best)


@dataclass(frozen=True)
class GroupedSearch:
    """The way block scales of llama.cpp's K-quants are searched: weighted least squares.

    Absmax, as its `make_qx_quants`: with `N` the steps between 0 and the end of the format that
    the group's range needs, `(N + i/10) / max|x|` for `i` in -9 to 9 are tried for 1/scale, each
    refined with weights `x**2`. Zero-point, as its `make_qkx2_quants`: `(N - 1 + i/10) /
    (max - min)` for `i` in 0 to 20, `N` the steps of the format, with weights `sqrt(mean(x**2)) +
    |x|`; the minimum, which is a number of its own there, is a whole number of steps here. The
    least weighted error wins. Large values are so kept better than by the mean squared error.

    Powers of two are tried down to an eighth of the plain scale, without refinement.
    """

    name: ClassVar[str] = "grouped-search"

    def find(self, problem: Problem) -> Solution:
        """Scales and zero-points with the least weighted error of those tried."""
        symmetric = problem.scheme.symmetric
        groups = TrialGroups(problem, "square" if symmetric else "magnitude")
        best = groups.plain()
        plain, zero_point = best.scale.astype(np.float64), best.zero_point
        if problem.scheme.power_of_two:
            for halvings in range(1, 4):
                groups.consider(plain / 2.0**halvings, zero_point, best)
        elif symmetric:
            steps = np.maximum(groups.largest / plain, 1.0)
            for tenths in range(-9, 10):
                groups.consider(plain * steps / (steps + tenths / 10), zero_point, best)
        else:
            span = groups.high - groups.low
            for tenths in range(21):
                trial = span / (problem.high - problem.low - 1 + tenths / 10)
                trial = np.where(trial > 0, trial, plain)
                shifted = np.clip(
                    np.rint(problem.low - groups.low / trial), problem.low, problem.high
                )
                groups.consider(trial, shifted.astype(np.float32), best)
        return groups.solution(best)


PLAIN = Plain()
MSE = MeanSquaredError()
PERCENTILE = Percentile()
GROUPED_SEARCH = GroupedSearch()
FEW_RANGES = FewRanges()

SCALE_SEARCHES: dict[str, ScaleSearch] = {
    search.name: search for search in (PLAIN, MSE, PERCENTILE, GROUPED_SEARCH, FEW_RANGES, HQQ)
}
