"""Errors that reach the user as one sentence."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

_Given = TypeVar("_Given")


class OnnxqError(Exception):
    """Base of every error onnxq raises on purpose; its text is one sentence for the user."""


class InputError(OnnxqError):
    """What the user gave (file, data, option, model) cannot be used; the command exits with 2."""


class UnreachableError(InputError):
    """What lies elsewhere could not be read, which may be otherwise the next time."""


class NothingToQuantizeError(InputError):
    """The model holds nothing that the target computes on integers."""


class InvariantError(OnnxqError):
    """A graph is not valid: the text names the node or value at fault."""


def as_list(given: Iterable[_Given], option: str) -> tuple[_Given, ...]:
    """What an option lists; a text alone would be a list of its characters.

    Raises:
        InputError: a text is given, or nothing that has elements.
    """
    if isinstance(given, str):
        raise InputError(f"option '{option}' is a list; write [{given!r}], not {given!r}")
    if not isinstance(given, Iterable):
        raise InputError(f"option '{option}' is a list, not {given!r}")
    return tuple(given)
