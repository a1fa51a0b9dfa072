"""Removing operators that give back their input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxq.ir import (
    Context,
    DataType,
    Graph,
    Node,
    Pass,
    Shape,
    Value,
    attribute_value,
    remove_unused,
)
from onnxq.ir.operators import is_inference_dropout, is_packed, schema_of
from onnxq.ir.shape_values import constant_ints
from onnxq.passes.nodes import bypass, stated, visit
from onnxq.passes.slicing import TO_THE_END, slice_limits


@dataclass(frozen=True)
class EliminateIdentity(Pass):
    """Let the readers of an operator that gives back its input read that input.

    Rewritten, in subgraphs too:

    - Identity; Dropout in inference; Cast and CastLike to the dtype the input has; Transpose
      that keeps the order.
    - Reshape, Flatten, Squeeze and Unsqueeze that keep the shape: input and output agree in all
      dimensions but at most one (the equal number of elements fixes that one, unless another is
      zero), or a constant shape says so by copying (0), repeating or inferring (-1) each
      dimension. Expand to known dimensions the input has. Tile by ones.
    - Pad by zeros; Slice from the start to the end in steps of one; Split into one part; Concat,
      Sum, Mean, Min and Max of a single input; Where whose constant condition is the same
      everywhere and whose chosen branch has the output's shape.
    - Add of 0, Sub of 0, Mul and Div by 1, when the constant neither widens the shape nor is
      anything else anywhere.
    - Resize and Upsample by scales of one or to the size there is.
    - Clip without bounds and pooling over single elements (MaxPool), of integers only.

    Not rewritten:

    - Adding +0.0 to floats, and AveragePool over single elements: they turn -0.0 into 0.0.
      (Adding -0.0 and subtracting +0.0 keep every bit and are rewritten.)
    - Clip without bounds of floats, which makes infinities finite, and MaxPool of floats, which
      does so with -inf and NaN.
    - Resize with ``tf_crop_and_resize``, which reads a region of interest.
    - Operators with a further output that is used (Dropout's mask, MaxPool's indices).
    - An Identity that makes a graph output of a graph input, a constant, an outer value or
      another graph output: an output has a name of its own. Any other operator of the list in
      this place becomes such an Identity, except of 2-bit and 4-bit elements, which have none.
    """

    name = "eliminate-identity"
    default = True
    after = ("fold-constants",)
    needs_types = True

    def run(self, graph: Graph, ctx: Context) -> int:
        """See `Pass.run`; counts the operators bypassed."""
        return visit(graph, ctx, _RULES, _eliminate)


def _eliminate(node: Node) -> str | None:
    if any(v is not None and v.is_used for v in node.outputs[1:]):
        return None
    if not node.outputs or node.outputs[0] is None or schema_of(node) is None:
        return None
    old, new = node.output, _RULES[node.op_type](node)
    if new is None or not old.is_used:
        return None
    if not bypass(node, new):
        if node.is_op("Identity") or is_packed(old):
            if not old.uses:
                return None
            node.graph.replace_uses(old, new, where=lambda use: True)
            return f"its readers read '{new.name}'"
        node.graph.replace_uses(old, new)
        remove_unused(node.graph, [node])
    return f"gives back '{new.name}'"


def _identity(node: Node) -> Value | None:
    return node.input(0)


def _dropout(node: Node) -> Value | None:
    return node.input(0) if is_inference_dropout(node) else None


def _cast(node: Node) -> Value | None:
    value, like = node.input(0), node.input(1)
    target = node.get("to") if node.is_op("Cast") else like.dtype if like is not None else None
    if value is None or value.dtype in (None, DataType.UNDEFINED) or value.dtype != target:
        return None
    return value


def _transpose(node: Node) -> Value | None:
    perm, value = node.get("perm"), node.input(0)
    if perm is not None:
        return value if list(perm) == list(range(len(perm))) else None
    return value if value is not None and value.rank in (0, 1) else None


def _same_elements(node: Node) -> Value | None:
    """For operators that only give the same elements another shape."""
    value = node.input(0)
    if value is None:
        return None
    if value.shape is not None and _are_same(value.shape, node.output.shape):
        return value
    if node.is_op("Reshape") and node.graph.opset >= 5 and value.shape is not None:
        target = constant_ints(node.input(1))
        copies = not node.get("allowzero", 0)
        return value if target is not None and _keeps(value.shape, target, copies) else None
    return value if node.is_op("Flatten") and _keeps_rank_two(node, value) else None


def _are_same(before: Shape, after: Shape | None) -> bool:
    """Whether two shapes of equally many elements are certainly the same."""
    if after is None or len(before) != len(after):
        return False
    open_dims = 0
    for a, b in zip(before, after, strict=True):
        if not isinstance(a, int) or not isinstance(b, int):
            open_dims += 1
        elif a != b:
            return False
    return open_dims == 0 or (open_dims == 1 and 0 not in (*before, *after))


def _keeps(shape: Shape, target: list[int], copies: bool) -> bool:
    """Whether a Reshape to ``target`` keeps a shape; ``copies`` says what 0 means there."""
    if len(shape) != len(target) or target.count(-1) > 1:
        return False
    if -1 in target and (0 in shape or (0 in target and not copies)):
        return False
    return all(
        wanted in (-1, dim) if wanted or not copies else True
        for dim, wanted in zip(shape, target, strict=True)
    )


def _keeps_rank_two(node: Node, value: Value) -> bool:
    return value.rank == 2 and node.get("axis", 1) in (1, -1)


def _expand(node: Node) -> Value | None:
    value = node.input(0)
    if value is None or value.shape is None:
        return None
    if value.shape == node.output.shape and all(isinstance(d, int) for d in value.shape):
        return value
    target = constant_ints(node.input(1))
    if target is None or len(target) > len(value.shape):
        return None
    dims = value.shape[len(value.shape) - len(target) :]
    return value if all(n in (1, d) for n, d in zip(target, dims, strict=True)) else None


def _tile(node: Node) -> Value | None:
    return node.input(0) if node.graph.opset >= 6 and _all_are(node.input(1), 1) else None


def _pad(node: Node) -> Value | None:
    pads = stated(node, "paddings" if "paddings" in node.attributes else "pads", 1)
    return node.input(0) if pads is not None and not any(pads) else None


def _slice(node: Node) -> Value | None:
    value = node.input(0)
    limits = slice_limits(node)
    if value is None or limits is None:
        return None
    for start, end, axis, step in limits:
        in_rank = value.shape is not None and -len(value.shape) <= axis < len(value.shape)
        dim = value.shape[axis] if value.shape is not None and in_rank else None
        reaches = end >= TO_THE_END or (isinstance(dim, int) and end >= dim)
        begins = start == 0 or (isinstance(dim, int) and start <= -dim)
        if step != 1 or not reaches or not begins:
            return None
    return value


def _single_input(node: Node) -> Value | None:
    return node.input(0) if len(node.inputs) == 1 else None


def _split(node: Node) -> Value | None:
    return node.input(0) if len(node.outputs) == 1 else None


def _where(node: Node) -> Value | None:
    condition = node.input(0)
    if condition is None or not condition.is_constant:
        return None
    chosen = np.unique(condition.numpy())
    if chosen.size != 1:
        return None
    value = node.input(1 if chosen[0] else 2)
    shape = value.shape if value is not None else None
    if shape is None or shape != node.output.shape or not all(isinstance(d, int) for d in shape):
        return None
    return value


def _neutral(node: Node) -> Value | None:
    """Add, Sub, Mul and Div whose one operand changes nothing."""
    if node.graph.opset < 7:
        return None
    sides = [(0, 1), (1, 0)] if node.is_op("Add", "Mul") else [(0, 1)]
    for kept, other in sides:
        value, constant = node.input(kept), node.input(other)
        if value is not None and constant is not None and _is_neutral(node, value, constant):
            return value
    return None


def _is_neutral(node: Node, value: Value, constant: Value) -> bool:
    if not constant.is_constant or not _broadcasts_into(constant.shape, value.shape):
        return False
    numbers = constant.numpy()
    if node.is_op("Mul", "Div"):
        return bool((numbers == 1).all())
    if not (numbers == 0).all():
        return False
    if constant.dtype is None or not constant.dtype.is_float:
        return True
    negative = np.signbit(numbers.astype(np.float64))
    return bool(negative.all() if node.is_op("Add") else not negative.any())


def _broadcasts_into(small: Shape | None, shape: Shape | None) -> bool:
    """Whether broadcasting a constant against a value leaves the value's shape as it is."""
    if small is None:
        return False
    if shape is None or len(small) > len(shape):
        return not small
    dims = shape[len(shape) - len(small) :]
    return all(a == 1 or a == b for a, b in zip(small, dims, strict=True))


def _resize(node: Node) -> Value | None:
    if attribute_value(node, "coordinate_transformation_mode") == "tf_crop_and_resize":
        return None
    value = node.input(0)
    if node.is_op("Upsample") or node.graph.opset < 11:
        scales, sizes = node.input(1), None
        if node.graph.opset < 9:
            given = node.get("scales")
            return value if given is not None and all(s == 1 for s in given) else None
    else:
        scales, sizes = node.input(2), node.input(3)
    if sizes is None:
        return value if _all_are(scales, 1) else None
    wanted = constant_ints(sizes)
    if value is None or value.shape is None or wanted is None:
        return None
    axes = node.get("axes", range(len(value.shape)))
    if len(axes) != len(wanted) or any(not -len(value.shape) <= a < len(value.shape) for a in axes):
        return None
    return value if [value.shape[a] for a in axes] == wanted else None


def _clip(node: Node) -> Value | None:
    value = node.input(0)
    unbounded = node.graph.opset >= 11 and len(node.inputs) == 1
    return value if unbounded and _is_integer(value) else None


def _max_pool(node: Node) -> Value | None:
    ones = (*node.get("kernel_shape", (0,)), *node.get("strides", (1,)))
    unpadded = not any(node.get("pads", ()))
    return node.input(0) if set(ones) == {1} and unpadded and _is_integer(node.input(0)) else None


def _is_integer(value: Value | None) -> bool:
    return value is not None and value.dtype is not None and value.dtype.numpy.kind in "iu"


def _all_are(value: Value | None, number: int) -> bool:
    """Whether a value is constant, not empty and everywhere this number."""
    if value is None or not value.is_constant:
        return False
    numbers: np.ndarray[Any, Any] = value.numpy()
    return numbers.size > 0 and bool((numbers == number).all())


_RULES: dict[str, Callable[[Node], Value | None]] = {
    **dict.fromkeys(("Cast", "CastLike"), _cast),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _same_elements),
    **dict.fromkeys(("Concat", "Sum", "Mean", "Min", "Max"), _single_input),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), _neutral),
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    "Identity": _identity,
    "Dropout": _dropout,
    "Transpose": _transpose,
    "Expand": _expand,
    "Tile": _tile,
    "Pad": _pad,
    "Slice": _slice,
    "Split": _split,
    "Where": _where,
    "Clip": _clip,
    "MaxPool": _max_pool,
}
