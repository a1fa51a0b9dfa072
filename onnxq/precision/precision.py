"""What a precision is, and the registry of those there are."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import ClassVar

from onnxq.errors import InputError
from onnxq.ir import Graph, Node, Pass
from onnxq.needs import Need
from onnxq.passes.notes import Reason
from onnxq.passes.static.placement import Placement
from onnxq.passes.tuned import Tuned
from onnxq.passes.weights.weight_pass import Weights
from onnxq.precision.parts import Part
from onnxq.registry import from_form, kinds_in, to_form
from onnxq.targets import Target

Bounds = Mapping[str, tuple[float, float]]
"""Smallest and largest value of tensors, by name."""


@dataclass(frozen=True)
class Given:
    """What precisions are applied with.

    Attributes:
        target: Where the model is to run.
        bounds: Smallest and largest value of the tensors that were observed.
        tuned: What tuners found, by node and by what it is.
    """

    target: Target
    bounds: Bounds = field(default_factory=dict)
    tuned: Tuned = field(default_factory=dict)


@dataclass(frozen=True)
class Precision(ABC):
    """How nodes compute and store their weights: a frozen dataclass whose fields are its options.

    Its text form, ``int4-weight{block_size=64}``, is what recipes, plans and pins hold.

    Class variables:
        name: As on the command line.
        description: One line for people.
        order: Precisions are applied from the lowest order on.
        weight_bits: Bits of a stored weight, scales not counted, with the options it has by itself.
        activation_bits: Bits of an activation.
        relative_time: Time of one multiplication relative to float32, for planning without
            measuring.
        is_static: Whether activations are read and given as integers of known ranges. Neighbours
            share them, so all such precisions go into a graph together.
        spares_bytes: Whether files are small enough for names to count: see
            `onnxq.passes.spare_bytes`.
        transformations: What transforms the float graph first, unless told otherwise.
        tuners: What its nodes are tuned by unless told otherwise: the first that takes a node.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    order: ClassVar[int] = 0
    weight_bits: ClassVar[float] = 32
    activation_bits: ClassVar[int] = 32
    relative_time: ClassVar[float] = 1.0
    is_static: ClassVar[bool] = False
    spares_bytes: ClassVar[bool] = False
    transformations: ClassVar[tuple[str, ...]] = ()
    tuners: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def refusal(self, node: Node, placed: Placement) -> Reason | None:
        """Why a node cannot have it, `UNRELATED` where nobody would expect it to.

        ``placed`` says where static integers can go.
        """

    @abstractmethod
    def passes(self, graph: Graph, nodes: Mapping[str, Precision], given: Given) -> Sequence[Pass]:
        """What brings nodes to it.

        Args:
            graph: The graph as the precisions of lower order left it.
            nodes: Names of the nodes that are to have it, each with its precision, which may
                differ where several go into a graph together.
            given: Target, ranges and tuned tensors.
        """

    @abstractmethod
    def needed_opset(self, target: Target) -> int:
        """Lowest opset that expresses it."""

    @property
    def described(self) -> str:
        """What `onnxq.verify.precision` calls a node that has it."""
        return self.name

    def needs(self, nodes: Sequence[Node], placed: Placement) -> Sequence[Need]:
        """What has to be observed before nodes can have it."""
        return ()

    @property
    def stored_bits(self) -> float:
        """Bits of a stored weight in a model file, scales not counted."""
        return self.weight_bits

    def weights(self, node: Node, target: Target) -> Weights:
        """A node's constant weights as it stores them on a target; none if it stores none."""
        return ()

    def tuners_on(self, target: Target) -> tuple[str, ...]:
        """What its nodes are tuned by on a target unless told otherwise."""
        return self.tuners

    def parts(self) -> Sequence[Part]:
        """The sources of its noise; a search cannot choose a precision without any."""
        return ()

    def __str__(self) -> str:
        return to_form(self)


@cache
def available_precisions() -> Mapping[str, type[Precision]]:
    """Every precision by name, those of most bits first: what the modules of this package hold."""
    kinds = kinds_in(importlib.import_module("onnxq.precision"), Precision)  # type: ignore[type-abstract]
    return {k.name: k for k in sorted(kinds, key=lambda kind: (-kind.weight_bits, kind.name))}


@cache
def parse_precision(text: str) -> Precision:
    """Read a text form, ``int4-weight{block_size=64}``.

    Raises:
        InputError: naming the precision, option or value that is wrong.
    """
    return from_form(text, available_precisions(), "precision")


def searchable() -> tuple[str, ...]:
    """Names of the precisions that a search can choose: those whose noise can be predicted."""
    return tuple(name for name in available_precisions() if parse_precision(name).parts())


def require_searchable(precisions: Sequence[str]) -> None:
    """Refuse precisions that a search cannot choose.

    Raises:
        InputError: there is one.
    """
    for text in precisions:
        name = text.partition("{")[0].strip()
        if name not in searchable():
            able = ", ".join(searchable())
            raise InputError(f"a search cannot choose '{text}'; use some of {able}")
        parse_precision(text)
