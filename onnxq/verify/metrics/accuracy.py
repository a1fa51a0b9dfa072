"""Accuracy."""

from __future__ import annotations

from onnxq.verify.metrics.ranked import Ranked


class Accuracy(Ranked):
    """Share of positions whose label is the largest output; the default for labels [N]."""

    name = "accuracy"
    k = 1

    @classmethod
    def suits(cls, labels_ndim: int, classes: int | None) -> bool:
        """See `Metric`."""
        return labels_ndim == 1
