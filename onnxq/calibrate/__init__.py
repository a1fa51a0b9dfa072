"""Calibration: finding the ranges of activations from representative data."""

from onnxq.calibrate.calibrators import CALIBRATORS, Calibrator, parse_calibrator
from onnxq.calibrate.histogram import Histogram
from onnxq.calibrate.observer import Observer
from onnxq.calibrate.ranges import Range, Ranges, merge
from onnxq.calibrate.run import calibrate
from onnxq.calibrate.statistics import ChannelStatistics, Statistics

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
