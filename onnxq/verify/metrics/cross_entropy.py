"""What a language model loses: the bits that its predictions leave open."""

from __future__ import annotations

import math

import numpy as np

from onnxq.runtime.specs import Array
from onnxq.verify.metrics.metric import Floats
from onnxq.verify.metrics.scored import ScoredMetric

ALLOWED_RISE = 0.02
"""Largest rise where none is promised, as a share of the float model's bits."""


class CrossEntropy(ScoredMetric):
    """Mean cross-entropy in bits: -log2 softmax(logits)[label], over all positions.

    Labels are what comes next [N, T], the output holds logits [N, T, vocabulary]. Computed in
    float64. A position whose logits are NaN or all infinite costs infinitely many bits.
    """

    higher_is_better = False

    @classmethod
    def allowed_drop(cls, value: float) -> float:
        """See `Metric`."""
        return ALLOWED_RISE * value

    def _score(self, logits: Floats, labels: Array) -> Floats:
        with np.errstate(invalid="ignore"):
            shifted = logits - logits.max(axis=-1, keepdims=True)
            total = np.exp(shifted).sum(axis=-1)
        target = np.take_along_axis(shifted, labels[..., np.newaxis], axis=-1)[..., 0]
        bits = np.asarray((np.log(total) - target) / math.log(2.0))
        bits[np.isnan(bits)] = np.inf
        return bits
