"""Calibration: finding the ranges of activations from representative data."""

from onnxq.observe.calibrators import CALIBRATORS, Calibrator, parse_calibrator
from onnxq.observe.histogram import Histogram
from onnxq.observe.observer import Observer
from onnxq.observe.ranges import Range, Ranges, merge
from onnxq.observe.run import calibrate
from onnxq.observe.statistics import ChannelStatistics, Statistics

__all__ = [
    "CALIBRATORS",
    "Calibrator",
    "ChannelStatistics",
    "Histogram",
    "Observer",
    "Range",
    "Ranges",
    "Statistics",
    "calibrate",
    "merge",
    "parse_calibrator",
]
