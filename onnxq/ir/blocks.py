"""Where everything passes through one tensor, what lies between, and which of that is repeated."""

from __future__ import annotations

from collections.abc import Collection, Hashable
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import networkx as nx

from onnxq.errors import InvariantError
from onnxq.ir.copying import reads
from onnxq.ir.graph import Graph
from onnxq.ir.node import Node, Value
from onnxq.ir.operators import is_deterministic
from onnxq.ir.types import TensorType

_BEGIN, _END = "begin", "end"
_Flow: TypeAlias = "nx.DiGraph[object]"


@dataclass(frozen=True, eq=False)
class Block:
    """The operators between two cuts that follow each other.

    Attributes:
        start: The cut it begins with; None where the graph begins with several tensors.
        end: The cut it ends with; None where the graph ends with several.
        nodes: Its operators; those of equal blocks (`repeated_blocks`) correspond by place. What is
            made of constants or given values alone is in no block.
    """

    start: Value | None
    end: Value | None
    nodes: tuple[Node, ...]


def cuts(graph: Graph, given: Collection[Value] = ()) -> list[Value]:
    """The tensors that every way from the inputs to the outputs leads through, in their order.

    What comes after a cut is computed from it, constants and ``given`` values alone. An only input
    and an only output are cuts; an input with a default value counts as a constant. ``given`` are
    values known on either side of any cut, such as a mask that all layers read: see
    `without_weights`.
    """
    return [v for v in _dominators(_flow(graph, given)) if isinstance(v, Value)]


def blocks(graph: Graph, given: Collection[Value] = ()) -> list[Block]:
    """What lies between the `cuts`, in their order; without a cut, the whole graph in one block."""
    flow = _flow(graph, given)
    found = [v for v in _dominators(flow) if isinstance(v, Value)]
    alive = nx.descendants(flow, _BEGIN) & nx.ancestors(flow, _END)
    # On each way all cuts come, and in this order: how many came before says where a node lies.
    passed: dict[object, int] = {_BEGIN: 0}
    for item in nx.topological_sort(flow):
        if item in alive:
            before = (b for b in flow.pred[item] if b in passed)
            passed[item] = max(passed[b] + (b in found) for b in before)
    nodes: list[list[Node]] = [[] for _ in range(len(found) + 1)]
    for node in graph.nodes():
        if node in passed:
            nodes[passed[node]].append(node)
    made = zip(pairwise([None, *found, None]), nodes, strict=True)
    return [Block(start, end, tuple(inner)) for (start, end), inner in made if inner]


def repeated_blocks(graph: Graph, given: Collection[Value] = ()) -> list[list[Block]]:
    """The `blocks` that occur several times, grouped: what holds of one's speed holds of all.

    Equal blocks have the same operators, attributes, element types, shapes and links, and the
    same integer constants (axes, shapes); weights differ. Symbolic dimensions count as unknown.
    Operators that hold subgraphs equal only themselves.
    """
    groups: dict[Hashable, list[tuple[nx.DiGraph[Node], list[Block]]]] = {}
    for block in blocks(graph, given):
        labelled = _labelled(block)
        labels: dict[Node, str] = dict(labelled.nodes.data("label"))  # type: ignore[arg-type]
        links = [(labels[a], labels[b], d["slots"]) for a, b, d in labelled.edges.data()]
        key = (tuple(sorted(labels.values())), tuple(sorted(links)))
        for first, group in groups.setdefault(key, []):
            same = _match(first, labelled)
            if same is not None:
                nodes = tuple(same[node] for node in group[0].nodes)
                group.append(Block(block.start, block.end, nodes))
                break
        else:
            groups[key].append((labelled, [block]))
    return [group for alike in groups.values() for _, group in alike if len(group) > 1]


_FEWEST_REPEATS = 4
_LARGEST_EXCERPT = 0.6


def excerpt(graph: Graph) -> Graph:
    """A part of a graph in which its repeated blocks stand twice, to measure on instead of it.

    It reaches from the inputs to where the second of each group of equal blocks ends. The graph
    itself where blocks do not repeat enough for that to spare much, or what comes before the end
    cannot be taken out.
    """
    groups = repeated_blocks(graph, without_weights(graph))
    ends = {group[1].end for group in groups if len(group) >= _FEWEST_REPEATS}
    last = [v for node in graph.nodes() for v in node.outputs if v is not None and v in ends][-1:]
    if not last:
        return graph
    try:
        part = graph.extract([], last)
    except InvariantError:
        return graph
    return part if len(part) <= _LARGEST_EXCERPT * len(graph) else graph


def representatives(graph: Graph) -> dict[Node, Node]:
    """For each node in a block that occurs several times, that of a block in the middle."""
    found = {}
    for group in repeated_blocks(graph, without_weights(graph)):
        for nodes in zip(*(block.nodes for block in group), strict=True):
            found.update(dict.fromkeys(nodes, nodes[len(nodes) // 2]))
    return found


def without_weights(graph: Graph) -> set[Value]:
    """The values computed from inputs alone: no float constant of two or more dimensions is read.

    Masks, positions and sizes are such values; taken as ``given`` they hide no cut.
    """
    found = {v for v in graph.inputs if v.data is None}
    for node in graph.nodes():
        values = reads(node)
        weights = (v for v in values if v.data is not None and v.dtype and v.dtype.is_float)
        computed = [v for v in values if v.data is None]
        if computed and found.issuperset(computed) and all((v.rank or 0) < 2 for v in weights):
            found.update(v for v in node.outputs if v is not None)
    return found


def _flow(graph: Graph, given: Collection[Value]) -> _Flow:
    """Operators and values as nodes, from one that stands for the inputs to one for the outputs."""
    flow: _Flow = nx.DiGraph()
    known = set(given)
    flow.add_nodes_from((_BEGIN, _END))
    flow.add_edges_from((_BEGIN, v) for v in graph.inputs if v.data is None and v not in known)
    flow.add_edges_from((v, _END) for v in graph.outputs)
    for node in graph.nodes():
        values = [v for v in reads(node) if v.data is None]
        unknown = [v for v in values if v not in known]
        flow.add_edges_from((v, node) for v in unknown)
        if not unknown and (values or not is_deterministic(node)):
            flow.add_edge(_BEGIN, node)
        flow.add_edges_from((node, v) for v in node.outputs if v is not None and v not in known)
    return flow


def _dominators(flow: _Flow) -> list[object]:
    """What every way from the beginning to the end leads through, in order."""
    before = nx.immediate_dominators(flow, _BEGIN)
    found: list[object] = []
    at = before.get(_END, _BEGIN)
    while at != _BEGIN:
        found.append(at)
        at = before[at]
    return found[::-1]


def _labelled(block: Block) -> nx.DiGraph[Node]:
    """A block's operators with all that has to be equal as labels of nodes and edges."""
    inside = set(block.nodes)
    labelled: nx.DiGraph[Node] = nx.DiGraph()
    for node in block.nodes:
        labelled.add_node(node, label=repr(_label(node, block, inside)))
        slots: dict[Node, list[tuple[int, int]]] = {}
        for slot, value in enumerate(node.inputs):
            if value is not None and value.producer in inside:
                slots.setdefault(value.producer, []).append((value.slot, slot))
        for producer, links in slots.items():
            labelled.add_edge(producer, node, slots=repr(links))
    return labelled


def _label(node: Node, block: Block, inside: set[Node]) -> Hashable:
    return (
        (node.domain, node.op_type, node.overload),
        id(node) if any(node.subgraphs()) else None,
        sorted((name, a.kind, a.reference, a.bits()) for name, a in node.attributes.items()),
        [_read(value, block, inside) for value in node.inputs],
        [None if v is None else (_type(v), v is block.end) for v in node.outputs],
    )


def _read(value: Value | None, block: Block, inside: set[Node]) -> Hashable:
    if value is None or value.producer in inside:
        return value is not None
    numbers = None
    if value.is_constant and value.data is not None and not value.data.dtype.is_float:
        numbers = value.data.digest()
    return value is block.start, value.is_constant, numbers, _type(value)


def _type(value: Value) -> Hashable:
    if not isinstance(value.type, TensorType) or value.shape is None:
        return value.type
    return value.dtype, [d if isinstance(d, int) else None for d in value.shape]


def _match(one: nx.DiGraph[Node], other: nx.DiGraph[Node]) -> dict[Node, Node] | None:
    """Which node of another graph stands for each of one, None if they differ."""
    matcher = nx.isomorphism.DiGraphMatcher(
        one,
        other,
        lambda a, b: a["label"] == b["label"],
        lambda a, b: a["slots"] == b["slots"],
    )
    return dict(matcher.mapping) if matcher.is_isomorphic() else None
