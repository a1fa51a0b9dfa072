"""Shape and type inference."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence

import onnx

from onnxq.ir.branch_ranks import agreed_ranks
from onnxq.ir.graph import Graph
from onnxq.ir.infer_message import complete, nested, part_message, whole_message
from onnxq.ir.node import Node, Value
from onnxq.ir.onnx_inference import INFERENCE_FAILURES, infer_shapes
from onnxq.ir.shape_rules import computed_shapes
from onnxq.ir.shape_values import Elements, find_elements
from onnxq.ir.types import Dim, Shape, TensorType, ValueType, merge_types, type_from_proto

_MAX_ROUNDS = 4
"""Each round uses what the one before it found; more than this gain nothing in practice."""

_MAX_COPIES = 1 << 20
"""Subgraphs times values up to which a graph is inferred in one piece.

For each subgraph ONNX copies what it knows of all the values around it: a long graph with many of
them would take hours.
"""

_PART_NODES = 500
"""Nodes in each of the parts in which such a graph is inferred."""

_MADE_UP = "unk__"
"""How symbols begin that ONNX's inference gives to dimensions of unknown size."""


def infer_types(graph: Graph) -> int:
    """Fill in types and shapes that can be inferred; gives how many values changed.

    ONNX's inference and the shapes that the graph computes (`shape_rules.computed_shapes`) take
    turns until neither finds more. What a value already states is kept; nothing is invented.
    Large constants take part only with their type and shape, so models of any size fit. Where
    the inference stops (an operator used against its definition), types stay as they are.
    """
    return _Inference(graph).run()


class _Inference:
    """One inference over a whole model."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._changed: set[Value] = set()
        self._elements: dict[Value, Elements] = {}
        self._symbols = _Symbols(graph)

    def run(self) -> int:
        nodes, values = self._graph.nodes(), self._graph.values
        copies = sum(1 for node in self._graph.holders() for _ in node.subgraphs()) * len(values)
        size = len(nodes) if copies <= _MAX_COPIES else _PART_NODES
        for at in range(0, len(nodes), size or 1):
            self._settle(nodes[at : at + size])
        return len(self._changed)

    def _settle(self, nodes: Sequence[Node]) -> None:
        """Infer what some nodes make, all of the graph's or a part of them."""
        loops = [node for node in nodes if node.is_op("Loop")]
        for _ in range(_MAX_ROUNDS):
            self._take_turns(nodes)
            if not any([self._carry(loop) for loop in loops]):
                break

    def _take_turns(self, nodes: Sequence[Node]) -> None:
        holds = any(True for node in nodes for _ in node.subgraphs())
        for _ in range(_MAX_ROUNDS):
            before = len(self._changed)
            self._ask_onnx(nodes)
            if not self._refine(nodes) and (len(self._changed) == before or not holds):
                break

    def _carry(self, loop: Node) -> bool:
        """Find the shapes that stay from one run of a Loop's body to the next; gives whether any.

        What is carried is taken to keep the shape it has at first, and the body is inferred. If
        it then leaves the body in this shape it does so in every run, by induction; dimensions
        that change are taken out and the rest is tried again.
        """
        body: Graph = loop.get("body")
        before = {value: value.type for g in body.all_graphs() for value in g.values.values()}
        before |= {value: value.type for value in loop.outputs if value is not None}
        changed = set(self._changed)
        assumed = _assumed(loop, body)
        while assumed:
            for slot, assumption in assumed.items():
                body.inputs[slot].type = assumption
            self._take_turns([loop])
            kept = {
                slot: TensorType(held.dtype, _common(held.shape, body.outputs[slot - 1].shape))
                for slot, held in assumed.items()
            }
            if kept == assumed:
                inputs = (body.inputs[slot] for slot in assumed)
                self._changed |= {value for value in inputs if value.type != before[value]}
                for made, first, held in _carried_out(loop, assumed):
                    self._learn(made, TensorType(held.dtype, _common(held.shape, first.shape)))
                return any(value.type != known for value, known in before.items())
            for value, known in before.items():
                value.type = known
            self._changed = set(changed)
            for part in _with_nested([loop]):
                find_elements(part, self._elements)
            assumed = {slot: held for slot, held in kept.items() if _tells(loop, slot, held)}
        return False

    def _ask_onnx(self, nodes: Sequence[Node]) -> None:
        """Learn what one run of ONNX's inference finds."""
        if len(nodes) == len(self._graph):
            message = whole_message(self._graph)
        else:
            message = part_message(self._graph, nodes, self._elements)
        complete(nodes, message.graph)
        try:
            inferred = infer_shapes(message, nodes)
        except INFERENCE_FAILURES:
            return
        self._symbols.begin(message.graph)
        for graph, proto in ((self._graph, inferred.graph), *nested(nodes, inferred.graph)):
            for entry in (*proto.value_info, *proto.output):
                value = graph.values.get(entry.name)
                if value is not None and value.data is None:
                    found = _parse(entry.type.SerializeToString())
                    self._learn(value, self._symbols.apart(found))

    def _refine(self, nodes: Sequence[Node]) -> bool:
        """Take over the shapes that the graph computes; gives whether they tell anything new."""
        equal: dict[str, Dim] = {}
        learned = False
        for part in _with_nested(nodes):
            find_elements(part, self._elements)
            for value, found in computed_shapes(part, self._elements).items():
                for old, new in zip(value.shape or (), found.shape or (), strict=False):
                    if _is_made_up(old) and new is not None and not _is_made_up(new):
                        equal.setdefault(str(old), new)
                learned |= self._learn(value, found)
            for value, stated in agreed_ranks(part):
                learned |= self._learn(value, stated)
        if equal:
            for part in _with_nested(nodes):
                for value in (v for node in part for v in node.outputs if v is not None):
                    learned |= not value.declared and self._replace_symbols(value, equal)
        return learned

    def _learn(self, value: Value, found: ValueType | None) -> bool:
        if found is value.type:
            return False
        merged = merge_types(value.type, found)
        if merged == value.type:
            return False
        value.type = merged
        self._changed.add(value)
        return True

    def _replace_symbols(self, value: Value, equal: Mapping[str, Dim]) -> bool:
        """Write what is known to equal them in place of symbols that nobody but ONNX chose.

        Other such symbols are forgotten: they may have followed from those, and then the next
        round knows better.
        """
        shape = value.shape
        if shape is None or value.dtype is None or not any(map(_is_made_up, shape)):
            return False
        known = tuple(equal.get(str(d)) if _is_made_up(d) else d for d in shape)
        value.type = TensorType(value.dtype, known)
        self._changed.add(value)
        return True


def _with_nested(nodes: Sequence[Node]) -> Iterator[Sequence[Node]]:
    """Some nodes of a graph and those of each graph in them."""
    yield nodes
    for node in nodes:
        for subgraph in node.subgraphs():
            yield from _with_nested(subgraph.nodes())


def _assumed(loop: Node, body: Graph) -> dict[int, TensorType]:
    """The types of carried body inputs, by slot, if they keep the shape they have at first.

    Only those that tell something new of the input or of what the Loop makes of it.
    """
    assumed = {}
    for slot, value in enumerate(body.inputs):
        first = loop.input(slot) if slot >= 2 else None
        if first is None or not isinstance(first.type, TensorType) or slot > len(body.outputs):
            continue
        merged = merge_types(value.type, first.type)
        if isinstance(merged, TensorType) and _tells(loop, slot, merged):
            assumed[slot] = merged
    return assumed


def _tells(loop: Node, slot: int, held: TensorType) -> bool:
    """Whether a type of a carried value is more than is known of it, in the body or after it."""
    values = [loop.get("body").inputs[slot]]
    values += [made for made, _, _ in _carried_out(loop, {slot: held})]
    return any(merge_types(value.type, held) != value.type for value in values)


def _carried_out(
    loop: Node, assumed: Mapping[int, TensorType]
) -> Iterator[tuple[Value, Value, TensorType]]:
    """The outputs of a Loop that carried values become, with what those are at first."""
    for slot, held in assumed.items():
        made = loop.outputs[slot - 2] if slot - 2 < len(loop.outputs) else None
        first = loop.input(slot)
        if made is not None and first is not None:
            yield made, first, held


def _common(one: Shape | None, other: Shape | None) -> Shape | None:
    """The dimensions in which two shapes agree, None unless they agree in their number."""
    if one is None or other is None or len(one) != len(other):
        return None
    return tuple(a if a == b else None for a, b in zip(one, other, strict=True))


class _Symbols:
    """Keeps symbols apart that ONNX makes up in parts of one graph, which know nothing of others.

    Dimensions of one symbol are equal, so the same name must not stand for two of them.
    """

    def __init__(self, graph: Graph) -> None:
        self._taken = {
            dim
            for inner in graph.all_graphs()
            for value in inner.values.values()
            for dim in value.shape or ()
            if isinstance(dim, str)
        }
        self._next = 0
        self._given: set[str] = set()
        self._names: dict[str, str] = {}

    def begin(self, part: onnx.GraphProto) -> None:
        """Start with the results for another part, given the message that was asked about."""
        self._given = set(_symbols_in(part))
        self._names = {}

    def apart(self, found: ValueType | None) -> ValueType | None:
        """The type with a name of its own for each symbol that was made up for this part."""
        if not isinstance(found, TensorType) or not any(map(_is_made_up, found.shape or ())):
            return found
        return TensorType(found.dtype, tuple(map(self._apart, found.shape or ())))

    def _apart(self, dim: Dim) -> Dim:
        if not isinstance(dim, str) or dim in self._given or not _is_made_up(dim):
            return dim
        if dim not in self._names:
            while f"{_MADE_UP}{self._next}" in self._taken:
                self._next += 1
            self._names[dim] = f"{_MADE_UP}{self._next}"
            self._taken.add(self._names[dim])
        return self._names[dim]


def _symbols_in(proto: onnx.GraphProto) -> Iterator[str]:
    for entry in (*proto.input, *proto.output, *proto.value_info):
        yield from (d.dim_param for d in entry.type.tensor_type.shape.dim if d.dim_param)
    for node in proto.node:
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _symbols_in(inner)


def _is_made_up(dim: Dim) -> bool:
    return isinstance(dim, str) and dim.startswith(_MADE_UP)


@functools.lru_cache(maxsize=1 << 14)
def _parse(serialized: bytes) -> ValueType | None:
    # Thousands of values share a type, and reading it costs more than all the rest.
    proto = onnx.TypeProto()
    proto.ParseFromString(serialized)
    return type_from_proto(proto)
