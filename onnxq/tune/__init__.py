"""Tuners: methods that compute rounded weights, scales and factors from observations."""

from onnxq.tune.tuned import read_tuned
from onnxq.tune.tuner import Tuner, available_tuners, parse_tuner

__all__ = ["Tuner", "available_tuners", "parse_tuner", "read_tuned"]
