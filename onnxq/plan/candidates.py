"""From a graph to the integer program: which precisions each node may have, and the borders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from onnxq.cost.costs import Costs
from onnxq.ir import Graph, Node, Value
from onnxq.passes.notes import node_name
from onnxq.passes.static.operands import activation_slots
from onnxq.passes.static.placement import Placement
from onnxq.plan.assignment import Border, Choice, Item, Problem
from onnxq.precision import FLOAT, parse_precision
from onnxq.targets import OperatorRule

Losses = Mapping[str, Mapping[str, float]]
"""Predicted loss by node name and precision."""


def build_problem(
    graph: Graph,
    placed: Placement,
    choices: Mapping[str, Sequence[str]],
    losses: Losses,
    costs: Costs,
    pinned: Mapping[str, str] | None = None,
    sizes: Costs | None = None,
) -> Problem:
    """The integer program of a graph.

    Operators that clip belong to the node whose result they clip. A node that merely follows or
    moves values about is in static integers only where all that it reads comes as integers and
    something reads its result as such. One that moves values about has the very precision of what
    it reads. Nodes that share a weight have one precision, so that it is stored once.

    Where integers of 8 and of 16 bits meet there is no border: they are requantized, which costs
    about as much as the requantization that every integer kernel ends with.

    Args:
        graph: The float graph.
        placed: Placement with everything quantized that can be.
        choices: Precisions that nodes of the graph can have beside float, by their names.
        losses: Predicted losses; what has no entry loses nothing.
        costs: Measured or computed costs.
        pinned: Precision of nodes that have no choice.
        sizes: Bytes of nodes, where they count beside costs.
    """
    pinned = pinned or {}
    owners = _owners(graph, placed)
    items: list[Item] = []
    for node in graph.all_nodes():
        name, rule = node_name(node), placed.nodes.get(node)
        if name not in choices:
            continue
        lost = losses.get(name, {})
        found = [
            _choice(rule, Choice(text, costs.of(name, text), lost.get(text, 0.0), bytes=taken))
            for text in (FLOAT, *choices[name])
            for taken in [sizes.of(name, text) if sizes else 0.0]
        ]
        if name in pinned:
            found = [c for c in found if c.precision == pinned[name]]
        follows: tuple[str, ...] = ()
        serves: tuple[str, ...] = ()
        if rule is not None and rule.role not in ("compute", "residual"):
            follows = tuple(_makers(node, rule, owners))
            if not set(follows) <= set(choices):
                found = [c for c in found if not c.reads_integers]
            serves = tuple(n for n in _integer_readers(node, placed, owners) if n in choices)
        moves = follows if rule is not None and rule.role == "share" else ()
        items.append(Item(name, tuple(found), follows, serves, moves))
    names = {item.name for item in items}
    borders = tuple(_borders(graph, placed, owners, costs, names))
    return Problem(tuple(items), borders, _ties(placed, items))


def _choice(rule: OperatorRule | None, choice: Choice) -> Choice:
    """A choice with what its precision reads and gives."""
    if rule is None or not parse_precision(choice.precision).is_static:
        return choice
    free = rule.role == "residual" or (rule.role == "compute" and rule.output == "float")
    return replace(choice, reads_integers=True, gives_integers=None if free else True)


def _owners(graph: Graph, placed: Placement) -> dict[Value, str]:
    """For each value, the node with a choice that gives it, itself or through clipping."""
    owners: dict[Value, str] = {}
    for node in graph.all_nodes():
        rule = placed.nodes.get(node)
        if rule is None:
            continue
        name = node_name(node)
        if rule.role == "absorb":
            source = node.input(0)
            if source is None or source not in owners:
                continue
            name = owners[source]
        for value in node.outputs:
            if value is not None:
                owners[value] = name
    return owners


def _makers(node: Node, rule: OperatorRule, owners: Mapping[Value, str]) -> list[str]:
    read = [node.input(slot) for slot in activation_slots(node, rule)]
    return list(dict.fromkeys(owners[v] for v in read if v is not None and v in owners))


def _integer_readers(node: Node, placed: Placement, owners: Mapping[Value, str]) -> list[str]:
    """Nodes that read a node's results as integers, looking through clipping."""
    found: dict[str, None] = {}
    pending = [v for v in node.outputs if v is not None]
    while pending:
        value = pending.pop()
        for use in value.uses:
            rule = placed.nodes.get(use.node)
            if rule is not None and rule.role == "absorb":
                pending.append(use.node.output)
            elif rule is not None and placed.reads_pair(use):
                found[node_name(use.node)] = None
    return list(found)


def _borders(
    graph: Graph,
    placed: Placement,
    owners: Mapping[Value, str],
    costs: Costs,
    names: set[str],
) -> list[Border]:
    borders = []
    fed = [value for scope in graph.all_graphs() for value in scope.inputs]
    values = [*fed, *(v for n in graph.all_nodes() for v in n.outputs if v is not None)]
    for value in values:
        readers: dict[str, None] = {}
        as_float = value.is_output
        absorbed = False
        for use in value.uses:
            rule = placed.nodes.get(use.node)
            if rule is not None and rule.role == "absorb" and value in owners:
                absorbed = True
            elif node_name(use.node) in names and placed.reads_pair(use):
                readers[node_name(use.node)] = None
            else:
                as_float = True
        producer = owner if (owner := owners.get(value)) in names else None
        if absorbed and not readers and not value.is_output:
            continue
        if (producer in names or readers) and (readers or as_float):
            quantize, dequantize = costs.border(value.name)
            borders.append(
                Border(value.name, producer, tuple(readers), as_float, quantize, dequantize)
            )
    return borders


def _ties(placed: Placement, items: Sequence[Item]) -> tuple[tuple[str, ...], ...]:
    """Groups of nodes that read one weight and have the same choices."""
    choices = {item.name: tuple(c.precision for c in item.choices) for item in items}
    groups: dict[tuple[Value, tuple[str, ...]], list[str]] = {}
    for node, rule in placed.nodes.items():
        weight = None if rule.weight is None else node.input(rule.weight)
        name = node_name(node)
        if name in choices and weight is not None and weight.is_constant:
            groups.setdefault((weight, choices[name]), []).append(name)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)
