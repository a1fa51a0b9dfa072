"""Computing what never changes before the model runs."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from onnxq.errors import InputError
from onnxq.ir import Context, Graph, Node, Pass, Tensor, Value
from onnxq.ir.copying import reads
from onnxq.ir.operators import is_deterministic, lacks_identity
from onnxq.ir.rules import remove_unused
from onnxq.ir.shape_values import known_elements
from onnxq.passes.cleanup.foldable import bytes_of, is_safe, may_be_tensor, sizes_are_known
from onnxq.passes.nodes import visit
from onnxq.runtime.evaluate import evaluate

_BATCH_BYTES = 1 << 26
"""Bytes of results after which a region is evaluated, so that memory stays bounded."""

_NEVER = frozenset({"Constant", "DequantizeLinear"})
"""Constant has its own rewrite; an unpacked integer weight would undo quantization."""


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Compute operators whose inputs are all constant and keep the results as initializers.

    Rewritten:

    - ``Constant`` nodes, whatever attribute holds the value.
    - Every operator that ONNX defines, is deterministic and reads only constants, in subgraphs
      too. A whole region of such operators runs in onnxruntime as one model, with onnxruntime's
      rewriting off, so results are what the model would have computed, bit for bit. (Between
      float16 operators that onnxruntime runs in float32 it leaves out the rounding; folding
      rounds there, as onnxruntime's own constant folding does.) Operators for which
      onnxruntime has no kernel are left to ``onnx.reference``.
    - Constant vectors of one element that a ``Range`` reads become scalars.
    - Shape computations whose result follows from known dimensions, also if the tensor's other
      dimensions are not known (``Gather(Shape(x), 1)`` when only dimension 1 is).

    Not rewritten:

    - Random operators, operators of other domains and calls of model-local functions: they may
      give something else each time, or nobody here knows what they give.
    - What reads overridable initializers (those that are graph inputs too).
    - ``DequantizeLinear``: a folded integer weight would be a float weight again.
      ``QuantizeLinear`` of a constant is folded.
    - A result larger than what it frees by more than ``limit`` bytes (``ConstantOfShape``,
      ``Expand``, ``Tile`` and the like of large results), so that no file blows up. A constant
      counts as freed when everything that reads it is folded, divided between its readers.
      The size has to be known before running, which for a few operators it is not.
    - Results that are no tensors (sequences, optionals), except between folded operators.
    - Loops of more than 1000 or an unknown number of turns, and subgraphs that hold values of
      over 64 MiB or of unknown size: they might take long, or all memory.
    - Integer division by what may be 0 or -1: it can end the process that tries it.
    - An ``Identity`` that makes a graph output of a constant: there is no shorter form. Another
      folded operator that makes a graph output becomes such an Identity, except of 2-bit and
      4-bit elements, which have none.
    - What onnxruntime refuses to compute is left to fail, or not, when the model runs.

    Attributes:
        limit: bytes by which a folded operator's results may be larger than what they free.
    """

    name = "fold-constants"
    default = True
    needs_types = True

    limit: int = 1 << 16

    def run(self, graph: Graph, ctx: Context) -> int:
        """See `Pass.run`; counts the operators that are gone or read scalars now."""
        made = visit(graph, ctx, {"Constant"}, _fold_constant) + self._fold(graph, ctx)
        return made + visit(graph, ctx, {"Range"}, _read_scalars)

    def _fold(self, graph: Graph, ctx: Context) -> int:
        made = _fold_shapes(graph, ctx) + _Folding(graph, self.limit, ctx).run()
        for node in graph.nodes():
            for subgraph in node.subgraphs():
                made += self._fold(subgraph, ctx)
        return made


def _fold_constant(node: Node) -> str | None:
    old = node.output
    tensor = _held_tensor(node) if old.uses else None
    if tensor is None:
        return None
    constant = node.graph.constant(tensor, old.name)
    # A Constant that is also a graph output stays for that, since only an operator can be.
    node.graph.replace_uses(old, constant, where=lambda use: True)
    _drop(node.graph, [node], {old: constant})
    return "now an initializer"


def _held_tensor(node: Node) -> Tensor | None:
    """The value of a Constant node, None if it refers to a function's parameter."""
    for name, attribute in node.attributes.items():
        if attribute.reference:
            continue
        if name == "value":
            return attribute.value if isinstance(attribute.value, Tensor) else None
        if name == "sparse_value":
            return Tensor.from_sparse(attribute.value)
        if dtype := _DTYPES.get(name.removesuffix("s")):
            return Tensor(np.array(attribute.plain(), dtype=dtype))
    return None


_DTYPES = {"value_float": np.float32, "value_int": np.int64, "value_string": object}


def _fold_shapes(graph: Graph, ctx: Context) -> int:
    """Fold what `known_elements` finds; from the end, so that only last results become data."""
    made = 0
    known = known_elements(graph)
    for node in reversed(graph.nodes()):
        value = next((v for v in node.outputs if v is not None and v in known), None)
        if value is None or value.dtype is None or None in known[value].reshape(-1).tolist():
            continue
        if node.is_op("Identity") and value.is_output:
            continue
        replaced = {}
        if value.uses or value.is_output:
            array = known[value].astype(value.dtype.numpy)
            replaced[value] = graph.constant(array, value.name)
            graph.replace_uses(value, replaced[value])
        _drop(graph, [node], replaced)
        ctx.rewrote(f"{node.label}: its shape computation is known")
        made += 1
    return made


def _read_scalars(node: Node) -> str | None:
    """Make constant vectors of one element scalars where a Range reads them.

    onnxruntime runs a Range on such vectors, against ONNX's definition, but refuses to load it
    once they are constant.
    """
    vectors = [
        (slot, v)
        for slot, v in enumerate(node.inputs)
        if v is not None and v.is_constant and v.shape == (1,)
    ]
    for slot, value in vectors:
        node.graph.set_constant(node, slot, value.numpy().reshape(()))
    return f"reads {len(vectors)} constants as scalars" if vectors else None


def _drop(graph: Graph, nodes: list[Node], replaced: dict[Value, Value]) -> None:
    """Remove replaced nodes, given users first; the constants take their values' names."""
    names = {value: value.name for value in replaced}
    remove_unused(graph, nodes)
    for value, constant in replaced.items():
        if graph.find(names[value]) is None:
            graph.rename(constant, names[value])


@dataclass
class _Sharing:
    """How many operators of the graph read a value, and how many of them are not folded."""

    readers: int
    staying: int


@dataclass
class _Folding:
    """Folds the constant regions of one graph, round after round until none is left."""

    graph: Graph
    limit: int
    ctx: Context
    left: set[Node] = field(default_factory=set)
    """Nodes that were tried and cannot be computed."""

    def run(self) -> int:
        made = 0
        position = {node: at for at, node in enumerate(self.graph.nodes())}
        starts: Iterable[Node] = position
        while True:
            region = self._pruned(self._grown(starts, position))
            if not region:
                return made
            # What the region's constants also feed may fold once the region is gone.
            near = {v for node in region for v in reads(node)}
            folded, constants = self._fold(region)
            made += folded
            near.update(constants)
            starts = {
                node
                for value in near
                if value.uses
                for node in self.graph.consumers(value)
                if node in position
            }

    def _grown(self, starts: Iterable[Node], position: dict[Node, int]) -> dict[Node, None]:
        """Every node that can be computed from constants, beginning with ``starts``, in order."""
        region: dict[Node, None] = {}
        nodes = list(position)
        queue = [position[n] for n in starts if n.in_graph]
        heapq.heapify(queue)
        done = -1
        while queue:
            at = heapq.heappop(queue)
            if at == done or not self._may_fold(nodes[at], region):
                continue
            done = at
            region[nodes[at]] = None
            for value in nodes[at].outputs:
                for reader in self.graph.consumers(value) if value is not None else ():
                    heapq.heappush(queue, position[reader])
        return region

    def _may_fold(self, node: Node, region: dict[Node, None]) -> bool:
        if any(
            v is not None and not v.is_constant and v.producer not in region for v in node.inputs
        ):
            return False
        read = reads(node)
        return (
            all(v.is_constant or v.producer in region for v in read)
            and node not in self.left
            and not node.is_op(*_NEVER)
            and not (node.is_op("Identity") and node.output.is_output)
            and any(v is not None and (v.uses or v.is_output) for v in node.outputs)
            and is_deterministic(node)
            and is_safe(node)
            and sizes_are_known(node, all(v.is_constant for v in read))
        )

    def _pruned(self, region: dict[Node, None]) -> dict[Node, None]:
        """Without the nodes whose results are too large or no tensors but read from outside."""
        shared: dict[Value, _Sharing] = {}
        for node in region:
            for value in {*reads(node), *(v for v in node.outputs if v is not None)}:
                if value not in shared:
                    readers = self.graph.consumers(value)
                    staying = sum(reader not in region for reader in readers)
                    shared[value] = _Sharing(len(readers), staying)
        queue = list(region)
        while queue:
            node = queue.pop()
            if node not in region or not self._is_too_much(node, shared):
                continue
            for stays in self._with_users(node, region):
                del region[stays]
                for value in dict.fromkeys(reads(stays)):
                    shared[value].staying += 1
                    if value.producer is not None:
                        queue.append(value.producer)
                    if shared[value].staying == 1:
                        queue += self.graph.consumers(value)
        return region

    def _with_users(self, node: Node, region: dict[Node, None]) -> list[Node]:
        """A node and every node of the region that needs its results."""
        found = {node: None}
        queue = [node]
        while queue:
            for value in queue.pop().outputs:
                for reader in self.graph.consumers(value) if value is not None else ():
                    if reader in region and reader not in found:
                        found[reader] = None
                        queue.append(reader)
        return list(found)

    def _is_too_much(self, node: Node, shared: dict[Value, _Sharing]) -> bool:
        grown = 0.0
        for value in node.outputs:
            if value is None:
                continue
            if not may_be_tensor(value) and (value.is_output or shared[value].staying):
                return True
            if value.is_output and lacks_identity(value):
                return True
            if value.uses or value.is_output:
                grown += bytes_of(value) or 0
        return grown - self._freed(node, shared) > self.limit

    def _freed(self, node: Node, shared: dict[Value, _Sharing]) -> float:
        freed = 0.0
        for value in dict.fromkeys(reads(node)):
            if value.graph is self.graph and not value.is_output and not shared[value].staying:
                freed += (bytes_of(value) or 0) / shared[value].readers
        return freed

    def _fold(self, region: dict[Node, None]) -> tuple[int, list[Value]]:
        """Compute a region and put constants in its place; nodes removed, constants made."""
        made, constants = 0, []
        # What cannot be computed as one model is halved until the operator at fault is alone.
        pending = list(_batches(region))[::-1]
        while pending:
            batch = _computable(pending.pop())
            if not batch:
                continue
            try:
                found = evaluate(batch, self._needed(batch), reference=len(batch) == 1)
            except InputError:
                if len(batch) == 1:
                    self.left.add(batch[0])
                else:
                    middle = len(batch) // 2
                    pending += [batch[middle:], batch[:middle]]
                continue
            folded, made_here = self._replace(batch, found)
            made += folded
            constants += made_here
        return made, constants

    def _needed(self, nodes: list[Node]) -> list[Value]:
        """What the nodes make for the outside."""
        inside = set(nodes)
        return [
            value
            for node in nodes
            for value in node.outputs
            if value is not None
            and (value.is_output or any(n not in inside for n in self.graph.consumers(value)))
        ]

    def _replace(self, nodes: list[Node], found: dict[Value, Tensor]) -> tuple[int, list[Value]]:
        replaced: dict[Value, Value] = {}
        for value, tensor in found.items():
            if bytes_of(value) is None and tensor.nbytes > self.limit + self._bytes_read(value):
                continue
            replaced[value] = self.graph.constant(tensor, value.name)
            self.graph.replace_uses(value, replaced[value])
        _drop(self.graph, nodes[::-1], replaced)
        for node in nodes:
            if node.in_graph:
                self.left.add(node)
            else:
                self.ctx.rewrote(f"{node.label}: constant")
        return sum(not node.in_graph for node in nodes), list(replaced.values())

    @staticmethod
    def _bytes_read(value: Value) -> int:
        return sum(bytes_of(v) or 0 for v in reads(value.producer)) if value.producer else 0


def _computable(nodes: list[Node]) -> list[Node]:
    """Without those that read what could not be computed."""
    kept: dict[Node, None] = {}
    for node in nodes:
        if all(v.is_constant or v.producer in kept for v in reads(node)):
            kept[node] = None
    return list(kept)


def _batches(region: Iterable[Node]) -> Iterator[list[Node]]:
    batch: list[Node] = []
    total = 0
    for node in region:
        touched = {*reads(node), *(v for v in node.outputs if v is not None)}
        size = sum(bytes_of(v) or 0 for v in touched)
        if batch and total + size > _BATCH_BYTES:
            yield batch
            batch, total = [], 0
        batch.append(node)
        total += size
    if batch:
        yield batch
