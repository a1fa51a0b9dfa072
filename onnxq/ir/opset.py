"""Raising a model's opset."""

from __future__ import annotations

import onnx
import onnx.version_converter

from onnxq.errors import InputError
from onnxq.ir.graph import Graph
from onnxq.ir.load import from_proto
from onnxq.ir.save import to_proto

_IR_VERSION_OF_OPSET = {
    int(row[2]): int(row[1]) for row in onnx.helper.VERSION_TABLE if int(row[2]) > 0
}


def raise_opset(graph: Graph, version: int) -> Graph:
    """The same model with at least this version of the default operator set.

    Raises:
        InputError: the model uses an operator whose old form has no newer equal.
    """
    if graph.opset >= version:
        return graph
    ir_version = max(graph.model.ir_version, _IR_VERSION_OF_OPSET.get(version, 0))
    source = graph.copy()
    # Before conversion: in an IR version that lists initializers as inputs, as old ones must,
    # the newer one would let callers feed them.
    source.model.ir_version = ir_version
    try:
        converted = onnx.version_converter.convert_version(to_proto(source), version)
    except (RuntimeError, onnx.version_converter.ConvertError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"the model has opset {graph.opset} and cannot be raised to {version}, which the "
            f"chosen formats need: {reason}; export it with opset {version} or newer"
        ) from error
    converted.ir_version = ir_version
    raised = from_proto(converted, graph.model.path)
    _restore(graph, raised)
    return raised


def _restore(source: Graph, target: Graph) -> None:
    """Put back what the converter drops."""
    kept = source.model
    info = target.model
    info.producer_name, info.producer_version = kept.producer_name, kept.producer_version
    info.domain, info.model_version = kept.domain, kept.model_version
    info.doc_string, info.metadata = kept.doc_string, dict(kept.metadata)
    info.training_info, info.configuration = kept.training_info, kept.configuration
    info.functions = kept.functions
    for domain, number in kept.opset_imports.items():
        info.opset_imports.setdefault(domain, number)
    target.doc_string, target.metadata = source.doc_string, dict(source.metadata)
