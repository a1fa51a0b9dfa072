"""Rewrite rules: a rule is a pattern, a replacement and a condition.

Pattern (see `onnxq.ir.pattern`) and replacement are small functions written in ONNX operators::

    def pattern(op, x, a, b):
        return op.Add(op.MatMul(x, a), b)

    def replacement(op, match):
        return op.Gemm(match["x"], match["a"], match["b"])
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy as np

from onnxq.ir.attribute import AttributeLike
from onnxq.ir.graph import Graph
from onnxq.ir.node import Node, Value
from onnxq.ir.passes import Context, Pass
from onnxq.ir.pattern import (
    Either,
    Match,
    Operator,
    PatternBuilder,
    Variable,
    is_possible,
    last_operators,
    matches,
)


class Builder:
    """What a replacement gets as ``op``: adds nodes to the graph and gives their first output."""

    def __init__(self, graph: Graph, name: str = "") -> None:
        self.graph = graph
        self.made: list[Node] = []
        self._name = name

    def __call__(
        self,
        op_type: str,
        *inputs: Value | None,
        domain: str = "",
        attributes: Mapping[str, AttributeLike] | None = None,
    ) -> Value:
        """Add a node with explicit attributes."""
        node = self.graph.add(op_type, inputs, attributes, domain=domain, name=self._name)
        self.made.append(node)
        return node.output

    def __getattr__(self, op_type: str) -> Callable[..., Value]:
        def make(*inputs: Value | None, domain: str = "", **attributes: AttributeLike) -> Value:
            return self(op_type, *inputs, domain=domain, attributes=attributes)

        return make

    def constant(self, data: np.ndarray, name: str = "constant") -> Value:
        """Add a constant."""
        return self.graph.constant(data, name)


PatternFunction: TypeAlias = Callable[..., Operator | Either]
Replacement: TypeAlias = Callable[[Builder, Match], Value]
Condition: TypeAlias = Callable[[Match], object]


class Rule:
    """One rewrite rule.

    The pattern's root is the operator it returns, or one of several; the inner nodes must serve
    nothing but the match, since they go away with it. ``replacement`` gives the value that takes
    the root's place; it may be the output of a node of the match that it changed, and then that
    node stays.
    ``condition`` refuses a match by False or None; what else it gives is the match's ``found``.
    ``what`` tells of a rewrite in the log, after the name of the root. ``opset`` is the first in
    which the replacement means the same.
    """

    def __init__(
        self,
        pattern: PatternFunction,
        replacement: Replacement,
        condition: Condition | None = None,
        what: str = "rewritten",
        opset: int = 1,
    ) -> None:
        names = list(inspect.signature(pattern).parameters)[1:]
        self.pattern = pattern(PatternBuilder(), *[Variable(n) for n in names])
        self.roots = frozenset(last_operators(self.pattern))
        self.replacement = replacement
        self.condition = condition
        self.what = what
        self.opset = opset

    def match(self, root: Node) -> Match | None:
        """Where the pattern fits with ``root`` as its last operator, or None."""
        for match in matches(self.pattern, root):
            match.found = True if self.condition is None else self.condition(match)
            if match.found is not None and match.found is not False:
                return match
        return None

    def apply(self, root: Node) -> bool:
        """Rewrite at ``root`` if the rule fits there."""
        match = self.match(root)
        if match is None:
            return False
        graph, old = root.graph, root.output
        builder = Builder(graph, root.name)
        new = self.replacement(builder, match)
        if new.type is None:
            new.type = old.type
        name = old.name
        graph.replace_uses(old, new)
        remove_unused(graph, match.nodes)
        # The same numbers keep the same name, so that reports speak of what the user knows.
        if new.producer in (*builder.made, *match.nodes) and graph.find(name) is None:
            graph.rename(new, name)
        if new.producer in builder.made and not root.in_graph:
            graph.rename_node(new.producer, root.name)
        return True


def rewrite(
    graph: Graph,
    rules: Sequence[Rule],
    ctx: Context,
    *,
    last_first: bool = False,
    without: Collection[str] = (),
    rewritten: list[str] | None = None,
) -> int:
    """Try every rule at every node of a graph and its subgraphs, once over; gives rewrites made.

    A node is offered to the rules in their order and the first that fits is applied. With
    ``last_first`` a graph's last nodes are offered first, so that a pattern whose last operators
    may be missing takes in all that are there; otherwise a rewrite is seen by the nodes behind
    it. Rules that need a higher opset are left out. ``ctx`` is told of each rewrite.

    Values named in ``without`` are computed as before; names of the others go to ``rewritten``.
    """
    present = {node.op_type for node in graph.all_nodes()}
    by_operator: dict[str, list[Rule]] = {}
    for rule in rules:
        # Most graphs lack an operator of most patterns, and most patterns begin with a product.
        may_fit = rule.opset <= graph.opset and is_possible(rule.pattern, present)
        for op_type in rule.roots if may_fit else ():
            by_operator.setdefault(op_type, []).append(rule)
    made = 0
    for nested in list(graph.all_graphs()) if by_operator else ():
        for node in reversed(nested.nodes()) if last_first else nested.nodes():
            candidates = by_operator.get(node.op_type, ())
            label = node.label if candidates else ""
            root = next(iter(node.outputs), None)
            name = "" if root is None else root.name
            for rule in candidates if name not in without else ():
                if node.in_graph and rule.apply(node):
                    ctx.rewrote(f"{label}: {rule.what}")
                    if rewritten is not None:
                        rewritten.append(name)
                    made += 1
                    break
    return made


class RulePass(Pass):
    """A pass that applies rules until none fits any more.

    At debug level 2 the log is told what is left because a rule needs a higher opset.

    Class variables:
        rules: in the order in which each node is offered to them.
        last_first: see `rewrite`.
    """

    rules: ClassVar[Sequence[Rule]]
    last_first: ClassVar[bool] = False

    def run(self, graph: Graph, ctx: Context) -> int:
        """See `Pass.run`; counts the matches replaced."""
        return self._run(graph, ctx)

    def higher_opsets(self, graph: Graph) -> Collection[int]:
        """See `Pass`."""
        return {rule.opset for _, rule in self._held_back(graph)}

    def _run(
        self,
        graph: Graph,
        ctx: Context,
        without: Collection[str] = (),
        rewritten: list[str] | None = None,
    ) -> int:
        if ctx.debug >= 2:
            for node, rule in self._held_back(graph):
                what = f"left, since this needs opset {rule.opset}: {rule.what}"
                ctx.log(f"    {node.label}: {what}")
        made = 0
        while found := rewrite(
            graph,
            self.rules,
            ctx,
            last_first=self.last_first,
            without=without,
            rewritten=rewritten,
        ):
            made += found
        return made

    def _held_back(self, graph: Graph) -> Iterator[tuple[Node, Rule]]:
        """Where rules fit but for the opset; a node that is part of a longer match only there."""
        told = set[Node]()
        present = {node.op_type for node in graph.all_nodes()}
        left = [
            rule
            for rule in self.rules
            if rule.opset > graph.opset and is_possible(rule.pattern, present)
        ]
        for node in reversed(list(graph.all_nodes())) if left else ():
            for rule in left:
                match = None if node in told else rule.match(node)
                if match is not None:
                    told.update(match.nodes)
                    yield node, rule


@dataclass(frozen=True)
class FormPass(RulePass):
    """A rule pass that writes regions in another of several equal forms.

    None of the forms is the fastest everywhere: where a target names the pass among its forms, a
    search measures region by region what it gains. A region is known by the value that it computes.

    Attributes:
        without: Names of the values whose regions keep the form they have.
    """

    without: tuple[str, ...] = ()

    def run(self, graph: Graph, ctx: Context) -> int:
        """See `Pass.run`; counts the matches replaced, and notes the regions."""
        regions = ctx.regions.setdefault(self.name, [])
        return self._run(graph, ctx, frozenset(self.without), regions)


def remove_unused(graph: Graph, nodes: Sequence[Node]) -> None:
    """Remove those of some nodes whose outputs nobody reads, or only others that go as well.

    Quickest with users given first.
    """
    left = [node for node in dict.fromkeys(nodes) if node.in_graph]
    count = -1
    while len(left) != count:
        count, tried, left = len(left), left, []
        for node in tried:
            if any(v is not None and v.is_used for v in node.outputs):
                left.append(node)
            else:
                _remove(graph, node)


def _remove(graph: Graph, node: Node) -> None:
    """Remove a node and the constants that nothing else reads."""
    read = [v for v in node.inputs if v is not None]
    graph.remove(node)
    for value in read:
        if (
            value.is_constant
            and value.graph is graph
            and not value.is_used
            and value.name in graph.values
        ):
            graph.discard(value)
