"""Print how often `onnxq compare` names the layer at which a fault was planted.

Usage: python benchmarks/faults.py [--placements N] [--seed N]

Into the static int8 model of each example (and of a CIFAR-10 model where ONNXQ_CORPUS has it) one
fault at a time is planted at a random place:

- wrong scale: a weight's scales, or the scale with which one tensor of activations is read, times
  a quarter, a half, two or four;
- swapped zero-point type: uint8 where it was int8 or the other way round, with the number kept
  where the type can hold it (else its bits): a tensor of activations, or the codes of a weight;
- clipped range: the scale of a tensor of activations divided by two, four or eight;
- transposed weight: a weight with as many outputs as inputs, with the two exchanged.

The right name is that of the node that reads the weight or makes the tensor; of a tensor that is an
input of the model, that of a node that reads it. Placements that do no harm are drawn anew: where
the outputs' SQNR on the same samples falls by less than 1 dB, as for a symmetric weight, or for the
upper half of a range that no value lies in.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from cases import Case, trained_cases
from heading import heading

import onnxq
from onnxq.data import Dataset
from onnxq.ir import DataType, Graph, Node, Value, infer_types, to_proto
from onnxq.runtime import ErrorAccumulator, Session
from onnxq.verify.layers import compare_layers

SAMPLES, LEAST_HARM_DB = 16, 1.0
_SWAPPED = {DataType.UINT8: DataType.INT8, DataType.INT8: DataType.UINT8}

Fault = Callable[[Graph, np.random.Generator], set[str]]
"""Plants a fault, and gives the names of the nodes that it is at."""


def wrong_scale(graph: Graph, rng: np.random.Generator) -> set[str]:
    """Another scale for a weight, or for reading a tensor of activations."""
    able = [*_weights(graph), *(dq for _, dq in _pairs(graph))]
    reader = able[rng.integers(len(able))]
    factor = np.float32(rng.choice([0.25, 0.5, 2.0, 4.0]))
    graph.set_constant(reader, 1, _constant(reader, 1) * factor)
    return _at(reader)


def swapped_type(graph: Graph, rng: np.random.Generator) -> set[str]:
    """The other type of 8 bits for a tensor of activations, or for the codes of a weight."""
    pairs, weights = _pairs(graph), _weights(graph)
    number = int(rng.integers(len(pairs) + len(weights)))
    if number >= len(pairs):
        reader = weights[number - len(pairs)]
        codes = _constant(reader, 0)
        other = _SWAPPED[DataType[codes.dtype.name.upper()]].numpy
        names = _at(reader)
        zero = reader.input(2)
        zeros = np.zeros(_constant(reader, 1).shape, codes.dtype) if zero is None else zero.numpy()
        graph.set_constant(reader, 0, codes.view(other))
        graph.set_constant(reader, 2, zeros.view(other))
        return names
    quantizer, reader = pairs[number]
    zero = _constant(quantizer, 2)
    other = _SWAPPED[DataType[zero.dtype.name.upper()]].numpy
    names = _at(reader)
    limits = np.iinfo(other)
    fits = limits.min <= int(zero) <= limits.max
    swapped = zero.astype(other) if fits else zero.view(other)
    readers = [use.node for use in quantizer.output.uses]
    quantizer.output.type = None
    for node in (quantizer, *readers):
        graph.set_constant(node, 2, swapped)
    return names


def clipped_range(graph: Graph, rng: np.random.Generator) -> set[str]:
    """Smaller steps, so that the ends of the range come nearer."""
    pairs = _pairs(graph)
    quantizer, reader = pairs[rng.integers(len(pairs))]
    scale = _constant(quantizer, 1) / np.float32(rng.choice([2.0, 4.0, 8.0]))
    names = _at(reader)
    for node in (quantizer, *(use.node for use in quantizer.output.uses)):
        graph.set_constant(node, 1, scale)
    return names


def transposed_weight(graph: Graph, rng: np.random.Generator) -> set[str]:
    """A weight with its outputs and inputs exchanged."""
    able = [w for w in _weights(graph) if _constant(w, 0).shape[0] == _constant(w, 0).shape[1]]
    reader = able[rng.integers(len(able))]
    codes = _constant(reader, 0)
    names = _at(reader)
    graph.set_constant(reader, 0, np.ascontiguousarray(codes.swapaxes(0, 1)))
    return names


FAULTS: dict[str, Fault] = {
    "wrong scale": wrong_scale,
    "swapped zero-point type": swapped_type,
    "clipped range": clipped_range,
    "transposed weight": transposed_weight,
}


def planted(
    original: Graph, candidate: Graph, data: Dataset, fault: Fault, rng: np.random.Generator
) -> tuple[Graph, set[str]]:
    """A copy with a fault that does harm, and the names of the nodes that it is at."""
    bearable = worst_db(original, candidate, data) - LEAST_HARM_DB
    while True:
        graph = candidate.copy()
        names = fault(graph, rng)
        infer_types(graph)
        if worst_db(original, graph, data) <= bearable:
            return graph, names


def worst_db(original: Graph, candidate: Graph, data: Dataset) -> float:
    """SQNR of the worst output."""
    errors, models = ErrorAccumulator(), [Session(to_proto(g)) for g in (original, candidate)]
    for batch in data.batches():
        ours, theirs = (model.run(batch.feeds) for model in models)
        errors.add(ours, theirs)
    return min(error.sqnr_db for error in errors.result())


def _weights(graph: Graph) -> list[Node]:
    """What dequantizes the stored weights of products and convolutions."""
    return [
        node
        for node in graph.nodes()
        if node.is_op("DequantizeLinear")
        and _constant(node, 0).ndim > 1
        and any(use.node.is_op("Conv", "Gemm", "MatMul") for use in node.output.uses)
    ]


def _pairs(graph: Graph) -> list[tuple[Node, Node]]:
    """What quantizes a tensor of activations, and what dequantizes it."""
    return [
        (node, use.node)
        for node in graph.nodes()
        if node.is_op("QuantizeLinear")
        for use in node.output.uses
        if use.node.is_op("DequantizeLinear")
    ]


def _constant(node: Node, slot: int) -> np.ndarray:
    value = node.input(slot)
    return value.numpy() if value is not None and value.is_constant else np.empty(0)


def _at(reader: Node) -> set[str]:
    """Names of the nodes that a dequantized tensor or weight belongs to."""
    source = reader.input(0)
    assert source is not None
    if source.producer is None:
        return _readers(reader.output)
    made = source.producer.input(0)
    assert made is not None
    return _readers(reader.output) if made.producer is None else {_name(made.producer)}


def _readers(value: Value) -> set[str]:
    return {_name(use.node) for use in value.uses}


def _name(node: Node) -> str:
    return node.name or node.output.name


def main() -> None:
    """Plant faults in every model and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--placements", type=int, default=50, help="of each fault, over all models")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(heading("Planted faults that compare names", "faults.py", 1))
    with tempfile.TemporaryDirectory() as name:
        models = list(_models(Path(name)))
        print("| fault | " + " | ".join(case.name for case, *_ in models) + " | all |")
        print("|---" * (len(models) + 2) + "|")
        healthy = [compare_layers(f, c, data, 1 << 33)[1] for _, f, c, data in models]
        cells = ["named" if jump else "no layer named" for jump in healthy]
        print(f"| none | {' | '.join(cells)} | |", flush=True)
        for number, (what, fault) in enumerate(FAULTS.items()):
            rng = np.random.default_rng([options.seed, number])
            right, tried, missed = [0] * len(models), [0] * len(models), []
            for at in rng.integers(len(models), size=options.placements):
                case, original, candidate, data = models[at]
                graph, names = planted(original, candidate, data, fault, rng)
                jump = compare_layers(original, graph, data, 1 << 33)[1]
                tried[at] += 1
                right[at] += jump is not None and jump.node in names
                if jump is None or jump.node not in names:
                    missed.append(f"{case.name}: {sorted(names)}, named {jump}")
            cells = [f"{r} of {t}" for r, t in zip(right, tried, strict=True)]
            print(f"| {what} | {' | '.join(cells)} | {sum(right)} of {sum(tried)} |", flush=True)
            print(*missed, sep="\n", end="\n" if missed else "")


def _models(folder: Path) -> Iterator[tuple[Case, Graph, Graph, Dataset]]:
    """Each model with its static int8 one, and held-out samples."""
    for case in trained_cases():
        path = folder / f"{case.name}.int8.onnx"
        onnxq.optimize(
            case.model,
            case.data,
            output=path,
            recipe="int8",
            eval_data=case.eval_data,
            min_speedup=0,
        )
        candidate = onnxq.load(path)
        infer_types(candidate)
        yield case, onnxq.load(case.model), candidate, case.parts()[1].take(SAMPLES)


if __name__ == "__main__":
    main()
