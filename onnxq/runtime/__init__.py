"""Backends and onnxruntime's sessions, providers, timing, and the comparison of outputs."""

from __future__ import annotations

from onnxq.runtime.backend import COMPILED as COMPILED
from onnxq.runtime.backend import Backend as Backend
from onnxq.runtime.backend import NodeTime as NodeTime
from onnxq.runtime.backend import available_backends as available_backends
from onnxq.runtime.backend import load_backend as load_backend
from onnxq.runtime.compare import ErrorAccumulator as ErrorAccumulator
from onnxq.runtime.compare import OutputError as OutputError
from onnxq.runtime.operators import INTEGER_OPERATORS as INTEGER_OPERATORS
from onnxq.runtime.operators import integer_operators as integer_operators
from onnxq.runtime.operators import optimized_operators as optimized_operators
from onnxq.runtime.providers import available_providers as available_providers
from onnxq.runtime.providers import missing_provider as missing_provider
from onnxq.runtime.providers import resolve_provider as resolve_provider
from onnxq.runtime.session import Session as Session
from onnxq.runtime.specs import Runnable as Runnable
from onnxq.runtime.specs import TensorSpec as TensorSpec
from onnxq.runtime.timing import Timing as Timing
from onnxq.runtime.timing import interleaved as interleaved
