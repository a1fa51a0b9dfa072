"""Tuners: methods that compute rounded weights, scales and factors from observations."""

from onnxq.tune.tuned import read_tuned
from onnxq.tune.tuner import (
    AUTOMATIC,
    NO_METHODS,
    Tuner,
    available_tuners,
    parse_methods,
    parse_tuner,
)

__all__ = [
    "AUTOMATIC",
    "NO_METHODS",
    "Tuner",
    "available_tuners",
    "parse_methods",
    "parse_tuner",
    "read_tuned",
]
