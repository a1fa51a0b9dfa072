"""A report's graph as what the page draws: sections below each other, each laid out in layers."""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from onnxq.report import words
from onnxq.report.layering import Layered, layered
from onnxq.report.pieces import colour
from onnxq.verify.result import EndFacts, GraphFacts, LayerFacts

_ENTRY = -1
"""Stands for the operator that a section is computed from, which is in the section before."""


def drawing(layers: Sequence[LayerFacts], graph: GraphFacts) -> dict[str, Any]:
    """What the page's script needs to draw a graph; all text in it is printable.

    ``nodes`` are operators, inputs and outputs; ``sections`` say where they lie, in widths of a
    node and in rows, and ``links`` in them where lines bend on their way (those from -1 begin at
    the node ``from``, which is in the section before); ``units`` are what stands below each other,
    sections or blocks of them that can be folded. ``far`` are the links past sections. A node has
    its name, operator, place in ``precisions`` or -1, accumulated SQNR, the places in ``said`` of
    what it gives and of the reason, and its own SQNR. ``errors`` are those that were
    measured.
    """
    ends = [(end, "input") for end in graph.inputs if end.layers]
    ends += [(end, "output") for end in graph.outputs if end.layers]
    links = [*graph.links, *_end_links(ends, len(layers))]
    sections = [*graph.sections, *(_section(end, kind, graph) for end, kind in ends)]
    number = {node: at for at, node in enumerate(_in_order(len(sections), links))}
    exits = _exits(links, sections)
    far = []
    inner = defaultdict[int, list[tuple[int, int]]](list)
    for a, b in links:
        if min(sections[a], sections[b]) < 0:
            continue
        if sections[a] == sections[b]:
            inner[sections[b]].append((a, b))
        elif sections[a] == sections[b] - 1 and exits.get(sections[a]) == a:
            inner[sections[b]].append((_ENTRY, b))
        else:
            far.append((a, b))
    members = defaultdict[int, list[int]](list)
    for node in sorted(number, key=number.__getitem__):
        members[sections[node]].append(node)
    last = max(sections, default=0)
    drawn = [
        _drawn(members[section], sorted({*inner[section]}), exits.get(section))
        | {"from": exits.get(section - 1, _ENTRY)}
        for section in range(last + 1)
    ]
    precisions = [*dict.fromkeys(n.precision for n in layers)]
    said = {
        s: at for at, s in enumerate(dict.fromkeys(["", *graph.types, *(n.reason for n in layers)]))
    }
    found = [
        [
            words.printable(layer.node),
            words.printable(layer.op_type),
            precisions.index(layer.precision),
            _sqnr(layer.sqnr_db),
            said[given],
            said[layer.reason],
            _sqnr(layer.local_db),
        ]
        for layer, given in zip(layers, graph.types, strict=True)
    ]
    found += [[words.printable(end.name), kind, -1, None, 0, 0, None] for end, kind in ends]
    return {
        "nodes": found,
        "kinds": [colour(p) for p in precisions],
        "precisions": [words.printable(p) for p in precisions],
        "errors": [
            kind
            for kind, values in (
                ("local", [layer.local_db for layer in layers]),
                ("accumulated", [layer.sqnr_db for layer in layers]),
            )
            if any(value is not None for value in values)
        ],
        "said": [words.printable(text) for text in said],
        "sections": drawn,
        "units": _units(graph, last),
        "far": sorted(far),
    }


def _end_links(ends: Iterable[tuple[EndFacts, str]], first: int) -> Iterable[tuple[int, int]]:
    for place, (end, kind) in enumerate(ends, first):
        for layer in end.layers:
            yield (place, layer) if kind == "input" else (layer, place)


def _section(end: EndFacts, kind: str, graph: GraphFacts) -> int:
    """That of who reads or makes it; an only input or output is in none of the operators'."""
    own, last = [graph.sections[layer] for layer in end.layers], max(graph.sections)
    if kind == "input":
        return min(own) - (len(graph.inputs) == 1 and min(own) == 1)
    return max(own) + (len(graph.outputs) == 1 and max(own) == last)


def _exits(links: Iterable[tuple[int, int]], sections: Sequence[int]) -> dict[int, int]:
    """The node of each section that the next one is computed from, where it is one."""
    found = defaultdict[int, set[int]](set)
    for a, b in links:
        if 0 <= sections[a] == sections[b] - 1:
            found[sections[a]].add(a)
    return {section: min(own) for section, own in found.items() if len(own) == 1}


def _in_order(count: int, links: Iterable[tuple[int, int]]) -> list[int]:
    """The nodes so that links lead forward, otherwise by their numbers."""
    readers = defaultdict[int, list[int]](list)
    missing = [0] * count
    for a, b in links:
        readers[a].append(b)
        missing[b] += 1
    ready = [node for node in range(count) if not missing[node]]
    found = []
    while ready:
        node = heapq.heappop(ready)
        found.append(node)
        for reader in readers[node]:
            missing[reader] -= 1
            if not missing[reader]:
                heapq.heappush(ready, reader)
    return found


def _drawn(
    members: Sequence[int], links: Sequence[tuple[int, int]], exit: int | None
) -> dict[str, Any]:
    """A section; what leaves it is in the middle, and what it is computed from above row 0."""
    has_entry = any(a == _ENTRY for a, _ in links)
    nodes = [_ENTRY, *members] if has_entry else [*members]
    at = {node: place for place, node in enumerate(nodes)}
    found = layered(len(nodes), [(at[a], at[b]) for a, b in links])
    middle = _middle(found) if exit not in at else found.places[at[exit]][0]
    own = [
        [node, round(x - middle, 2), row - has_entry]
        for node, (x, row) in zip(nodes, found.places, strict=True)
    ]
    bends = {link: [round(x - middle, 2) for x in own] for link, own in found.bends.items()}
    xs = [x for _, x, _ in own] + [x for own in bends.values() for x in own]
    return {
        "nodes": own[has_entry:],
        "links": [[a, b, bends.get((at[a], at[b]), [])] for a, b in links],
        "left": min(xs, default=0),
        "right": max(xs, default=0),
        "rows": found.rows - has_entry,
    }


def _middle(found: Layered) -> float:
    xs = [x for x, _ in found.places]
    return (min(xs, default=0.0) + max(xs, default=0.0)) / 2


def _units(graph: GraphFacts, last: int) -> list[dict[str, Any]]:
    """What stands below each other: sections, and blocks of them with their number and count."""
    found: list[dict[str, Any]] = []
    section = 0
    starts = {repeat.first: repeat for repeat in graph.repeats}
    while section <= last:
        repeat = starts.get(section)
        length, count = (repeat.length, repeat.count) if repeat else (1, 1)
        for number in range(count):
            own = range(section + number * length, section + (number + 1) * length)
            found.append({"sections": [*own], "number": number + 1, "count": count})
        section += length * count
    return found


def _sqnr(value: float | None) -> float | None:
    """To a tenth of a decibel; JSON has no infinity, so 999 stands for exact."""
    if value is None or math.isnan(value):
        return None
    return round(min(max(value, -999.0), 999.0), 1)
