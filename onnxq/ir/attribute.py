"""Attributes of operators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx

from onnxq.ir.tensor import Tensor

if TYPE_CHECKING:
    from onnxq.ir.graph import Graph

Scalar: TypeAlias = "int | float | str | bytes"
AttributeLike: TypeAlias = (
    "Attribute | Scalar | Tensor | Graph | np.ndarray | list[Any] | tuple[Any, ...]"
)
_Kind = onnx.AttributeProto


@dataclass(frozen=True)
class Attribute:
    """One attribute: ONNX type number, value, and the function parameter it refers to.

    The value is an int, float, bytes (STRING), `Tensor`, `Graph`, a tuple of one of these,
    or, for sparse tensors and types, the ONNX message itself.
    """

    kind: int
    value: Any
    reference: str = ""
    doc_string: str = ""

    @classmethod
    def of(cls, value: AttributeLike) -> Attribute:
        """Make an attribute from a plain Python value, choosing the ONNX type.

        Raises:
            TypeError: the value fits no attribute type; an empty list fits several and
                must be given as an `Attribute`.
        """
        from onnxq.ir.graph import Graph

        if isinstance(value, Attribute):
            return value
        if isinstance(value, np.ndarray):
            return cls(_Kind.TENSOR, Tensor(value))
        for kinds, single, several, convert in _CONVERSIONS:
            if isinstance(value, kinds):
                return cls(single, convert(value))
            if (
                isinstance(value, list | tuple)
                and value
                and all(isinstance(item, kinds) for item in value)
            ):
                return cls(several, tuple(convert(item) for item in value))
        if isinstance(value, Graph):
            return cls(_Kind.GRAPH, value)
        if isinstance(value, Tensor):
            return cls(_Kind.TENSOR, value)
        raise TypeError(f"no attribute type for {value!r}")

    def graphs(self) -> tuple[Graph, ...]:
        """The subgraphs this attribute holds."""
        if self.kind == _Kind.GRAPH and not self.reference:
            return (self.value,)
        if self.kind == _Kind.GRAPHS:
            return tuple(self.value)
        return ()

    def plain(self) -> Any:
        """The value as Python code wants it: strings decoded, lists as tuples."""
        if self.kind == _Kind.STRING:
            return _decoded(self.value)
        if self.kind == _Kind.STRINGS:
            return tuple(_decoded(v) for v in self.value)
        return self.value

    def bits(self) -> str:
        """Text that is equal for equal bits only: 0.0 and -0.0 differ, and NaNs do not."""
        several = self.value if isinstance(self.value, tuple) else (self.value,)
        return repr([_bits(item) for item in several])


def _bits(item: Any) -> Any:
    if isinstance(item, Tensor):
        return item.digest()
    plain = isinstance(item, int | float | bytes) or not hasattr(item, "SerializeToString")
    return item if plain else item.SerializeToString(deterministic=True)


def _decoded(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def _encoded(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value


_CONVERSIONS: tuple[tuple[tuple[type, ...], int, int, Any], ...] = (
    ((int, np.integer), _Kind.INT, _Kind.INTS, int),
    ((int, float, np.floating, np.integer), _Kind.FLOAT, _Kind.FLOATS, float),
    ((str, bytes), _Kind.STRING, _Kind.STRINGS, _encoded),
)
