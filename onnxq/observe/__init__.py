"""Observing: what has to be known of a model's tensors, above all ranges, from data."""

from onnxq.observe.calibrators import CALIBRATORS, Calibrator, parse_calibrator
from onnxq.observe.comparing import compare
from onnxq.observe.gram import GramMatrix
from onnxq.observe.histogram import Histogram
from onnxq.observe.observations import Observations, merge_observations
from onnxq.observe.ranges import Range, Ranges, merge
from onnxq.observe.run import calibrate, observe
from onnxq.observe.sampling import SampledRows, SampledValues
from onnxq.observe.statistics import ChannelStatistics, Moving, Statistics

__all__ = [
    "CALIBRATORS",
    "Calibrator",
    "ChannelStatistics",
    "GramMatrix",
    "Histogram",
    "Moving",
    "Observations",
    "Range",
    "Ranges",
    "SampledRows",
    "SampledValues",
    "Statistics",
    "calibrate",
    "compare",
    "merge",
    "merge_observations",
    "observe",
    "parse_calibrator",
]
