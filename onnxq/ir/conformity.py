"""Whether operators are used the way ONNX defines them."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import onnx.defs
import onnx.helper

from onnxq.errors import InputError
from onnxq.ir.graph import Graph, Node, Value
from onnxq.ir.operators import schema_of

CRASHES_INFERENCE = frozenset(
    {
        ("", "RegexFullMatch"),
        ("ai.onnx.ml", "DictVectorizer"),
        ("ai.onnx.ml", "LabelEncoder"),
        ("ai.onnx.ml", "TreeEnsemble"),
    }
)
"""Domains and operators on whose inputs without a type ONNX's inference ends the process."""

CRASHING_NUMBERS = {
    ("LayerNormalization", "axis"): range(-(1 << 31), 1 << 31),
    ("GatherND", "batch_dims"): range(1 << 31),
}
"""Attributes with the numbers beyond which ONNX's inference ends the process."""

_NEWEST = {
    "": onnx.defs.onnx_opset_version(),
    "ai.onnx.ml": max(row[3] for row in onnx.helper.VERSION_TABLE),
}

_Option = onnx.defs.OpSchema.FormalParameterOption


@dataclass(frozen=True)
class _Definition:
    """What a node may hold: the slots that must not be left out, limits, attribute types."""

    inputs: tuple[int, int]
    outputs: tuple[int, int]
    needed_inputs: tuple[int, ...]
    needed_outputs: tuple[int, ...]
    kinds: dict[str, int]
    required: tuple[str, ...]


def require_conformity(graph: Graph) -> None:
    """Refuse operators of ONNX's own domains that are not what ONNX says they are.

    Numbers of inputs and outputs, those that must not be left out, required attributes, the
    types of attributes and the interfaces of If and Loop bodies: what onnxruntime demands when it
    loads a model, and what every pass may rely on. Attributes that ONNX does not know, operators
    of other domains and opsets newer than the installed onnx package are let through.

    Raises:
        InputError: naming the node.
    """
    for node in graph.all_nodes():
        version = node.graph.model.opset_imports.get(node.domain, 0)
        if version <= _NEWEST.get(node.domain, -1):
            schema = schema_of(node)
            if schema is not None and not schema.deprecated:
                _check(node, _definition(schema.name, schema.since_version, node.domain))


def _check(node: Node, definition: _Definition) -> None:
    _check_slots(node, "input", node.inputs, definition.inputs, definition.needed_inputs)
    _check_slots(node, "output", node.outputs, definition.outputs, definition.needed_outputs)
    for name, attribute in node.attributes.items():
        kind = definition.kinds.get(name)
        if kind is None:
            continue
        if attribute.reference:
            raise InputError(
                f"attribute '{name}' of node {node.label} refers to the parameter "
                f"'{attribute.reference}' of a function, but the node is in none; export the model "
                "again"
            )
        if kind != attribute.kind:
            wanted, given = (
                onnx.AttributeProto.AttributeType.Name(k) for k in (kind, attribute.kind)
            )
            raise InputError(
                f"attribute '{name}' of node {node.label} is {given}, but the operator takes "
                f"{wanted}; export the model again"
            )
        taken = CRASHING_NUMBERS.get((node.op_type, name))
        if taken is not None and attribute.value not in taken:
            raise InputError(
                f"attribute '{name}' of node {node.label} is {attribute.value}, which fits no "
                "tensor; export the model again"
            )
    for name in definition.required:
        if name not in node.attributes:
            raise InputError(
                f"node {node.label} lacks the attribute '{name}', which the operator needs; "
                "export the model again"
            )
    _check_bodies(node)


def _check_slots(
    node: Node,
    what: str,
    values: tuple[Value | None, ...],
    limits: tuple[int, int],
    needed: tuple[int, ...],
) -> None:
    if not limits[0] <= len(values) <= limits[1]:
        raise InputError(
            f"node {node.label} has {len(values)} {what}s, but the operator has {limits[0]} to "
            f"{limits[1]}; export the model again"
        )
    for slot in needed:
        if slot < len(values) and values[slot] is None:
            raise InputError(
                f"{what} {slot} of node {node.label} is left out, but it is not optional; export "
                "the model again"
            )


def _check_bodies(node: Node) -> None:
    if node.is_op("If"):
        for body in node.subgraphs():
            if body.inputs or len(body.outputs) != len(node.outputs):
                raise _misfit(node, body)
    if node.is_op("Loop"):
        for body in node.subgraphs():
            if len(body.inputs) != len(node.inputs) or len(body.outputs) != len(node.outputs) + 1:
                raise _misfit(node, body)


def _misfit(node: Node, body: Graph) -> InputError:
    return InputError(
        f"the inputs and outputs of the subgraph '{body.name}' do not fit those of node "
        f"{node.label}; export the model again"
    )


@functools.cache
def _definition(op_type: str, version: int, domain: str) -> _Definition:
    schema = onnx.defs.get_schema(op_type, version, domain)
    return _Definition(
        inputs=(schema.min_input, schema.max_input),
        outputs=(schema.min_output, schema.max_output),
        needed_inputs=_needed(schema.inputs),
        needed_outputs=_needed(schema.outputs),
        # The stubs lack the value of this enumeration.
        kinds={
            name: int(a.type.value)  # type: ignore[attr-defined]
            for name, a in schema.attributes.items()
        },
        required=tuple(name for name, a in schema.attributes.items() if a.required),
    )


def _needed(parameters: object) -> tuple[int, ...]:
    found = enumerate(parameters)  # type: ignore[arg-type, var-annotated]
    return tuple(slot for slot, p in found if p.option == _Option.Single)
