"""Calibration: finding the ranges of activations from representative data."""

from onnxq.calibrate.observer import OBSERVERS, MinMaxObserver, Observer
from onnxq.calibrate.ranges import Range, Ranges
from onnxq.calibrate.run import calibrate

__all__ = ["OBSERVERS", "MinMaxObserver", "Observer", "Range", "Ranges", "calibrate"]
