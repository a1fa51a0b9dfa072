"""What an operator is in torch, and the table of those there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from torch import Tensor

from onnxq.errors import InputError
from onnxq.ir import Node, attribute_value

Run: TypeAlias = Callable[..., Any]
"""Takes a node's inputs, None for those left out, and gives its output or a sequence of them.

A ``nn.Module`` where the operator behaves otherwise while training.
"""

Build: TypeAlias = Callable[[Node], Run]
"""Reads a node's attributes once, before anything runs."""


class UnsupportedError(InputError):
    """A node that cannot be computed in torch; the text completes "node X ...":."""


@dataclass(frozen=True)
class Operator:
    """An operator.

    Attributes:
        build: Makes the function that computes a node.
        host: Slots of inputs that are read as Python numbers, such as shapes and axes: they stay
            where they are when the other inputs are on another device.
        holds_graphs: Whether it gets, before the inputs, a function that runs the graph in an
            attribute of the node, given the attribute's name and what to feed.
    """

    build: Build
    host: frozenset[int] = frozenset()
    holds_graphs: bool = False


_OPERATORS: dict[tuple[str, str], Operator] = {}


def operator(*op_types: str, host: tuple[int, ...] = ()) -> Callable[[Build], Build]:
    """Register a builder for operators of the default domain."""

    def register(build: Build) -> Build:
        for op_type in op_types:
            _OPERATORS["", op_type] = Operator(build, frozenset(host))
        return build

    return register


def control(*op_types: str) -> Callable[[Build], Build]:
    """Register a builder for operators that hold graphs."""

    def register(build: Build) -> Build:
        for op_type in op_types:
            _OPERATORS["", op_type] = Operator(build, frozenset(), holds_graphs=True)
        return build

    return register


def functions(table: Mapping[str, Run]) -> None:
    """Register operators that depend on nothing but their inputs."""
    for op_type, run in table.items():
        _OPERATORS["", op_type] = Operator(partial(_always, run))


def _always(run: Run, node: Node) -> Run:
    return run


def find(node: Node) -> Operator | None:
    """The operator of a node, None if there is none."""
    return _OPERATORS.get((node.domain, node.op_type))


def ints(tensor: Tensor) -> list[int]:
    """The numbers of a tensor of shapes or axes."""
    return [int(n) for n in tensor.reshape(-1).tolist()]


def axes_reader(node: Node, slot: int, since: int) -> Callable[[Tensor | None], list[int] | None]:
    """How a node's axes are read: from an attribute before an opset, from an input since then."""
    stated = attribute_value(node, "axes") if node.graph.opset < since else None

    def read(axes: Tensor | None = None) -> list[int] | None:
        if axes is not None:
            return ints(axes)
        return None if stated is None else list(stated)

    return read
