"""Perplexity."""

from __future__ import annotations

from onnxq.verify.metrics.cross_entropy import ALLOWED_RISE, CrossEntropy


class Perplexity(CrossEntropy):
    """Perplexity over tokens: two to the power of the bits per token.

    The interval of its rise is that of the bits, with the float model's perplexity as measured.
    """

    name = "perplexity"

    def value(self, mean: float) -> float:
        """See `ScoredMetric`."""
        return _power(mean)

    def change(self, mean: float, by: float) -> float:
        """See `ScoredMetric`."""
        return _power(mean + by) - _power(mean) if by else 0.0

    @classmethod
    def allowed_drop(cls, value: float) -> float:
        """See `Metric`: what the rise of the bits that is allowed comes to."""
        return float(value ** (1 + ALLOWED_RISE) - value)


def _power(bits: float) -> float:
    try:
        return float(2.0**bits)
    except OverflowError:
        return float("inf")
