"""What a model file holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from onnxq.ir import Graph, Tensor, infer_types, load
from onnxq.verify.facts import model_bytes
from onnxq.verify.precision import counts, describe
from onnxq.verify.result import LayerFacts


@dataclass(frozen=True)
class ParameterFacts:
    """Constants of one element type."""

    dtype: str
    tensors: int
    elements: int
    bytes: int


@dataclass(frozen=True)
class Inspection:
    """Operators, parameters and precisions of a model.

    ``operators`` counts every node by type, those of subgraphs included; ``nodes`` describes
    those of the main graph that are no part of a QDQ pair.
    """

    path: str
    bytes: int
    ir_version: int
    opsets: dict[str, int]
    producer: str
    functions: int
    inputs: dict[str, str]
    outputs: dict[str, str]
    operators: dict[str, int]
    parameters: tuple[ParameterFacts, ...]
    precisions: dict[str, int]
    nodes: tuple[LayerFacts, ...]


def inspect(path: Path) -> Inspection:
    """Read a model file and describe it.

    Raises:
        InputError: the file cannot be read or is no valid model.
    """
    graph = load(path)
    infer_types(graph)
    info = graph.model
    layers = describe(graph)
    return Inspection(
        path=str(path),
        bytes=model_bytes(graph, path),
        ir_version=info.ir_version,
        opsets={domain or "ai.onnx": version for domain, version in info.opset_imports.items()},
        producer=" ".join(filter(None, (info.producer_name, info.producer_version))),
        functions=len(info.functions),
        inputs={v.name: str(v.type or "?") for v in graph.inputs if v.data is None},
        outputs={v.name: str(v.type or "?") for v in graph.outputs},
        operators=_operators(graph),
        parameters=_parameters(graph),
        precisions=dict(counts(layers)),
        nodes=layers,
    )


def _operators(graph: Graph) -> dict[str, int]:
    found = Counter(
        f"{node.domain}:{node.op_type}" if node.domain else node.op_type
        for node in graph.all_nodes()
    )
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def _parameters(graph: Graph) -> tuple[ParameterFacts, ...]:
    found: dict[str, list[int]] = {}
    for tensor in _constants(graph):
        sums = found.setdefault(tensor.dtype.label, [0, 0, 0])
        for place, amount in enumerate((1, tensor.size, tensor.nbytes)):
            sums[place] += amount
    facts = (ParameterFacts(dtype, *sums) for dtype, sums in found.items())
    return tuple(sorted(facts, key=lambda fact: (-fact.bytes, fact.dtype)))


def _constants(graph: Graph) -> Iterator[Tensor]:
    """Initializers, and what Constant nodes hold: some exporters write all weights so."""
    for nested in graph.all_graphs():
        yield from (value.data for value in nested.initializers() if value.data is not None)
    for node in graph.all_nodes():
        held = node.get("value") if node.is_op("Constant") else None
        if isinstance(held, Tensor):
            yield held
