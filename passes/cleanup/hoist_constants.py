"""Moving computations out of the bodies of If, Loop and Scan."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass

from onnxq.ir import Context, DataType, Graph, Node, Pass, Value, remove_unused
from onnxq.ir.copying import inline, reads
from onnxq.ir.operators import is_deterministic
from onnxq.ir.shape_values import constant_ints
from onnxq.ir.types import static_size
from onnxq.passes.cleanup.node_key import node_key
from onnxq.passes.nodes import listed

_FIRST_SCAN_OPSET = 9
"""Before it Scan has a batch axis and lengths of its own."""

_SMALL = 64
"""Elements up to which integers are taken for a shape computation, which costs nothing."""

_COMPARED_BYTES = 1 << 20
"""Largest constant of one branch that is looked for in the other."""

_INTEGERS = frozenset({DataType.INT32, DataType.INT64, DataType.BOOL})

_SHAPE_ARITHMETIC = listed("Abs Add Cast Concat Equal Max Min Mul Neg Squeeze Sub Unsqueeze")
"""Operators that cannot fail on integers of known shape, whatever these are."""


@dataclass(frozen=True)
class HoistConstants(Pass):
    """Compute outside a body what is the same in each of its runs.

    Rewritten, innermost bodies first, for operators that ONNX defines, that are deterministic and
    that read only values of outer graphs, constants and what moves out with them:

    - Out of a Loop or Scan whose body certainly runs (a constant trip count of one or more and no
      or a constant true condition; a scanned axis of known size): every such operator.
    - Out of any other Loop or Scan: shape computations, which cost little and cannot fail (Shape
      and Size of anything; arithmetic on at most 64 integers of known shape, and Gather from them
      at constant places that are there).
    - Out of an If: what both branches compute from the same.

    Not rewritten:

    - Everything else in a body that may not run: it could fail there, or take time for nothing.
      Likewise what only one branch of an If computes.
    - Initializers of bodies that only stay in use there. They are stored once as they are, and
      runtimes look for the weight of a convolution in its own graph when they change its layout.
      (Equal ones of outer graphs are merged by `eliminate-common-subexpressions`.)
    - Constant nodes, which `fold-constants` makes initializers; Identity; operators that make
      what a body gives back, since that has to be made in the body.
    - Random operators, and what they feed; operators of other domains and model-local functions.
    """

    name = "hoist-constants"
    default = True
    needs_types = True

    def run(self, graph: Graph, ctx: Context) -> int:
        """See `Pass.run`; counts the operators moved out."""
        made = 0
        for node in graph.nodes():
            for nested in node.subgraphs():
                made += self.run(nested, ctx)
            body = node.get("body")
            if node.is_op("Loop", "Scan") and isinstance(body, Graph):
                made += _out_of_body(node, body, ctx)
            elif node.is_op("If"):
                made += _out_of_branches(node, ctx)
        return made


def _out_of_body(holder: Node, body: Graph, ctx: Context) -> int:
    certain = _certainly_runs(holder)
    moving = _Moving(body, holder.graph)
    for node in body.nodes():
        if _is_free(node, moving.outside) and (certain or _costs_nothing(node)):
            ctx.rewrote(f"{node.label}: out of the body of {holder.label}")
            moving.move(node)
    moving.finish()
    return moving.count


def _out_of_branches(holder: Node, ctx: Context) -> int:
    first, second = holder.get("then_branch"), holder.get("else_branch")
    if not isinstance(first, Graph) or not isinstance(second, Graph):
        return 0
    numbers: dict[Hashable, int] = {}
    ours, theirs = _numbered(first, numbers), _numbered(second, numbers)
    both = set(ours.values()) & set(theirs.values())
    moving = _Moving(first, holder.graph)
    moved: dict[int, tuple[Value | None, ...]] = {}
    for node, number in ours.items():
        if number in moved:
            moving.replace(node, moved[number])
        elif number in both:
            ctx.rewrote(f"{node.label}: out of both branches of {holder.label}")
            moved[number] = moving.move(node)
    moving.finish()
    for node, number in theirs.items():
        if number in both:
            _Moving(second, holder.graph).replace(node, moved[number])
    return len(moved)


def _numbered(branch: Graph, numbers: dict[Hashable, int]) -> dict[Node, int]:
    """The free nodes of a branch, with equal numbers for what computes the same."""
    tokens: dict[Value, Hashable] = {}
    found: dict[Node, int] = {}
    for value in branch.initializers():
        if value.is_constant and value.data is not None and value.data.nbytes <= _COMPARED_BYTES:
            tokens[value] = value.data.digest()
    for node in branch.nodes():
        inner = [v for v in node.inputs if v is not None and v.graph is branch]
        if not all(v in tokens for v in inner) or not _is_free(node, tokens):
            continue
        key = node_key(node, tuple(v if v is None else tokens.get(v, v) for v in node.inputs))
        if key is None:
            continue
        number = numbers.setdefault(key, len(numbers))
        found[node] = number
        for made in node.outputs:
            if made is not None:
                tokens[made] = (number, made.slot)
    return found


def _is_free(node: Node, outside: Collection[Value]) -> bool:
    """Whether a node depends on nothing that stays in its body, and may be moved at all."""
    if node.is_op("Constant", "Identity") or not is_deterministic(node):
        return False
    if any(v is not None and v.is_output for v in node.outputs):
        return False
    if any(attribute.reference for attribute in node.attributes.values()):
        return False
    return all(v.graph is not node.graph or v.is_constant or v in outside for v in reads(node))


def _certainly_runs(holder: Node) -> bool:
    """Whether the body of a Loop or Scan is run at least once."""
    if holder.is_op("Loop"):
        trips, condition = holder.input(0), holder.input(1)
        return (trips is None or _is_at_least_one(trips)) and (
            condition is None or _is_at_least_one(condition)
        )
    if holder.graph.opset < _FIRST_SCAN_OPSET:
        return False
    scanned = holder.inputs[len(holder.inputs) - holder.get("num_scan_inputs", 0) :]
    axes = holder.get("scan_input_axes", (0,) * len(scanned))
    for scan, axis in zip(scanned, axes, strict=False):
        if scan is not None and scan.shape and -len(scan.shape) <= axis < len(scan.shape):
            size = scan.shape[axis]
            if isinstance(size, int) and size > 0:
                return True
    return False


def _is_at_least_one(value: Value) -> bool:
    return value.is_constant and value.numpy().size == 1 and bool((value.numpy() >= 1).all())


def _costs_nothing(node: Node) -> bool:
    """Whether a node is part of a shape computation that cannot fail."""
    if node.is_op("Shape", "Size"):
        return True
    values = [v for v in (*node.inputs, *node.outputs) if v is not None]
    if not all(_is_small_integer(v) for v in values):
        return False
    data, indices = node.input(0), constant_ints(node.input(1))
    if node.is_op("Gather") and data is not None and data.shape is not None:
        size = data.shape[0] if len(data.shape) == 1 else None
        if indices is None or not isinstance(size, int):
            return False
        return all(-size <= index < size for index in indices)
    return node.is_op(*_SHAPE_ARITHMETIC)


def _is_small_integer(value: Value) -> bool:
    size = static_size(value.shape)
    return value.dtype in _INTEGERS and size is not None and size <= _SMALL


class _Moving:
    """Moves nodes of one body into the graph around it."""

    def __init__(self, body: Graph, around: Graph) -> None:
        self.outside: dict[Value, Value] = {}
        """What stands for values of the body outside it."""
        self.count = 0
        self._body = body
        self._around = around
        self._names: list[tuple[Value, str]] = []

    def move(self, node: Node) -> tuple[Value | None, ...]:
        """Move a node whose inputs are constant or outside; gives what it makes there."""
        names = [(v, v.name) for v in node.outputs if v is not None]
        (copied,) = inline([node], self._around, self.outside)
        self._names += [(self.outside[old], name) for old, name in names]
        name = node.name
        self.replace(node, copied.outputs)
        self._around.rename_node(copied, name)
        self.count += 1
        return copied.outputs

    def replace(self, node: Node, outputs: Sequence[Value | None]) -> None:
        """Let the readers of a node of the body read values outside it instead."""
        for old, new in zip(node.outputs, outputs, strict=True):
            if old is not None and new is not None:
                self.outside[old] = new
                self._body.replace_uses(old, new)
        remove_unused(self._body, [node])

    def finish(self) -> None:
        """Let what stays read the constants that moved, and give names back."""
        for old, new in self.outside.items():
            if old is new or not old.is_constant:
                continue
            self._body.replace_uses(old, new, where=lambda use: True)
            if not old.is_used:
                if self._body.values.get(old.name) is old:
                    self._body.discard(old)
                self._names.append((new, old.name))
        for value, name in self._names:
            if self._around.fresh_name(name) == name:
                self._around.rename(value, name)
