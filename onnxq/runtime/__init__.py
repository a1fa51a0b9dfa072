"""onnxruntime sessions, providers, timing, and the comparison of outputs."""

from __future__ import annotations

from onnxq.runtime.compare import ErrorAccumulator, OutputError, compare_outputs
from onnxq.runtime.operators import INTEGER_OPERATORS, integer_operators, optimized_operators
from onnxq.runtime.providers import (
    available_providers,
    missing_provider,
    resolve_provider,
)
from onnxq.runtime.session import Session
from onnxq.runtime.specs import TensorSpec
from onnxq.runtime.timing import Timing, interleaved

__all__ = [
    "INTEGER_OPERATORS",
    "ErrorAccumulator",
    "OutputError",
    "Session",
    "TensorSpec",
    "Timing",
    "available_providers",
    "compare_outputs",
    "integer_operators",
    "interleaved",
    "missing_provider",
    "optimized_operators",
    "resolve_provider",
]
