"""Cutting a graph into a row of segments, so that only what follows a change runs again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

from onnxq.ir import Graph, Node, TensorType, Value, to_proto
from onnxq.ir.copying import reads
from onnxq.runtime import Session

MAX_SEGMENTS = 16
"""More segments save less than their calls cost."""

_UNKNOWN_SIZE = 1024
"""Stands for a dimension of unknown size where cuts are compared."""


@dataclass(frozen=True)
class Segment:
    """A part of a graph that runs by itself.

    Attributes:
        graph: Its nodes, with what they read as inputs and what later ones read as outputs.
        inputs: Names of the values it reads.
        outputs: Names of the values it gives.
        nodes: Names of the first outputs of its nodes.
    """

    graph: Graph
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: frozenset[str]

    def session(self, threads: int) -> Session:
        """The segment, ready to run."""
        return Session(to_proto(self.graph), threads=threads)


def cut(
    graph: Graph, wanted: Sequence[Node], whole: Iterable[Sequence[Node]] = ()
) -> list[Segment]:
    """Cut a graph between the nodes of interest, where little data crosses.

    Any place in the topological order is a cut; what is alive there crosses it. The order is
    divided so that segments hold about equally many of the ``wanted`` nodes, and each division
    moves, within its neighbourhood, to the place that the fewest bytes cross. Places that
    something else than tensors crosses are no cuts, nor are those within a group of nodes that is
    to stay ``whole``.
    """
    order = list(graph.nodes())
    if not order:
        return []
    places = [0, *_places(graph, order, wanted, whole), len(order)]
    crossing = _crossing(graph, order)
    segments = []
    for start, stop in pairwise(places):
        segments.append(_segment(graph, order[start:stop], crossing[start], crossing[stop]))
    return segments


def _segment(
    graph: Graph, nodes: Sequence[Node], before: Sequence[Value], after: Sequence[Value]
) -> Segment:
    made = {v for node in nodes for v in node.outputs if v is not None}
    outputs = [v for v in after if v in made]
    outputs += [v for v in graph.outputs if v in made and v not in outputs]
    needed = {v for node in nodes for v in reads(node)}
    inputs = [v for v in before if v in needed]
    return Segment(
        graph.extract(inputs, outputs),
        tuple(v.name for v in inputs),
        tuple(v.name for v in outputs),
        frozenset(node.outputs[0].name for node in nodes if node.outputs and node.outputs[0]),
    )


def _crossing(graph: Graph, order: Sequence[Node]) -> list[list[Value]]:
    """For each place in the order, the values made before and read at or after it."""
    last: dict[Value, int] = {}
    for place, node in enumerate(order):
        for value in reads(node):
            if not value.is_constant and value.graph is graph:
                last[value] = place
    alive: dict[Value, None] = {v: None for v in graph.inputs if v in last}
    crossing = [list(alive)]
    for place, node in enumerate(order):
        made = [v for v in node.outputs if v is not None]
        alive.update((v, None) for v in made if last.get(v, -1) > place)
        for value in [v for v in alive if last[v] <= place]:
            del alive[value]
        crossing.append(list(alive))
    return crossing


def _places(
    graph: Graph, order: Sequence[Node], wanted: Sequence[Node], whole: Iterable[Sequence[Node]]
) -> list[int]:
    count = min(MAX_SEGMENTS, len(wanted))
    if count < 2:
        return []
    at = {node: place for place, node in enumerate(order)}
    marks = sorted(at[node] for node in wanted)
    cost = [_bytes(values) for values in _crossing(graph, order)]
    for group in whole:
        inside = [at[node] for node in group]
        cost[min(inside) + 1 : max(inside) + 1] = [None] * (max(inside) - min(inside))
    ideal = [marks[number * len(marks) // count] for number in range(1, count)]
    reach = max(1, len(order) // (2 * count))
    chosen: list[int] = []
    for place in ideal:
        low = max(place - reach, (chosen[-1] if chosen else 0) + 1)
        near = range(low, min(place + reach, len(order) - 1) + 1)
        possible = [p for p in near if cost[p] is not None]
        if possible:
            chosen.append(min(possible, key=lambda p: (cost[p] or 0, abs(p - place))))
    return chosen


def _bytes(values: Sequence[Value]) -> int | None:
    """Elements that cross a cut; None where something else than a tensor does."""
    if not values or not all(isinstance(v.type, TensorType) for v in values):
        return None
    return sum(
        prod(d if isinstance(d, int) else _UNKNOWN_SIZE for d in v.shape or (_UNKNOWN_SIZE,))
        for v in values
    )
