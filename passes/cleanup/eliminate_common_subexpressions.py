"""Computing the same thing only once."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Hashable
from dataclasses import dataclass

from onnxq.ir import Context, Graph, Node, Pass, Value
from onnxq.ir.types import merge_types
from onnxq.passes.cleanup.node_key import node_key

_SAMPLE = 1024
"""Bytes compared before whole tensors of the same shape are."""


@dataclass(frozen=True)
class EliminateCommonSubexpressions(Pass):
    """Merge operators that compute the same from the same, and constants with the same numbers.

    Rewritten: operators that agree in type, domain, attributes, inputs (the same values in the
    same order) and in which outputs they have, within one graph, or where a subgraph repeats
    what an outer graph has computed before it; initializers that agree in dtype, shape and every
    bit. When both of two equal operators make graph outputs, the second output becomes an
    Identity of the first (not for 2-bit and 4-bit elements, which have no Identity).

    Not rewritten: random operators, operators that ONNX does not define and calls of model-local
    functions, which may do something else each time; operators that hold subgraphs; Identity,
    which `eliminate-identity` treats; an attribute written out against its default left unset;
    overridable initializers; initializers that a quantization annotation names, and all
    initializers of a model with training information, which refers to them by name.
    """

    name = "eliminate-common-subexpressions"
    default = True
    after = ("eliminate-identity",)

    def run(self, graph: Graph, ctx: Context) -> int:
        """See `Pass.run`; counts the operators and initializers merged."""
        return _Scope(graph, ctx, ChainMap(), ChainMap()).run()


@dataclass
class _Scope:
    """One graph, with what it and the graphs around it have already computed."""

    graph: Graph
    ctx: Context
    nodes: ChainMap[Hashable, Node]
    constants: ChainMap[Hashable, Value]

    def run(self) -> int:
        made = 0 if self.graph.model.training_info else self._merge_constants()
        for node in self.graph.nodes():
            made += self._merge_node(node)
            for subgraph in node.subgraphs() if node.in_graph else ():
                made += _Scope(
                    subgraph, self.ctx, self.nodes.new_child(), self.constants.new_child()
                ).run()
        return made

    def _merge_node(self, node: Node) -> int:
        key = node_key(node, node.inputs)
        if key is None:
            return 0
        kept = self.nodes.setdefault(key, node)
        if kept is node:
            return 0
        for old, new in zip(node.outputs, kept.outputs, strict=True):
            if old is not None and new is not None:
                new.type = merge_types(new.type, old.type)
                self.graph.replace_uses(old, new)
        self.graph.remove(node)
        self.ctx.rewrote(f"{node.label}: same as {kept.label}")
        return 1

    def _merge_constants(self) -> int:
        annotated = {name for v in self.graph.values.values() for name in v.annotation.values()}
        made = 0
        for value in list(self.graph.initializers()):
            if not value.is_constant or value.name in annotated or value.annotation:
                continue
            kept = self._same_constant(value)
            if kept is value or value.is_output:
                continue
            self.graph.replace_uses(value, kept)
            self.graph.discard(value)
            self.ctx.rewrote(f"initializer '{value.name}': same as '{kept.name}'")
            made += 1
        return made

    def _same_constant(self, value: Value) -> Value:
        """The first constant with these numbers, reading no more of large ones than needed."""
        assert value.data is not None
        coarse = value.data.digest(_SAMPLE)
        first = self.constants.setdefault(coarse, value)
        if first is value:
            return value
        assert first.data is not None
        self.constants.setdefault((coarse, first.data.digest()), first)
        return self.constants.setdefault((coarse, value.data.digest()), value)
