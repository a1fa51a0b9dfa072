"""Metrics of a model's outputs against labels, one a file, and the drop between two models."""

from onnxq.verify.metrics.choice import LABEL_FREE, choose_metric
from onnxq.verify.metrics.metric import Metric, MetricResult, available_metrics, metric_kind
from onnxq.verify.metrics.paired import paired_drop

__all__ = [
    "LABEL_FREE",
    "Metric",
    "MetricResult",
    "available_metrics",
    "choose_metric",
    "metric_kind",
    "paired_drop",
]
