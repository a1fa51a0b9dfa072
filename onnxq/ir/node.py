"""Operators, and the named tensors that they read and make: what a graph consists of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from onnxq.ir.attribute import Attribute
from onnxq.ir.tensor import Tensor
from onnxq.ir.types import DataType, Shape, TensorType, ValueType

if TYPE_CHECKING:
    from onnxq.ir.graph import Graph


class Use(NamedTuple):
    """One use of a value: the node that reads it and the input slot."""

    node: Node
    slot: int


@dataclass(slots=True, eq=False, repr=False)
class Value:
    """A tensor by name: its type, constant data if any, who makes it and who uses it."""

    _graph: Graph
    _name: str
    type: ValueType | None
    data: Tensor | None = None
    producer: Node | None = None
    is_input: bool = False
    declared: bool = False
    doc_string: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    annotation: dict[str, str] = field(default_factory=dict)
    _slot: int = 0
    _output_count: int = 0
    _uses: dict[Use, None] = field(default_factory=dict)

    @property
    def graph(self) -> Graph:
        """The graph whose scope defines this value."""
        return self._graph

    @property
    def name(self) -> str:
        """The name in the model; change it with `Graph.rename`."""
        return self._name

    @property
    def slot(self) -> int:
        """Which output of its producer this is."""
        return self._slot

    @property
    def is_output(self) -> bool:
        """Whether its graph gives it to the outside."""
        return self._output_count > 0

    @property
    def is_constant(self) -> bool:
        """Whether it never changes: it has data that no caller can override by feeding it."""
        return self.data is not None and not self.is_input

    @property
    def uses(self) -> tuple[Use, ...]:
        """Every read of this value by a node, in subgraphs too."""
        return tuple(self._uses)

    @property
    def is_used(self) -> bool:
        """Whether a node reads it or its graph gives it to the outside."""
        return bool(self._uses) or self._output_count > 0

    @property
    def dtype(self) -> DataType | None:
        """Element type, None if unknown or not a tensor."""
        return self.type.dtype if isinstance(self.type, TensorType) else None

    @property
    def shape(self) -> Shape | None:
        """Shape, None if even the rank is unknown or the value is not a tensor."""
        return self.type.shape if isinstance(self.type, TensorType) else None

    @property
    def rank(self) -> int | None:
        """Number of dimensions, None if unknown."""
        return None if self.shape is None else len(self.shape)

    def numpy(self) -> np.ndarray:
        """The constant's numbers, not to be written to.

        Raises:
            ValueError: the value is not constant.
        """
        if not self.is_constant or self.data is None:
            raise ValueError(f"value '{self._name}' is not constant")
        return self.data.numpy()

    def __repr__(self) -> str:
        return f"%{self._name}: {self.type}" if self.type else f"%{self._name}"


@dataclass(slots=True, eq=False, repr=False)
class Node:
    """An operator: what it computes and which values it reads and makes.

    ``None`` among inputs or outputs stands for an optional one that is left out. Change a
    node only through `set_input` and the verbs of its `Graph`.
    """

    op_type: str
    domain: str = ""
    name: str = ""
    overload: str = ""
    doc_string: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    device_configurations: tuple[bytes, ...] = ()
    _graph: Graph | None = None
    _inputs: list[Value | None] = field(default_factory=list)
    _outputs: list[Value | None] = field(default_factory=list)
    _attributes: dict[str, Attribute] = field(default_factory=dict)
    _subgraphs: tuple[Graph, ...] = ()

    def __post_init__(self) -> None:
        self.domain = "" if self.domain == "ai.onnx" else self.domain

    @property
    def graph(self) -> Graph:
        """The graph this node belongs to."""
        if self._graph is None:
            raise ValueError(f"node {self.label} belongs to no graph")
        return self._graph

    @property
    def in_graph(self) -> bool:
        """Whether the node is still part of a graph (rewrites remove nodes)."""
        return self._graph is not None

    @property
    def inputs(self) -> tuple[Value | None, ...]:
        """What it reads, by slot."""
        return tuple(self._inputs)

    @property
    def outputs(self) -> tuple[Value | None, ...]:
        """What it makes, by slot."""
        return tuple(self._outputs)

    @property
    def output(self) -> Value:
        """The first output.

        Raises:
            ValueError: the node leaves its first output out.
        """
        first = self._outputs[0] if self._outputs else None
        if first is None:
            raise ValueError(f"node {self.label} has no first output")
        return first

    @property
    def attributes(self) -> Mapping[str, Attribute]:
        """The attributes that are set, by name."""
        return MappingProxyType(self._attributes)

    @property
    def label(self) -> str:
        """How messages call this node: its own name, or operator and first output."""
        if self.name:
            return f"'{self.name}' ({self.op_type})"
        made = next((v.name for v in self._outputs if v is not None), "?")
        return f"{self.op_type} making '{made}'"

    def input(self, slot: int) -> Value | None:
        """The input at a slot, None if it is left out or the node has fewer."""
        return self._inputs[slot] if slot < len(self._inputs) else None

    def get(self, attribute: str, default: Any = None) -> Any:
        """The plain value of an attribute, or ``default`` if it is not set."""
        found = self._attributes.get(attribute)
        return default if found is None else found.plain()

    def is_op(self, *op_types: str, domain: str = "") -> bool:
        """Whether this is one of these operators of a domain."""
        return self.domain == domain and self.op_type in op_types

    def set_input(self, slot: int, value: Value | None) -> None:
        """Read another value at a slot (the node gets longer if need be).

        Raises:
            InvariantError: the value belongs to a scope that the node's graph cannot see.
        """
        self.graph._require_visible(self, value)
        while len(self._inputs) <= slot:
            self._inputs.append(None)
        self.graph._unlink(self._inputs[slot], self, slot)
        self._inputs[slot] = value
        self.graph._link(value, self, slot)
        self._trim()

    def subgraphs(self) -> Iterator[Graph]:
        """The graphs held in attributes."""
        return iter(self._subgraphs)

    def _set_attributes(self, attributes: dict[str, Attribute]) -> None:
        self._attributes = attributes
        self._subgraphs = tuple(g for a in attributes.values() for g in a.graphs())

    def _add_output(self, value: Value | None) -> None:
        if value is not None:
            value.producer, value._slot = self, len(self._outputs)
        self._outputs.append(value)

    def _trim(self) -> None:
        while self._inputs and self._inputs[-1] is None:
            self._inputs.pop()

    def __repr__(self) -> str:
        return f"<{self.label}>"
