"""The IR: operators that read and make named tensors.

Who reads a tensor is kept in one place, the tensor; order and the networkx graph are derived from
that and made anew after changes. A subgraph (the body of an If, Loop or Scan) is a `Graph` of its
own, held in an attribute; when one of its nodes reads a tensor of an outer graph, the outer graph
counts the operator that holds the subgraph as a reader.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType

import networkx as nx
import numpy as np
import onnx

from onnxq.errors import InvariantError
from onnxq.ir.attribute import Attribute, AttributeLike
from onnxq.ir.model_info import ModelInfo
from onnxq.ir.node import Node, Use, Value
from onnxq.ir.order import in_order, view
from onnxq.ir.tensor import Tensor
from onnxq.ir.types import TensorType, ValueType


class Graph:
    """A model's graph, or a subgraph, and the verbs that change it.

    Verbs: `Node.set_input`, `add`, `remove`, `replace_uses`, `set_attribute`, `constant`,
    `set_constant`, `make_constant`, `rename`, `add_input`, `remove_input`, `add_output`, `extract`,
    `copy`, `fresh_name`, `check`.
    """

    def __init__(
        self,
        name: str = "graph",
        *,
        model: ModelInfo | None = None,
        outer: Graph | None = None,
    ) -> None:
        """Make an empty graph; a subgraph names the ``outer`` graph whose values it may read."""
        self.name = name
        self.doc_string = ""
        self.metadata: dict[str, str] = {}
        self.outer = outer
        self.owner: Node | None = None
        self.model: ModelInfo = (
            outer.model
            if outer is not None
            else model or ModelInfo(onnx.IR_VERSION, {"": onnx.defs.onnx_opset_version()})
        )
        # Names are counted over the whole model, so that a fresh one is fresh everywhere.
        self._taken: Counter[str] = outer._taken if outer is not None else Counter()
        self._taken_nodes: Counter[str] = outer._taken_nodes if outer is not None else Counter()
        self._next_suffix: dict[str, int] = outer._next_suffix if outer is not None else {}
        self._inputs: list[Value] = []
        self._outputs: list[Value] = []
        self._values: dict[str, Value] = {}
        self._nodes: dict[Node, None] = {}
        self._sorted: tuple[Node, ...] | None = None
        self._networkx: nx.MultiDiGraph[Node] | None = None
        self._holders: dict[Node, None] = {}

    # Reading

    @property
    def inputs(self) -> tuple[Value, ...]:
        """What the caller feeds, in order."""
        return tuple(self._inputs)

    @property
    def outputs(self) -> tuple[Value, ...]:
        """What the caller gets, in order."""
        return tuple(self._outputs)

    @property
    def values(self) -> Mapping[str, Value]:
        """Every value this graph's scope defines, by name."""
        return MappingProxyType(self._values)

    @property
    def networkx(self) -> nx.MultiDiGraph[Node]:
        """A view for networkx's analyses, not to be changed; a new one after each change.

        An edge is one use of one tensor, from the operator that makes it to the one that reads it
        or holds the subgraph with the reader; its key is the use.
        """
        if self._networkx is None:
            self._networkx = view(self, self._nodes)
        return self._networkx

    @property
    def opset(self) -> int:
        """Version of the default operator set."""
        return self.model.opset

    def __len__(self) -> int:
        return len(self._nodes)

    def __bool__(self) -> bool:
        # A graph without nodes is a graph all the same.
        return True

    def __contains__(self, node: object) -> bool:
        return node in self._nodes

    def nodes(self) -> tuple[Node, ...]:
        """The operators in topological order, as near to the order they were added as it goes.

        A node that a rewrite added stands right before its first reader, so that the order
        of everything else does not change.

        Raises:
            InvariantError: the graph has a cycle.
        """
        if self._sorted is None:
            self._sorted = tuple(in_order(self, self._nodes))
        return self._sorted

    def all_nodes(self) -> Iterator[Node]:
        """The operators of this graph and, after the node that holds them, of its subgraphs."""
        for node in self.nodes():
            yield node
            for subgraph in node._subgraphs:
                yield from subgraph.all_nodes()

    def all_graphs(self) -> Iterator[Graph]:
        """This graph and every graph nested in it."""
        yield self
        for node in self.holders():
            for subgraph in node._subgraphs:
                yield from subgraph.all_graphs()

    def holders(self) -> tuple[Node, ...]:
        """The operators that hold subgraphs, in the order of `nodes`."""
        if not self._holders:
            return ()
        return tuple(node for node in self.nodes() if node in self._holders)

    def initializers(self) -> Iterator[Value]:
        """The values that have data, overridable ones included, in the order they were added."""
        return (v for v in self._values.values() if v.data is not None)

    def find(self, name: str) -> Value | None:
        """The value a name stands for in this scope or an outer one."""
        return next((s._values[name] for s in self._scopes() if name in s._values), None)

    def consumers(self, value: Value) -> list[Node]:
        """The nodes of this graph that depend on a value, each once.

        A node counts also when only a subgraph it holds reads the value.
        """
        holders = map(self.holder, (use.node for use in value._uses))
        return [holder for holder in dict.fromkeys(holders) if holder is not None]

    def holder(self, node: Node) -> Node | None:
        """The node of this graph that is ``node`` or holds it in a subgraph."""
        graph = node._graph
        while graph is not None and graph is not self:
            if graph.owner is None:
                return None
            node = graph.owner
            graph = node._graph
        return node if graph is self else None

    def fresh_name(self, base: str) -> str:
        """A value name that nothing in the whole model uses yet."""
        return self._fresh(base, self._taken)

    # Changing

    def add(
        self,
        op_type: str,
        inputs: Sequence[Value | None],
        attributes: Mapping[str, AttributeLike] | None = None,
        *,
        domain: str = "",
        outputs: int | Sequence[str | None] = 1,
        name: str = "",
        types: Sequence[ValueType | None] = (),
    ) -> Node:
        """Add an operator.

        Args:
            op_type: the operator.
            inputs: values of this or an outer scope; None for one left out. The node ends at
                the last one that is given.
            attributes: plain Python values or `Attribute`.
            domain: the operator's domain.
            outputs: how many outputs it makes, or their names (None for one left out).
            name: the node's name; made unique.
            types: types of the outputs, where known.

        Raises:
            InvariantError: an input belongs to a scope that this graph cannot see, or an
                output name is taken, or a subgraph was made for another graph.
        """
        node = Node(op_type, domain, self._fresh(name, self._taken_nodes) if name else "")
        node._set_attributes({k: Attribute.of(item) for k, item in (attributes or {}).items()})
        # Everything that can be refused is refused before the graph changes.
        for value in inputs:
            self._require_visible(node, value)
        self._require_own(node, node.subgraphs())
        names: Sequence[str | None] = [""] * outputs if isinstance(outputs, int) else outputs
        given = [output for output in names if output]
        for at, wanted in enumerate(given):
            if wanted in given[:at] or not self._is_free(wanted):
                raise InvariantError(f"two values of graph '{self.name}' are called '{wanted}'")
        for slot, output in enumerate(names):
            made = output
            if output == "":
                made = self.fresh_name(f"{name or op_type.lower()}_output")
            known = types[slot] if slot < len(types) else None
            node._add_output(None if made is None else self._define(made, known))
        node._inputs = list(inputs)
        node._trim()
        self._attach(node)
        return node

    def remove(self, node: Node) -> None:
        """Remove an operator nobody depends on any more, with its subgraphs.

        Raises:
            InvariantError: it belongs to another graph, or one of its outputs is still used or is
                a graph output.
        """
        self._require_member(node)
        for value in node._outputs:
            if value is not None and value.is_used:
                raise InvariantError(
                    f"node {node.label} cannot be removed: its output '{value.name}' is in use"
                )
        for subgraph in list(node.subgraphs()):
            subgraph._dissolve()
        for slot, value in enumerate(node._inputs):
            self._unlink(value, node, slot)
        for value in node._outputs:
            if value is not None:
                self._forget(value)
        del self._nodes[node]
        if node.name:
            self._taken_nodes[node.name] -= 1
        self._holders.pop(node, None)
        node._graph = None
        self._stale()

    def set_attribute(self, node: Node, name: str, value: AttributeLike | None) -> None:
        """Set an attribute, or with None take it away.

        Raises:
            InvariantError: the node, or a subgraph that the value holds, belongs to another graph.
        """
        self._require_member(node)
        new = None if value is None else Attribute.of(value)
        self._require_own(node, () if new is None else new.graphs())
        old = node._attributes.get(name)
        if old is not None:
            for subgraph in old.graphs():
                subgraph._dissolve()
        kept = {key: item for key, item in node._attributes.items() if key != name}
        node._set_attributes(kept if new is None else {**kept, name: new})
        if new is not None:
            self._adopt_subgraphs(node, new.graphs())
        if not node._subgraphs:
            self._holders.pop(node, None)

    def replace_uses(
        self, old: Value, new: Value, where: Callable[[Use], bool] | None = None
    ) -> None:
        """Make every reader of ``old`` read ``new``, the graph's own outputs included.

        An input that is given straight back as an output stays that output. Names and order
        of graph outputs stay: when ``old`` is a graph output, ``new`` takes
        its name if it can (it is made by a node of this graph and is no output itself),
        otherwise an Identity makes the output. With ``where`` only the uses it accepts change
        and graph outputs stay as they are.
        """
        if old is new:
            return
        for use in old.uses:
            if where is None or where(use):
                use.node.set_input(use.slot, new)
        if where is None and old.is_output and not old.is_input:
            self._replace_output(old, new)

    def constant(self, data: np.ndarray | Tensor, name: str = "constant") -> Value:
        """Add constant data under a name made unique."""
        tensor = data if isinstance(data, Tensor) else Tensor(data)
        value = self._define(self.fresh_name(name), TensorType(tensor.dtype, tensor.shape))
        value.data = tensor
        return value

    def set_constant(
        self, node: Node, slot: int, data: np.ndarray | Tensor, name: str = "constant"
    ) -> None:
        """Make a node read other numbers at a slot.

        They get the name of the constant it read there, which goes if nothing else reads it; where
        it read none, ``name``, made unique.
        """
        self._require_member(node)
        old = node.input(slot)
        replaced = old if old is not None and old.is_constant else None
        name = name if replaced is None else replaced._name
        new = self.constant(data, name)
        node.set_input(slot, new)
        if replaced is not None and not replaced.is_used:
            replaced._graph.discard(replaced)
            if self._is_free(name):
                self.rename(new, name)

    def make_constant(self, value: Value) -> None:
        """Take an input that has a default value out of the inputs: nobody can override it now.

        Raises:
            InvariantError: the value is no input or has no data.
        """
        if not value.is_input or value.data is None:
            raise InvariantError(f"'{value.name}' is no input with data, so no constant either")
        self._inputs.remove(value)
        value.is_input = False

    def add_input(self, name: str, value_type: ValueType | None) -> Value:
        """Add an input the caller feeds."""
        value = self._define(name, value_type)
        value.is_input = True
        self._inputs.append(value)
        return value

    def remove_input(self, value: Value) -> None:
        """Take away an input that nobody reads, and its default value if it has one.

        Raises:
            InvariantError: it is no input, or somebody reads it.
        """
        if not value.is_input or value.is_used:
            raise InvariantError(f"'{value.name}' is no input, or one that is in use")
        self._inputs.remove(value)
        self._forget(value)

    def add_output(self, value: Value) -> None:
        """Give a value to the caller, after the outputs there are."""
        self._outputs.append(value)
        value._output_count += 1

    def set_outputs(self, values: Sequence[Value]) -> None:
        """Replace the whole list of outputs (``extract`` and tests; rewrites keep outputs)."""
        for value in self._outputs:
            value._output_count -= 1
        self._outputs = []
        for value in values:
            self.add_output(value)

    def rename(self, value: Value, name: str) -> None:
        """Give a value another name.

        Raises:
            InvariantError: the name is taken in this scope, one it can see or one that sees it.
        """
        self._require_member(value)
        if name == value._name:
            return
        if not self._is_free(name):
            raise InvariantError(f"value '{value._name}' cannot be called '{name}': it is taken")
        del self._values[value._name]
        self._taken[value._name] -= 1
        value._name = name
        self._values[name] = value
        self._taken[name] += 1

    def rename_node(self, node: Node, name: str) -> None:
        """Give a node another name, made unique; an empty one takes its name away."""
        self._require_member(node)
        if node.name:
            self._taken_nodes[node.name] -= 1
        node.name = self._fresh(name, self._taken_nodes) if name else ""
        if node.name:
            self._taken_nodes[node.name] += 1

    def discard(self, value: Value) -> None:
        """Take away a constant that nobody reads.

        Raises:
            InvariantError: somebody reads it, or it is an input, made by a node or of another
                graph.
        """
        self._require_member(value)
        if value.is_used or value.is_input or value.producer is not None:
            raise InvariantError(f"value '{value._name}' cannot be discarded: it is in use")
        self._forget(value)

    def extract(self, inputs: Iterable[Value], outputs: Iterable[Value]) -> Graph:
        """A new model graph that computes some values from others; this graph is unchanged.

        Constants come along, sharing their data. Graph inputs that turn out to be needed and
        are not among ``inputs`` become inputs after them.

        Raises:
            InvariantError: a node that has to come along reads an outer scope.
        """
        from onnxq.ir.copying import extract

        return extract(self, list(inputs), list(outputs))

    def copy(self) -> Graph:
        """An independent graph with the same model; constant data is shared."""
        from onnxq.ir.copying import copy

        return copy(self)

    # Checking

    def check(self) -> None:
        """Verify every invariant of the graph and of its subgraphs.

        Raises:
            InvariantError: naming the node or value at fault.
        """
        from onnxq.ir.check import check

        check(self)

    @classmethod
    def from_text(cls, text: str) -> Graph:
        """Read a model in ONNX text syntax (``onnx.parser``).

        Raises:
            InputError: the text does not parse.
        """
        from onnxq.ir.text import from_text

        return from_text(text)

    def to_text(self) -> str:
        """The whole model in ONNX text syntax, which `from_text` reads back to an equal graph.

        Every number is in it, so it is long for a real model; ``str(graph)`` is for people. What
        the syntax knows no form for is left out: doc strings, and the metadata of nodes and values.
        """
        from onnxq.ir.text import to_onnx_text

        return to_onnx_text(self)

    def __str__(self) -> str:
        from onnxq.ir.text import to_text

        return to_text(self)

    def __repr__(self) -> str:
        return f"<Graph '{self.name}': {len(self)} nodes>"

    # Links between values and nodes

    def _scopes(self) -> Iterator[Graph]:
        """This graph and those around it, whose values it can see."""
        scope: Graph | None = self
        while scope is not None:
            yield scope
            scope = scope.outer

    def _define(self, name: str, value_type: ValueType | None) -> Value:
        if not name or not self._is_free(name):
            raise InvariantError(f"two values of graph '{self.name}' are called '{name}'")
        value = Value(self, name, value_type)
        self._values[name] = value
        self._taken[name] += 1
        return value

    def _is_free(self, name: str) -> bool:
        """Whether a value of this graph may have a name: nothing around it or in it has it."""
        return not self._taken[name] or (self.find(name) is None and not self._holds(name))

    def _holds(self, name: str) -> bool:
        """Whether a graph nested in this one has a value of a name."""
        nested = [subgraph for node in self._holders for subgraph in node._subgraphs]
        return any(name in graph._values or graph._holds(name) for graph in nested)

    def _forget(self, value: Value) -> None:
        del self._values[value._name]
        self._taken[value._name] -= 1

    def _fresh(self, base: str, taken: Counter[str]) -> str:
        if not taken[base]:
            return base
        suffix = self._next_suffix.get(base, 1)
        while taken[f"{base}_{suffix}"]:
            suffix += 1
        self._next_suffix[base] = suffix + 1
        return f"{base}_{suffix}"

    def _require_member(self, member: Node | Value) -> None:
        if member._graph is not self:
            what = f"node {member.label}" if isinstance(member, Node) else f"value '{member.name}'"
            raise InvariantError(
                f"{what} belongs to another graph or to none, not to '{self.name}'"
            )

    def _require_visible(self, node: Node, value: Value | None) -> None:
        if value is not None and all(scope is not value._graph for scope in self._scopes()):
            raise InvariantError(
                f"{node.op_type} in graph '{self.name}' cannot read '{value._name}', which "
                f"belongs to graph '{value._graph.name}'"
            )

    def _require_own(self, node: Node, subgraphs: Iterable[Graph]) -> None:
        for subgraph in subgraphs:
            if subgraph.outer is not self:
                raise InvariantError(
                    f"the subgraph '{subgraph.name}' of {node.op_type} in graph '{self.name}' was "
                    "made for another graph"
                )

    def _attach(self, node: Node) -> None:
        node._graph = self
        self._nodes[node] = None
        if node.name:
            self._taken_nodes[node.name] += 1
        for slot, value in enumerate(node._inputs):
            self._link(value, node, slot)
        self._adopt_subgraphs(node, node._subgraphs)
        self._stale()

    def _link(self, value: Value | None, node: Node, slot: int) -> None:
        if value is not None:
            value._uses[Use(node, slot)] = None
            if value.producer is not None:
                value._graph._stale()

    def _unlink(self, value: Value | None, node: Node, slot: int) -> None:
        if value is not None:
            del value._uses[Use(node, slot)]
            if value.producer is not None:
                value._graph._stale()

    def _adopt_subgraphs(self, node: Node, subgraphs: Sequence[Graph]) -> None:
        for subgraph in subgraphs:
            self._holders[node] = None
            subgraph.owner = node
        for scope in self._scopes() if subgraphs else ():
            scope._stale()

    def _dissolve(self) -> None:
        """Take this subgraph apart, so that outer values forget the uses in it."""
        self.set_outputs([])
        for node in reversed(self.nodes()):
            self.remove(node)
        for value in list(self._values.values()):
            self._forget(value)

    def _replace_output(self, old: Value, new: Value) -> None:
        can_take_name = new._graph is self and new.producer is not None and not new.is_output
        if not can_take_name:
            # Named apart from `old`, which keeps the output's name until it is renamed below.
            new = self.add("Identity", [new], types=[old.type]).output
        name, count = old._name, old._output_count
        self.rename(old, self.fresh_name(f"{name}_replaced"))
        self.rename(new, name)
        new.type = old.type or new.type
        new.declared = old.declared
        new.doc_string, new.metadata = old.doc_string, old.metadata
        new.annotation = old.annotation
        for _ in range(count):
            self._outputs[self._outputs.index(old)] = new
        old._output_count = 0
        new._output_count = count

    def _stale(self) -> None:
        self._sorted = self._networkx = None
