"""Shape and type inference."""

from __future__ import annotations

import onnx
import onnx.checker
import onnx.shape_inference

from onnxq.ir.graph import Graph
from onnxq.ir.save import to_proto
from onnxq.ir.tensor import Tensor
from onnxq.ir.types import merge_types, type_from_proto

_FAILURES = (
    onnx.shape_inference.InferenceError,
    onnx.checker.ValidationError,
    RuntimeError,
    ValueError,
)


def infer_types(graph: Graph) -> int:
    """Fill in types and shapes that ONNX's inference can find; gives how many values changed.

    What a value already states is kept; nothing is invented. Large constants take part only
    with their type and shape, so models of any size fit. A model on which the inference stops
    (an operator used against its definition) keeps the types it has.
    """
    proto = to_proto(graph, _TypesOnly())
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except _FAILURES:
        return 0
    return _read_back(graph, inferred.graph)


class _TypesOnly:
    """Stands for the file that external data would lie in: inference never opens it."""

    def put(self, tensor: Tensor, name: str) -> onnx.TensorProto:
        proto = onnx.TensorProto(name=name, data_type=int(tensor.dtype), dims=tensor.shape)
        proto.data_location = onnx.TensorProto.EXTERNAL
        proto.external_data.add(key="location", value="none")
        return proto


def _read_back(graph: Graph, proto: onnx.GraphProto) -> int:
    changed = 0
    for entry in (*proto.value_info, *proto.output):
        value = graph.values.get(entry.name)
        if value is None or value.data is not None:
            continue
        merged = merge_types(value.type, type_from_proto(entry.type))
        if merged != value.type:
            value.type = merged
            changed += 1
    for node, message in zip(graph.nodes(), proto.node, strict=True):
        for name, attribute in zip(node.attributes, message.attribute, strict=True):
            messages = [attribute.g] if attribute.HasField("g") else attribute.graphs
            for subgraph, inner in zip(node.attributes[name].graphs(), messages, strict=False):
                changed += _read_back(subgraph, inner)
    return changed
