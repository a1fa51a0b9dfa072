"""Backends and onnxruntime's sessions, providers, timing, and the comparison of outputs."""

from __future__ import annotations

from onnxq.runtime.backend import (
    COMPILED,
    Backend,
    NodeTime,
    available_backends,
    load_backend,
)
from onnxq.runtime.compare import ErrorAccumulator, OutputError
from onnxq.runtime.operators import INTEGER_OPERATORS, integer_operators, optimized_operators
from onnxq.runtime.providers import available_providers, missing_provider, resolve_provider
from onnxq.runtime.session import Session, as_stored
from onnxq.runtime.specs import Runnable, TensorSpec
from onnxq.runtime.timing import EQUAL, Timing, interleaved, of_several_sessions

__all__ = [
    "COMPILED",
    "EQUAL",
    "INTEGER_OPERATORS",
    "Backend",
    "ErrorAccumulator",
    "NodeTime",
    "OutputError",
    "Runnable",
    "Session",
    "TensorSpec",
    "Timing",
    "as_stored",
    "available_backends",
    "available_providers",
    "integer_operators",
    "interleaved",
    "load_backend",
    "missing_provider",
    "of_several_sessions",
    "optimized_operators",
    "resolve_provider",
]
