"""Sensitivity: what each node's quantization costs, before anything is quantized."""

from onnxq.sensitivity.analysis import analyse
from onnxq.sensitivity.result import NodeSensitivity, Sensitivity

__all__ = ["NodeSensitivity", "Sensitivity", "analyse"]
