"""What a tuner is, and the registry of those there are."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np

from onnxq.errors import InputError
from onnxq.ir import Node
from onnxq.needs import Need
from onnxq.observe import Observations
from onnxq.precision import Precision
from onnxq.registry import from_form, kinds_in, split_forms, to_form

AUTOMATIC, NO_METHODS = ("auto",), ("none",)
"""Instead of names of methods: those that the precisions name, and none at all."""


@dataclass(frozen=True)
class Tuner(ABC):
    """A method that computes what the pass of a precision would otherwise compute by itself.

    A function from observations to tensors: no state, and the same tensors for the same input.

    Class variables:
        name: As on the command line.
        description: One line for people.
        is_sequential: Whether it is to see what a node reads once the nodes before it are
            quantized, rather than in the float model. Such tuners are for nodes of the main graph.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    is_sequential: ClassVar[bool] = False

    @abstractmethod
    def refusal(self, node: Node, precision: Precision) -> str:
        """Why it has nothing for a node in a precision; empty if it has."""

    def needs(self, node: Node, precision: Precision) -> Sequence[Need]:
        """What has to be observed first."""
        return ()

    @abstractmethod
    def tune(
        self, node: Node, precision: Precision, observations: Observations
    ) -> Mapping[str, np.ndarray]:
        """The node's tensors, by what they are."""

    def __str__(self) -> str:
        return to_form(self)


@cache
def available_tuners() -> Mapping[str, type[Tuner]]:
    """Every tuner by name: what the modules of this package hold."""
    kinds = kinds_in(importlib.import_module("onnxq.tune"), Tuner)  # type: ignore[type-abstract]
    return {kind.name: kind for kind in sorted(kinds, key=lambda kind: kind.name)}


@cache
def parse_tuner(text: str) -> Tuner:
    """Read a text form.

    Raises:
        InputError: naming the tuner, option or value that is wrong.
    """
    return from_form(text, available_tuners(), "method")


def parse_methods(given: str | Sequence[str]) -> tuple[str, ...]:
    """Text forms of methods, `AUTOMATIC`, or `NO_METHODS`.

    Args:
        given: The same, or a text with commas between them.

    Raises:
        InputError: there are none, or one does not exist.
    """
    methods = tuple(split_forms(given) if isinstance(given, str) else given)
    if not methods:
        raise InputError("no method is named; name some, or 'auto' or 'none'")
    for method in methods if methods not in (AUTOMATIC, NO_METHODS) else ():
        parse_tuner(method)
    return methods
