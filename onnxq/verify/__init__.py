"""Verification: proving a candidate against the float model."""

from onnxq.verify.compare import CompareOptions, compare_files, with_gates
from onnxq.verify.gates import QUANTITIES, Gate
from onnxq.verify.reference import Reference
from onnxq.verify.result import Report

__all__ = [
    "QUANTITIES",
    "CompareOptions",
    "Gate",
    "Reference",
    "Report",
    "compare_files",
    "with_gates",
]
