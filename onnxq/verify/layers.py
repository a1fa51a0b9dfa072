"""The error of every layer of a candidate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from onnxq.data import Dataset
from onnxq.ir import DataType, Graph, Node, Value, infer_types, to_proto
from onnxq.ir.lifting import around, lift, liftable
from onnxq.ir.sizes import value_bytes
from onnxq.runtime import ErrorAccumulator, Session
from onnxq.runtime.pool import RUN_BYTES, processors
from onnxq.verify.precision import describe, operators
from onnxq.verify.result import LayerFacts

_LARGEST_GROUP = 4 * RUN_BYTES
"""Bytes of one sample's values that each model gives out at a time."""


def compare_layers(reference: Graph, candidate: Graph, data: Dataset) -> tuple[LayerFacts, ...]:
    """Describe the candidate's operators, each with the SQNR of what it makes.

    A value is compared with the float model's value of the same name, on the same samples; what
    has no counterpart (rewrites make new values) has no SQNR. The candidate runs as a whole, so
    a layer's error includes that of the layers before it.

    Raises:
        InputError: onnxruntime cannot run one of the models with its inner values given out.
    """
    infer_types(reference)
    ours, theirs = liftable(reference), liftable(candidate)
    made = {_given_as(n, ours): name for n, name in operators(candidate) if node_output(n)}
    shared = [name for name in made if _comparable(ours.get(name), theirs.get(name))]
    errors = ErrorAccumulator()
    graphs = [graph.copy() for graph in (reference, candidate)]
    for graph in graphs:
        lift(graph, shared)
    first = next(data.batches())
    inputs = [v for v in reference.inputs if v.data is None]
    least = first.rows(0, 1) if first.is_divisible(inputs) else first
    sizes = value_bytes(graphs[0], {name: array.shape for name, array in least.feeds.items()})
    for names in _groups(shared, sizes):
        rows = max(1, RUN_BYTES // max(1, sum(sizes[name] for name in names)))
        sessions = [
            Session(to_proto(_exposing(g, names)), threads=processors(), pooled=True)
            for g in graphs
        ]
        for batch in data.in_parts(rows, inputs).batches():
            found, other = (batch.trim(s.run(batch.feeds, names)) for s in sessions)
            # In a branch that is not taken nothing is computed.
            errors.add({name: array for name, array in found.items() if array.size}, other)
    sqnr = {made[error.name]: error.sqnr_db for error in errors.result()}
    return tuple(replace(layer, sqnr_db=sqnr.get(layer.node)) for layer in describe(candidate))


def _groups(names: Sequence[str], sizes: Mapping[str, int]) -> list[list[str]]:
    """Values to give out at a time: all of them unless a single sample's take too much memory."""
    groups: list[list[str]] = []
    room = 0
    for name in names:
        if not groups or sizes[name] > room:
            groups.append([])
            room = _LARGEST_GROUP
        groups[-1].append(name)
        room -= sizes[name]
    return groups


def node_output(node: Node) -> str:
    """Name of a node's first output, empty if it leaves that out."""
    first = node.outputs[0] if node.outputs else None
    return "" if first is None else first.name


def _given_as(node: Node, known: Mapping[str, Value]) -> str:
    """Name under which a node's first output is known to the float model as well.

    Where the model gives out what the node makes, the name has gone to the value behind the pair.
    """
    value = node.output
    while value.name not in known and len(value.uses) == 1:
        reader = value.uses[0].node
        if not reader.is_op("QuantizeLinear", "DequantizeLinear"):
            break
        value = reader.output
    return value.name


def _comparable(ours: Value | None, theirs: Value | None) -> bool:
    return (
        ours is not None
        and theirs is not None
        and ours.producer is not None
        and ours.dtype is theirs.dtype is DataType.FLOAT
        and around(ours.graph) == around(theirs.graph)
    )


def _exposing(graph: Graph, names: Sequence[str]) -> Graph:
    exposed = graph.copy()
    for name in names:
        if not exposed.values[name].is_output:
            exposed.add_output(exposed.values[name])
    return exposed
