"""Methods that compute rounded weights, scales and factors from observations."""

from onnxq.tune.layer import Layer
from onnxq.tune.method import (
    AUTOMATIC,
    NO_METHODS,
    Method,
    available_methods,
    parse_method,
    parse_methods,
)
from onnxq.tune.transformation import Change, Subject, Transformation
from onnxq.tune.tuned import read_tuned
from onnxq.tune.tuner import Tuner

__all__ = [
    "AUTOMATIC",
    "NO_METHODS",
    "Change",
    "Layer",
    "Method",
    "Subject",
    "Transformation",
    "Tuner",
    "available_methods",
    "parse_method",
    "parse_methods",
    "read_tuned",
]
