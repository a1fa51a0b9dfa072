"""Targets: what a place to run models computes in which format, one TOML table each."""

from onnxq.targets.target import (
    FASTEST,
    OperatorRule,
    Target,
    available_targets,
    load_target,
    processor_flags,
)

__all__ = [
    "FASTEST",
    "OperatorRule",
    "Target",
    "available_targets",
    "load_target",
    "processor_flags",
]
