"""Metrics with one batch in them."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

from onnxq.verify.metrics import Metric

M = TypeVar("M", bound=Metric)


def filled(metric: M, logits: np.ndarray, labels: np.ndarray) -> M:
    """The metric with one batch added."""
    metric.add({"y": logits}, labels, len(labels))
    return metric
