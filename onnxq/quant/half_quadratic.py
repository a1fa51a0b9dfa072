"""HQQ: scales and zero-points whose errors are small but for few."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from onnxq.quant._least_squares import Problem, Solution
from onnxq.quant._rounding import round_to

Float32Array = npt.NDArray[np.float32]

_SMALLEST = 2.0**-6
"""Part of the plain scale below which none is taken."""

_TINY, _HUGE = 2.0**-100, 2.0**100
"""Plain scales beyond stay, for they may stand at the limit of what a scale can be."""


@dataclass(frozen=True)
class HalfQuadratic:
    """Half-quadratic quantization (Badri & Shaji, 2023): the least sum of |w - s (q - z)|ᵖ, p < 1.

    With an auxiliary E that takes up what is large, two problems are solved in turn:
    E = argmin |E|ᵖ + β/2 |E - (W - s (Q - z))|², whose solution is about
    sign(d) max(|d| - |d|ᵖ⁻¹ / β, 0) with d = W - s (Q - z), and the least squares of
    W - E ≈ s (Q - z), Q rounded anew each time. β grows by a factor from step to step.

    The paper solves the second problem for the zero-point alone, a float there: z = mean(Q - (W -
    E) / s). Here it is solved for scale and zero-point, of which the latter is then rounded, and in
    absmax schemes for the scale. Errors are taken in units of the range that the plain scale
    covers, so that β means the same for weights of any size; in the paper they are not. The best
    step wins; powers of two keep the plain scale.

    Attributes:
        power: p.
        beta: β at first.
        growth: What it is multiplied with.
        steps: Number of steps.
    """

    power: float = 0.7
    beta: float = 10.0
    growth: float = 1.01
    steps: int = 20
    name: ClassVar[str] = "hqq"

    def find(self, problem: Problem) -> Solution:
        """Scales and zero-points for all groups."""
        if problem.scheme.power_of_two:
            return Solution(problem.scale, problem.zero_point)
        axis, weight = problem.axis, problem.importance

        def wide(of_groups: Float32Array) -> Float32Array:
            return np.asarray(np.expand_dims(of_groups, axis))

        x: Float32Array = problem.values / wide(problem.scale)
        scale, zero = np.ones_like(problem.scale), problem.zero_point
        best, best_zero, least = scale, zero, np.full(scale.shape, np.inf, np.float32)
        beta, span = self.beta, np.float32(problem.high - problem.low)
        power = np.float32(self.power)
        for _ in range(self.steps + 1):
            q = self._rounded(x / wide(scale), wide(zero), problem)
            d: Float32Array = x - q * wide(scale)
            size = np.abs(d) / span
            error = self._sum(np.power(size, power), weight, axis)
            better = error < least
            best, best_zero = np.where(better, scale, best), np.where(better, zero, best_zero)
            least = np.where(better, error, least)
            with np.errstate(divide="ignore"):
                kept = np.maximum(size - np.power(size, power - 1) / np.float32(beta), 0)
            y: Float32Array = x - np.copysign(kept * span, d)
            if not problem.scheme.symmetric:
                codes = q + wide(zero)
                zero = self._zero_point(codes, y, zero, problem)
                q = codes - wide(zero)
            squares = self._sum(q * q, weight, axis)
            fitted = self._sum(q * y, weight, axis) / np.where(squares > 0, squares, 1)
            scale = np.where(fitted > _SMALLEST, fitted, scale)
            beta *= self.growth
        size = np.abs(problem.scale)
        inside = (size > _TINY) & (size < _HUGE)
        return Solution(
            np.where(inside, best, 1) * problem.scale,
            np.where(inside, best_zero, problem.zero_point),
        )

    def _zero_point(
        self, codes: Float32Array, y: Float32Array, zero: Float32Array, problem: Problem
    ) -> Float32Array:
        """Where the straight line of ``y`` over the codes is 0."""
        axis, weight = problem.axis, problem.importance
        total = self._sum(np.ones_like(y), weight, axis)
        mean_code, mean = (self._sum(a, weight, axis) / total for a in (codes, y))
        off = codes - np.expand_dims(mean_code, axis)
        spread = self._sum(off * off, weight, axis)
        slope = self._sum(off * y, weight, axis) / np.where(spread > 0, spread, 1)
        found = np.rint(mean_code - mean / np.where(slope > 0, slope, 1))
        clipped = np.clip(found, problem.low, problem.high)
        return np.where((spread > 0) & (slope > 0), clipped, zero).astype(np.float32)

    @staticmethod
    def _rounded(x: Float32Array, zero: Float32Array, problem: Problem) -> Float32Array:
        """Quantized values less the zero-point."""
        x = np.clip(x, np.float32(problem.low) - zero, np.float32(problem.high) - zero)
        round_to(x, problem.format)
        return x

    @staticmethod
    def _sum(values: Float32Array, weight: Float32Array | None, axis: int) -> Float32Array:
        weighted = values if weight is None else values * weight
        return np.asarray(weighted.sum(axis=axis, dtype=np.float64)).astype(np.float32)


HQQ = HalfQuadratic()
