"""Cutting a graph into a row of segments, which run one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf, prod
from types import MappingProxyType

from onnxq.ir.copying import reads
from onnxq.ir.graph import Graph
from onnxq.ir.node import Node, Value
from onnxq.ir.types import TensorType

_UNKNOWN_SIZE = 1024
"""Stands for a dimension of unknown size where cuts are compared."""


@dataclass(frozen=True)
class Segment:
    """A part of a graph that runs by itself.

    Attributes:
        graph: Its nodes, with what they read as inputs and what later ones read as outputs.
        inputs: Names of the values it reads.
        outputs: Names of the values it gives.
        nodes: What its nodes were copied from, those of bodies included.
    """

    graph: Graph
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: frozenset[Node]


def cut(
    graph: Graph, wanted: Sequence[Node], count: int, together: Iterable[Sequence[Node]] = ()
) -> list[Segment]:
    """Cut a graph between the nodes of interest, where little data crosses.

    Any place in the topological order is a cut; what is alive there crosses it. The order is
    divided so that at most ``count`` segments hold about equally many of the ``wanted`` nodes, and
    each division moves, within its neighbourhood, to the place that the fewest bytes cross. Places
    that something else than tensors crosses are no cuts, nor are those within a group of nodes that
    is to stay ``together``. A node of a body goes with the operator that holds the body.
    """
    order = list(graph.nodes())
    if not order:
        return []
    last = _last_readers(graph, order)
    held = [*_held_by(graph, wanted)]
    groups = [[*_held_by(graph, group)] for group in together]
    places = [0, *_places(graph, order, last, held, min(count, len(held)), groups), len(order)]
    return [_segment(graph, order, last, *ends) for ends in pairwise(places)]


def whole(graph: Graph) -> Segment:
    """A graph as one segment."""
    return Segment(
        graph,
        tuple(v.name for v in graph.inputs if v.data is None),
        tuple(v.name for v in graph.outputs),
        frozenset(graph.all_nodes()),
    )


def cut_by_weight(
    graph: Graph, limit: int, held: Mapping[str, int] = MappingProxyType({})
) -> list[Segment]:
    """Cut a graph so that the constants of no segment take more bytes than a limit, if possible.

    Of the places that leave a segment at least half of that, the fewest bytes cross the chosen one.
    An operator whose own constants are larger is a segment by itself, or with what is around it.

    Args:
        graph: The graph.
        limit: Bytes.
        held: Bytes of values that count together with constants, by name.
    """
    order = list(graph.nodes())
    last = _last_readers(graph, order)
    cost = _costs(graph, order, last)
    given = [sum(held.get(v.name, 0) for v in node.outputs if v is not None) for node in order]
    weights = [_weight(node) + size for node, size in zip(order, given, strict=True)]
    places, taken = [0], 0
    for place, weight in enumerate(weights):
        if taken + weight > limit:
            low = place
            while low > places[-1] + 1 and sum(weights[places[-1] : low - 1]) * 2 >= taken:
                low -= 1
            possible = [p for p in range(max(low, places[-1] + 1), place + 1) if cost[p] < inf]
            if possible:
                places.append(min(possible, key=lambda p: (cost[p], -p)))
                taken = sum(weights[places[-1] : place])
        taken += weight
    return [_segment(graph, order, last, *ends) for ends in pairwise([*places, len(order)])]


def cut_by_depth(graph: Graph, wanted: Iterable[Node]) -> list[Segment]:
    """Cut a graph so that no ``wanted`` node is computed from another one of its segment.

    A segment holds the wanted nodes of one depth, that is those that as many of them lie before, as
    the projections of an attention that read one tensor, and what is computed from these before the
    next ones; the first also what comes before them. Much may cross the cuts.
    """
    depths: dict[Node, int] = {}
    marked = _held_by(graph, wanted)
    for node in graph.nodes():
        before = (depths[v.producer] for v in reads(node) if v.producer in depths)
        depths[node] = max(before, default=0) + (node in marked)
    # Nodes of one depth stay in their order.
    order = sorted(depths, key=lambda node: max(1, depths[node]))
    last = _last_readers(graph, order)
    rises = [at for at, (a, b) in enumerate(pairwise(order), 1) if max(1, depths[a]) < depths[b]]
    return [_segment(graph, order, last, *ends) for ends in pairwise([0, *rises, len(order)])]


def _weight(node: Node) -> int:
    """Bytes of the constants that a node reads, its bodies included."""
    constants = dict.fromkeys(v for v in reads(node) if v.is_constant and v.data is not None)
    held = [v for body in node.subgraphs() for g in body.all_graphs() for v in g.initializers()]
    return sum(v.data.nbytes for v in (*constants, *held) if v.data is not None)


def _segment(
    graph: Graph, order: Sequence[Node], last: Mapping[Value, int], start: int, stop: int
) -> Segment:
    nodes = order[start:stop]
    made = dict.fromkeys(v for node in nodes for v in node.outputs if v is not None)
    outputs = [v for v in made if v.is_output or last.get(v, -1) >= stop]
    read = dict.fromkeys(v for node in nodes for v in reads(node))
    inputs = [v for v in read if v in last and v not in made]
    return Segment(
        graph.extract(inputs, outputs),
        tuple(v.name for v in inputs),
        tuple(v.name for v in outputs),
        frozenset(n for node in nodes for n in (node, *_held(node))),
    )


def _held_by(graph: Graph, nodes: Iterable[Node]) -> dict[Node, None]:
    """The nodes of the main graph that are some nodes or hold them."""
    return dict.fromkeys(holder for node in nodes if (holder := graph.holder(node)) is not None)


def _held(node: Node) -> Iterator[Node]:
    """The nodes of the bodies that a node holds."""
    for body in node.subgraphs():
        yield from body.all_nodes()


def _last_readers(graph: Graph, order: Sequence[Node]) -> dict[Value, int]:
    """The place of the last reader of all values that are computed or fed."""
    return {
        value: place
        for place, node in enumerate(order)
        for value in reads(node)
        if not value.is_constant and value.graph is graph
    }


def _costs(graph: Graph, order: Sequence[Node], last: Mapping[Value, int]) -> list[float]:
    """Elements that cross each place, which is infinite where something else than tensors does."""
    costs = [0.0] * (len(order) + 1)
    first = dict.fromkeys(graph.inputs, 0)
    first |= {v: at + 1 for at, node in enumerate(order) for v in node.outputs if v is not None}
    for value, stop in last.items():
        dims = value.shape or (None,)
        size = prod(d if isinstance(d, int) else _UNKNOWN_SIZE for d in dims)
        for place in range(first[value], stop + 1):
            costs[place] += size if isinstance(value.type, TensorType) else inf
    return [cost or inf for cost in costs]


def _places(
    graph: Graph,
    order: Sequence[Node],
    last: Mapping[Value, int],
    wanted: Sequence[Node],
    count: int,
    whole: Iterable[Sequence[Node]],
) -> list[int]:
    if count < 2:
        return []
    at = {node: place for place, node in enumerate(order)}
    marks = sorted(at[node] for node in wanted)
    cost = _costs(graph, order, last)
    for group in whole:
        inside = [at[node] for node in group]
        cost[min(inside) + 1 : max(inside) + 1] = [inf] * (max(inside) - min(inside))
    ideal = [marks[number * len(marks) // count] for number in range(1, count)]
    reach = max(1, len(order) // (2 * count))
    chosen: list[int] = []
    for place in ideal:
        low = max(place - reach, (chosen[-1] if chosen else 0) + 1)
        near = range(low, min(place + reach, len(order) - 1) + 1)
        possible = [p for p in near if cost[p] < inf]
        if possible:
            chosen.append(min(possible, key=lambda p: (cost[p], abs(p - place))))
    return chosen
