"""Bits per token."""

from __future__ import annotations

from onnxq.verify.metrics.bits_per_byte import BYTES
from onnxq.verify.metrics.cross_entropy import CrossEntropy


class BitsPerToken(CrossEntropy):
    """Cross-entropy in bits: the default for labels [N, T] of anything else than 256 classes.

    It tells nothing of other tokenizers: a token stands for a few bytes or for many.
    """

    name = "bits-per-token"

    @classmethod
    def suits(cls, labels_ndim: int, classes: int | None) -> bool:
        """See `Metric`."""
        return labels_ndim == 2 and classes != BYTES
