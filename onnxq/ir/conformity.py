"""Whether operators are used the way ONNX defines them."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx.defs
import onnx.helper

from onnxq.errors import InputError
from onnxq.ir.graph import Graph
from onnxq.ir.node import Node
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
_KindName = onnx.AttributeProto.AttributeType.Name


@dataclass(frozen=True)
class _Slots:
    """How many inputs or outputs a node may have, and which must not be left out."""

    least: int
    most: int
    needed: tuple[int, ...]


@dataclass(frozen=True)
class _Definition:
    """What a node may hold."""

    slots: Mapping[str, _Slots]
    kinds: Mapping[str, int]
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
                definition = _definition(schema.name, schema.since_version, node.domain)
                for fault in _faults(node, definition):
                    raise InputError(f"{fault}; export the model again")


def _faults(node: Node, definition: _Definition) -> Iterator[str]:
    """What is wrong with a node, as sentences that tell nothing of what to do."""
    for (what, slots), values in zip(
        definition.slots.items(), (node.inputs, node.outputs), strict=True
    ):
        if not slots.least <= len(values) <= slots.most:
            yield (
                f"node {node.label} has {len(values)} {what}s, but the operator has {slots.least} "
                f"to {slots.most}"
            )
        for slot in slots.needed:
            if slot < len(values) and values[slot] is None:
                yield f"{what} {slot} of node {node.label} is left out, but it is not optional"
    for name, attribute in node.attributes.items():
        kind = definition.kinds.get(name)
        if kind is None:
            continue
        taken = CRASHING_NUMBERS.get((node.op_type, name))
        fault = ""
        if attribute.reference:
            fault = (
                f"refers to the parameter '{attribute.reference}' of a function, but the node is "
                "in none"
            )
        elif kind != attribute.kind:
            wanted, given = map(_KindName, (kind, attribute.kind))
            fault = f"is {given}, but the operator takes {wanted}"
        elif taken is not None and attribute.value not in taken:
            fault = f"is {attribute.value}, which fits no tensor"
        if fault:
            yield f"attribute '{name}' of node {node.label} {fault}"
    for name in definition.required:
        if name not in node.attributes:
            yield f"node {node.label} lacks the attribute '{name}', which the operator needs"
    for body in node.subgraphs():
        given_back, fed = len(node.outputs), len(body.inputs)
        if (node.is_op("If") and (fed, len(body.outputs)) != (0, given_back)) or (
            node.is_op("Loop") and (fed, len(body.outputs)) != (len(node.inputs), given_back + 1)
        ):
            yield (
                f"the inputs and outputs of the subgraph '{body.name}' do not fit those of node "
                f"{node.label}"
            )


@functools.cache
def _definition(op_type: str, version: int, domain: str) -> _Definition:
    schema = onnx.defs.get_schema(op_type, version, domain)
    return _Definition(
        slots={
            "input": _Slots(schema.min_input, schema.max_input, _needed(schema.inputs)),
            "output": _Slots(schema.min_output, schema.max_output, _needed(schema.outputs)),
        },
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
