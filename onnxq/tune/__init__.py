"""Tuners: methods that compute rounded weights, scales and factors from observations."""

from onnxq.tune.tuned import Tuned, read_tuned
from onnxq.tune.tuner import Tuner, available_tuners, parse_tuner

__all__ = ["Tuned", "Tuner", "available_tuners", "parse_tuner", "read_tuned"]
