"""What a method is, and the registry of those there are."""

from __future__ import annotations

import importlib
from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

from onnxq.errors import InputError
from onnxq.registry import from_form, kinds_in, split_forms, to_form

AUTOMATIC, NO_METHODS = ("auto",), ("none",)
"""Instead of names of methods: those that the precisions name, and none at all."""


@dataclass(frozen=True)
class Method(ABC):
    """Something that computes tensors from observations, to lower the loss of quantization.

    A function: no state, and the same tensors for the same input. There are two kinds: a
    `onnxq.tune.tuner.Tuner` computes how one node's weights are rounded, a
    `onnxq.tune.transformation.Transformation` what the float graph is to be turned into before.

    Class variables:
        name: As on the command line.
        description: One line for people.
        promise: By how many dB it lowers the noise of a model's outputs for each second and million
            weights, roughly, as `benchmarks/accuracy_methods.py` measured: what promises more is
            tried first where time is limited.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    promise: ClassVar[float] = 1.0

    def __str__(self) -> str:
        return to_form(self)


@cache
def available_methods() -> Mapping[str, type[Method]]:
    """Every method by name: what the modules of this package hold, `onnxq.tune.train` left out."""
    kinds = kinds_in(importlib.import_module("onnxq.tune"), Method, nested=False)
    return {kind.name: kind for kind in sorted(kinds, key=lambda kind: kind.name)}


@cache
def parse_method(text: str) -> Method:
    """Read a text form.

    Raises:
        InputError: naming the method, option or value that is wrong.
    """
    return from_form(text, available_methods(), "method")


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
        parse_method(method)
    return methods
