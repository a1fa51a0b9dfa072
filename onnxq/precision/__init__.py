"""Precisions that a plan may give to a node: one file each, found by the registry."""

from onnxq.precision.float32 import Float32
from onnxq.precision.parts import Part, Scene
from onnxq.precision.precision import (
    Given,
    Precision,
    available_precisions,
    parse_precision,
    require_searchable,
    searchable,
)

FLOAT = Float32.name

__all__ = [
    "FLOAT",
    "Given",
    "Part",
    "Precision",
    "Scene",
    "available_precisions",
    "parse_precision",
    "require_searchable",
    "searchable",
]
