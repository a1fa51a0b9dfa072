"""Raising a model's opset."""

from __future__ import annotations

import onnx
import onnx.checker
import onnx.shape_inference
import onnx.version_converter

from onnxq.errors import InputError
from onnxq.ir.graph import Graph, Value
from onnxq.ir.load import from_proto
from onnxq.ir.operators import schema_of
from onnxq.ir.save import to_proto
from onnxq.ir.tensor import Tensor

_IR_VERSION_OF_OPSET = {
    int(row[2]): int(row[1]) for row in onnx.helper.VERSION_TABLE if int(row[2]) > 0
}

_FAILURES = (
    onnx.version_converter.ConvertError,
    onnx.shape_inference.InferenceError,
    onnx.checker.ValidationError,
    RuntimeError,
)


def raise_opset(graph: Graph, version: int) -> Graph:
    """The same model with at least this version of the default operator set.

    Raises:
        InputError: the model uses an operator whose old form has no newer equal, or there is no
            such version.
    """
    if graph.opset >= version:
        return graph
    newest = onnx.defs.onnx_opset_version()
    if version > newest:
        raise InputError(
            f"opset {version} is not known to onnx {onnx.__version__}; {newest} is its newest"
        )
    for node in graph.all_nodes():
        if not node.domain and schema_of(node) is None:
            raise InputError(
                f"node {node.label} is of an operator that opset {graph.opset} does not have, so "
                f"the model cannot be raised to opset {version}; export it with that or newer"
            )
    ir_version = max(graph.model.ir_version, _IR_VERSION_OF_OPSET.get(version, 0))
    source = graph.copy()
    # Before conversion: in an IR version that lists initializers as inputs, as old ones must,
    # the newer one would let callers feed them.
    source.model.ir_version = ir_version
    for value in source.initializers():
        if value.data is not None and value.data.is_sparse:
            # The converter takes no sparse ones.
            value.data = Tensor(value.data.numpy())
    try:
        converted = onnx.version_converter.convert_version(to_proto(source), version)
    except _FAILURES as error:
        reason = " ".join(str(error).rpartition(" failed: ")[2].split())
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
    for ours, theirs in zip(source.all_graphs(), target.all_graphs(), strict=False):
        theirs.doc_string, theirs.metadata = ours.doc_string, dict(ours.metadata)
        for name in ours.values.keys() & theirs.values.keys():
            _restore_value(ours.values[name], theirs.values[name])


def _restore_value(source: Value, target: Value) -> None:
    target.doc_string, target.metadata = source.doc_string, dict(source.metadata)
    target.annotation = dict(source.annotation)
    if source.data is not None and source.data.is_sparse and target.data is not None:
        target.data = source.data
    if source.producer is not None and target.producer is not None:
        target.producer.doc_string = source.producer.doc_string
        target.producer.metadata = dict(source.producer.metadata)
