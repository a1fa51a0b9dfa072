"""How the operators of a model hang together, for whoever draws it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from onnxq.ir import Graph, Node, Value
from onnxq.ir.blocks import Block, blocks, repeated_blocks, without_weights
from onnxq.ir.copying import reads
from onnxq.ir.operators import is_deterministic
from onnxq.verify.precision import BORDERS, operators
from onnxq.verify.result import EndFacts, GraphFacts, RepeatFacts

MOST = 12_000
"""Operators of the largest graph that is described: drawings of more help nobody."""

_FEWEST, _LONGEST = 3, 64
"""Operators in what counts as repeated, at least, and sections, at most."""


def structure(graph: Graph) -> GraphFacts | None:
    """Which operators of a graph read which; None for more than can be drawn.

    Operators are those of `onnxq.verify.precision.describe`, in its order, so what lies between two
    of them may be a QDQ pair. What a body gives leads to the operator that holds it.
    """
    places = {node: place for place, (node, _) in enumerate(operators(graph))}
    if len(places) > MOST:
        return None
    links: dict[tuple[int, int], None] = {}
    readers: dict[Value, list[int]] = {v: [] for v in graph.inputs if v.data is None}
    for node, place in places.items():
        for value in map(_behind, _read(node)):
            if value.producer in places:
                links[places[value.producer], place] = None
            elif value in readers:
                readers[value].append(place)
    made = ((v.name, places.get(_behind(v).producer)) for v in graph.outputs)  # type: ignore[arg-type]
    sections, repeats = _sections(graph, places)
    return GraphFacts(
        tuple(sorted(links)),
        tuple(_type(node) for node in places),
        tuple(sections),
        tuple(repeats),
        tuple(EndFacts(v.name, tuple(dict.fromkeys(found))) for v, found in readers.items()),
        tuple(EndFacts(name, () if place is None else (place,)) for name, place in made),
    )


def _read(node: Node) -> Iterator[Value]:
    """What a node reads itself, and what its bodies give it."""
    yield from (v for v in node.inputs if v is not None)
    for body in node.subgraphs():
        yield from body.outputs


def _behind(value: Value) -> Value:
    """What was quantized and restored, if that is what makes a value."""
    while value.producer is not None and value.producer.is_op(*BORDERS):
        source = value.producer.input(0)
        if source is None:
            break
        value = source
    return value


def _type(node: Node) -> str:
    value = next((v for v in node.outputs if v is not None), None)
    return "" if value is None or value.type is None else str(value.type)


def _sections(graph: Graph, places: dict[Node, int]) -> tuple[list[int], list[RepeatFacts]]:
    """The section of every operator, and which sections recur.

    All ways lead from one section to the next through one value. What is made of the inputs for
    everybody to read, as a mask, is in section 0, and what is made of constants alone in none: -1.
    """
    plain, layers = _without_pairs(graph, places)
    given = without_weights(plain)
    if len(plain.inputs) == 1:
        # What everything is computed from, and nothing beside it.
        given.discard(plain.inputs[0])
    ordered = blocks(plain, given)
    sections = [-1] * len(places)
    alive = {layers[n]: number for number, own in enumerate(ordered, 1) for n in own.nodes}
    for own, place in layers.items():
        makers = [layers[v.producer] for v in own.inputs if v and v.producer in layers]
        sections[place] = alive.get(place, max((sections[m] for m in makers), default=0))
    for node, place in places.items():
        if node.graph is not graph and (holder := graph.holder(node)):
            sections[place] = sections[places[holder]]
    alike = {
        (block.start, block.end): number
        for number, group in enumerate(repeated_blocks(plain, given))
        for block in group
    }
    return sections, list(_repeats(ordered, [alike.get((b.start, b.end)) for b in ordered]))


def _without_pairs(graph: Graph, places: dict[Node, int]) -> tuple[Graph, dict[Node, int]]:
    """The operators alone: blocks are the same in whatever precision, and whatever their weights.

    Left out is what is made of constants alone. Gives the place of every operator, too.
    """
    plain, layers = Graph("operators", model=graph.model), dict[Node, int]()
    weight = plain.constant(np.zeros((1, 1), np.float32), "weight")
    known = {v: plain.add_input(v.name, v.type) for v in graph.inputs if v.data is None}
    for node in graph.nodes():
        if node not in places:
            continue
        values = [_behind(v) for v in reads(node)]
        read = [known[v] for v in values if v in known]
        if not read and is_deterministic(node):
            continue
        if any(v not in known and _is_matrix(v) for v in values):
            read.append(weight)
        made = [v for v in node.outputs if v is not None]
        types = [v.type for v in made]
        own = plain.add(node.op_type, read, domain=node.domain, outputs=len(made), types=types)
        known.update(zip(made, own.outputs, strict=True))  # type: ignore[arg-type]
        layers[own] = places[node]
    for value in dict.fromkeys(_behind(v) for v in graph.outputs):
        if value in known and value.producer is not None:
            plain.add_output(known[value])
    return plain, layers


def _is_matrix(value: Value) -> bool:
    """Whether a constant can be a weight; what has one long axis only, scales or turns."""
    return sum(size != 1 for size in value.shape or ()) >= 2


def _repeats(ordered: Sequence[Block], alike: Sequence[int | None]) -> Iterator[RepeatFacts]:
    """Sections in a row that recur right behind each other, each in one place only."""
    at = 0
    while at < len(ordered):
        length, count = max(
            ((n, _times(alike, at, n)) for n in range(1, _LONGEST + 1)),
            key=lambda found: (found[0] * (found[1] if found[1] > 1 else 0), -found[0]),
        )
        operators = sum(len(block.nodes) for block in ordered[at : at + length])
        if count > 1 and operators >= _FEWEST:
            yield RepeatFacts(at + 1, length, count)
            at += length * count
        else:
            at += 1


def _times(alike: Sequence[int | None], at: int, length: int) -> int:
    """How often the sections from a place on come again."""
    pattern, count = alike[at : at + length], 1
    if None in pattern or len(pattern) < length:
        return 0
    while alike[at + count * length : at + (count + 1) * length] == pattern:
        count += 1
    return count
