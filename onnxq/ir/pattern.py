"""Pattern matching: a rule is a pattern, a replacement and a condition.

Pattern and replacement are small functions written in ONNX operators::

    def pattern(op, x, a, b):
        return op.Add(op.MatMul(x, a), b)

    def replacement(op, match):
        return op.Gemm(match["x"], match["a"], match["b"])

The parameters after ``op`` are variables: each stands for one value, the same one wherever it
appears; so does an operator that the pattern uses in several places. A Python number stands for a
constant of that value, and ``op.number(a)`` for a constant of any one number, which the match gives
as ``match.number("a")``.

What is spelled in several ways is still one pattern: ``op.either(a, b)`` stands for a value that
one of these terms stands for. They are tried in their order until the whole pattern fits and the
condition holds. A part that may be missing comes first, what it is applied to second::

    def pattern(op, x, a, b, bias):
        product = op.either(op.MatMul(x, a), op.Gemm(x, a))
        return op.Relu(op.either(op.Add(product, bias), product))

``match.get("bias")`` is None where the Add is missing; ``"name" in match.bound`` tells whether an
alternative with ``bind="name"`` is the one.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeAlias

import numpy as np

from onnxq.ir.attribute import AttributeLike
from onnxq.ir.graph import Graph, Node, Value
from onnxq.ir.operators import attribute_value
from onnxq.ir.passes import Context, Pass

COMMUTATIVE = frozenset({"Add", "Mul", "And", "Or", "Xor", "Equal", "Min", "Max", "Sum"})
"""Operators whose two inputs a pattern matches in either order."""


@dataclass(frozen=True)
class Variable:
    """Stands for any value; with ``required`` False also for an input that is left out."""

    name: str
    constant: bool = False
    required: bool = True
    number: bool = False


@dataclass(frozen=True, eq=False)
class Operator:
    """Stands for the first output of a node of one of some operator types."""

    op_types: tuple[str, ...]
    inputs: tuple[Term, ...]
    attributes: Mapping[str, Any]
    domain: str
    bind: str


@dataclass(frozen=True, eq=False)
class Either:
    """Stands for a value that one of several terms stands for."""

    choices: tuple[Term, ...]


Term: TypeAlias = "Variable | Operator | Either | float"


class PatternBuilder:
    """What a pattern function gets as ``op``: ``op.Conv(x, w)`` or ``op("Conv", "Gemm")(x, w)``.

    Keyword arguments are attributes that must have that value (an attribute that is not set
    counts with its default); ``bind="name"`` names the node for the condition and replacement.
    """

    def __call__(self, *op_types: str, domain: str = "") -> Callable[..., Operator]:
        """A term for a node of any of these operator types."""

        def make(*inputs: Term, bind: str = "", **attributes: Any) -> Operator:
            return Operator(op_types, inputs, attributes, domain, bind)

        return make

    def __getattr__(self, op_type: str) -> Callable[..., Operator]:
        return self(op_type)

    @staticmethod
    def either(*choices: Term) -> Either:
        """A term for what any of these stand for, the earlier ones preferred."""
        return Either(choices)

    @staticmethod
    def constant(variable: Variable) -> Variable:
        """The variable, matching only values that never change."""
        return replace(variable, constant=True)

    @staticmethod
    def number(variable: Variable) -> Variable:
        """The variable, matching only constants of one number (no bool, no NaN)."""
        return replace(variable, number=True)

    @staticmethod
    def optional(variable: Variable) -> Variable:
        """The variable, matching also an input that is left out."""
        return replace(variable, required=False)


@dataclass
class Match:
    """Where a pattern fits: values by variable name and by term, nodes by ``bind`` name.

    ``found`` is what the rule's condition gave.
    """

    graph: Graph
    root: Node
    values: dict[str, Value | None] = field(default_factory=dict)
    bound: dict[str, Node] = field(default_factory=dict)
    terms: dict[Operator | Either, Value | None] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    found: Any = True

    def __getitem__(self, name: str) -> Value:
        value = self.values[name]
        if value is None:
            raise KeyError(name)
        return value

    def get(self, name: str) -> Value | None:
        """A variable's value, None if its input is left out or its alternative is not the one."""
        return self.values.get(name)

    def number(self, name: str) -> float:
        """The number of a variable that the pattern has as ``op.number``."""
        found = number(self[name])
        assert found is not None
        return found

    def node(self, name: str) -> Node:
        """The node that ``bind`` named."""
        return self.bound[name]


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
        self.roots = frozenset(_last_operators(self.pattern))
        self.replacement = replacement
        self.condition = condition
        self.what = what
        self.opset = opset

    def match(self, root: Node) -> Match | None:
        """Where the pattern fits with ``root`` as its last operator, or None."""
        match = Match(root.graph, root)
        for _ in _ways(self.pattern, next(iter(root.outputs), None), match):
            if _is_closed(match):
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
        is_possible = rule.opset <= graph.opset and _is_possible(rule.pattern, present)
        for op_type in rule.roots if is_possible else ():
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
            if rule.opset > graph.opset and _is_possible(rule.pattern, present)
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


def number(value: Value | None) -> float | None:
    """The number that a constant of one element holds, None for anything else and for bools."""
    data = value.data if value is not None and value.is_constant else None
    if data is None or data.size != 1:
        return None
    if not data.dtype.is_float and data.dtype.numpy.kind not in "iu":
        return None
    return float(data.numpy().reshape(()))


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


def _last_operators(term: Term) -> Iterator[str]:
    if isinstance(term, Operator):
        yield from term.op_types
    elif isinstance(term, Either):
        for choice in term.choices:
            yield from _last_operators(choice)
    else:
        raise TypeError("a pattern is an operator, or alternatives that all are operators")


def _is_possible(term: Term, present: Set[str]) -> bool:
    """Whether a graph with these operators has one for every term that the pattern needs."""
    if isinstance(term, Either):
        return any(_is_possible(choice, present) for choice in term.choices)
    return not isinstance(term, Operator) or (
        not present.isdisjoint(term.op_types) and all(_is_possible(t, present) for t in term.inputs)
    )


def _ways(term: Term, value: Value | None, match: Match) -> Iterator[None]:
    """Let the match hold each way in which a term stands for a value, one after the other.

    What was put into the match for one way is taken out again before the next; whoever stops
    early keeps the way it has.
    """
    if isinstance(term, Variable):
        if value is None and term.required:
            return
        if value is not None and term.constant and not value.is_constant:
            return
        if term.number and ((held := number(value)) is None or math.isnan(held)):
            return
        if term.name in match.values:
            if match.values[term.name] is value:
                yield
            return
        match.values[term.name] = value
        yield
        del match.values[term.name]
    elif not isinstance(term, Operator | Either):
        if value is not None and _is_number(value, term):
            yield
    elif term in match.terms:
        if match.terms[term] is value:
            yield
    else:
        match.terms[term] = value
        if isinstance(term, Operator):
            yield from _ways_as_operator(term, value, match)
        else:
            for choice in term.choices:
                yield from _ways(choice, value, match)
        del match.terms[term]


def _ways_as_operator(term: Operator, value: Value | None, match: Match) -> Iterator[None]:
    node = None if value is None or value.slot != 0 else value.producer
    if (
        node is None
        or node.op_type not in term.op_types
        or node.domain != term.domain
        or node.graph is not match.graph
        or len(node.inputs) > len(term.inputs)
        or any(attribute_value(node, k) != _plain(v) for k, v in term.attributes.items())
    ):
        return
    match.nodes.append(node)
    if term.bind:
        match.bound[term.bind] = node
    inputs = [node.input(slot) for slot in range(len(term.inputs))]
    yield from _ways_of_all(list(zip(term.inputs, inputs, strict=True)), match)
    if node.op_type in COMMUTATIVE and len(inputs) == 2:
        yield from _ways_of_all(list(zip(term.inputs, inputs[::-1], strict=True)), match)
    match.nodes.pop()
    match.bound.pop(term.bind, None)


def _ways_of_all(pairs: Sequence[tuple[Term, Value | None]], match: Match) -> Iterator[None]:
    if not pairs:
        yield
        return
    for _ in _ways(*pairs[0], match):
        yield from _ways_of_all(pairs[1:], match)


def _is_number(value: Value, wanted: float) -> bool:
    """Whether a value is this number, as far as its dtype can tell it from others."""
    held = number(value)
    if held is None or value.dtype is None:
        return False
    if value.dtype.is_float and held == float(np.asarray(wanted).astype(value.dtype.numpy)):
        return True
    return bool(np.isclose(held, wanted, rtol=1e-6, atol=0))


def _is_closed(match: Match) -> bool:
    """Whether nothing outside the match reads what goes away with it."""
    inside = set(match.nodes)
    if any(v is not None and v.is_used for v in match.root.outputs[1:]):
        return False
    for node in match.nodes:
        for value in node.outputs if node is not match.root else ():
            if value is not None and (
                value.is_output or any(use.node not in inside for use in value._uses)
            ):
                return False
    return True


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
