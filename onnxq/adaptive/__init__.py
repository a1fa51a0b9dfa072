"""Quantized models in production: watched, adapted to what comes, taken back where that fails."""

from onnxq.adaptive.session import AdaptiveSession

__all__ = ["AdaptiveSession"]
