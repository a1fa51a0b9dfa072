"""The intermediate representation: graphs, passes over them, reading and writing."""

from onnxq.ir.attribute import Attribute
from onnxq.ir.graph import Graph
from onnxq.ir.infer import infer_types
from onnxq.ir.loading import ModelLike, load
from onnxq.ir.model_info import ModelInfo
from onnxq.ir.node import Node, Use, Value
from onnxq.ir.operators import attribute_value
from onnxq.ir.opset import raise_opset
from onnxq.ir.passes import (
    Context,
    Numerics,
    Pass,
    PassRecord,
    Pipeline,
    available_passes,
    default_passes,
    parse_passes,
)
from onnxq.ir.pattern import Match
from onnxq.ir.rules import Builder, FormPass, Rule, RulePass, remove_unused, rewrite
from onnxq.ir.saving import save, to_proto
from onnxq.ir.tensor import Tensor
from onnxq.ir.types import DataType, OpaqueType, Shape, TensorType, ValueType

__all__ = [
    "Attribute",
    "Builder",
    "Context",
    "DataType",
    "FormPass",
    "Graph",
    "Match",
    "ModelInfo",
    "ModelLike",
    "Node",
    "Numerics",
    "OpaqueType",
    "Pass",
    "PassRecord",
    "Pipeline",
    "Rule",
    "RulePass",
    "Shape",
    "Tensor",
    "TensorType",
    "Use",
    "Value",
    "ValueType",
    "attribute_value",
    "available_passes",
    "default_passes",
    "infer_types",
    "load",
    "parse_passes",
    "raise_opset",
    "remove_unused",
    "rewrite",
    "save",
    "to_proto",
]
