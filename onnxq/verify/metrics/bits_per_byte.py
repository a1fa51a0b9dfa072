"""Bits per byte."""

from __future__ import annotations

from onnxq.verify.metrics.cross_entropy import CrossEntropy

BYTES = 256


class BitsPerByte(CrossEntropy):
    """Cross-entropy in bits of a model of bytes: the default for labels [N, T] of 256 classes."""

    name = "bits-per-byte"

    @classmethod
    def suits(cls, labels_ndim: int, classes: int | None) -> bool:
        """See `Metric`."""
        return labels_ndim == 2 and classes == BYTES
