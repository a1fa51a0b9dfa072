"""Raising a model's opset."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy as shallow_copy

import onnx
import onnx.inliner
import onnx.version_converter

from onnxq.errors import InputError
from onnxq.ir.adapters import adapt, last_before, needs_adapter
from onnxq.ir.conformity import CRASHES_INFERENCE
from onnxq.ir.graph import Graph
from onnxq.ir.infer import infer_types
from onnxq.ir.loading import called, from_proto
from onnxq.ir.node import Value
from onnxq.ir.onnx_inference import INFERENCE_FAILURES
from onnxq.ir.operators import schema_of
from onnxq.ir.saving import PLAIN_FIELDS, to_proto
from onnxq.ir.tensor import Tensor
from onnxq.ir.withheld import Withheld

_IR_VERSION_OF_OPSET = {
    int(row[2]): int(row[1]) for row in onnx.helper.VERSION_TABLE if int(row[2]) > 0
}

_DEFAULT = ("", "ai.onnx")

_FAILURES = (onnx.version_converter.ConvertError, *INFERENCE_FAILURES)


def raise_opset(graph: Graph, version: int) -> Graph:
    """The same model with at least this version of the default operator set.

    Model-local functions stay as they are where all they use means the same in that version;
    others are inlined, for runtimes read the bodies of functions in the model's version.

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
    _require_known(graph, version)
    if last_before(graph, version) > graph.opset:
        return raise_opset(raise_opset(graph, last_before(graph, version)), version)
    ir_version = max(graph.model.ir_version, _IR_VERSION_OF_OPSET.get(version, 0))
    source = graph.copy()
    _declare_types(source)
    # Before conversion: in an IR version that lists initializers as inputs, as old ones must,
    # the newer one would let callers feed them.
    source.model.ir_version = ir_version
    for value in source.initializers():
        if value.data is not None and value.data.is_sparse:
            # The converter takes no sparse ones.
            value.data = Tensor(value.data.numpy())
    constants = Withheld()
    try:
        if graph.model.functions:
            proto = _with_functions_of(to_proto(source, constants), version)
            source = from_proto(proto, graph.model.path, constants)
            _require_known(source, version)
            _declare_types(source)
        adapt(source, version)
        proto = to_proto(source, constants)
        converted = onnx.version_converter.convert_version(proto, version)
    except _FAILURES as error:
        reason = " ".join(str(error).rpartition(" failed: ")[2].split())
        raise InputError(
            f"the model has opset {graph.opset} and cannot be raised to {version}, which the "
            f"chosen formats need: {reason}; export it with opset {version} or newer"
        ) from error
    converted.ir_version = ir_version
    raised = from_proto(converted, graph.model.path, constants)
    raised.model.functions = list(proto.functions)
    # The converter writes down every type that it infers, as whoever reads the model can.
    declared = {v.name for g in graph.all_graphs() for v in g.values.values() if v.declared}
    for scope in raised.all_graphs():
        for value in scope.values.values():
            value.declared &= value.name in declared
    _restore(graph, raised)
    return raised


def _declare_types(graph: Graph) -> None:
    """Write down the types without which the converter, which infers first, ends the process."""
    read = {
        value: node
        for node in graph.all_nodes()
        if (node.domain, node.op_type) in CRASHES_INFERENCE
        for value in node.inputs
        if value is not None
    }
    if any(value.type is None for value in read):
        infer_types(graph)
    for value, node in read.items():
        if value.type is None:
            raise InputError(
                f"the type of '{value.name}', which node {node.label} reads, is not known, so the "
                "model cannot be raised to a newer opset; export it with that or newer"
            )
        value.declared = True


def _require_known(graph: Graph, version: int) -> None:
    for node in graph.all_nodes():
        if node.domain:
            continue
        if schema_of(node) is None:
            raise InputError(
                f"node {node.label} is of an operator that opset {graph.opset} does not have, so "
                f"the model cannot be raised to opset {version}; export it with that or newer"
            )


# Functions


def _with_functions_of(proto: onnx.ModelProto, version: int) -> onnx.ModelProto:
    """The model with functions of a version, those inlined that mean something else there."""
    own = next(entry.version for entry in proto.opset_import if entry.domain in _DEFAULT)
    # What is inlined into another function changes that one.
    while changed := [f for f in proto.functions if not _means_the_same(f, version)]:
        before = len(proto.functions)
        if any(_opset(f) != own for f in changed):
            # Only this entry converts functions that are of another version than the model.
            proto = onnx.inliner.inline_local_functions(proto, convert_version=True)
        else:
            keys = [(f.domain, f.name) for f in changed]
            proto = onnx.inliner.inline_selected_functions(proto, keys)
        if len(proto.functions) == before:
            name = f"{changed[0].domain}.{changed[0].name}"
            raise RuntimeError(f"its function '{name}' cannot be inlined")
    for function in proto.functions:
        for entry in function.opset_import:
            if entry.domain in _DEFAULT:
                entry.version = version
    return proto


def _opset(function: onnx.FunctionProto) -> int | None:
    found = [entry.version for entry in function.opset_import if entry.domain in _DEFAULT]
    return found[0] if found else None


def _means_the_same(function: onnx.FunctionProto, version: int) -> bool:
    """Whether the converter has nothing to do to a function's body, in subgraphs too."""
    if _opset(function) in (None, version):
        return True
    used = {("" if d in _DEFAULT else d, name) for d, name, _ in called(function.node)}
    if used & CRASHES_INFERENCE:
        return False
    names = [name for domain, name in used if not domain]
    if any(needs_adapter(name, _opset(function) or version, version) for name in names):
        return False
    body = onnx.ModelProto(ir_version=_IR_VERSION_OF_OPSET[version])
    body.opset_import.extend(function.opset_import)
    body.graph.name = function.name
    body.graph.node.extend(function.node)
    body.graph.input.extend(onnx.ValueInfoProto(name=name) for name in function.input)
    body.graph.output.extend(onnx.ValueInfoProto(name=name) for name in function.output)
    try:
        converted = onnx.version_converter.convert_version(body, version)
    except _FAILURES:
        return False
    return list(_outline(converted.graph)) == list(_outline(body.graph))


def _outline(graph: onnx.GraphProto) -> Iterator[object]:
    """What the converter changes when it changes anything, and nothing else that it might."""
    for node in graph.node:
        # Types are no part of it: values that stand for parameters of the function have none.
        yield node.domain, node.op_type, sorted(a.name for a in node.attribute)
        yield len(node.input), len(node.output)
        for attribute in node.attribute:
            if not attribute.ref_attr_name:
                for body in (attribute.g, *attribute.graphs):
                    yield from _outline(body)


# What the converter drops


def _restore(source: Graph, target: Graph) -> None:
    """Put back what the converter drops."""
    kept = source.model
    info = target.model
    for name in (*PLAIN_FIELDS, "metadata", "training_info", "configuration"):
        setattr(info, name, shallow_copy(getattr(kept, name)))
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
