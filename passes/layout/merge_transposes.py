"""Merging Transposes, past operators for which the order of axes does not matter."""

from __future__ import annotations

from dataclasses import dataclass, field

from onnxq.ir import Context, Graph, Node, Pass, TensorType, Use, Value, remove_unused
from onnxq.ir.connected import connected
from onnxq.ir.operators import schema_of
from onnxq.ir.types import static_size
from onnxq.passes.layout.relayout import Change, Perm, apply, change, inverse, is_identity
from onnxq.passes.nodes import bypass, made_by


@dataclass(frozen=True)
class MergeTransposes(Pass):
    """Merge Transposes in a row, and move them past other operators where some of them vanish.

    A region of operators behind Transposes of the same order can as well compute on what the
    Transposes read. Then these are not needed, nor those behind the region that undo them; a
    Transpose behind it that does something else takes the first ones in. In return whatever else
    reads a value of the region needs a Transpose of its own. A region is rewritten only if fewer
    Transposes are left than there were, and not if they certainly move more elements.

    Rewritten, as parts of such a region:

    - Elementwise operators of one input. Those of several, from opset 7 on, if the others are of
      one element, or behind Transposes of the same order, or constants, whose axes are then put
      in order.
    - Concat, Split, Slice, Pad, ArgMax, ArgMin and reductions with constant axes (whose result
      may need no Transpose at all), Softmax, LogSoftmax and Hardmax from opset 13 on,
      QuantizeLinear and DequantizeLinear except in blocks. Their axes change.

    Not rewritten:

    - Operators that read a value of another layout, of unknown shape, or of a smaller rank: it
      would need a Transpose, or more.
    - Softmax along the last axis when that would become another: runtimes are slow there.
    - Constants over 16 MiB, or over 64 KiB where something else reads them too.
    - A Transpose of a constant, which `fold-constants` computes.
    - Values that a quantization annotation names.

    A value that holds its elements in another order than before gets another name.

    onnxruntime moves Transposes itself when it starts, so that in float the merged form has the
    same speed (1.00 to 1.08 times between Convs). Between integers it keeps those around a Relu,
    which cost 20 to 40 %, and removes those around Sigmoid and Mul.
    """

    name = "merge-transposes"
    numerics = "reassociates"
    default = True
    needs_types = True

    def run(self, graph: Graph, ctx: Context) -> int:
        """See `Pass.run`; counts the Transposes that are gone."""
        made = 0
        for nested in list(graph.all_graphs()):
            while found := _merge_chains(nested, ctx) + _Regions(nested, ctx).run():
                made += found
        return made


def _merge_chains(graph: Graph, ctx: Context) -> int:
    """Let a Transpose read past a Transpose that nothing but Transposes read."""
    made = 0
    for node in graph.nodes():
        perm = _perm(node)
        value, before = node.input(0), made_by(node.input(0), "Transpose")
        if perm is None or before is None or value is None or before.graph is not graph:
            continue
        first = _perm(before)
        if first is None or len(first) != len(perm) or _outside(value):
            continue
        source = before.inputs[0]
        assert source is not None
        node.set_input(0, source)
        graph.set_attribute(node, "perm", [first[axis] for axis in perm])
        remove_unused(graph, [before])
        ctx.rewrote(f"{node.label}: does what {before.label} did too")
        _remove_identity(node)
        made += (not before.in_graph) + (not node.in_graph)
    return made


def _remove_identity(node: Node) -> None:
    """Bypass a Transpose that keeps the order, except where it has to make a graph output."""
    perm, source = _perm(node), node.inputs[0]
    assert perm is not None and source is not None
    if is_identity(perm):
        bypass(node, source)


def _perm(node: Node) -> Perm | None:
    """The order of a Transpose, None for anything else and where it is not known."""
    if not node.is_op("Transpose"):
        return None
    stated, value = node.get("perm"), node.input(0)
    if stated is not None:
        return tuple(stated) if sorted(stated) == list(range(len(stated))) else None
    rank = value.rank if value is not None and value.rank is not None else node.output.rank
    return None if rank is None else tuple(range(rank))[::-1]


def _outside(value: Value) -> list[Use | None]:
    """The readers of a value that are no Transposes of its own graph; None stands for outputs."""
    others: list[Use | None] = [
        use
        for use in value.uses
        if use.node.graph is not value.graph or use.slot or _perm(use.node) is None
    ]
    return others + [None] * value.is_output


@dataclass
class _Regions:
    """The regions of one graph that may compute on what Transposes read."""

    graph: Graph
    ctx: Context
    layouts: dict[Value, Perm] = field(default_factory=dict)
    """Values that may be held in another order, with the Transpose that leads to what they are."""
    sources: dict[Value, Node] = field(default_factory=dict)
    changes: dict[Node, tuple[Perm, Change]] = field(default_factory=dict)

    def run(self) -> int:
        self._grow()
        self._prune()
        made = 0
        # A Transpose at the end of one region may begin another: that one waits for the next run.
        touched: set[Node] = set()
        for values, nodes in self._connected():
            ends = self._ends(values)
            involved = {node for value in values for node in self._transposes(value)}
            involved.update(self.sources[v] for v in values if v in self.sources)
            gain = self._gain(values, ends)
            if gain <= 0 or involved & touched or self._moves_more(values, ends):
                continue
            touched |= involved
            self._rewrite(values, nodes, ends)
            made += gain
        return made

    def _grow(self) -> None:
        for node in self.graph.nodes():
            perm, value = _perm(node), node.input(0)
            if perm is not None and value is not None:
                if not is_identity(perm) and not value.is_constant and schema_of(node) is not None:
                    self.layouts[node.output] = perm
                    self.sources[node.output] = node
                continue
            slots = [s for s, v in enumerate(node.inputs) if v is not None and v in self.layouts]
            perms = {self.layouts[node.inputs[s]] for s in slots}  # type: ignore[index]
            if len(perms) != 1 or schema_of(node) is None:
                continue
            (perm,) = perms
            planned = change(node, perm, slots)
            if planned is None or not any(v is not None and v.is_used for v in node.outputs):
                continue
            self.changes[node] = (perm, planned)
            for output, layout in zip(node.outputs, planned.outputs, strict=True):
                if output is not None and not is_identity(layout):
                    self.layouts[output] = layout

    def _prune(self) -> None:
        """Take nodes at the lower end of a region out of it where that costs no Transpose."""
        for node in reversed(list(self.changes)):
            made = [v for v in node.outputs if v is not None and v in self.layouts]
            if any(use.node in self.changes for v in node.outputs if v for use in v.uses):
                continue
            read = {v for v in node.inputs if v is not None and v in self.layouts}
            saved = sum(self._stays(v) for v in made)
            lost = sum(len(self._ends([v])) for v in made)
            needed = sum(not self._stays(v) for v in read)
            if needed + lost <= saved:
                del self.changes[node]
                for value in made:
                    del self.layouts[value]

    def _stays(self, value: Value) -> bool:
        """Whether something outside the region reads a value, which needs a Transpose for it."""
        return any(use is None or use.node not in self.changes for use in _outside(value))

    def _connected(self) -> list[tuple[list[Value], list[Node]]]:
        """The values and nodes of each region, in order."""
        items: list[Value | Node] = [*self.layouts, *self.changes]
        links = (
            (node, value)
            for node in self.changes
            for value in (*node.inputs, *node.outputs)
            if value is not None and value in self.layouts
        )
        return [
            ([i for i in g if isinstance(i, Value)], [i for i in g if isinstance(i, Node)])
            for g in connected(items, links)
        ]

    def _transposes(self, value: Value) -> list[Node]:
        """The Transposes that read a value in its own graph."""
        return [
            use.node
            for use in value.uses
            if use.node.graph is self.graph and not use.slot and _perm(use.node) is not None
        ]

    def _ends(self, values: list[Value]) -> list[Node]:
        """The Transposes that only undo what the region's layout saves."""
        return [
            node
            for value in values
            for node in self._transposes(value)
            if _perm(node) == inverse(self.layouts[value])
        ]

    def _gain(self, values: list[Value], ends: list[Node]) -> int:
        """How many Transposes fewer there are when the region is rewritten."""
        begun = sum(v in self.sources for v in values)
        kept = sum(self._stays(v) for v in values)
        return begun + len(ends) - kept

    def _moves_more(self, values: list[Value], ends: list[Node]) -> bool:
        """Whether the Transposes that are left certainly move more elements than those now."""
        before = [_bytes(self.sources[v].output) for v in values if v in self.sources]
        before += [_bytes(node.output) for node in ends]
        after = [_bytes(v) for v in values if self._stays(v)]
        if None in before or None in after:
            return False
        return sum(n or 0 for n in after) > sum(n or 0 for n in before)

    def _rewrite(self, values: list[Value], nodes: list[Node], ends: list[Node]) -> None:
        for node in nodes:
            perm, planned = self.changes[node]
            apply(node, perm, planned)
        for value in values:
            source = self.sources.get(value)
            if source is None:
                self._reorder(value)
            else:
                self._bypass(source, value)
        for node in ends:
            _remove_identity(node)
        self.ctx.rewrote(f"{len(nodes)} operators: the Transposes around them are merged")

    def _bypass(self, source: Node, value: Value) -> None:
        """Let the region and the Transposes behind it read what a Transpose at its start reads."""
        read = source.inputs[0]
        assert read is not None
        self._turn(self._transposes(value), self.layouts[value], read)
        for use in value.uses:
            if use.node in self.changes:
                use.node.set_input(use.slot, read)
        remove_unused(self.graph, [source])

    def _reorder(self, value: Value) -> None:
        """Hold a value in the other order; its readers outside the region get a Transpose."""
        perm, was, name = self.layouts[value], value.type, value.name
        self._turn(self._transposes(value), perm, value)
        outside = [use for use in _outside(value) if use is None or use.node not in self.changes]
        if isinstance(was, TensorType) and was.shape is not None:
            value.type = TensorType(was.dtype, tuple(was.shape[i] for i in inverse(perm)))
        self.graph.rename(value, self.graph.fresh_name(f"{name}_reordered"))
        if not outside:
            return
        back = self.graph.add("Transpose", [value], {"perm": list(perm)}, types=[was]).output
        for use in outside:
            if use is not None:
                use.node.set_input(use.slot, back)
        if value.is_output:
            self.graph.set_outputs([back if v is value else v for v in self.graph.outputs])
        self.graph.rename(back, name)
        back.declared, value.declared = value.declared, False
        back.doc_string, back.metadata = value.doc_string, value.metadata
        value.doc_string, value.metadata = "", {}

    def _turn(self, transposes: list[Node], perm: Perm, read: Value) -> None:
        """Let Transposes behind the region do what those at its start did too."""
        for node in transposes:
            stated = _perm(node)
            assert stated is not None
            node.set_input(0, read)
            self.graph.set_attribute(node, "perm", [perm[axis] for axis in stated])


def _bytes(value: Value) -> int | None:
    size = static_size(value.shape)
    return None if size is None or value.dtype is None else size * value.dtype.bits
