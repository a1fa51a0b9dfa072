"""Patterns: what they are written in, and where they fit.

A pattern is a small function written in ONNX operators::

    def pattern(op, x, a, b):
        return op.Add(op.MatMul(x, a), b)

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

import math
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np

from onnxq.ir.graph import Graph
from onnxq.ir.node import Node, Value
from onnxq.ir.operators import attribute_value

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


def number(value: Value | None) -> float | None:
    """The number that a constant of one element holds, None for anything else and for bools."""
    data = value.data if value is not None and value.is_constant else None
    if data is None or data.size != 1:
        return None
    if not data.dtype.is_float and data.dtype.numpy.kind not in "iu":
        return None
    return float(data.numpy().reshape(()))


def last_operators(term: Term) -> Iterator[str]:
    """The types of the operators that a pattern may end in."""
    if isinstance(term, Operator):
        yield from term.op_types
    elif isinstance(term, Either):
        for choice in term.choices:
            yield from last_operators(choice)
    else:
        raise TypeError("a pattern is an operator, or alternatives that all are operators")


def is_possible(term: Term, present: Set[str]) -> bool:
    """Whether a graph with these operators has one for every term that the pattern needs."""
    if isinstance(term, Either):
        return any(is_possible(choice, present) for choice in term.choices)
    return not isinstance(term, Operator) or (
        not present.isdisjoint(term.op_types) and all(is_possible(t, present) for t in term.inputs)
    )


def matches(pattern: Term, root: Node) -> Iterator[Match]:
    """Each way in which a pattern fits with ``root`` as its last operator, one after the other.

    The match is the same each time: it holds a way until the next is asked for.
    """
    match = Match(root.graph, root)
    for _ in _ways(pattern, next(iter(root.outputs), None), match):
        if _is_closed(match):
            yield match


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


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
