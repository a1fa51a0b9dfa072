"""Which nodes of a graph compute on integers, and which values carry QDQ pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from onnxq.ir import DataType, Graph, Node, Use, Value
from onnxq.ir.lifting import can_lift
from onnxq.passes.nodes import made_by
from onnxq.passes.notes import BY_REQUEST, Reason, node_name
from onnxq.passes.static.lines import Line, line_of, takes_offset
from onnxq.passes.static.operands import activation_slots, activations, product_slots
from onnxq.passes.static.refusals import no_line, no_rule, refusal, unfit
from onnxq.quant import ZERO_POINT, Format
from onnxq.targets import OperatorRule, Target

ALREADY_QUANTIZED = Reason("quantized", "it is quantized already")
"""Reason of nodes that read integers before anything is quantized."""

_APART = Reason("neighbours", "not between integer operators")
_NO_RESIDUAL = Reason("neighbours", "it does not follow a product in integers")
_CLIPS_APART = Reason("attribute", "its bounds are computed or leave zero out")
_CONSTANT = Reason("neighbours", "its input is constant")
_UNSTEADY = Reason("shape", "what it reads or gives may have another shape in each iteration")
_LARGEST = 1e8
"""Beyond are masks (-1e9, the smallest float), which leave no integers for any other number."""

_PAIR = ("QuantizeLinear", "DequantizeLinear")


@dataclass
class Placement:
    """Where integers begin and end.

    Attributes:
        nodes: Quantized nodes and the rule that quantizes each.
        integer: Values that are given as integers, so that every reader reads the pair, each
            with the nodes that make it: the computing one, and its Relu or Clip.
        roots: Every value with a QDQ pair, in topological order, and the value whose range it
            uses (itself, except behind operators that only move values about).
        lines: Values that are lines of others, and so have their integers: these read with another
            scale and zero-point.
        left_in_float: Reason for each node that stays in float.
    """

    nodes: dict[Node, OperatorRule] = field(default_factory=dict)
    integer: dict[Value, list[Node]] = field(default_factory=dict)
    roots: dict[Value, Value] = field(default_factory=dict)
    lines: dict[Value, Line] = field(default_factory=dict)
    left_in_float: dict[Node, Reason] = field(default_factory=dict)

    def observed(self) -> list[str]:
        """Names of the values whose ranges have to be known, each once."""
        return [v.name for v in dict.fromkeys(self.roots.values()) if not self.is_known(v)]

    def is_known(self, root: Value) -> bool:
        """Whether nothing has to be observed of a root: its range follows from something else."""
        return root in self.lines or known_range(root, self) is not None

    def reads_pair(self, use: Use) -> bool:
        """Whether this use reads integers through a QDQ pair."""
        rule = self.nodes.get(use.node)
        return rule is not None and use.slot in activation_slots(use.node, rule)


def place(
    graph: Graph,
    target: Target,
    keep_float: frozenset[str] = frozenset(),
    left_in_float: Mapping[Node, Reason] | None = None,
) -> Placement:
    """Choose the nodes to quantize and the values that carry QDQ pairs.

    Computing operators are quantized wherever their weights allow. One that merely follows
    (Add, pooling, ...) joins only on a path from an operator that must give integers to one
    that reads them: anywhere else the border costs more than its integer kernel saves. Exceptions
    are those of `needs_pair_behind`. On a target that wants everything in integers it joins
    wherever it stands.

    Bodies of If, Loop and Scan are placed like the graph around them. What they read of it carries
    a pair in the body, too, where runtimes fuse it.

    Args:
        graph: Float graph with known element types.
        target: The table to follow.
        keep_float: Names of nodes that stay in float by wish.
        left_in_float: Nodes already known to stay in float, and why.
    """
    placed = Placement(left_in_float=_known_to_stay(graph, keep_float) | dict(left_in_float or {}))
    joining: dict[Node, OperatorRule] = {}
    for node in graph.all_nodes():
        if node in placed.left_in_float or not _makes_floats(node) or node.is_op(*_PAIR):
            continue
        rule = target.operators.get(node.op_type) if not node.domain else None
        reason = None
        if rule is not None and rule.role == "absorb" and target.everything:
            rule = _clipping_rule(node, rule, target, placed)
        if rule is None:
            reason = no_rule(node, target)
        elif not all(can_lift(v) for v in (*node.inputs, *node.outputs) if v and not v.is_constant):
            reason = _UNSTEADY
        elif rule.role == "compute":
            reason = refusal(node, rule, target)
            if not reason:
                placed.nodes[node] = rule
                if rule.output == "quantized":
                    placed.integer[_carrier(node.output, target, placed)] = [node]
        elif rule.role == "absorb":
            makers = placed.integer.get(_carrier(node.output, target, placed))
            if makers:
                makers.append(node)
                chosen = placed.nodes if makers[0] in placed.nodes else joining
                chosen[node] = rule
            else:
                reason = _CLIPS_APART if _clips_apart(node) else _APART
        elif rule.role == "residual":
            if _fuses_residual(node, placed):
                placed.nodes[node] = rule
            else:
                reason = _NO_RESIDUAL
        elif joined := _joined(node, rule, placed, joining, target):
            joining[node] = joined
            for value in node.outputs:
                if value is not None:
                    placed.integer[_carrier(value, target, placed)] = [node]
        else:
            apart = _CONSTANT if target.everything else _APART
            reason = unfit(node, rule) or no_line(node, rule, target) or apart
        if reason is not None:
            placed.left_in_float[node] = reason
    if target.everything:
        placed.nodes.update(joining)
    else:
        _keep_useful(graph, target, placed, joining)
    _find_roots(graph, placed)
    return placed


def place_within(
    graph: Graph,
    target: Target,
    ranges: Mapping[str, tuple[float, float]],
    keep_float: frozenset[str] = frozenset(),
    left_in_float: Mapping[Node, Reason] | None = None,
) -> Placement:
    """What `place` chooses of the nodes whose activations have usable ranges.

    These are known, finite and hold no masks. Where a node falls out others may have to follow,
    so it is placed anew until all that is left has ranges.

    Args:
        graph: Float graph with known element types.
        target: The table to follow.
        ranges: Smallest and largest value of tensors, by name.
        keep_float: Names of nodes that stay in float by wish.
        left_in_float: Nodes already known to stay in float, and why.
    """
    known = dict(left_in_float or {})
    placed = place(graph, target, keep_float, known)
    while refused := _without_range(placed, ranges):
        known |= refused
        placed = place(graph, target, keep_float, known)
    return placed


def _without_range(
    placed: Placement, ranges: Mapping[str, tuple[float, float]]
) -> dict[Node, Reason]:
    """Placed nodes that read or give a value without a usable range."""
    refused: dict[Node, Reason] = {}
    for value, root in placed.roots.items():
        if placed.is_known(root):
            continue
        bounds = ranges.get(root.name)
        if bounds is None:
            text = f"calibration gave no range for '{root.name}'"
        elif not np.isfinite(bounds).all():
            text = f"'{root.name}' has infinite or NaN values"
        elif max(map(abs, bounds)) > _LARGEST:
            text = f"'{root.name}' holds {max(bounds, key=abs):.3g}, which masks everything else"
        else:
            continue
        touching = [use.node for use in value.uses if placed.reads_pair(use)]
        touching += placed.integer.get(value, [])
        refused.update(dict.fromkeys(touching, Reason("range", text)))
    return refused


def known_range(
    value: Value, placed: Placement, format: Format | None = None
) -> tuple[float, float] | None:
    """The range that the target's table gives a value whatever the data, None if calibration does.

    A HardSigmoid that saturates lies between 0 and 1, for one. Some tables fix ranges for one
    format alone; without a format, that of all is meant.
    """
    rule = placed.nodes.get(value.producer) if value.producer is not None else None
    if rule is None:
        return None
    is_wide = format is not None and format.bits == 16
    return rule.range_16bit if is_wide and rule.range_16bit else rule.range


def needs_pair_behind(node: Node, rule: OperatorRule, target: Target) -> bool:
    """Whether a node that moves integers about must give integers, whoever reads them.

    onnxruntime puts a pair behind such a node by itself, states its type in an attribute from opset
    21 on, and then, on x86, makes uint8 of the zero-point: int8 models fail to load (1.31).
    """
    moves = rule.role == "share" and rule.form != "line"
    return moves and target.activation_format.signed and node.graph.opset >= 21


def _known_to_stay(graph: Graph, keep_float: frozenset[str]) -> dict[Node, Reason]:
    """Nodes that are not even considered, and why."""
    stay = {}
    for node in graph.all_nodes():
        if any(made_by(v, "DequantizeLinear") for v in node.inputs):
            stay[node] = ALREADY_QUANTIZED
        elif node_name(node) in keep_float:
            stay[node] = BY_REQUEST
    return {n: r for n, r in stay.items() if _makes_floats(n) and not n.is_op(*_PAIR)}


def _makes_floats(node: Node) -> bool:
    """Whether there is anything to quantize: shape arithmetic, say, is in integers anyway."""
    return any(v is not None and (v.dtype is None or v.dtype.is_float) for v in node.outputs)


def _carrier(value: Value, target: Target, placed: Placement) -> Value:
    """The value that carries the pair of an integer result: behind its Relu or Clip, if any."""
    while len(value.uses) == 1 and not value.is_output:
        node, slot = value.uses[0]
        rule = target.operators.get(node.op_type) if not node.domain else None
        if (
            rule is None
            or rule.role != "absorb"
            or slot != 0
            or node.graph is not value.graph
            or node in placed.left_in_float
            or _clips_apart(node)
        ):
            break
        value = node.output
    return value


def _clips_apart(node: Node) -> bool:
    """Whether saturation cannot do a node's clipping: bounds are computed or leave zero out."""
    low, high = node.input(1), node.input(2)
    if any(bound is not None and not bound.is_constant for bound in (low, high)):
        return True
    holds_zero = (low is None or low.numpy() <= 0) and (high is None or high.numpy() >= 0)
    return not holds_zero


def _joined(
    node: Node,
    rule: OperatorRule,
    placed: Placement,
    joining: Mapping[Node, OperatorRule],
    target: Target,
) -> OperatorRule | None:
    """The rule by which a node that does not compute can join; None if it cannot."""
    slot = _line_slot(node, placed, joining, target) if rule.form == "line" else None
    if slot is not None:
        rule = replace(rule, role="share", activations=(slot,), constant_inputs=False)
    elif rule.form == "line" and rule.role == "share":
        return None
    return rule if _can_join(node, rule, placed, target) else None


def _line_slot(
    node: Node, placed: Placement, joining: Mapping[Node, OperatorRule], target: Target
) -> int | None:
    """Where a node reads what it gives a line of as the same integers; None if it does not.

    An offset needs readers that make up for what is no whole step of it. It moves the zero of what
    is read, which therefore nothing else may read, and which clipping must leave within the range:
    runtimes drop an operator that clips only if the range ends where it clips.
    """
    line, made = line_of(node), node.output
    if line is None or target.activation_scheme != ZERO_POINT:
        return None
    source = line.source
    makers = placed.integer.get(source)
    if not makers or _carrier(made, target, placed) is not made:
        return None
    if source.graph is not node.graph or not _holds_zero(line, placed):
        return None
    maker = joining.get(makers[0]) or placed.nodes[makers[0]]
    if maker.role == "share" and maker.form != "line":
        return None
    is_alone = len(source.uses) == 1 and not source.is_output and not made.is_output
    if line.offset and not (is_alone and all(takes_offset(use, target) for use in made.uses)):
        return None
    return node.inputs.index(source)


def _holds_zero(line: Line, placed: Placement) -> bool:
    """Whether what is clipped before a line, or before lines in a row, reaches its zero."""
    value, zero = line.source, line.zero
    while True:
        maker = value.producer
        before = placed.integer.get(value, [])
        if maker is None or maker is not before[0]:
            break
        found = line_of(maker) if maker.is_op("Mul", "Div", "Add", "Sub") else None
        if found is None:
            # What clips to 0 and 1 as integers gives nothing beyond these.
            return not maker.is_op("HardSigmoid") or 0 <= zero <= 1
        value, zero = found.source, (zero - found.offset) / found.slope
    if maker is None or maker.is_op("Relu"):
        return zero >= 0
    low, high = maker.input(1), maker.input(2)
    is_above = low is None or zero >= float(low.numpy())
    return is_above and (high is None or zero <= float(high.numpy()))


def _clipping_rule(
    node: Node, rule: OperatorRule, target: Target, placed: Placement
) -> OperatorRule:
    """The rule of a clipping operator where everything is quantized.

    It is an operator of its own if nothing before it can do the clipping.
    """
    absorbed = _carrier(node.output, target, placed) in placed.integer
    return rule if absorbed else replace(rule, role="follow")


def _fuses_residual(node: Node, placed: Placement) -> bool:
    """Whether an addition follows a product in integers and reads another activation."""
    slots = product_slots(node)
    if not slots or len(node.inputs) != 2:
        return False
    product, other = node.input(slots[0]), node.input(1 - slots[0])
    if other is None or other.is_constant or other.dtype is not DataType.FLOAT:
        return False
    return product is not None and product.producer in placed.nodes and not product.is_output


def _can_join(node: Node, rule: OperatorRule, placed: Placement, target: Target) -> bool:
    if unfit(node, rule):
        return False
    found = False
    for slot in activation_slots(node, rule):
        value = node.input(slot)
        if value is None and slot:
            continue
        if value is None or value.dtype is not DataType.FLOAT:
            return False
        if value in placed.integer or (target.everything and not value.is_constant):
            found = True
        elif not (rule.constant_inputs and value.is_constant and np.isfinite(value.numpy()).all()):
            return False
    return found


def _keep_useful(
    graph: Graph, target: Target, placed: Placement, joining: dict[Node, OperatorRule]
) -> None:
    """Of the nodes that could join, keep those that lead to a node that reads integers."""
    for node in reversed([*graph.all_nodes()]):
        if node not in joining:
            continue
        outputs = [v for v in node.outputs if v is not None]
        read = any(placed.reads_pair(use) for value in outputs for use in value.uses)
        if read or needs_pair_behind(node, joining[node], target):
            placed.nodes[node] = joining[node]
            continue
        placed.left_in_float[node] = _APART
        for value in outputs:
            placed.integer.pop(value, None)
            placed.integer.pop(_carrier(value, target, placed), None)


def _find_roots(graph: Graph, placed: Placement) -> None:
    carrying = set(placed.integer)
    for node, rule in placed.nodes.items():
        if rule.role != "absorb":
            carrying.update(activations(node, rule))
    for value in (v for scope in graph.all_graphs() for v in scope.inputs):
        if value in carrying:
            placed.roots[value] = value
    for node in graph.all_nodes():
        own = placed.nodes.get(node)
        shares = own is not None and own.role == "share"
        line = line_of(node) if shares and own and own.form == "line" else None
        source = node.input(0) if shares and line is None else None
        for made in node.outputs:
            if made is not None and made in carrying:
                placed.roots[made] = placed.roots[source] if source else made
                if line is not None:
                    placed.lines[made] = line
