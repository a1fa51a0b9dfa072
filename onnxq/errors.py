"""Errors that reach the user as one sentence."""

from __future__ import annotations


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
