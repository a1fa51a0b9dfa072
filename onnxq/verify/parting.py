"""The first node that another provider computes differently than the CPU provider does.

Rounding adds up along a model, so outputs of two correct providers differ by several steps. Parts
between quantized tensors do not: each is run on both with the integers that the CPU provider has
there, and may give integers that differ by one step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxq.errors import InputError
from onnxq.ir import DataType, Graph, Node, Value, infer_types
from onnxq.ir.copying import reads
from onnxq.passes.notes import node_name
from onnxq.runtime.specs import Array, Runnable

_STEPS = 255
"""Of the range of a value that is not quantized."""

Open = Callable[[Graph], Runnable]
"""Loads a graph into a session."""


@dataclass(frozen=True)
class Part:
    """What makes one quantized tensor, or one output, from others.

    Attributes:
        reads: Where it begins: quantized tensors, and inputs of the graph.
        nodes: What lies between, in order.
        gives: What it makes.
    """

    reads: tuple[Value, ...]
    nodes: tuple[Node, ...]
    gives: Value


def parts(graph: Graph) -> Iterator[Part]:
    """The parts of a graph between quantized tensors, in topological order."""
    order = {node: place for place, node in enumerate(graph.nodes())}
    ends = [node.output for node in order if _quantizes(node)]
    known = {*ends, *(value for value in graph.inputs if value.data is None)}
    outputs = [v for v in graph.outputs if v.producer is not None and v not in known]
    last = sorted(dict.fromkeys(outputs), key=lambda value: order[_maker(value)])
    for value in (*ends, *last):
        starts, between, pending = dict[Value, None](), set[Node](), [_maker(value)]
        while pending:
            node = pending.pop()
            between.add(node)
            for read in reads(node):
                if read in known:
                    starts[read] = None
                elif read.producer is not None and read.producer not in between:
                    pending.append(read.producer)
        inner = sorted((n for n in between if n in order), key=order.__getitem__)
        yield Part(tuple(starts), tuple(inner), value)


def first_parting(
    graph: Graph, samples: Sequence[Mapping[str, Array]], here: Open, there: Open
) -> str:
    """Name of the first node whose result is more than a quantization step off; empty if none is.

    Args:
        graph: The model.
        samples: Feeds of each.
        here: Loads graphs where the numbers are taken to be right.
        there: Loads them on the other provider.

    Raises:
        InputError: a part cannot be run on one of them.
    """
    graph = graph.copy()
    infer_types(graph)
    found = list(parts(graph))
    exposed = graph.copy()
    for name in dict.fromkeys(value.name for part in found for value in part.reads):
        if not exposed.values[name].is_input and not exposed.values[name].is_output:
            exposed.add_output(exposed.values[name])
    session = here(exposed)
    known = [{**session.run(feeds), **feeds} for feeds in samples]
    for part in found:
        alone = graph.extract(part.reads, [part.gives])
        both = [open(alone) for open in (here, there)]
        for held in known:
            fed = {value.name: held[value.name] for value in part.reads}
            if _parted(part.gives.name, [one.run(fed) for one in both]):
                break
        else:
            continue
        inner = [n.output for n in part.nodes if _is_inner(n, part)]
        if not inner:
            return node_name(_named(part))
        shown = graph.extract(part.reads, [*inner, part.gives])
        results = [open(shown).run(fed) for open in (here, there)]
        wrong = (v for v in inner if _parted(v.name, results))
        at = next(wrong, None)
        return node_name(_named(part) if at is None else _maker(at))
    return ""


def outputs_differ(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """Whether any output is more than a step off, so that parts are worth looking at."""
    return any(_parted(name, (ours, theirs)) for name in ours)


def _parted(name: str, both: Sequence[Mapping[str, Any]]) -> bool:
    """Whether two results are more than one step apart; what holds no numbers never is."""
    a, b = (np.asarray(found[name]) for found in both)
    if a.shape != b.shape:
        return True
    if a.dtype.kind not in "fiu" or not a.size:
        return False
    ours, theirs = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(ours) & np.isfinite(theirs)
    if not np.array_equal(ours[~finite], theirs[~finite], equal_nan=True):
        return True
    if not finite.any():
        return False
    apart = float(np.abs(ours - theirs)[finite].max())
    if a.dtype.kind in "iu":
        return apart > 1
    # A value that hardly varies has no steps worth the name.
    spread = float(np.ptp(ours[finite])) or float(np.abs(ours[finite]).max())
    return apart > spread / _STEPS


def _quantizes(node: Node) -> bool:
    """Whether a node makes integers of activations."""
    source = node.input(0)
    return node.is_op("QuantizeLinear") and source is not None and not source.is_constant


def _is_inner(node: Node, part: Part) -> bool:
    made = node.outputs[0] if node.outputs else None
    return made is not None and made is not part.gives and made.dtype is DataType.FLOAT


def _named(part: Part) -> Node:
    """The node that a part is called after: the last one that computes."""
    computing = [n for n in part.nodes if not n.is_op("QuantizeLinear", "DequantizeLinear")]
    return (computing or part.nodes)[-1]


def _maker(value: Value) -> Node:
    if value.producer is None:
        raise InputError(f"nothing makes the value '{value.name}'")
    return value.producer
